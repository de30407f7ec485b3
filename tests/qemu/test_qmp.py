"""The monitor's session: whatever QEMU says, somebody waits for it at most so long, and what it
says takes neither memory nor time of others.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from liar import GREETING, Liar, lying
from virtuary.base.answers import LINE_CAP
from virtuary.base.errors import GuestSilent, Misbehaves
from virtuary.qemu.qmp import QUEUE_CAP, CommandFailed, open_monitor

FLOODS = {
    "events": b'{"event": "STOP", "data": {"a": [[], [], {}]}, "timestamp": {"seconds": 1, "microseconds": 1}}\r\n'
    * 700,
    "events nobody waits for": b'{"event": "X"}\n' * 4000,
    "late answers": b'{"return": {}, "id": 77777}\n' * 2000,
}


async def serve_status(liar: Liar) -> None:
    await liar.greet()
    await liar.serve(lambda name: {"status": "running"})


async def test_a_command_is_answered(short: Path) -> None:
    async with lying(short, serve_status) as place:
        monitor = await open_monitor(place)
        assert await monitor.status() == "running" and monitor.alive
        await monitor.close()


async def test_answers_find_their_questions_in_any_order(short: Path) -> None:
    async def talk(liar: Liar) -> None:
        await liar.greet()
        asked = [await liar.asked() for _ in range(3)]
        for request in reversed(asked):
            liar.say({"return": request["execute"], "id": request["id"]})
        await asyncio.sleep(5)

    async with lying(short, talk) as place:
        monitor = await open_monitor(place)
        assert await asyncio.gather(*(monitor.run(name) for name in "abc")) == ["a", "b", "c"]
        await monitor.close()


async def test_a_refusal_is_told_in_words_that_can_be_shown(short: Path) -> None:
    async def talk(liar: Liar) -> None:
        await liar.greet()
        liar.say(
            {
                "error": {
                    "class": "X",
                    "desc": "no\x1b]0;title\x07 \u202esuch \u009b2Jthing" + "x" * 1000,
                },
                "id": (await liar.asked())["id"],
            }
        )
        await asyncio.sleep(5)

    async with lying(short, talk) as place:
        monitor = await open_monitor(place)
        with pytest.raises(CommandFailed) as caught:
            await monitor.run("stop")
        assert caught.value.sentence.isprintable() and len(caught.value.sentence) < 400
        await monitor.close()


async def test_a_missed_deadline_is_silence_and_the_session_goes_on(short: Path) -> None:
    async def talk(liar: Liar) -> None:
        await liar.greet()
        late = await liar.asked()
        await asyncio.sleep(0.15)
        liar.say({"return": "late", "id": late["id"]})
        await liar.serve(lambda name: "in time")

    async with lying(short, talk) as place:
        monitor = await open_monitor(place)
        with pytest.raises(GuestSilent):
            await monitor.run("first", deadline=0.1)
        assert monitor.misses == 1
        assert await monitor.run("second") == "in time" and monitor.misses == 0
        await monitor.close()


LIES = {
    "no JSON": b"rubbish\n", "an empty line": b"\n", "a number": b"5\n", "a list": b"[]\n",
    "neither": b'{"x": 1}\n',
    "an event without a name": b'{"event": 5}\n',
    "an event without a clock": b'{"event": "STOP", "timestamp": {"seconds": "x"}}\n',
    "data that is none": b'{"event": "STOP", "data": 5}\n',
    "a large event": b'{"event": "STOP", "data": {"a": "' + b"x" * 5000 + b'"}}\n',
    "an id that is none": b'{"return": 1, "id": {}}\n', "a long line": b"x" * (LINE_CAP + 2),
    "many parts": b"[" + b"[]," * 300_000 + b"1]\n",
    "deep": b"[" * 1000 + b"]" * 1000 + b"\n", "not ASCII": '{"event": "é"}\n'.encode(),
    "a constant": b'{"return": NaN, "id": 1}\n',
    "many digits": b'{"return": ' + b"9" * 5000 + b', "id": 1}\n',
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
async def test_a_line_that_makes_no_sense_ends_the_session_and_says_so(
    short: Path, lie: str
) -> None:
    async def talk(liar: Liar) -> None:
        await liar.greet()
        await liar.asked()
        liar.raw(LIES[lie])
        await asyncio.sleep(5)

    async with lying(short, talk) as place:
        monitor = await open_monitor(place)
        with pytest.raises(Misbehaves):
            await monitor.run("query-status")
        await asyncio.wait_for(monitor.gone(), 1)
        with pytest.raises(Misbehaves):
            [event async for event in monitor.events()]
        with pytest.raises(Misbehaves):
            await monitor.run("query-status")
        await monitor.close()


async def test_a_qemu_that_is_still_starting_may_greet_twice_and_later_no_more(short: Path) -> None:
    async def talk(liar: Liar) -> None:
        liar.raw(GREETING + GREETING)
        for value in ({}, "yes"):
            liar.say({"return": value, "id": (await liar.asked())["id"]})
        liar.raw(GREETING)
        await asyncio.sleep(5)

    async with lying(short, talk) as place:
        monitor = await open_monitor(place)
        assert await monitor.run("query-status") == "yes"
        await asyncio.wait_for(monitor.gone(), 1)
        assert monitor.fault
        await monitor.close()


@pytest.mark.parametrize("greeting", [b"{}\n", b"5\n", b"\n", b"x" * (LINE_CAP + 2), b""])
async def test_who_does_not_greet_is_no_monitor(short: Path, greeting: bytes) -> None:
    async def talk(liar: Liar) -> None:
        liar.raw(greeting)
        await liar.writer.drain()
        if greeting:
            await asyncio.sleep(5)

    async with lying(short, talk) as place:
        with pytest.raises(GuestSilent):
            await open_monitor(place, 2)


async def test_a_session_that_ends_leaves_nobody_waiting(short: Path) -> None:
    async def talk(liar: Liar) -> None:
        await liar.greet()
        await liar.asked()

    async with lying(short, talk) as place:
        monitor = await open_monitor(place)
        with pytest.raises(GuestSilent, match="is gone"):
            await monitor.run("query-status")
        assert [event async for event in monitor.events()] == [] and not monitor.alive
        await monitor.close()


async def test_what_waits_to_be_heard_is_bounded_and_the_newest_of_it(short: Path) -> None:
    async def talk(liar: Liar) -> None:
        await liar.greet()
        for number in range(3 * QUEUE_CAP):
            liar.say({"event": "STOP", "data": {"number": number}})
        await asyncio.sleep(0.5)

    async with lying(short, talk) as place:
        monitor = await open_monitor(place)
        await monitor.gone()
        numbers = [data.number("number") async for _, data in monitor.events()]
        assert (
            numbers == list(range(3 * QUEUE_CAP))[-len(numbers) :]
            and QUEUE_CAP // 2 < len(numbers) <= QUEUE_CAP
        )


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_takes_a_share_of_the_loop_and_no_memory(short: Path, flood: str) -> None:
    ended = asyncio.Event()

    def pour(place: Path) -> None:
        """In a thread of its own: what the loop spends is what reading takes."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place))
            listener.listen()
            sock, _ = listener.accept()
            with sock:
                sock.sendall(GREETING)
                request = json.loads(sock.recv(4096))
                sock.sendall(json.dumps({"return": {}, "id": request["id"]}).encode() + b"\n")
                sock.settimeout(0.1)
                while not ended.is_set():
                    try:
                        sock.sendall(FLOODS[flood])
                    except TimeoutError:
                        pass
                    except OSError:
                        return

    place = short / "qmp"
    pouring = asyncio.create_task(asyncio.to_thread(pour, place))
    while not place.exists():
        await asyncio.sleep(0.01)
    monitor = await open_monitor(place)
    await asyncio.sleep(0.5)  # what may be taken at once is taken
    before, began, spent = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        time.monotonic(),
        time.thread_time(),
    )
    slowest = 0.0
    while time.monotonic() - began < 1.0:
        at = time.thread_time()
        await asyncio.sleep(0.005)
        slowest = max(slowest, time.thread_time() - at)
    share = (time.thread_time() - spent) / (time.monotonic() - began)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    ended.set()
    await monitor.close()
    await pouring
    assert share < 0.35, f"it took {share:.0%} of the loop"
    assert grown < 8 * 1024, f"{grown} KiB more"
    assert slowest < 0.05


async def test_a_descriptor_is_handed_over_with_its_command_and_one_from_there_is_not_taken(
    short: Path,
) -> None:
    place, got = short / "qmp", []

    def serve(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock, open(os.devnull) as ours:
            sock.sendall(GREETING)
            number = json.loads(sock.recv(4096))["id"]
            sock.sendall(json.dumps({"return": {}, "id": number}).encode() + b"\n")
            data, handles, _, _ = socket.recv_fds(sock, 4096, 4)
            request = json.loads(data)
            got.append((request["execute"], request["arguments"], os.read(handles[0], 9)))
            os.close(handles[0])
            answer = (
                json.dumps({"return": {"fdset-id": 3, "fd": 1}, "id": request["id"]}).encode()
                + b"\n"
            )
            socket.send_fds(sock, [answer], [ours.fileno()] * 8)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        serving = asyncio.create_task(asyncio.to_thread(serve, listener))
        monitor = await open_monitor(place)
        before = len(os.listdir("/proc/self/fd"))
        (short / "file").write_bytes(b"it is it.")
        handle = os.open(short / "file", os.O_RDONLY)
        assert await monitor.give(handle, "purpose") == 3
        os.close(handle)
        await serving
        after = len(os.listdir("/proc/self/fd"))
        await monitor.close()
    assert got == [("add-fd", {"opaque": "purpose"}, b"it is it.")]
    assert after <= before


async def test_a_monitor_that_reads_nothing_keeps_nobody_waiting_and_no_memory(short: Path) -> None:
    async def talk(liar: Liar) -> None:
        await liar.greet()
        liar.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(20)

    async with lying(short, talk) as place:
        monitor = await open_monitor(place)
        long: dict[str, Any] = {"text": "x" * 100_000}
        for _ in range(20):
            with pytest.raises(GuestSilent):
                await monitor.run("it", deadline=0.02, **long)
        with pytest.raises(GuestSilent, match="does not read"):
            await monitor.run("it", deadline=0.02, **long)
        await monitor.close()
