"""The launcher lives as long as its daemon, dies without harm, and mixes up nothing between the
machines it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lines import find_marked
from virtuary.base.errors import HostLacks
from virtuary.base.proc import find_program, start_time
from virtuary.host.cgroups import ensure_group
from virtuary.jail.launching import LAUNCHER
from virtuary.jail.walls import Jail, choose_jail, find_capabilities
from virtuary.qemu.parts import Grant
from virtuary.qemu.process import Launch, Started, start

pytestmark = pytest.mark.qemu
UUID = "77d0a5c0-95a0-4c9b-b4ae-00000000000"
NO_JAIL = Jail(os.getuid(), os.getgid(), False, (), False, False)
V2 = next(
    (
        root
        for root in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
        if (root / "cgroup.procs").exists()
    ),
    None,
)


class Machines:
    """QEMUs without a machine, jailed like those with one; ended with the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[Started] = []

    async def order(self, number: int, *grants: Grant, **more: Any) -> Launch:
        runtime = self.folder / f"run{number}"
        runtime.mkdir(mode=0o711, exist_ok=True)
        host = await find_capabilities()
        jail = choose_jail(host, 2_000_000_000 + number if host.root else os.getuid())
        line = [
            find_program("qemu-system-x86_64"),
            "-machine",
            "none",
            "-nodefaults",
            "-display",
            "none",
            "-uuid",
            f"{UUID}{number}",
        ]
        for grant in grants:
            line += ["-add-fd", f"fd={grant.number},set={grant.number}"]
        return Launch(line, list(grants), [], jail, runtime, **more)

    async def start(self, number: int, *grants: Grant, **more: Any) -> Started:
        started = await start(await self.order(number, *grants, **more))
        self.started.append(started)
        return started

    def close(self) -> None:
        for started in self.started:
            os.close(started.errors)
            with contextlib.suppress(ProcessLookupError):
                os.kill(started.identity.pid, signal.SIGKILL)


@pytest.fixture
def machines(short: Path) -> Iterator[Machines]:
    found = Machines(short)
    yield found
    found.close()


def held(pid: int) -> dict[int, str]:
    """The descriptors of a process."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found[int(entry.name)] = os.readlink(entry)
    return found


def told_of(pid: int, name: str) -> str:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {key: rest.strip() for key, _, rest in lines}[name]


async def gone(pid: int, limit: float = 5) -> bool:
    until = time.monotonic() + limit
    while start_time(pid) is not None and time.monotonic() < until:
        await asyncio.sleep(0.02)
    return start_time(pid) is None


async def test_one_launcher_serves_all_and_holds_nothing_of_them(
    machines: Machines, short: Path
) -> None:
    (short / "disk").touch()
    await machines.start(
        1, Grant("disk0", 20, short / "disk", "rw"), Grant("qmp", 21, short / "qmp", "socket")
    )
    launcher = LAUNCHER.pid
    await machines.start(2)
    assert launcher and launcher == LAUNCHER.pid
    own = held(launcher)
    assert own[0] == own[1] == "/dev/null" and own[2] == os.readlink("/proc/self/fd/2")
    assert len(own) == 4 and own[max(own)].startswith("socket:"), "its standard ones and the daemon"
    assert Path(f"/proc/{launcher}/environ").read_bytes() == b"" and os.getsid(launcher) == launcher
    assert os.readlink(f"/proc/{launcher}/cwd") == "/"
    assert Path(f"/proc/{launcher}/task/{launcher}/children").read_text() == "", (
        "no process in between stays, dead or alive"
    )


async def test_machines_that_are_started_together_hold_their_own_descriptors_alone(
    machines: Machines, short: Path
) -> None:
    async def begin(number: int) -> dict[int, str]:
        disk = short / f"disk{number}"
        disk.touch()
        grants = (
            Grant("disk0", 20, disk, "rw"),
            Grant("base", 21, disk, "ro"),
            Grant("qmp", 22, short / f"qmp{number}", "socket"),
        )
        return held((await machines.start(number, *grants)).identity.pid)

    for number, descriptors in enumerate(
        await asyncio.gather(*(begin(number) for number in range(6)))
    ):
        files = {path for path in descriptors.values() if path.startswith(str(short))}
        # QEMU moves what it was given
        assert files == {str(short / f"disk{number}"), str(short / f"run{number}" / "stderr")}
        assert max(descriptors) < 100, "nothing of the launcher's is left"


async def test_a_machine_inherits_no_ignored_or_blocked_signal_that_matters(
    machines: Machines,
) -> None:
    pid = (await machines.start(1)).identity.pid
    ignored = int(told_of(pid, "SigIgn"), 16)
    assert not ignored >> (signal.SIGCHLD - 1) & 1 and not ignored >> (signal.SIGTERM - 1) & 1


async def test_a_launcher_that_was_killed_is_replaced_by_the_next_launch(
    machines: Machines,
) -> None:
    first = await machines.start(1)
    before = LAUNCHER.pid
    assert before
    os.kill(before, signal.SIGKILL)
    second = await machines.start(2)
    assert LAUNCHER.pid != before and start_time(before) is None, "and it is buried"
    assert start_time(first.identity.pid) and start_time(second.identity.pid), (
        "the machines do not mind"
    )


async def test_orders_that_wait_in_a_launcher_that_dies_are_given_again_and_done_once(
    machines: Machines,
) -> None:
    await machines.start(0)
    before = LAUNCHER.pid
    assert before
    os.kill(before, signal.SIGSTOP)
    waiting = [asyncio.create_task(machines.start(number)) for number in (1, 2, 3)]
    await asyncio.sleep(0.1)
    os.kill(before, signal.SIGKILL)
    for number, started in enumerate(await asyncio.gather(*waiting), 1):
        assert find_marked(f"{UUID}{number}") == [started.identity]


async def test_a_launch_that_fails_harms_nobody(machines: Machines, short: Path) -> None:
    await machines.start(0)
    before = LAUNCHER.pid
    wrong = Launch(["/no/such/program"], [], [], NO_JAIL, short)
    results = await asyncio.gather(
        start(wrong), machines.start(1), start(wrong), machines.start(2), return_exceptions=True
    )
    assert [type(result) for result in results] == [HostLacks, Started, HostLacks, Started]
    assert LAUNCHER.pid == before


@pytest.mark.parametrize(
    "moment", ["before the launcher takes the order", "as soon as it is ordered"]
)
async def test_a_launch_nobody_waits_for_is_not_executed(machines: Machines, moment: str) -> None:
    await machines.start(0)
    launcher = LAUNCHER.pid
    assert launcher
    stopped = moment == "before the launcher takes the order"
    for number in range(1, 9):
        order = await machines.order(number)
        if stopped:
            os.kill(launcher, signal.SIGSTOP)
        task = asyncio.create_task(start(order))
        await asyncio.sleep(0.02 if stopped else 0)
        if task.cancel():
            break
        # the launcher was quicker than this loop: it was waited for to the end
        machines.started.append(task.result())
    with pytest.raises(asyncio.CancelledError):
        await task
    os.kill(launcher, signal.SIGCONT)
    await machines.start(9)  # the launcher has done what came before
    for _ in range(20):
        assert not find_marked(f"{UUID}{number}")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", [1, 2])
async def test_a_machine_is_in_its_control_group_from_the_first_moment(
    machines: Machines, kind: int
) -> None:
    if kind == 2:
        if V2 is None or not os.access(V2, os.W_OK):
            pytest.skip("no control groups of version 2 that may be written here")
        groups = [V2 / f"virtuary-test-{os.getpid()}"]
        groups[0].mkdir()
    else:
        groups, _ = ensure_group(f"test-{os.getpid()}")
        if not groups or not (groups[0] / "tasks").exists():
            pytest.skip("no control groups of version 1 that may be written here")
    try:
        started = await machines.start(1, cgroups=groups)
        assert started.gaps == ()
        for group in groups:
            assert (group / "cgroup.procs").read_text().split() == [str(started.identity.pid)], (
                "it, and nobody else"
            )
        os.kill(started.identity.pid, signal.SIGKILL)
        assert await gone(started.identity.pid)
    finally:
        for _ in range(100):
            for group in groups:
                with contextlib.suppress(OSError):
                    group.rmdir()
            await asyncio.sleep(0.01)
            if not any(group.exists() for group in groups):
                break
    assert not any(group.exists() for group in groups)


async def test_a_control_group_that_can_not_be_joined_is_said_and_the_machine_starts(
    machines: Machines, short: Path
) -> None:
    started = await machines.start(1, cgroups=[short / "no-such-group"])
    assert started.gaps == ("no control group of its own (No such file or directory)",)
    assert start_time(started.identity.pid)


# ---- with a daemon of their own, that is ended


class Scenario:
    def __init__(self, folder: Path, name: str) -> None:
        words = [sys.executable, str(Path(__file__).with_name("launches.py")), name, str(folder)]
        # no pipe: a launcher that outlives its daemon would hold it open
        with (folder / "out").open("w") as out:
            self.status = subprocess.run(words, stdout=out, stderr=out, timeout=60).returncode
        said = (folder / "out").read_text()
        assert said.startswith("{"), said
        self.told: dict[str, Any] = json.loads(said.splitlines()[-1])


@pytest.fixture
def daemon(request: pytest.FixtureRequest, short: Path) -> Iterator[Scenario]:
    """A scenario of launches.py, run to its end; its machines are ended with the test."""
    scenario = Scenario(short, request.param)
    yield scenario
    for marked in find_marked("0aa0c1b2-7d1f-4d5e-8a3e-"):
        os.kill(marked.pid, signal.SIGKILL)


@pytest.mark.parametrize("daemon", ["lives"], indirect=True)
async def test_the_launcher_ends_with_its_daemon_and_the_machine_does_not(daemon: Scenario) -> None:
    assert daemon.status == -signal.SIGKILL and daemon.told["is our child"]
    assert await gone(daemon.told["launcher"])
    assert start_time(daemon.told["machine"])


@pytest.mark.parametrize("daemon", ["dies_in_the_middle"], indirect=True)
async def test_an_order_of_a_daemon_that_died_is_not_executed(daemon: Scenario) -> None:
    assert daemon.status == -signal.SIGKILL
    os.kill(daemon.told["launcher"], signal.SIGCONT)
    assert await gone(daemon.told["launcher"])
    for _ in range(20):
        assert not find_marked("0aa0c1b2-7d1f-4d5e-8a3e-000000000002")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("daemon", ["fails"], indirect=True)
def test_failed_launches_leave_no_process_dead_or_alive(daemon: Scenario) -> None:
    assert [("No such file" in words) for words in daemon.told["words"]] == [True, False, True]
    assert daemon.told["same launcher"] and daemon.told["alone"]


@pytest.mark.parametrize("daemon", ["is_cancelled"], indirect=True)
@pytest.mark.slow
def test_cancelled_launches_leave_no_process_dead_or_alive(daemon: Scenario) -> None:
    assert 0 < daemon.told["done"] < 120, f"some are cancelled, some are not: {daemon.told}"
    assert daemon.told["alone"] and daemon.told["open"] < 15, daemon.told
