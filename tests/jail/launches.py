"""What a daemon's launcher does when daemons and machines end: `python launches.py SCENARIO FOLDER`
prints what came of it as JSON.

A program of its own, because it becomes a subreaper, as the daemon does, and because some scenarios
end it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from virtuary.base.errors import VirtuaryError
from virtuary.base.proc import find_program
from virtuary.jail.launching import LAUNCHER
from virtuary.jail.walls import choose_jail, find_capabilities
from virtuary.qemu.process import Launch, become_subreaper, start

ID = "0aa0c1b2-7d1f-4d5e-8a3e-00000000000"


async def order(folder: Path, number: int, *words: str, program: str = "") -> Launch:
    """A QEMU without a machine, jailed like one with, known by its uuid."""
    runtime = folder / f"run{number}"
    runtime.mkdir(mode=0o711, exist_ok=True)
    host = await find_capabilities()
    jail = choose_jail(host, 2_000_000_000 + number if host.root else os.getuid())
    program = program or find_program("qemu-system-x86_64")
    line = [
        program,
        "-machine",
        "none",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-uuid",
        f"{ID}{number}",
        *words,
    ]
    return Launch(line, [], [], jail, runtime)


def children() -> dict[int, str]:
    """Each child of ours and its state."""
    found = {}
    for word in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        found[int(word)] = Path(f"/proc/{word}/stat").read_text().rpartition(")")[2].split()[0]
    return found


async def alone(limit: float = 3) -> bool:
    """Whether nothing but the launcher is left of our children; those that end are buried in a
    moment.
    """
    for _ in range(int(limit / 0.02)):
        if set(children()) <= {LAUNCHER.pid}:
            return True
        await asyncio.sleep(0.02)
    return False


async def lives(folder: Path) -> dict[str, Any]:
    """A machine is started; then the daemon dies as if by SIGKILL."""
    started = await start(await order(folder, 1))
    state = children()
    told = {
        "launcher": LAUNCHER.pid,
        "machine": started.identity.pid,
        "is our child": started.identity.pid in state,
    }
    print(json.dumps(told), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


async def dies_in_the_middle(folder: Path) -> dict[str, Any]:
    """An order is given, and the daemon dies before the launcher, which is stopped, comes to it."""
    first = await order(folder, 1)
    end_of(await start(first))
    assert LAUNCHER.pid
    os.kill(LAUNCHER.pid, signal.SIGSTOP)
    print(json.dumps({"launcher": LAUNCHER.pid}), flush=True)
    task = asyncio.create_task(start(await order(folder, 2)))
    await asyncio.sleep(0.05)
    assert not task.done()
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


async def fails(folder: Path) -> dict[str, Any]:
    """Launches that fail in every way, and one after them."""
    words = []
    wrong = await order(folder, 1, program="/no/such/program")
    for launch in (wrong, await order(folder, 2, "-no-such-option"), wrong):
        try:
            started = await start(launch)
            words.append("started")
            os.close(started.errors)
            await buried(started.identity.pid)
        except VirtuaryError as error:
            words.append(error.sentence)
    launcher = LAUNCHER.pid
    started = await start(await order(folder, 3))
    told = {
        "words": words,
        "same launcher": launcher == LAUNCHER.pid,
        "machine": started.identity.pid,
    }
    end_of(started)
    await buried(started.identity.pid)
    return {**told, "alone": await alone()}


async def is_cancelled(folder: Path) -> dict[str, Any]:
    """Somebody stops waiting for a launch, at each moment of it."""
    first = await order(folder, 1)
    # the launcher is started by the first; how long one takes on this machine now is told by the
    # second
    for _ in range(2):
        began = time.monotonic()
        end_of(started := await start(first))
        took = time.monotonic() - began
        await buried(started.identity.pid)
    done = 0
    for number in range(120):
        task = asyncio.create_task(start(first))
        await asyncio.wait({task}, timeout=number % 60 / 30 * took)
        if task.cancel():
            await asyncio.wait({task})
        if not task.cancelled():
            done += 1
            end_of(task.result())
            await buried(task.result().identity.pid)
    told = {"done": done, "alone": await alone()}
    await asyncio.sleep(0.3)  # by then nobody is waited for any more
    return {**told, "open": len(os.listdir("/proc/self/fd"))}


def end_of(started: Any) -> None:
    os.close(started.errors)
    os.kill(started.identity.pid, signal.SIGKILL)


async def buried(pid: int) -> None:
    """Its parent does what a daemon does; raises ChildProcessError when it is not that."""
    while not os.waitpid(pid, os.WNOHANG)[0]:
        await asyncio.sleep(0.005)


SCENARIOS = {
    scenario.__name__: scenario for scenario in (lives, dies_in_the_middle, fails, is_cancelled)
}

if __name__ == "__main__":
    become_subreaper()
    print(json.dumps(asyncio.run(SCENARIOS[sys.argv[1]](Path(sys.argv[2])))))
