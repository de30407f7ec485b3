"""Channels between programs in the guest and the host, by virtio-serial: the guest agent's, and the
one at which a template's guest waits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from virtuary.model.template import WAKE_PORT
from virtuary.qemu.devices.backends import listening
from virtuary.qemu.parts import Grants, Part
from virtuary.qemu.platforms.platform import Platform


@dataclass(frozen=True)
class Agent:
    """The guest agent's channel, with the bus that all channels are on."""

    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        bus = {
            "driver": "virtio-serial-pci",
            "id": "serial-bus",
            "max_ports": 8,
            **platform.slot("serial-bus"),
        }
        return [
            listening("agent", grants),
            Part("device", bus),
            _channel(1, "agent", "org.qemu.guest_agent.0"),
        ]


@dataclass(frozen=True)
class Wake:
    """Where the guest of a template waits until a copy of it is told who it is: a template has it,
    and all that goes on from one.
    """

    def parts(self, platform: Platform, grants: Grants) -> list[Part]:
        return [listening("wake", grants), _channel(2, "wake", WAKE_PORT)]


def _channel(number: int, chardev: str, name: str) -> Part:
    place: dict[str, Any] = {"id": f"{chardev}-device", "bus": "serial-bus.0", "nr": number}
    return Part("device", {"driver": "virtserialport", **place, "chardev": chardev, "name": name})
