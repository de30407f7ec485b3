"""What a server's emulation needs of the host besides the memory its guest was given. A measured
model; see docs/benchmarks.md.

Kept honest by `show`, which tells the model's figure beside what the processes really take.
"""

from __future__ import annotations

from virtuary.base.units import MIB
from virtuary.model.memory import translation_buffer
from virtuary.model.vm import VmSpec

QEMU = 48 * MIB
"""The process with the devices every server has: its heap, its own pages of the program and
libraries.
"""
NETWORK = 14 * MIB
"""The process that serves a private network."""
EACH_CPU = 2 * MIB
MEMORY_SHARE = 256
"""One byte in so many of the guest's memory: page tables and what QEMU notes about pages."""
TRANSLATED = 176 * MIB
"""Translated code of an emulated Debian that has booted and does something; never more than its
buffer for that.
"""


def of(spec: VmSpec, accel: str, began: int | None = None) -> int:
    """Bytes; `began`: memory its process began with, by which its buffers were made. Pure."""
    size = spec.memory.size
    emulated = 0 if accel == "kvm" else min(translation_buffer(began or size) * MIB, TRANSLATED)
    return QEMU + NETWORK + EACH_CPU * spec.cpu.count + size // MEMORY_SHARE + emulated
