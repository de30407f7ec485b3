"""A monitor: a socket at which QEMU is asked and told."""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.qemu.devices.backends import listening
from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Platform


@dataclass(frozen=True)
class Control:
    role: str

    @property
    def setting(self) -> tuple[str, str]:
        return ("mon", f"chardev={self.role},mode=control")

    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        return [listening(self.role, grants)]
