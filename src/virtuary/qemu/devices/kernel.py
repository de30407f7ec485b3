"""A kernel that QEMU loads itself, without firmware looking for one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Kernel:
    file: Path
    initrd: Path
    arguments: str

    @property
    def settings(self) -> list[tuple[str, str]]:
        return [
            ("kernel", str(self.file)),
            ("initrd", str(self.initrd)),
            ("append", self.arguments),
        ]

    @property
    def readable(self) -> list[Path]:
        """Files that QEMU opens by path."""
        return [self.file, self.initrd]
