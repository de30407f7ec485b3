"""Programs end when they should, whole, and a process is only ever ours when pid, start time and
mark agree (A5).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtuary.base import proc
from virtuary.base.errors import Failed, HostLacks
from virtuary.base.proc import (
    OUTPUT_CAP,
    Identity,
    boot_id,
    bury,
    find_program,
    identify,
    last_line,
    lines_of,
    run,
    start_time,
)


async def gone(pid: int, limit: float = 3) -> bool:
    until = time.monotonic() + limit
    while start_time(pid) is not None and time.monotonic() < until:
        await asyncio.sleep(0.02)
    return start_time(pid) is None


async def read_pid(place: Path) -> int:
    for _ in range(200):
        with contextlib.suppress(OSError, ValueError):
            return int(place.read_text())
        await asyncio.sleep(0.02)
    raise AssertionError("the program never told its pid")


async def test_output_status_and_input_come_through() -> None:
    result = await run("/bin/sh", "-c", "cat; echo words >&2; exit 3", stdin=b"hello", check=False)
    assert result == (3, b"hello", b"words\n")


async def test_a_failure_is_told_in_the_programs_own_last_words() -> None:
    with pytest.raises(Failed, match="/bin/sh failed: no such luck"):
        await run("/bin/sh", "-c", "echo first >&2; printf 'no such\\033 luck\\n' >&2; exit 1")


async def test_the_environment_is_fixed_and_small() -> None:
    out = (await run("/usr/bin/env", env={"EXTRA": "1"})).stdout.decode().split()
    assert {word.split("=")[0] for word in out} == {"PATH", "LC_ALL", "HOME", "EXTRA"}


@pytest.mark.parametrize(
    "script",
    ["sleep 100 & echo $! > {}; wait", "sleep 100 & echo $! > {}"],
    ids=["waiting", "leader gone"],
)
async def test_the_deadline_ends_the_whole_group(tmp_path: Path, script: str) -> None:
    place = tmp_path / "pid"
    with pytest.raises(Failed, match="did not end within"):
        await run("/bin/sh", "-c", script.format(place), deadline=0.3)
    assert await gone(await read_pid(place))


async def test_a_cancelled_run_ends_the_whole_group(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    task = asyncio.create_task(run("/bin/sh", "-c", f"sleep 100 & echo $! > {place}; wait"))
    pid = await read_pid(place)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await gone(pid)


@pytest.mark.parametrize("ticks", range(8))
async def test_a_run_cancelled_at_any_moment_of_its_start_ends_at_once(ticks: int) -> None:
    task = asyncio.create_task(run("/bin/sh", "-c", "sleep 30 & wait"))
    for _ in range(ticks):
        await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_output_is_capped_and_read_on() -> None:
    result = await run("/bin/sh", "-c", f"head -c {OUTPUT_CAP + 100_000} /dev/zero; echo end >&2")
    assert len(result.stdout) == OUTPUT_CAP and result.stderr == b"end\n"


async def test_lines_come_one_by_one_and_a_bad_end_is_told() -> None:
    lines = []
    with pytest.raises(Failed, match="one / two"):
        async for line in lines_of("/bin/sh", "-c", "echo one; echo two >&2; exit 1", deadline=5):
            lines.append(line)
    assert lines == ["one", "two"]


async def test_a_long_program_runs_aside_of_the_daemon_and_where_that_can_not_be_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for group in (tmp_path, tmp_path / "nothing"):
        monkeypatch.setattr(proc, "aside", group)
        assert [line async for line in lines_of("/bin/sh", "-c", "echo done", deadline=5)] == [
            "done"
        ]
    assert (tmp_path / "cgroup.procs").read_text() == "0", "itself"


async def test_leaving_the_lines_early_ends_the_program(tmp_path: Path) -> None:
    stream = lines_of("/bin/sh", "-c", "echo $$; sleep 100", deadline=50)
    pid = int(await anext(stream))
    await stream.aclose()  # type: ignore[attr-defined]
    assert await gone(pid)


def test_a_missing_program_is_told_with_its_package() -> None:
    with pytest.raises(HostLacks) as caught:
        find_program("no-such-program-here")
    assert caught.value.hint == "apt install no-such-program-here"


def test_the_last_line_is_the_one_that_says_something() -> None:
    assert last_line(b"first\nsecond \x1b[31m\n  \n\n") == "second [31m"
    assert (
        last_line(b"RTNETLINK answers: Permission denied\nCommand failed -:2\n")
        == "RTNETLINK answers: Permission denied"
    )
    assert (
        last_line(b"ls: unrecognized option\nTry 'ls --help' for more information.\n")
        == "ls: unrecognized option"
    )
    assert last_line(b"Command failed -:2\n") == "Command failed -:2"
    assert last_line(b"") == "" and len(last_line(b"x" * 1000)) == 400


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


async def test_an_ended_child_is_buried_in_the_background() -> None:
    pid = os.posix_spawn("/bin/sleep", ["sleep", "0.05"], {})
    before = len(os.listdir("/proc/self/fd"))
    bury(os.pidfd_open(pid))
    for _ in range(100):
        await asyncio.sleep(0.01)
        if not Path(f"/proc/{pid}").exists():
            break
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_somebody_elses_child_is_not_waited_for_for_ever(
    sleeper: subprocess.Popen[bytes],
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    bury(os.pidfd_open(sleeper.pid))
    sleeper.kill()
    sleeper.wait()
    await asyncio.sleep(0.4)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_with_a_confusing_name_is_identified(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "30"]) as process:
        assert identify(process.pid) == Identity(process.pid, start_time(process.pid) or 0)
        process.kill()


def test_a_boot_has_a_name() -> None:
    assert len(boot_id()) == 36 and boot_id() == boot_id()
