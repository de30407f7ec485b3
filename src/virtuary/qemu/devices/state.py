"""A saved state: of all devices and, where the memory is no file, of that too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Platform


@dataclass(frozen=True)
class State:
    file: Path
    arrives: bool
    """Whether the machine waits for it at its start; else it is written at its end, by a template.
    """

    @property
    def settings(self) -> list[tuple[str, str]]:
        return [("incoming", "defer")] if self.arrives else []

    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        grants.add("state", self.file, "ro" if self.arrives else "wo")
        return []
