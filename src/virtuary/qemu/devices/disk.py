"""A disk: a qcow2 file of ours, on layers of ours if there are any, each node with its format named
and discard passed down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtuary.qemu.devices.ports import behind
from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Platform

_PASSED: dict[str, Any] = {"discard": "unmap"}


@dataclass(frozen=True)
class Disk:
    file: Path
    size: int
    """Bytes that it has at most: what its file says is held against it."""
    layers: tuple[Path, ...] = ()
    """What lies below it, the lowest (the image) first."""
    number: int = 0
    serial: str = "root"
    """What the guest knows it by."""
    bootindex: int | None = 0
    """Its turn when the firmware looks for a system; None: never."""
    read_only: bool = False

    @property
    def name(self) -> str:
        return f"disk{self.number}"

    @property
    def below(self) -> str | None:
        """The node right below it; None: it stands alone."""
        return self._layer(len(self.layers) - 1) if self.layers else None

    def _layer(self, number: int) -> str:
        return f"{self.name}-layer{number}" if number else f"{self.name}-base"

    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        grant = grants.add(self.name, self.file, "ro" if self.read_only else "rw")
        layers = self._layers(grants)
        return [*layers, *self.nodes(grant.fdset), self.device(platform)]

    def nodes(self, filename: str) -> list[Part]:
        """The file, and what stands in it."""
        kept: dict[str, Any] = {"read-only": True} if self.read_only else _PASSED
        file = {
            "node-name": f"{self.name}-file",
            "driver": "file",
            "filename": filename,
            "locking": "on",
            **kept,
        }
        node = {
            "node-name": self.name,
            "driver": "qcow2",
            "file": f"{self.name}-file",
            "backing": self.below,
            **({} if self.read_only else {"detect-zeroes": "unmap"}),
            **kept,
        }
        return [Part("blockdev", file), Part("blockdev", node)]

    def device(self, platform: Platform) -> Part:
        """What its guest sees."""
        place = behind(platform.disk_port(self.number)) if self.number else platform.slot(self.name)
        turn = {} if self.bootindex is None else {"bootindex": self.bootindex}
        device = {
            "driver": "virtio-blk-pci",
            "id": f"{self.name}-device",
            "drive": self.name,
            "serial": self.serial,
            **turn,
            "werror": "enospc",
            "rerror": "report",
            **place,
        }
        return Part("device", device)

    def _layers(self, grants: Grants) -> list[Part]:
        """The files below, read-only. Others read them too, so they are locked by none: whoever
        took one QEMU over could keep all others from starting.
        """
        parts: list[Part] = []
        for number, path in enumerate(self.layers):
            name = self._layer(number)
            file = {
                "node-name": f"{name}-file",
                "driver": "file",
                "filename": grants.add(name, path, "ro").fdset,
                "read-only": True,
                "locking": "off",
            }
            node = {
                "node-name": name,
                "driver": "qcow2",
                "file": f"{name}-file",
                "read-only": True,
                "backing": self._layer(number - 1) if number else None,
            }
            parts += [Part("blockdev", file), Part("blockdev", node)]
        return parts
