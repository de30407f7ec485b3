"""Processes by what stands on their command lines: good enough for tests, which started them."""

from __future__ import annotations

import os
from pathlib import Path

from virtuary.base.proc import Identity, identify


def command_line(pid: int | str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def find_marked(*marks: str) -> list[Identity]:
    """Living processes on whose command lines every one of `marks` stands."""
    names = [name for name in os.listdir("/proc") if name.isdigit()]
    named = [name for name in names if all(mark.encode() in command_line(name) for mark in marks)]
    return [identity for name in named if (identity := identify(int(name)))]
