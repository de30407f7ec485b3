"""Looking at machines: what is looked at and when, what is told of them, what is asked; machines
are processes of the test's own.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.errors import GuestSilent
from virtuary.base.paths import Paths
from virtuary.base.proc import start_time
from virtuary.model.meta import Meta
from virtuary.model.network import Nic
from virtuary.model.status import VmStatus
from virtuary.model.vm import Vm, VmSpec
from virtuary.node.figures import asking
from virtuary.node.figures.asking import (
    BUDGET,
    QUESTIONS,
    Told,
    begin,
    due,
    note_blocks,
    note_memory,
)
from virtuary.node.figures.metrics import Metrics
from virtuary.node.site import Site
from virtuary.qemu.qmp import CommandFailed
from virtuary.store.memory import MemoryStore

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
SPIN = "while True: pass"
IDLE = "import sys; sys.stdin.read()"


class Clock:
    """Time that a test turns."""

    def __init__(self) -> None:
        self.passed = 1000.0

    def now(self) -> float:
        return self.passed

    def wall(self) -> datetime:
        return BEGIN + timedelta(seconds=self.passed)

    def slept(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.passed += seconds


class Monitor:
    """A QEMU that answers from a table; an answer that is an error is raised."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers, self.asked = answers, list[str]()

    async def run(self, command: str, deadline: float = 5, **arguments: Any) -> Any:
        self.asked.append(command)
        answer = self.answers[command]
        if isinstance(answer, Exception):
            raise answer
        return answer


def machine(pid: int = 1, **changes: Any) -> Any:
    """What is known of a running machine; the process may be any."""
    runtime = SimpleNamespace(
        pid=pid,
        start=start_time(pid),
        network_pid=None,
        network_start=None,
        network="qemu-user",
        nics=(Nic(),),
    )
    facts = {
        "runtime": runtime,
        "ended": False,
        "qemu_status": "running",
        "silent": False,
        "may_be_asked": True,
        "signals": {"agent": 1.0},
    }
    return SimpleNamespace(**{**facts, "monitor": None, "agent": None, **changes})


def document(vm_id: str = "a") -> Vm:
    spec = VmSpec(image="tiny", cpu=2, memory=2**30)
    return Vm(meta=Meta(id=vm_id, name=f"vm-{vm_id}"), spec=spec, status=VmStatus(state="running"))


@pytest.fixture
def start() -> Iterator[Callable[[str], int]]:
    begun: list[subprocess.Popen[bytes]] = []

    def one(code: str) -> int:
        begun.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE))
        return begun[-1].pid

    yield one
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture
def runs() -> dict[str, Any]:
    return {}


@pytest.fixture
def metrics(paths: Paths, runs: dict[str, Any]) -> Iterator[Metrics]:
    for vm_id in ("a", "b"):
        paths.vm(vm_id).home.mkdir()
    found = Metrics(Site(paths, MemoryStore(), "host", clock=Clock()), lambda: runs.items())
    yield found
    found.close()


def look(metrics: Metrics, seconds: float = 1.0, really: float = 0.0) -> bool:
    time.sleep(really)
    clock = metrics.site.clock
    assert isinstance(clock, Clock)
    clock.passed += seconds
    return metrics.look()


async def is_idle(pid: int) -> None:
    """Until a process uses no processor time any more: it has started, and sleeps."""
    before = None
    while (now := Path(f"/proc/{pid}/stat").read_text().split()[13:15]) != before:
        before = now
        await asyncio.sleep(0.5)


@pytest.mark.slow
async def test_a_busy_machine_and_an_idle_one_are_told_apart(
    metrics: Metrics, runs: dict[str, Any], start: Callable[[str], int]
) -> None:
    runs |= {"a": machine(start(SPIN)), "b": machine(start(IDLE))}
    await is_idle(runs["b"].runtime.pid)
    look(metrics)
    assert look(metrics, 1.0, really=1.0)
    busy, idle = metrics.usage(document("a")), metrics.usage(document("b"))
    # however busy the host is: what spins gets its share, what sleeps needs none
    assert busy.cpu and idle.cpu is not None and busy.cpu > 0.05 > 0.02 > idle.cpu
    assert (
        busy.resident
        and busy.resident > 2**20
        and busy.age == 0
        and busy.guest is None
        and busy.network is None
    )
    seconds = await metrics.history("a", "second")
    assert (
        seconds[-1].mean["cpu"] == pytest.approx(busy.cpu, rel=0.01)
        and "guest_used" not in seconds[-1].mean
    )
    assert (await metrics.history(None, "second"))[-1].mean["vms"] == 2


def test_a_paused_machine_is_looked_at_once_and_moves_no_more(
    metrics: Metrics, runs: dict[str, Any], start: Callable[[str], int]
) -> None:
    runs["a"] = machine(start(SPIN))
    look(metrics)
    look(metrics, really=0.1)
    runs["a"].qemu_status = "paused"
    assert look(metrics) is False and look(metrics, 30) is False
    usage = metrics.usage(document())
    assert (
        usage.cpu == 0
        and usage.resident
        and usage.age == 30
        and metrics.machines["a"].process is None
    )
    runs["a"].qemu_status = "running"
    assert look(metrics) is True and metrics.usage(document()).cpu is None
    assert any(look(metrics, really=0.1) and metrics.usage(document()).cpu for _ in range(50))


def test_what_has_ended_is_forgotten_and_its_files_are_closed(
    metrics: Metrics, runs: dict[str, Any], start: Callable[[str], int]
) -> None:
    look(metrics)
    look(metrics)
    before = len(os.listdir("/proc/self/fd"))
    runs |= {"a": machine(start(IDLE)), "b": machine(start(IDLE))}
    for _ in range(6):
        look(metrics)
    assert len(os.listdir("/proc/self/fd")) > before
    runs["a"].ended = True
    del runs["b"]
    look(metrics)
    assert metrics.machines == {} and metrics.usage(document()).age is None
    assert len(os.listdir("/proc/self/fd")) == before + 2  # the pipes to the two processes


def test_a_restarted_machine_is_another_one(
    metrics: Metrics, runs: dict[str, Any], start: Callable[[str], int]
) -> None:
    runs["a"] = machine(start(IDLE))
    look(metrics)
    look(metrics)
    runs["a"] = machine(start(IDLE))
    look(metrics)
    assert metrics.usage(document()).cpu is None and metrics.usage(document()).age == 0


def test_one_that_can_t_be_written_disturbs_no_other(
    metrics: Metrics,
    runs: dict[str, Any],
    start: Callable[[str], int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs |= {"a": machine(start(IDLE)), "b": machine(start(IDLE))}
    shutil.rmtree(metrics.site.paths.vm("a").home)
    metrics.site.paths.history.mkdir()
    for _ in range(5):
        look(metrics)
    assert (
        metrics.usage(document("a")).cpu is not None
        and metrics.usage(document("b")).cpu is not None
    )
    assert metrics.site.paths.vm("b").history.exists()
    assert caplog.text.count("history of the host can't be written") == 1


def test_a_process_that_is_gone_is_no_error(metrics: Metrics, runs: dict[str, Any]) -> None:
    runs["a"] = machine(2**22 + 5)
    assert look(metrics) and metrics.usage(document()).age is None


async def test_a_look_that_fails_does_not_end_the_looking(
    metrics: Metrics, runs: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    runs["a"] = None  # a defect
    task = asyncio.create_task(metrics.run())
    await asyncio.sleep(0.1)
    assert not task.done() and "looking failed" in caplog.text
    task.cancel()


async def test_who_watches_is_shown_fresh_figures_at_once(metrics: Metrics) -> None:
    task = asyncio.create_task(metrics.run())
    await asyncio.sleep(0.05)
    assert isinstance(metrics.site.clock, Clock)
    metrics.site.clock.passed += 3
    before = metrics.host.at
    metrics.watch()
    await asyncio.sleep(0.05)
    assert metrics.watched and metrics.host.at != before
    metrics.site.clock.passed += 16
    assert not metrics.watched
    task.cancel()


# ---- asking


def told(**changes: Any) -> Told:
    return Told(machine(monitor=Monitor({}), **changes), "52:54:00:00:00:01")


def test_only_so_many_are_asked_at_once_those_that_waited_longest_first() -> None:
    every = [told(agent=True) for _ in range(20)]
    for number, one in enumerate(every):
        one.asked = dict.fromkeys(QUESTIONS, 100.0 - number)
    found = due(every, True, 200.0)
    assert len(found) == BUDGET and [one for one, _ in found[:2]] == [every[-1], every[-1]]


@pytest.mark.parametrize(
    "changes",
    [
        {"ended": True},
        {"silent": True},
        {"monitor": None},
        {"qemu_status": "running", "may_be_asked": False},
    ],
    ids=str,
)
def test_who_can_t_answer_is_not_asked(changes: dict[str, Any]) -> None:
    one = Told(machine(**{"monitor": Monitor({}), "agent": True, **changes}), "")
    assert {question for _, question in due([one], True, 1.0)} <= (
        {"blocks"} if "may_be_asked" in changes else set()
    )


def test_a_guest_without_agent_is_not_asked_for_its_traffic() -> None:
    assert {question for _, question in due([told()], True, 1.0)} == {"memory", "blocks"}
    assert {question for _, question in due([told(agent=True, signals={})], True, 1.0)} == {
        "memory",
        "blocks",
    }


def test_unwatched_only_memory_is_asked_and_seldom() -> None:
    one = told(agent=True)
    assert [question for _, question in due([one], False, 0.0)] == ["memory"]
    one.asked["memory"] = 0.0
    assert due([one], False, 59.0) == [] and len(due([one], False, 60.0)) == 1


async def ask(one: Told, clock: Clock, seconds: int) -> None:
    for _ in range(seconds):
        async with asyncio.TaskGroup() as group:
            begin(group, [one], True, clock)
        clock.passed += 1


STATS = {
    "stat-total-memory": 1000,
    "stat-available-memory": 600,
    "stat-free-memory": 500,
    "stat-swap-in": 0,
    "stat-swap-out": 0,
}


async def test_the_balloon_is_told_to_ask_and_then_read() -> None:
    monitor = Monitor(
        {"qom-set": {}, "qom-get": {"last-update": 5, "stats": STATS}, "query-blockstats": []}
    )
    one, clock = Told(machine(monitor=monitor), ""), Clock()
    await ask(one, clock, 3)
    assert [word for word in monitor.asked if word.startswith("qom")] == ["qom-set", "qom-get"]
    assert (
        one.memory
        and (one.memory.total, one.memory.available) == (1000, 600)
        and one.fresh("memory", clock.now())
    )


async def test_a_guest_that_comes_up_is_asked_again_soon_but_not_for_ever() -> None:
    monitor = Monitor(
        {"qom-set": {}, "qom-get": {"last-update": 0, "stats": {}}, "query-blockstats": []}
    )
    one, clock = Told(machine(monitor=monitor), ""), Clock()
    await ask(one, clock, 15)
    assert one.memory is None and 4 <= monitor.asked.count("qom-get") <= 5
    await ask(one, clock, 100)
    assert monitor.asked.count("qom-get") <= 10 + 9


async def test_a_monitor_that_is_silent_is_left_alone_for_a_while() -> None:
    monitor = Monitor(
        {"qom-set": GuestSilent("no answer"), "query-blockstats": CommandFailed("unknown")}
    )
    one, clock = Told(machine(monitor=monitor), ""), Clock()
    await ask(one, clock, 29)
    assert monitor.asked == ["qom-set", "query-blockstats"]
    await ask(one, clock, 5)
    assert monitor.asked == ["qom-set", "query-blockstats", "qom-set"] and one.busy == set()


@pytest.mark.parametrize(
    "odd",
    [
        None,
        5,
        "x",
        {},
        [5],
        [{"stats": 5}],
        [{"stats": {"rd_operations": "1"}}],
        [{"stats": {"wr_operations": -1}}],
    ],
    ids=str,
)
async def test_an_odd_answer_is_said_once_and_asked_for_more_seldom(
    odd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = Monitor({"qom-set": GuestSilent("no answer"), "query-blockstats": odd})
    one, clock = Told(machine(monitor=monitor), ""), Clock()
    await ask(one, clock, 65)
    assert monitor.asked.count("query-blockstats") == 3 and one.mute == set()
    assert sum("odd answer" in line for line in caplog.messages) == 1


async def test_a_defect_mutes_one_question_of_one_machine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> None:
        raise KeyError("a defect")

    monkeypatch.setitem(asking.QUESTIONS, "memory", broken)
    one, clock = Told(machine(monitor=Monitor({"query-blockstats": []})), ""), Clock()
    await ask(one, clock, 20)
    assert (
        one.mute == {"memory"} and caplog.text.count("a defect") >= 1 and "blocks" in one.answered
    )


numbers = st.integers(-(2**64), 2**65) | st.floats() | st.none() | st.text(max_size=3)


@given(st.dictionaries(st.sampled_from([*STATS, "stat-disk-caches", "x"]), numbers), numbers)
def test_a_guest_may_say_anything_of_its_memory(stats: dict[str, Any], at: Any) -> None:
    one = told()
    note_memory(one, {"stats": stats, "last-update": at})
    assert one.memory is None or 0 <= one.memory.available <= one.memory.total < 2**62
    assert one.swap.rate is None


def test_a_burst_of_pages_is_no_want_of_memory_and_steady_reading_is() -> None:
    one = told()
    rates = []
    for at, faults in ((100, 0), (101, 300), (110, 300), (115, 800)):
        note_memory(one, {"stats": STATS | {"stat-major-faults": faults}, "last-update": at})
        rates.append(one.faults.rate)
    assert rates == [None, None, 30, 100]


def blocks(operations: int, nanoseconds: int) -> list[dict[str, Any]]:
    facts = {
        "rd_operations": operations,
        "wr_operations": 0,
        "rd_total_time_ns": nanoseconds,
        "wr_total_time_ns": 0,
    }
    return [{"stats": facts}, {"stats": {}}]


def test_latency_is_time_by_operation(
    metrics: Metrics, runs: dict[str, Any], start: Callable[[str], int]
) -> None:
    runs["a"] = machine(start(IDLE))
    look(metrics)
    one = metrics.machines["a"].told
    note_blocks(one, blocks(100, 10**9), 1001)
    assert one.next["blocks"] == 1003  # a second answer makes a rate of it
    note_blocks(one, blocks(150, 2 * 10**9), 1006)
    disk = metrics.usage(document()).disk
    assert (disk.reads, disk.read_latency, disk.writes, disk.write_latency) == (
        10,
        pytest.approx(0.02),
        0,
        None,
    )


async def test_what_was_told_long_ago_is_no_history(
    metrics: Metrics, runs: dict[str, Any], start: Callable[[str], int]
) -> None:
    runs["a"] = machine(start(IDLE))
    look(metrics)
    one = metrics.machines["a"].told
    one.count_traffic(0, 0, 1001)
    one.count_traffic(100, 200, 1002)
    for seconds in (1, 1, 60):
        look(metrics, seconds)
    first, second, last = await metrics.history("a", "second")
    assert (
        first.mean["network_sent"] == second.mean["network_sent"] == 200
        and "network_sent" not in last.mean
    )
    network = metrics.usage(document()).network
    assert network and network.sent == 200 and network.age == 61  # told, with its age
