"""Memory: what the machine begins with, and what can be plugged while it runs.

A template's memory lies in a file, of which each copy has a private view that it can't write
through.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtuary.base.units import MIB
from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Platform


@dataclass(frozen=True)
class RamFile:
    """The file in which a template's memory lies."""

    path: Path
    copy: bool
    """Whether this is a copy's view: what the copy writes it keeps to itself."""


@dataclass(frozen=True)
class Memory:
    size: int
    """Bytes it begins with."""
    wished: int = 0
    """Bytes that its guest is to have, where it begins with less."""
    most: int = 0
    """Bytes it can be grown to in all; no more than it begins with when 0."""
    node: int | None = None
    """NUMA node of the host in which it lies."""
    huge_pages: bool = False
    merge: bool = False
    """Whether the kernel may keep pages that are equal in several machines once."""
    file: RamFile | None = None
    """None: it is the process's own."""

    @property
    def limit(self) -> int:
        """Bytes that there can ever be."""
        return max(self.size, self.most)

    @property
    def option(self) -> str:
        growth = f",maxmem={self.most // MIB}M" if self.most > self.size else ""
        return f"size={self.size // MIB}M{growth}"

    @property
    def readable(self) -> list[Path]:
        """Files that QEMU opens by path."""
        return [self.file.path] if self.file and self.file.copy else []

    @property
    def place(self) -> dict[str, Any]:
        """Where on the host it is to lie."""
        return {} if self.node is None else {"host-nodes": [self.node], "policy": "bind"}

    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        return [Part("object", self._backend())]

    def _backend(self) -> dict[str, Any]:
        named: dict[str, Any] = {"id": "ram0", "size": self.size}
        if self.huge_pages:
            kind = {"qom-type": "memory-backend-memfd", "hugetlb": True}
            return {**self.place, **kind, "share": False, "merge": False, **named}
        if self.file is None:
            own = {"qom-type": "memory-backend-ram", **named, "merge": self.merge}
            return {**own, **self.place}
        view = {"share": False, "readonly": True, "rom": "off"} if self.file.copy else _SHARED
        file = {"qom-type": "memory-backend-file", **named, "mem-path": str(self.file.path)}
        return {**file, **view, "merge": False}


_SHARED = {"share": True}


@dataclass(frozen=True)
class Growth:
    """Memory that can be plugged while the machine runs, none of it yet."""

    memory: Memory

    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        memory = self.memory
        if memory.most <= memory.size:
            return []
        backend = {
            "qom-type": "memory-backend-ram",
            "id": "growth0",
            "size": memory.most - memory.size,
            "merge": memory.merge,
            **memory.place,
        }
        device = {
            "driver": "virtio-mem-pci",
            "id": "growth0-device",
            "memdev": "growth0",
            "requested-size": 0,
            **platform.slot("growth0"),
        }
        return [Part("object", backend), Part("device", device)]
