"""What the processes of a machine may use at most. Pure."""

from __future__ import annotations

from virtuary.base.units import MIB
from virtuary.jail.walls import Bounds
from virtuary.model.memory import translation_buffer
from virtuary.qemu.machine import Machine

THREADS = 192
"""What QEMU and its network's helper have at most besides virtual CPUs: two pools of 64 for disks,
and those who attend to devices.
"""
SLACK = 256 * MIB
"""What is added to each bound: nothing may end a machine that only does what it was made for."""


def memory_bound(memory: int, began: int, cpus: int, *, emulated: bool) -> int:
    """Bytes that all processes of a machine with so much memory may have: its own, what emulating
    it takes, and slack.

    `began`: memory that it was started with, by which its buffers were made. `cpus`: those it can
    have at most.
    """
    emulation = translation_buffer(began) * MIB if emulated else 0
    return memory + memory // 8 + emulation + 64 * MIB + 2 * MIB * cpus + SLACK


def memory_of(machine: Machine) -> int:
    """`memory_bound` of a machine as it begins."""
    memory, emulated = machine.memory, machine.accel == "tcg"
    wished = max(memory.size, memory.wished)
    return memory_bound(wished, memory.size, machine.cpus.limit, emulated=emulated)


def bounds_of(machine: Machine) -> Bounds:
    """The largest file that it writes is a disk, or one that holds its memory: up to three times,
    when that changes while it is saved, or with a place for each page that it could be given.
    """
    most = machine.memory.limit
    largest = max(
        *(disk_bound(disk.size) for disk in machine.disks),
        3 * machine.memory.size + SLACK,
        most + most // 256 + SLACK,
    )
    return Bounds(file_size=largest, growing=True, processes=THREADS + machine.cpus.limit)


def disk_bound(size: int) -> int:
    """Bytes that the file of a disk of this size can have, all of it written."""
    return size + size // 64 + SLACK
