"""Random numbers of the host's kernel."""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Platform


@dataclass(frozen=True)
class Rng:
    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        device = {
            "driver": "virtio-rng-pci",
            "id": "rng0-device",
            "rng": "rng0",
            **platform.slot("rng0"),
        }
        backend = {"qom-type": "rng-builtin", "id": "rng0"}
        return [Part("object", backend), Part("device", device)]
