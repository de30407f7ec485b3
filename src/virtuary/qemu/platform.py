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
    """The processor that is emulated: all that TCG knows but what makes a guest slower there."""
    kvm_cpu: str
    serial_device: str
    console: str
    """Kernel argument that puts the console on the first serial port."""


# Told that `rep movsb` and `rep stosb` are fast (ERMS, FSRM), Linux clears and copies pages with
# them, which TCG does byte by byte: reading a file from
# memory took up to eight times as long. FSRM without ERMS hangs Linux. With page tables of five
# levels (LA57) each miss of the TLB walks one more.
Q35 = Platform(
    arch="x86_64",
    program="qemu-system-x86_64",
    machine="q35",
    machine_options=(("smm", "off"), ("vmport", "off"), ("hpet", "off"), ("usb", "off")),
    tcg_cpu="max,erms=off,fsrm=off,la57=off",
    kvm_cpu="host",
    serial_device="isa-serial",
    console="console=ttyS0",
)

PLATFORMS: dict[str, Platform] = {Q35.arch: Q35}
