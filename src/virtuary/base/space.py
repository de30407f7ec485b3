"""How much of a pool is kept free, so that what runs can go on writing while nothing new is
made.
"""

from __future__ import annotations

from virtuary.base.units import GIB, MIB


def reserve(total: int, kept: int | None = None) -> int:
    """Bytes of a pool of `total` that are kept free: `kept`, or a twentieth of it, at least 1 GiB,
    never more than a tenth of a small one.
    """
    return (
        min(max(total // 20, 1 * GIB), max(total // 10, 64 * MIB))
        if kept is None
        else min(kept, total)
    )
