"""PCI Express slots of the root bus: who sits where. Pure.

Places are fixed per role, not handed out in order, so that adding a device never moves another: a
guest's interface names and a saved machine's layout depend on them. Slots from 0x10 on are for root
ports of hot-plugged devices.
"""

from __future__ import annotations

SLOTS: dict[str, int] = {
    "disk0": 0x02,
    "net0": 0x03,
    "serial-bus": 0x04,
    "rng0": 0x05,
    "balloon0": 0x06,
    "panic0": 0x07,
    "seed0": 0x08,
    "growth0": 0x09,
}


def slot(role: str) -> dict[str, str]:
    """Where the device of this role sits, as arguments of `-device`."""
    return {"bus": "pcie.0", "addr": f"0x{SLOTS[role]:x}"}


PORTS = 4
"""Root ports that wait for devices to be plugged in while the machine runs."""


def port(number: int) -> dict[str, str]:
    """Where a root port sits."""
    return {"bus": "pcie.0", "addr": f"0x{0x10 + number:x}"}
