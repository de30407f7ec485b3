"""The guest agent: every answer is hostile until parsed, every wait has an end, and one bad answer
does not spoil the next.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virtuary.base.errors import Failed, GuestSilent, Misbehaves, VirtuaryError
from virtuary.guest.agent import OUTPUT_CAP, Agent, Outcome, open_agent

Talk = Callable[["Guest"], Awaitable[None]]


class Guest:
    """The agent's side of the channel: reads requests, answers as a test wishes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self) -> dict[str, Any]:
        line = (await self.reader.readuntil(b"\n")).lstrip(b"\xff")
        found: dict[str, Any] = json.loads(line)
        return found

    def raw(self, data: bytes) -> None:
        self.writer.write(data)

    def answer(self, value: Any) -> None:
        self.raw(json.dumps({"return": value}).encode() + b"\n")

    async def sync(self) -> None:
        request = await self.request()
        assert request["execute"] == "guest-sync-delimited"
        self.raw(b"\xff")
        self.answer(request["arguments"]["id"])

    async def serve(self, answers: dict[str, Any]) -> None:
        """Answer everything by a table: name of the command -> value, or a list of values given in
        turn.
        """
        while True:
            request = await self.request()
            name = request["execute"]
            if name == "guest-sync-delimited":
                self.raw(b"\xff")
                self.answer(request["arguments"]["id"])
                continue
            value = answers[name]
            self.answer(
                value.pop(0) if isinstance(value, list) and name == "guest-exec-status" else value
            )


@asynccontextmanager
async def talking(folder: Path, talk: Talk, limit: int | None = None) -> AsyncIterator[Agent]:
    place = folder / "agent"
    place.unlink(missing_ok=True)
    tasks: list[asyncio.Task[None]] = []

    async def on_call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(talk(Guest(reader, writer)))
        tasks.append(task)  # type: ignore[arg-type]
        try:
            await asyncio.gather(task, return_exceptions=True)
        finally:
            writer.close()

    server = await asyncio.start_unix_server(on_call, str(place))
    agent = (
        await open_agent(place)
        if limit is None
        else Agent(*await asyncio.open_unix_connection(str(place), limit=limit))
    )
    try:
        yield agent
    finally:
        await agent.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.close()


async def test_a_conversation_begins_by_agreeing_where_it_begins(short: Path) -> None:
    async def talk(guest: Guest) -> None:
        guest.raw(b'{"return": "left over from somebody else"}\n\xff{"return": 99999999}\nrubbish')
        await guest.serve({"guest-ping": {"ok": 1}})

    async with talking(short, talk) as agent:
        assert await agent.run("guest-ping") == {"ok": 1}
        assert await agent.run("guest-ping") == {"ok": 1}, "the second one needs no agreement"


async def test_a_refusal_is_told_in_the_agents_words_without_its_tricks(short: Path) -> None:
    async def talk(guest: Guest) -> None:
        await guest.sync()
        await guest.request()
        guest.raw(
            json.dumps(
                {"error": {"class": "X", "desc": "No such \x1b[2Jfile" + "x" * 1000}}
            ).encode()
            + b"\n"
        )

    async with talking(short, talk) as agent:
        with pytest.raises(Failed) as caught:
            await agent.run("guest-exec", path="/nothing")
    assert "No such [2Jfile" in caught.value.sentence and len(caught.value.sentence) < 400


async def test_a_missed_deadline_is_silence_and_the_late_answer_belongs_to_nobody(
    short: Path,
) -> None:
    async def talk(guest: Guest) -> None:
        await guest.sync()
        await guest.request()
        await asyncio.sleep(0.2)
        guest.answer("too late")
        await guest.serve({"guest-ping": "in time"})

    async with talking(short, talk) as agent:
        with pytest.raises(GuestSilent):
            await agent.run("guest-ping", deadline=0.1)
        assert await agent.run("guest-ping", deadline=5) == "in time"


async def test_an_agent_that_goes_away_is_silent(short: Path) -> None:
    async def talk(guest: Guest) -> None:
        await guest.sync()

    async with talking(short, talk) as agent:
        with pytest.raises(GuestSilent):
            await agent.run("guest-ping", deadline=2)


async def test_garbage_is_refused_and_the_next_request_is_heard(short: Path) -> None:
    async def talk(guest: Guest) -> None:
        await guest.sync()
        await guest.request()
        guest.raw(b"\x00\x01 not json\n")
        await guest.serve({"guest-ping": "well"})

    async with talking(short, talk) as agent:
        with pytest.raises(Misbehaves):
            await agent.run("guest-ping")
        assert await agent.run("guest-ping") == "well"


async def test_a_huge_answer_is_capped(short: Path) -> None:
    async def talk(guest: Guest) -> None:
        await guest.sync()
        await guest.request()
        for _ in range(64):
            guest.raw(b"x" * 65536)
            await guest.writer.drain()

    async with talking(short, talk) as agent:
        with pytest.raises(Misbehaves):
            await agent.run("guest-ping", deadline=5)


async def test_many_small_values_hold_nobody_up(short: Path) -> None:
    """45 MB of them, as an ordinary guest's root can send on the agent's port."""

    async def talk(guest: Guest) -> None:
        await guest.sync()
        await guest.request()
        guest.raw(b'{"return": [')
        for _ in range(700):
            guest.raw(b"[]," * 21_845)
            await guest.writer.drain()
        guest.raw(b"1]}\n")
        await guest.serve({"guest-ping": "well"})

    async with talking(short, talk) as agent:
        slowest = await slowest_turn(expect_lie(agent))
        assert await agent.run("guest-ping") == "well"
    assert slowest < 0.05, f"others waited {slowest:.3f} s"


async def expect_lie(agent: Agent) -> None:
    with pytest.raises(Misbehaves):
        await agent.run("guest-ping", deadline=30)


async def slowest_turn(work: Awaitable[object]) -> float:
    """The longest time of this processor for which nobody else had a turn while this was done;
    others use the host too.
    """
    task = asyncio.ensure_future(work)
    slowest = 0.0
    while not task.done():
        at = time.thread_time()
        await asyncio.sleep(0)
        slowest = max(slowest, time.thread_time() - at)
    await task
    return slowest


@pytest.mark.slow
async def test_a_flood_keeps_neither_its_caller_nor_anybody_else_waiting(short: Path) -> None:
    """The daemon serves every machine on one loop: a guest that shouts must not hold it."""

    async def talk(guest: Guest) -> None:
        while True:
            guest.raw(b"\xff\n" * 100_000)
            await guest.writer.drain()

    async with talking(short, talk) as agent:
        await asyncio.sleep(0.3)  # it shouts while nobody listens
        ticks: list[float] = []

        async def tick() -> None:
            while True:
                ticks.append(time.thread_time())
                await asyncio.sleep(0.01)

        ticking = asyncio.create_task(tick())
        with pytest.raises(GuestSilent):
            await agent.run("guest-ping", deadline=0.3)
        ticking.cancel()
    gaps = [after - before for before, after in pairwise(ticks)]
    assert max(gaps) < 0.5


async def test_a_guest_that_reads_nothing_leaves_little_in_the_daemon(short: Path) -> None:
    async def talk(guest: Guest) -> None:
        await guest.sync()
        guest.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(60)

    async with talking(short, talk) as agent:
        with pytest.raises(GuestSilent, match="did not answer"):
            await agent.run("guest-exec", deadline=0.3, **{"input-data": "x" * 2_000_000})
        with pytest.raises(GuestSilent, match="does not read"):
            await agent.run("guest-exec", deadline=0.3, **{"input-data": "x" * 2_000_000})


async def test_requests_take_turns(short: Path) -> None:
    async with talking(short, lambda guest: guest.serve({"a": 1, "b": 2})) as agent:
        assert await asyncio.gather(*(agent.run(name) for name in "abababab")) == [1, 2] * 4


# ---- commands in the guest


async def test_all_the_output_that_the_agent_keeps_is_taken_and_holds_nobody_up(
    short: Path,
) -> None:
    out = bytes(range(256)) * 65_536
    line = (
        json.dumps(
            {
                "return": {
                    "out-data": encoded(out),
                    "exited": True,
                    "err-data": encoded(b"err"),
                    "exitcode": 0,
                }
            }
        ).encode()
        + b"\n"
    )

    async def talk(guest: Guest) -> None:
        await guest.sync()
        await guest.request()
        guest.answer({"pid": 7})
        await guest.request()
        for at in range(0, len(line), 65_536):
            guest.raw(line[at : at + 65_536])
            await guest.writer.drain()
        await guest.serve({"guest-ping": "well"})

    async with talking(short, talk) as agent:
        outcomes: list[Outcome] = []

        async def run() -> None:
            outcomes.append(await agent.execute(["/bin/cat"], most=OUTPUT_CAP))

        slowest = await slowest_turn(run())
        assert await agent.run("guest-ping") == "well"
    assert outcomes == [Outcome(0, out, b"err", False)]
    assert slowest < 0.05, f"others waited {slowest:.3f} s"


@pytest.mark.parametrize("spaces", ["", " ", "   "])
async def test_output_is_taken_wherever_it_stands(short: Path, spaces: str) -> None:
    first = (
        f'{{"return":{spaces}{{"err-data"{spaces}:{spaces}"{encoded(b"e" * 50_000)}", '
        '"exited": true, "exitcode": 1, "out-data": ""}}\n'
    )

    async def talk(guest: Guest) -> None:
        await guest.sync()
        await guest.request()
        guest.answer({"pid": 7})
        await guest.request()
        guest.raw(first.encode())
        await asyncio.sleep(5)

    async with talking(short, talk) as agent:
        assert await agent.execute(["/bin/cat"]) == Outcome(1, b"", b"e" * 50_000, False)


async def test_more_output_than_was_asked_for_is_refused(short: Path) -> None:
    ended = {"exited": True, "exitcode": 0, "out-data": encoded(b"x" * 300_000)}
    async with talking(
        short, lambda guest: guest.serve({"guest-exec": {"pid": 7}, "guest-exec-status": [ended]})
    ) as agent:
        with pytest.raises(Misbehaves, match="more than"):
            await agent.execute(["/bin/cat"], most=200_000)


TWICE = b'{"return": {"exited": true, "exitcode": 0, "out-data": "aGk=", "out-data": "aGk="}}\n'
ENDLESS = b'{"return": {"exited": true, "x": "' + b"x" * 20_000 + b'"}}\n'


@pytest.mark.parametrize(
    "line",
    [TWICE, ENDLESS, b'"' * 20_000 + b"\n", b"\n", b"\xff\n"],
    ids=["twice", "long", "marks", "empty", "mark"],
)
async def test_an_end_that_is_told_in_an_odd_way_is_refused(short: Path, line: bytes) -> None:
    async def talk(guest: Guest) -> None:
        await guest.sync()
        await guest.request()
        guest.answer({"pid": 7})
        await guest.request()
        guest.raw(line)
        await asyncio.sleep(5)

    async with talking(short, talk) as agent:
        with pytest.raises(Misbehaves):
            await agent.execute(["/bin/cat"])


def encoded(text: bytes) -> str:
    return base64.b64encode(text).decode()


async def test_a_command_ends_with_its_status_and_output(short: Path) -> None:
    ended = {
        "exited": True,
        "exitcode": 3,
        "out-data": encoded(b"out"),
        "err-data": encoded(b"err"),
        "out-truncated": True,
    }
    answers = {
        "guest-exec": {"pid": 7},
        "guest-exec-status": [{"exited": False}, {"exited": False}, ended],
    }
    async with talking(short, lambda guest: guest.serve(answers)) as agent:
        assert await agent.execute(["/bin/sh"], b"input") == Outcome(3, b"out", b"err", True)


async def test_a_command_ended_by_a_signal_ends_as_in_a_shell(short: Path) -> None:
    answers = {"guest-exec": {"pid": 7}, "guest-exec-status": [{"exited": True, "signal": 9}]}
    async with talking(short, lambda guest: guest.serve(answers)) as agent:
        assert (await agent.execute(["/bin/sh"])).status == 137


async def test_a_command_that_does_not_end_is_left_alone_at_the_deadline(short: Path) -> None:
    answers = {
        "guest-exec": {"pid": 7},
        "guest-exec-status": [{"exited": False} for _ in range(100)],
    }
    async with talking(short, lambda guest: guest.serve(answers)) as agent:
        with pytest.raises(GuestSilent, match="did not end"):
            await agent.execute(["/bin/sleep"], deadline=0.1)


STRANGE: dict[str, Any] = {
    "no pid": {"guest-exec": {}},
    "a pid that is a tale": {"guest-exec": {"pid": {"a": []}}},
    "a list": {"guest-exec": [1]},
    "no end": {"guest-exec": {"pid": 1}, "guest-exec-status": [{}]},
    "an endless status": {
        "guest-exec": {"pid": 1},
        "guest-exec-status": [{"exited": True, "exitcode": float("inf")}],
    },
    "a status that is a list": {
        "guest-exec": {"pid": 1},
        "guest-exec-status": [{"exited": True, "exitcode": []}],
    },
    "output that is no base64": {
        "guest-exec": {"pid": 1},
        "guest-exec-status": [{"exited": True, "exitcode": 0, "out-data": "%%"}],
    },
    "output that is a number": {
        "guest-exec": {"pid": 1},
        "guest-exec-status": [{"exited": True, "exitcode": 0, "err-data": 5}],
    },
}


@pytest.mark.parametrize("case", STRANGE)
async def test_a_strange_answer_about_a_command_is_refused(short: Path, case: str) -> None:
    async with talking(
        short, lambda guest: guest.serve(json.loads(json.dumps(STRANGE[case])))
    ) as agent:
        with pytest.raises(Misbehaves):
            await agent.execute(["/bin/true"])


async def test_addresses_leave_out_what_is_not_reachable(short: Path) -> None:
    links = [
        {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1"}]},
        {"name": "eth0", "ip-addresses": [{"ip-address": "fe80::1"}, {"ip-address": "2001:db8::1"},
        {"ip-address": "10.0.2.15"}, {"ip-address": "169.254.0.1"}]},
        {"name": "eth1"},
    ]  # fmt: skip
    async with talking(
        short, lambda guest: guest.serve({"guest-network-get-interfaces": links})
    ) as agent:
        assert await agent.addresses() == ("10.0.2.15", "2001:db8::1")


async def test_an_address_is_told_in_its_canonical_form_or_not_at_all(short: Path) -> None:
    told = [
        "2001:DB8:0::0005",
        "10.1.2.3",
        "2001:db8::1%\x1b[2J",
        "10.1.2.3\n",
        "0x7f.1",
        "::",
        "ff02::1",
        "<b>",
        "10.0.0.0/8",
        "",
    ]
    links = [{"name": "eth0", "ip-addresses": [{"ip-address": text} for text in told]}]
    async with talking(
        short, lambda guest: guest.serve({"guest-network-get-interfaces": links})
    ) as agent:
        assert await agent.addresses() == ("10.1.2.3", "2001:db8::5")


@pytest.mark.parametrize(
    ("answer", "bytes_told"),
    [
        ({"paths": []}, None),
        (
            {"paths": [{"trimmed": 5, "path": "/"}, {"path": "/x", "error": "no"}, {"trimmed": 6}]},
            11,
        ),
        ({}, None),
    ],
)
async def test_trimming_tells_how_much(short: Path, answer: Any, bytes_told: int | None) -> None:
    async with talking(short, lambda guest: guest.serve({"guest-fstrim": answer})) as agent:
        assert await agent.trim(5) == bytes_told


@pytest.mark.parametrize(
    "answer",
    [None, 5, "x", [], {"paths": 5}, {"paths": [5]}, {"paths": [{"trimmed": "5"}]}, {"paths": [{"trimmed": -1}]}, {"paths": [{"trimmed": 10**30}]}],
    ids=str,
)  # fmt: skip
async def test_trimming_that_is_told_in_an_odd_way_is_refused(short: Path, answer: Any) -> None:
    async with talking(short, lambda guest: guest.serve({"guest-fstrim": answer})) as agent:
        with pytest.raises(Misbehaves):
            await agent.trim(5)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "pid",
                    "exited",
                    "exitcode",
                    "signal",
                    "out-data",
                    "err-data",
                    "name",
                    "ip-addresses",
                    "ip-address",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    derandomize=True,
)
@given(first=values, second=values, lines=st.booleans(), noise=st.binary(max_size=20))
@pytest.mark.slow
def test_whatever_a_guest_answers_only_our_kinds_of_errors_come_out(
    short: Path, first: Any, second: Any, lines: bool, noise: bytes
) -> None:
    async def talk(guest: Guest) -> None:
        await guest.sync()
        turn = 0
        while True:
            request = await guest.request()
            if request["execute"] == "guest-sync-delimited":
                guest.raw(b"\xff")
                guest.answer(request["arguments"]["id"])
                continue
            turn += 1
            if lines and turn > 1:
                guest.raw(noise + b"\n")
            else:
                guest.answer(first if turn == 1 else second)

    async def play() -> None:
        async with talking(short, talk) as agent:
            for work in (
                lambda: agent.addresses(),
                lambda: agent.execute(["/bin/true"], deadline=0.05),
            ):
                try:
                    found = await asyncio.wait_for(work(), 5)
                    assert isinstance(found, tuple)
                except VirtuaryError:
                    pass

    asyncio.run(play())
