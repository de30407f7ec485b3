"""A virtual hardware platform: one machine type of one architecture, with its processors, its bus
and what its devices are called.

Each is a file beside this one, and a row of `table.py`. What differs between platforms is said
there; nothing else asks which one it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

Place = dict[str, str]
"""Where a device sits, as arguments of `-device`."""


@dataclass(frozen=True)
class Platform(ABC):
    arch: str
    program: str
    machine: str
    """Machine alias; the versioned type behind it is pinned per server."""
    family: str
    """How all versioned types behind the alias begin."""
    machine_options: tuple[tuple[str, str], ...]
    tcg_cpu: str
    """The processor that is emulated: all that TCG knows but what makes a guest slower there."""
    kvm_cpu: str
    serial_device: str
    nic_ports: int
    disk_ports: int
    """Root ports that wait for NICs and for disks to be plugged in while the machine runs."""

    @property
    def ports(self) -> int:
        return self.nic_ports + self.disk_ports

    def disk_port(self, number: int) -> int:
        """The root port that is kept for this disk; the root disk has none."""
        return self.nic_ports + number - 1

    @abstractmethod
    def slot(self, role: str) -> Place:
        """Where the device of this role sits, always.

        A device that is added never moves another: a guest's interface names and a saved machine's
        layout depend on the places.
        """

    @abstractmethod
    def port(self, number: int) -> Place:
        """Where a root port sits."""
