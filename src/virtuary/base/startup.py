"""What a process that serves for long does while it starts: it goes first, and does not look for
garbage in what it is loading.
"""

from __future__ import annotations

import contextlib
import gc
import os

GOES_FIRST = -10
"""Nice value of the daemon, which uses little and is waited for by people."""


def begin() -> None:
    """To be called before anything large is loaded.

    Nothing of what is loaded is garbage, and the collector would go through all of it again and
    again. This thread goes before guests that keep every processor busy; what it starts does not.
    Only root may.
    """
    gc.disable()
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, GOES_FIRST)


def settle() -> None:
    """What is there now stays: garbage is looked for in what comes after. Does nothing in a process
    that has not begun so.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
