"""Q35 on x86-64: Intel's chipset of 2007 with PCI Express, as QEMU emulates it."""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.model.disk import MAX_DISKS
from virtuary.qemu.platforms.platform import Place, Platform

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
"""Of the root bus: a place for each role, not handed out in order."""
FIRST_PORT = 0x10
"""Slots from here on are for root ports of hot-plugged devices."""


@dataclass(frozen=True)
class Q35(Platform):
    """Told that `rep movsb` and `rep stosb` are fast (ERMS, FSRM), Linux clears and copies pages
    with them, which TCG does byte by byte: reading a file from memory took up to eight times as
    long. FSRM without ERMS hangs Linux. With page tables of five levels (LA57) each miss of the TLB
    walks one more.
    """

    arch: str = "x86_64"
    program: str = "qemu-system-x86_64"
    machine: str = "q35"
    family: str = "pc-q35"
    machine_options: tuple[tuple[str, str], ...] = (
        ("smm", "off"),
        ("vmport", "off"),
        ("hpet", "off"),
        ("usb", "off"),
    )
    tcg_cpu: str = "max,erms=off,fsrm=off,la57=off"
    kvm_cpu: str = "host"
    serial_device: str = "isa-serial"
    nic_ports: int = 4
    disk_ports: int = MAX_DISKS

    def slot(self, role: str) -> Place:
        return self._root(SLOTS[role])

    def port(self, number: int) -> Place:
        return self._root(FIRST_PORT + number)

    def _root(self, number: int) -> Place:
        return {"bus": "pcie.0", "addr": f"0x{number:x}"}
