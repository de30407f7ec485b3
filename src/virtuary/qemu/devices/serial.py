"""The first serial port, which is the console."""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.qemu.devices.backends import listening
from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Platform


@dataclass(frozen=True)
class Serial:
    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        device = {"driver": platform.serial_device, "id": "serial-device", "chardev": "serial"}
        return [listening("serial", grants), Part("device", device)]
