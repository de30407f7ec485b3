"""A process is watched until it ends or is let go, and nothing is heard of any other."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtuary.base.proc import Identity, identify
from virtuary.base.watched import Watched, watch

WITHIN = 10
"""Seconds, on a busy machine."""


@pytest.fixture
def child() -> Iterator[int]:
    """The number of a child that runs until it is killed; it is nobody's but the test's to bury."""
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    yield pid
    if Path(f"/proc/{pid}").exists():
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def watched(pid: int, heard: list[str]) -> Watched:
    identity = identify(pid)
    assert identity
    process = watch(identity, lambda: heard.append("end"))
    assert process
    return process


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


async def ends(process: Watched) -> None:
    async with asyncio.timeout(WITHIN):
        await process.wait()


async def test_an_end_is_heard_once_with_its_status_and_the_child_is_buried(child: int) -> None:
    before, heard = handles(), list[str]()
    process = watched(child, heard)
    assert not process.ended and process.exit_status is None
    process.end(signal.SIGTERM)
    await ends(process)
    assert (heard, process.ended, process.exit_status) == (["end"], True, -signal.SIGTERM)
    process.end()  # harmless, as is what follows
    process.let_go()
    async with asyncio.timeout(WITHIN):
        while Path(f"/proc/{child}").exists() or handles() != before:
            await asyncio.sleep(0.01)
    assert heard == ["end"] and process.ended


async def test_an_end_is_known_before_it_is_heard(child: int) -> None:
    heard: list[str] = []
    process = watched(child, heard)
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert process.ended and heard == []
    await ends(process)


async def test_somebody_elses_child_has_no_status() -> None:
    with subprocess.Popen(
        ["/bin/sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout
        heard: list[str] = []
        process = watched(int(shell.stdout.readline()), heard)
        process.end()
        await ends(process)
        assert heard == ["end"] and process.exit_status is None


async def test_who_is_let_go_runs_on_and_is_not_heard_any_more(child: int) -> None:
    before, heard = handles(), list[str]()
    process = watched(child, heard)
    process.let_go()
    process.let_go()
    process.end()
    assert handles() == before and identify(child), "nothing stays open, and it lives"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    await asyncio.sleep(0.05)
    assert heard == [] and not process.ended


async def test_who_gets_the_number_of_a_descriptor_that_was_let_go_is_heard(child: int) -> None:
    """The loop may not confuse the two."""
    first, second = list[str](), list[str]()
    watched(child, first).let_go()
    other = watched(child, second)
    os.kill(child, signal.SIGKILL)
    await ends(other)
    assert (first, second) == ([], ["end"])


async def test_who_is_not_that_process_is_not_watched(child: int) -> None:
    before, identity = handles(), identify(child)
    assert identity
    assert watch(Identity(child, identity.start - 1)) is None
    assert watch(identity, uid=os.getuid() + 1) is None
    assert handles() == before
