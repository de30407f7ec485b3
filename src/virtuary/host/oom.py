"""Whom the kernel ends first when memory has run out after all. Only ever advice: what may not be
said is left unsaid.

The kernel ends the process whose memory and score together are largest; a score of 1000 counts as
much as all of the host's memory. A server's goes down with its priority. An ordinary user's daemon
may raise scores and never lower them, and a QEMU jailed well is not its to judge: there the kernel
goes by size alone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PROTECTED = -900
"""The daemon's own: without it nobody takes memory back, and nobody says why a server ended."""
ORDINARY = 0
EXPENDABLE = 950
"""A machine that is no server: a template that is being made."""
FIRST, STEP = 900, 8
"""A server of priority 0, and how much less each point of priority makes it."""


def score_of(priority: int) -> int:
    """The score of a server of this priority, from 0 to 100: above everything that is no server.
    Pure.
    """
    return FIRST - STEP * priority


def set_score(pid: int, score: int, proc: Path = Path("/proc")) -> bool:
    """Give a process its score; says whether that was allowed."""
    with contextlib.suppress(OSError, ValueError):
        place = proc / str(pid) / "oom_score_adj"
        if int(place.read_text(encoding="ascii")) != score:
            place.write_text(str(score), encoding="ascii")
        return True
    return False


def protect_self(proc: Path = Path("/proc")) -> bool:
    """Have the kernel end almost anything else before this process. What it starts inherits that,
    until it is told otherwise.
    """
    return set_score(os.getpid(), PROTECTED, proc)
