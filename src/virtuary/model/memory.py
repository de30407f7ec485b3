"""Memory of a server: its bounds, and what it gets when nobody says how much."""

from __future__ import annotations

from virtuary.base.units import GIB, MIB

MIN_MEMORY, MAX_MEMORY = 64 * MIB, 16 * 1024 * GIB
DEFAULT_MEMORY = {"tiny": 128 * MIB}
LEAST_MEMORY = {"tiny": 72 * MIB, "debian": 192 * MIB}
"""Bytes of memory with which servers of an image that is built here still start, by what it is
built of: they do not with 64 MiB and 128 MiB.
"""


def default_memory(image: str) -> int:
    """Bytes of memory a server of this image gets when nobody says how much."""
    return DEFAULT_MEMORY.get(image, 1 * GIB)
