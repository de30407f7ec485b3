"""What the host says of its memory now: how much there is to be had, and how long somebody had to
wait for some.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from virtuary.host.metrics import parse_memory

PROC = Path("/proc")


class HostMemory(NamedTuple):
    total: int
    available: int
    """What programs could get without swapping."""
    some: float = 0.0
    """Percent of the last ten seconds in which somebody waited for memory; 0 where the kernel keeps
    no account.
    """
    full: float = 0.0
    """And in which nobody did anything but wait."""


def read_memory(proc: Path = PROC) -> HostMemory | None:
    """The host's memory now; None where it does not tell."""
    try:
        total, available, _ = parse_memory((proc / "meminfo").read_bytes())
    except (OSError, ValueError, KeyError, IndexError):
        return None
    try:
        waits = parse_waits((proc / "pressure/memory").read_bytes())
    except (OSError, ValueError):
        waits = (0.0, 0.0)
    return HostMemory(total, available, *waits)


def parse_waits(text: bytes) -> tuple[float, float]:
    """Percent of the last ten seconds, `some` and `full`, from a file in /proc/pressure."""
    found = {b"some": 0.0, b"full": 0.0}
    for line in text.splitlines():
        kind, _, rest = line.partition(b" ")
        if kind in found and rest.startswith(b"avg10="):
            found[kind] = float(rest.split(maxsplit=1)[0].removeprefix(b"avg10="))
    return found[b"some"], found[b"full"]
