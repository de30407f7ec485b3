"""Whatever a monitor or an agent answers, who asked it gets what was promised, or an error of ours,
and nothing else comes out.

Everything in the source that asks one of them something is here, on a real socket; that nothing is
forgotten is checked by the types: what a peer answers is an `object` until it was read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from liar import Liar, Talk, lying
from virtuary.base.answers import LARGEST, LINE_CAP, TEXT_CAP, read
from virtuary.base.clock import SystemClock
from virtuary.base.errors import Failed, GuestSilent, Misbehaves
from virtuary.guest import relay
from virtuary.guest.agent import Agent, open_agent
from virtuary.guest.clock import set_clock
from virtuary.guest.relay import Command
from virtuary.model.disk import DiskIo
from virtuary.network.uplink import parse_held
from virtuary.node.figures.asking import Told, ask_blocks, ask_memory, ask_traffic
from virtuary.node.machine.run import has_opened
from virtuary.qemu import live, plug, rtc, tune, warm
from virtuary.qemu.qmp import Monitor, open_monitor

NAMES = (
    "status", "id", "error", "error-desc", "current-progress", "total-progress", "ram", "total",
    "remaining", "capability", "state", "node-name",
    "image", "virtual-size", "fds", "opaque", "fdset-id", "props", "core-id", "socket-id", "type",
    "qom-path", "actual", "thread-id", "name", "UUID",
    "label", "frontend-open", "tm_year", "tm_mon", "tm_mday", "tm_hour", "tm_min", "tm_sec",
    "stats", "stat-total-memory", "stat-free-memory",
    "last-update", "rd_operations", "wr_total_time_ns", "desc", "driver", "command", "deadline",
    "self",
)  # fmt: skip
WORDS = (
    "running", "completed", "failed", "active", "ready", "concluded", "pre-switchover", "copy0",
    "copy0-file", "disk0", "agent", "net1-device",
    "\x1b[2J", "\u009b", "\u202e", "\ud800", "fe80::1%\x1b", "10.0.0.1", "::1", "", "a" * 300,
)  # fmt: skip
AGENT_NAMES = (
    "pid", "exited", "exitcode", "signal", "out-data", "err-data", "out-truncated", "name",
    "ip-addresses", "ip-address", "hardware-address",
    "statistics", "rx-bytes", "tx-bytes", "paths", "trimmed", "online", "error", "desc", "return",
    "buf-b64", "count",
)  # fmt: skip


def values(names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    numbers = st.integers(-2, 3) | st.sampled_from([2**63, 2**64, 10**400, -(10**30), 255])
    scalars = st.none() | st.booleans() | numbers | st.floats() | st.sampled_from(WORDS)
    return st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(names), inner, max_size=5)
        ),
        max_leaves=12,
    )


def told(monitor: Monitor | None = None, agent: Agent | None = None) -> Told:
    run: Any = SimpleNamespace(monitor=monitor, agent=agent)
    found = Told(run, "52:54:00:00:00:01")
    found.polls = True
    return found


async def handed(monitor: Monitor) -> int:
    with open(os.devnull) as file:
        return await monitor.give(file.fileno(), "it")


async def lent(monitor: Monitor) -> None:
    with open(os.devnull) as file:
        await monitor.send_descriptor(file.fileno(), "it")


async def saved(monitor: Monitor) -> None:
    with open(os.devnull) as file:
        await live.save(
            monitor,
            file.fileno(),
            file.fileno(),
            "below",
            (),
            lambda text, share: None,
            lambda: None,
        )


async def usernet(monitor: Monitor) -> None:
    parse_held(read(await monitor.run("human-monitor-command")).text(most=LINE_CAP))


async def session(agent: Agent) -> list[object]:
    running = await relay.start(agent, Command(("true",), "dumb"))
    await running.give(b"in")
    found: list[object] = [*await running.look(), *await running.look()]
    await running.close()
    return found


QUESTIONS: dict[str, Callable[[Monitor], Awaitable[object]]] = {
    "status": lambda monitor: monitor.status(),
    "give": handed,
    "lend": lent,
    "size": lambda monitor: tune.find_size(monitor, 1 << 30),
    "memory": lambda monitor: tune.offer_memory(monitor, 1 << 30, 1 << 31),
    "cpus": lambda monitor: tune.offer_cpus(monitor, 2),
    "limits": lambda monitor: tune.limit_disk(monitor, DiskIo(iops=5)),
    "disk": tune.find_disk,
    "threads": lambda monitor: tune.find_threads(monitor, os.getpid()),
    "grown": lambda monitor: warm.wait_plugged(monitor, 1, 0.05),
    "plugged": lambda monitor: warm.plug(monitor, 3, 1 << 21),
    "resized": lambda monitor: warm.resize_disk(monitor, 5),
    "template": lambda monitor: warm.save(monitor, "file:x"),
    "resumed": lambda monitor: warm.load(monitor, "file:x"),
    "taken over": lambda monitor: live.load(monitor, "file:x", True, 0.05),
    "saved": saved,
    "put away": live.end_save,
    "nic in": lambda monitor: plug.plug_nic(monitor, 1, "52:54:00:00:00:01", None),
    "nic out": lambda monitor: plug.unplug_nic(monitor, 1),
    "clock": rtc.lag,
    "ports": lambda monitor: has_opened(monitor, "agent"),
    "guest's memory": lambda monitor: ask_memory(told(monitor), SystemClock()),
    "blocks": lambda monitor: ask_blocks(told(monitor), SystemClock()),
    "user network": usernet,
}
PROMISED = {
    "status": str, "give": int, "size": tune.Size, "disk": int, "threads": list,
    "clock": float | None, "ports": bool,
    "addresses": tuple, "traffic": tuple | None, "trim": int | None, "cpus in use": int,
    "command": tuple, "session": list, "clock set": float,
}  # fmt: skip
ASKED: dict[str, Callable[[Agent], Awaitable[object]]] = {
    "addresses": lambda agent: agent.addresses(),
    "traffic": lambda agent: agent.traffic("52:54:00:00:00:01"),
    "trim": lambda agent: agent.trim(5),
    "cpus in use": lambda agent: agent.cpus(),
    "command": lambda agent: agent.execute(["/bin/true"], deadline=0.05),
    "session": session,
    "clock set": lambda agent: set_clock(agent, lambda: 1.0),
    "any": lambda agent: agent.run("guest-ping"),
    "history": lambda agent: ask_traffic(told(agent=agent), SystemClock()),
}
given_any = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def judged(name: str, work: Awaitable[object]) -> None:
    """It ends with what it promises or with an error of ours; waiting for a change that never comes
    is cut short.
    """
    with contextlib.suppress(TimeoutError, Misbehaves, GuestSilent, Failed):
        async with asyncio.timeout(0.2):
            found = await work
            assert isinstance(found, PROMISED.get(name, object)), found


@pytest.mark.parametrize("name", QUESTIONS)
@given_any
@given(answers=st.lists(values(NAMES), min_size=1, max_size=4))
def test_whatever_a_monitor_answers_is_what_was_promised_or_an_error_of_ours(
    short: Path, name: str, answers: list[Any]
) -> None:
    async def talk(liar: Liar) -> None:
        await liar.greet()
        said = iter(answers)
        await liar.serve(lambda _: next(said, answers[-1]))

    async def play() -> None:
        async with lying(short, talk) as place:
            monitor = await open_monitor(place)
            try:
                await judged(name, QUESTIONS[name](monitor))
            finally:
                await monitor.close()

    asyncio.run(play())


# ---- answers that are right but for one part: what is right lets the rest be read

CPU = {"type": "x-cpu", "vcpus-count": 1, "props": {"core-id": 1, "thread-id": 0, "socket-id": 0}}
CLOCK = {"tm_year": 126, "tm_mon": 0, "tm_mday": 1, "tm_hour": 1, "tm_min": 1, "tm_sec": 1}
MIGRATION = {"status": "completed", "ram": {"total": 9, "remaining": 3}, "error-desc": "none"}
JOB = {"id": "copy0", "status": "ready", "current-progress": 1, "total-progress": 2}
RIGHT: dict[str, Any] = {
    "query-status": {"status": "running"},
    "query-cpus-fast": [{"thread-id": 7, "qom-path": "/x"}],
    "query-hotpluggable-cpus": [CPU, {**CPU, "qom-path": "/machine/peripheral/cpu0"}],
    "query-balloon": {"actual": 1 << 29},
    "query-named-block-nodes": [{"node-name": "disk0", "image": {"virtual-size": 5}},
    {"node-name": "copy0"}],
    "query-migrate": MIGRATION,
    "query-migrate-capabilities": [{"capability": "mapped-ram", "state": False}],
    "query-jobs": [JOB],
    "query-fdsets": [{"fdset-id": 3, "fds": [{"opaque": "copy0"}]}],
    "query-chardev": [{"label": "agent", "frontend-open": True}],
    "query-blockstats": [{"stats": {"rd_operations": 1, "wr_operations": 1, "rd_total_time_ns": 1,
    "wr_total_time_ns": 1}}],
    "qom-list": [{"name": "net1-device"}],
    "add-fd": {"fdset-id": 3, "fd": 9},
    "human-monitor-command": "TCP[HOST_FORWARD]  9 127.0.0.1 80 10.0.2.15 80 0 0\r\n",
    "guest-exec": {"pid": 7},
    "guest-get-time": 1_050_000_000,
    "guest-file-open": 5,
    "guest-file-read": {"count": 9, "buf-b64": "bwQAAABzYWlk", "eof": False},
    "guest-exec-status": {"exited": True, "exitcode": 0, "out-data": "aGk=", "err-data": "aGk=",
    "out-truncated": False},
    "guest-network-get-interfaces": [
        {"name": "eth0", "hardware-address": "52:54:00:00:00:01",
        "ip-addresses": [{"ip-address": "10.0.0.1"}], "statistics": {"rx-bytes": 1, "tx-bytes": 2}}
    ],
    "guest-fstrim": {"paths": [{"path": "/", "trimmed": 5}]},
    "guest-get-vcpus": [{"online": True, "logical-id": 0}],
}  # fmt: skip
STATS = {"stats": {"stat-total-memory": 9, "stat-free-memory": 5}, "last-update": 7}
QOM = {"clock": CLOCK, "guest's memory": STATS}
ODD: list[Any] = [
    None,
    True,
    -1,
    5,
    2**64,
    10**400,
    1.5,
    "",
    "x" * 5000,
    "\x1b[2J",
    "\ud800",
    [],
    [5],
    {},
    {"a": 1},
    [[]],
    "2001:db8::1%\x1b",
    [None],
]


def places(value: Any) -> list[tuple[Any, ...]]:
    """The way to each part of a value, the whole one first."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [(), *((key, *rest) for key, item in inner for rest in places(item))]


def but(value: Any, place: tuple[Any, ...], odd: Any) -> Any:
    """The same with another part in that place; `...` for none."""
    if not place:
        return {} if odd is ... else odd
    copy = dict(value) if isinstance(value, dict) else list(value)
    if odd is ... and len(place) == 1:
        del copy[place[0]]
    else:
        copy[place[0]] = but(copy[place[0]], place[1:], odd)
    return copy


def spoiled(chance: random.Random, right: Any) -> Any:
    """Right, or wrong in one place."""
    return (
        right
        if chance.random() < 0.4
        else but(right, chance.choice(places(right)), chance.choice([..., *ODD]))
    )


@pytest.mark.parametrize("name", QUESTIONS)
@given_any
@given(seed=st.integers(0, 2**32))
def test_a_monitor_that_lies_in_one_place_is_found_out(short: Path, name: str, seed: int) -> None:
    chance = random.Random(seed)

    async def talk(liar: Liar) -> None:
        await liar.greet()
        await liar.serve(
            lambda command: spoiled(
                chance, RIGHT.get(command, QOM.get(name, 1 << 21) if command == "qom-get" else {})
            )
        )

    async def play() -> None:
        async with lying(short, talk) as place:
            monitor = await open_monitor(place)
            try:
                await judged(name, QUESTIONS[name](monitor))
            finally:
                await monitor.close()

    asyncio.run(play())


@pytest.mark.parametrize("name", ASKED)
@given_any
@given(seed=st.integers(0, 2**32))
def test_an_agent_that_lies_in_one_place_is_found_out(short: Path, name: str, seed: int) -> None:
    chance = random.Random(seed)

    async def play() -> None:
        async with lying(
            short, agent_of(lambda command: spoiled(chance, RIGHT.get(command, {}))), "agent"
        ) as place:
            agent = await open_agent(place)
            try:
                await judged(name, ASKED[name](agent))
            finally:
                await agent.close()

    asyncio.run(play())


@pytest.mark.parametrize("name", sorted(PROMISED))
async def test_who_says_what_is_right_is_understood(short: Path, name: str) -> None:
    """Else everything above would be refused for another reason."""

    async def talk(liar: Liar) -> None:
        await liar.greet()
        await liar.serve(lambda command: RIGHT.get(command, CLOCK if name == "clock" else 1 << 21))

    async with (
        lying(short, talk) as place,
        lying(short, agent_of(lambda command: RIGHT.get(command, {})), "agent") as port,
    ):
        monitor, agent = await open_monitor(place), await open_agent(port)
        found = await (QUESTIONS[name](monitor) if name in QUESTIONS else ASKED[name](agent))
        assert isinstance(found, PROMISED[name]) and (found or name in ("threads", "clock"))
        await monitor.close()
        await agent.close()


def agent_of(answer: Callable[[str], Any]) -> Talk:
    async def talk(liar: Liar) -> None:
        while True:
            request = json.loads((await liar.reader.readuntil(b"\n")).lstrip(b"\xff"))
            if request["execute"] == "guest-sync-delimited":
                liar.raw(b"\xff")
                liar.say({"return": request["arguments"]["id"]})
            else:
                liar.say({"return": answer(request["execute"])})

    return talk


@pytest.mark.parametrize("name", ASKED)
@given_any
@given(answers=st.lists(values(AGENT_NAMES), min_size=1, max_size=3))
def test_whatever_an_agent_answers_is_what_was_promised_or_an_error_of_ours(
    short: Path, name: str, answers: list[Any]
) -> None:
    said = iter(answers)

    async def play() -> None:
        async with lying(
            short, agent_of(lambda command: next(said, answers[-1])), "agent"
        ) as place:
            agent = await open_agent(place)
            try:
                await judged(name, ASKED[name](agent))
            finally:
                await agent.close()

    asyncio.run(play())


@given(values(NAMES), st.sampled_from(NAMES))
def test_a_part_of_an_answer_is_of_its_type_or_refused(value: Any, name: str) -> None:
    answer = read(value)
    ways: dict[Callable[[], object], Any] = {
        lambda: answer.text(name): str, lambda: answer.text(name, None): str | None,
        lambda: answer.number(name): int,
        lambda: answer.number(name, 0): int, lambda: answer.flag(name): bool,
        lambda: answer.items(name): list, lambda: answer.fields(name): dict,
        lambda: answer.words(name, "none"): str, lambda: answer.sensible(name): int | None,
        lambda: name in answer: bool,
        lambda: answer.text(): str, lambda: answer.number(): int, lambda: answer.items(): list,
    }  # fmt: skip
    for way, kind in ways.items():
        with contextlib.suppress(Misbehaves):
            found = way()
            assert isinstance(found, kind)
            assert not isinstance(found, int) or 0 <= found <= LARGEST
            assert not isinstance(found, str) or len(found.encode()) < 4 * TEXT_CAP
