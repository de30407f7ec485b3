"""The generation id, by which a guest knows that it was copied."""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Platform


@dataclass(frozen=True)
class Generation:
    guid: str = "auto"

    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        return [Part("device", {"driver": "vmgenid", "id": "generation0", "guid": self.guid})]
