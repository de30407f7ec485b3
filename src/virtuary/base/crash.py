"""Crash points: named places beside every durable step, where the harness may end the daemon.

A no-op in normal runs. `VIRTUARY_CRASH=name[:hit][:kind]` makes the hit-th visit (first by default)
of that point do `kill` (SIGKILL to itself, the default), `raise` (OSError EIO), `enospc` (OSError
ENOSPC) or `hang` (SIGSTOP). `VIRTUARY_CRASH_TRACE=FILE` appends each visited name to FILE. Names
are declared in `POINTS` and nowhere else; a name that is not declared is a defect and raises.
"""

from __future__ import annotations

import errno
import os
import signal

POINTS: set[str] = set()
_hits: dict[str, int] = {}


def declare(*names: str) -> None:
    """Make `names` known; called once by each module that has crash points."""
    POINTS.update(names)


def crashpoint(name: str) -> None:
    """Pass the point `name`; does nothing unless the environment asks for a fault here."""
    order, trace = os.environ.get("VIRTUARY_CRASH", ""), os.environ.get("VIRTUARY_CRASH_TRACE", "")
    if not order and not trace:
        return
    if name not in POINTS:
        raise AssertionError(f"undeclared crash point {name}")
    if trace:
        with open(trace, "a", encoding="utf-8") as handle:
            handle.write(name + "\n")
    wanted, _, rest = order.partition(":")
    if wanted != name:
        return
    _hits[name] = _hits.get(name, 0) + 1
    hit, _, kind = rest.partition(":")
    if _hits[name] != int(hit or 1):
        return
    _fault(kind or "kill", name)


def _fault(kind: str, name: str) -> None:
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "enospc":
        raise OSError(errno.ENOSPC, f"No space left on device (crash point {name})")
    else:
        raise OSError(errno.EIO, f"Input/output error (crash point {name})")
