"""The balloon, by which memory is taken back and the guest tells what it has."""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Platform


@dataclass(frozen=True)
class Balloon:
    reporting: bool = True
    """Whether the guest tells which of its pages are free, so that the host gets them back at once.
    """

    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        device = {
            "driver": "virtio-balloon-pci",
            "id": "balloon0",
            "free-page-reporting": self.reporting,
            "deflate-on-oom": True,
            **platform.slot("balloon0"),
        }
        return [Part("device", device)]
