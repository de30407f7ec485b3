"""The device by which a guest's kernel tells that it panicked."""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Platform


@dataclass(frozen=True)
class Panic:
    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        device = {"driver": "pvpanic-pci", "id": "panic0", **platform.slot("panic0")}
        return [Part("device", device)]
