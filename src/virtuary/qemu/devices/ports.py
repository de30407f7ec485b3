"""Root ports: doors for devices that are plugged in while the machine runs."""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Place, Platform


@dataclass(frozen=True)
class RootPorts:
    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        return [
            Part(
                "device",
                {
                    "driver": "pcie-root-port",
                    "id": f"port{number}",
                    "chassis": number + 1,
                    "slot": number + 1,
                    **platform.port(number),
                },
            )
            for number in range(platform.ports)
        ]


def behind(number: int) -> Place:
    """Where a device sits that is plugged into this port."""
    return {"bus": f"port{number}"}
