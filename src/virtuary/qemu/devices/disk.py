"""A disk: a qcow2 file of ours, on layers of ours if there are any, each node with its format named
and discard passed down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        grant = grants.add(self.name, self.file, "rw")
        layers = self._layers(grants)
        file = {
            "node-name": f"{self.name}-file",
            "driver": "file",
            "filename": grant.fdset,
            "locking": "on",
            **_PASSED,
        }
        node = {
            "node-name": self.name,
            "driver": "qcow2",
            "file": f"{self.name}-file",
            "backing": self.below,
            "detect-zeroes": "unmap",
            **_PASSED,
        }
        return [*layers, Part("blockdev", file), Part("blockdev", node), self._device(platform)]

    def _device(self, platform: Platform) -> Part:
        turn = {} if self.bootindex is None else {"bootindex": self.bootindex}
        device = {
            "driver": "virtio-blk-pci",
            "id": f"{self.name}-device",
            "drive": self.name,
            "serial": self.serial,
            **turn,
            "werror": "enospc",
            "rerror": "report",
            **platform.slot(self.name),
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
