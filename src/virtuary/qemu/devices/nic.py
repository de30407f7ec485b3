"""A NIC: there at the start, or plugged in while the machine runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Place, Platform


@dataclass(frozen=True)
class Nic:
    """What is there at the start: a tap of the host's, or a listening socket to which whoever
    serves the network is connected, and may be replaced.
    """

    mac: str
    tap: str | None = None
    """Name of the host's interface that it is; None: it is served through a socket."""
    number: int = 0

    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        if self.tap:
            number = grants.add("network", Path(self.tap), "given").number
            backend: dict[str, Any] = {"type": "tap", "fd": str(number)}
        else:
            number = grants.listen("network").number
            backend = {
                "type": "stream",
                "server": True,
                "addr": {"type": "fd", "str": str(number)},
            }
        return nic_parts(self.number, backend, self.mac, platform.slot(f"net{self.number}"))


def nic_parts(number: int, backend: dict[str, Any], mac: str, place: Place) -> list[Part]:
    """A NIC and what is behind it; the same at the start and when it is plugged in."""
    device = {
        "driver": "virtio-net-pci",
        "id": f"net{number}-device",
        "netdev": f"net{number}",
        "mac": mac,
        "romfile": "",
        **place,
    }
    return [Part("netdev", {"id": f"net{number}", **backend}), Part("device", device)]
