"""Daemons without the second that Python takes to import one: forked from a process that has
imported it.

The harness starts two daemons for every fault; reading the same modules anew each time was most of
what it cost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any


class Nursery:
    """The process that daemons are forked from; it does one thing at a time, for one who asks at a
    time.
    """

    def __init__(self) -> None:
        words = [sys.executable, "-c", "import forked; forked.serve()"]
        source = Path(__file__).resolve().parents[2] / "src"
        env = os.environ | {"PYTHONPATH": f"{source}:{Path(__file__).parent}"}
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True
        )
        self._lock = threading.Lock()

    def ask(self, *request: Any) -> Any:
        with self._lock:
            assert self._process.stdin and self._process.stdout
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


class Daemon:
    """One daemon, as subprocess.Popen shows it."""

    def __init__(self, nursery: Nursery, env: dict[str, str], log: Path) -> None:
        self._nursery = nursery
        self.returncode: int | None = None
        self.pid: int = nursery.ask("start", env, str(log))

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.ask("status", self.pid)
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while (found := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("virtuary daemon", timeout)
            time.sleep(0.01)
        return found

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


# ---- in the nursery


def serve() -> None:
    """Answer requests, a line of JSON each, until there are no more."""
    import virtuary.cli.main
    import virtuary.daemon  # noqa: F401

    for line in sys.stdin:
        what, *words = json.loads(line)
        print(json.dumps(_start(*words) if what == "start" else _status(*words)), flush=True)


def _start(env: dict[str, str], log: str) -> int:
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        os.chdir("/")
        os.environ.clear()
        os.environ.update(env)
        for path, flags, numbers in (
            (os.devnull, os.O_RDONLY, (0,)),
            (log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, (1, 2)),
        ):
            handle = os.open(path, flags, 0o600)
            for number in numbers:
                os.dup2(handle, number)
            os.close(handle)
        sys.argv = ["virtuary", "daemon"]
        from virtuary.cli.main import main

        main()
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _status(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None
