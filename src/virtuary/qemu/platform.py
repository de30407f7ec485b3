"""Virtual hardware platforms: what differs between them stands in a table, not in `if` ladders."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Platform:
    arch: str
    program: str
    machine: str
    """Machine alias; the versioned type behind it is pinned per server."""
    machine_options: tuple[tuple[str, str], ...]
    tcg_cpu: str
    kvm_cpu: str
    serial_device: str
    console: str
    """Kernel argument that puts the console on the first serial port."""


Q35 = Platform(
    arch="x86_64",
    program="qemu-system-x86_64",
    machine="q35",
    machine_options=(("smm", "off"), ("vmport", "off"), ("hpet", "off"), ("usb", "off")),
    tcg_cpu="max",
    kvm_cpu="host",
    serial_device="isa-serial",
    console="console=ttyS0",
)

PLATFORMS: dict[str, Platform] = {Q35.arch: Q35}
