"""The seed of cloud-init: a read-only disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from virtuary.qemu.devices.backends import raw_node
from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Platform


@dataclass(frozen=True)
class Seed:
    file: Path

    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        device = {
            "driver": "virtio-blk-pci",
            "id": "seed0-device",
            "drive": "seed0",
            "serial": "seed",
            **platform.slot("seed0"),
        }
        grant = grants.add("seed0", self.file, "ro")
        return [raw_node("seed0", grant, read_only=True), Part("device", device)]
