"""A small init for what is measured: `python reaper.py [FOLDER...]` hides each folder under an
empty one, starts what it is told to on its standard input, buries orphans at once, and ends
everything it started when its input ends.

Some machines have a first process that buries orphans only every few seconds. libvirt waits for its
machines to be buried, so there it would look slow, or hang, for no fault of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

PR_SET_CHILD_SUBREAPER = 36


def bury(_number: int = 0, _frame: FrameType | None = None) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def children() -> list[int]:
    return [
        int(word)
        for place in Path("/proc/self/task").glob("*/children")
        for word in place.read_text().split()
    ]


def start(order: dict[str, object]) -> int:
    command = [str(word) for word in order["command"]]  # type: ignore[attr-defined]
    environment = {str(key): str(value) for key, value in order["environment"].items()}  # type: ignore[attr-defined]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    files = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(order["log"]), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawnp(
        command[0],
        command,
        environment,
        file_actions=files,
        setsigmask=[],
        setsigdef=[signal.SIGCHLD],
    )


def end_all() -> None:
    """Ask, then kill; the children of children come up to us as their parents die."""
    for how, patience in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
        until = time.monotonic() + patience
        while (left := children()) and time.monotonic() < until:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
            time.sleep(0.05)
            bury()


def main() -> None:
    for folder in sys.argv[1:]:
        Path(folder).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "benchmark", folder], check=True)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, bury)
    for line in sys.stdin:
        print(start(json.loads(line)), flush=True)
    end_all()


if __name__ == "__main__":
    main()
