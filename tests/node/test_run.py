"""Listening to a machine whose QEMU is an adversary's: a lie ends neither the listening nor anybody
else's, and is asked for ever more seldom.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from liar import Liar, Talk, lying
from virtuary.base.clock import SystemClock
from virtuary.base.paths import VmPaths
from virtuary.base.proc import identify
from virtuary.node.machine import run as running
from virtuary.node.machine.run import Run

sys.path.insert(0, str(Path(__file__).parent))
from worlds import runtime


@asynccontextmanager
async def listening(
    folder: Path, talk: Talk, agent: Talk | None = None
) -> AsyncIterator[tuple[Run, list[int]]]:
    """A machine that is a process, and a monitor that answers as `talk` says; times it was
    woken.
    """
    paths, woken = VmPaths(folder, folder), []
    process = subprocess.Popen(["sleep", "60"])
    identity = identify(process.pid)
    assert identity
    async with lying(folder, talk), lying(folder, agent or silent, "agent"):
        facts = runtime(
            pid=identity.pid,
            start=identity.start,
            ssh_port=None,
            network_pid=None,
            network_start=None,
        )
        run = Run(
            paths, facts, os.pidfd_open(process.pid), None, SystemClock(), lambda: woken.append(1)
        )
        run.open()
        try:
            yield run, woken
        finally:
            await run.close()
            process.kill()
            process.wait()


async def silent(liar: Liar) -> None:
    await asyncio.sleep(60)


async def until(what: Callable[[], Any], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come"
        await asyncio.sleep(0.01)


ODD: list[Any] = [
    None,
    5,
    "running",
    [],
    {},
    {"status": 5},
    {"status": ["x"]},
    {"status": {"a": 1}},
    {"status": None},
]


@pytest.mark.parametrize("odd", ODD, ids=str)
async def test_an_answer_of_another_type_is_silence_and_is_said_and_what_follows_is_heard(
    short: Path, odd: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answers: dict[str, Any] = {"query-status": odd, "query-chardev": odd}

    async def talk(liar: Liar) -> None:
        await liar.greet()
        await liar.serve(lambda name: answers.get(name, {}))

    async with listening(short, talk) as (run, _):
        await until(lambda: run.misses and any("unexpected" in line for line in caplog.messages))
        answers.update({"query-status": {"status": "paused"}, "query-chardev": []})
        await until(lambda: run.qemu_status == "paused" and run.monitor and not run.misses)


async def test_a_monitor_that_refuses_to_say_how_it_is_counts_as_silent(short: Path) -> None:
    async def talk(liar: Liar) -> None:
        await liar.greet()
        liar.say({"return": {"status": "running"}, "id": (await liar.asked())["id"]})
        while True:
            liar.say(
                {"error": {"class": "GenericError", "desc": "no"}, "id": (await liar.asked())["id"]}
            )

    async with listening(short, talk) as (run, _):
        await until(lambda: run.qemu_status == "running" and run.monitor)
        for _ in range(running.SILENT_AFTER):
            await run.refresh()
        assert run.silent


@pytest.mark.parametrize(
    "lie",
    [
        b"rubbish\n",
        b'{"event": 5}\n',
        b'{"event": "STOP", "data": 5}\n',
        b'{"event": "VSERPORT_CHANGE", "data": {"open": 5}}\n',
    ],
)
async def test_a_liar_is_listened_to_ever_more_seldom(
    short: Path, lie: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[float] = []

    async def talk(liar: Liar) -> None:
        calls.append(time.monotonic())
        await liar.greet()
        request = await liar.asked()
        liar.say({"return": {"status": "running"}, "id": request["id"]})
        liar.raw(lie)
        await liar.serve(lambda name: [])

    async with listening(short, talk) as (run, _):
        await until(lambda: len(calls) >= 6)
        pauses = [after - before for before, after in pairwise(calls)]
        assert pauses[-1] > 0.3 and pauses[-1] > 4 * pauses[0], pauses
        assert not run.ended
    said = [line for line in caplog.messages if "unexpected" in line]
    assert 1 <= len(said) <= 3, "once and again is enough"


async def test_a_monitor_that_goes_away_is_found_again(short: Path) -> None:
    calls: list[int] = []

    async def talk(liar: Liar) -> None:
        calls.append(1)
        await liar.greet()
        if len(calls) > 3:
            await liar.serve(lambda name: {"status": "running"} if name == "query-status" else [])

    async with listening(short, talk) as (run, _):
        await until(lambda: run.qemu_status == "running" and run.monitor)


async def test_a_defect_in_listening_is_said_and_does_not_end_it(
    short: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk(liar: Liar) -> None:
        await liar.greet()
        await liar.serve(lambda name: {"status": "running"} if name == "query-status" else [])

    async with listening(short, talk) as (run, _):
        tries: list[int] = []

        async def broken() -> None:
            tries.append(1)
            raise KeyError("a defect")

        task = asyncio.create_task(run._keep(broken))
        await until(lambda: len(tries) > 3)
        task.cancel()
    assert 1 <= sum("defect" in line for line in caplog.messages) <= 3


async def test_a_flood_of_events_is_heeded_at_a_pace(short: Path) -> None:
    asked: list[str] = []

    async def flood(liar: Liar) -> None:
        while True:
            liar.raw(
                b'{"event": "STOP", "data": {}, "timestamp": {"seconds": 1, "microseconds": 0}}\n'
                * 50
            )
            await liar.writer.drain()
            await asyncio.sleep(0.01)

    async def talk(liar: Liar) -> None:
        await liar.greet()
        flooding = asyncio.create_task(flood(liar))

        def answer(name: str) -> Any:
            asked.append(name)
            return {"status": "running"} if name == "query-status" else []

        try:
            await liar.serve(answer)
        finally:
            flooding.cancel()

    async with listening(short, talk) as (run, woken):
        await asyncio.sleep(1.5)
        assert run.qemu_status == "running" and run.monitor
        at_once, a_second = running.EVENTS
        assert len(asked) < at_once + 3 * a_second + 10 and len(woken) < at_once + 3 * a_second + 10


async def test_an_agent_that_lies_is_asked_again_and_its_addresses_are_learned_once_it_does_not(
    short: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers: dict[str, Any] = {
        "guest-ping": {},
        "guest-network-get-interfaces": [{"ip-addresses": 5}],
    }

    async def talk(liar: Liar) -> None:
        await liar.greet()
        ports = [{"label": "agent", "frontend-open": True}]
        await liar.serve(
            lambda name: {"query-status": {"status": "running"}, "query-chardev": ports}.get(
                name, {}
            )
        )

    async def agent(liar: Liar) -> None:
        while True:
            request = json.loads((await liar.reader.readuntil(b"\n")).lstrip(b"\xff"))
            if request["execute"] == "guest-sync-delimited":
                liar.raw(b"\xff")
                liar.say({"return": request["arguments"]["id"]})
            else:
                liar.say({"return": answers[request["execute"]]})

    async with listening(short, talk, agent) as (run, _):
        await until(lambda: "agent" in run.signals)
        await until(lambda: any("not a list" in line for line in caplog.messages))
        assert run.addresses == ()
        answers["guest-network-get-interfaces"] = [
            {
                "name": "eth0",
                "ip-addresses": [{"ip-address": "10.9.8.7"}, {"ip-address": "\x1b[2J"}],
            }
        ]
        await until(lambda: run.addresses == ("10.9.8.7",))


async def test_a_guests_clock_is_behind_by_what_the_host_was_suspended(short: Path) -> None:
    class Suspended(SystemClock):
        passed = 0.0

        def slept(self) -> float:
            return self.passed

    clock, facts = Suspended(), runtime(ssh_port=None, network_pid=None, network_start=None)
    run = Run(VmPaths(short, short), facts, os.pidfd_open(os.getpid()), None, clock, lambda: None)
    try:
        run._note_suspension()
        assert run.behind == 0
        clock.passed = 3600.0
        run._note_suspension()
        run._note_suspension()
        assert run.behind == 3600.0
    finally:
        await run.close()
