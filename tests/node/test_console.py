"""The serial console: viewers see all, the disk bears a pace, and a guest that prints without end
holds nobody up.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from virtuary.node.machine.console import LOG_BURST, LOG_CAP, LOG_RATE, Console, latest, tail


@asynccontextmanager
async def printing(
    folder: Path, heard: list[bytes] | None = None
) -> AsyncIterator[tuple[Console, socket.socket]]:
    """A console that is followed, and the guest's end of it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "serial"))
        listener.listen()
        console = Console(
            folder / "console.log", heard.append if heard is not None else lambda chunk: None
        )
        following = asyncio.create_task(console.follow(folder / "serial"))
        guest, _ = await asyncio.to_thread(listener.accept)
        with guest:
            guest.setblocking(False)
            yield console, guest
        with contextlib.suppress(OSError):
            await following


async def pour(
    guest: socket.socket, seconds: float, chunk: bytes = b"0123456789abcde\n" * 1024
) -> int:
    """Print without end for a while; how much was taken."""
    until, loop, sent = time.monotonic() + seconds, asyncio.get_running_loop(), 0
    with contextlib.suppress(TimeoutError):
        while time.monotonic() < until:
            async with asyncio.timeout(1):
                await loop.sock_sendall(guest, chunk)
            sent += len(chunk)
    return sent


async def test_what_a_guest_prints_is_kept(short: Path) -> None:
    heard: list[bytes] = []
    async with printing(short, heard) as (console, guest), console.view() as queue:
        guest.sendall(b"Linux version 6\n")
        assert await asyncio.wait_for(queue.get(), 5) == b"Linux version 6\n"
    assert tail(short / "console.log") == b"Linux version 6\n" and heard == [b"Linux version 6\n"]


async def test_of_earlier_runs_nothing_is_shown_to_whoever_attaches_now(short: Path) -> None:
    async with printing(short) as (console, guest), console.view() as queue:
        console.mark(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
        guest.sendall(b"old boot\n")
        await asyncio.wait_for(queue.get(), 5)
        console.mark(datetime(2026, 1, 2, 4, 4, 5, tzinfo=UTC))
        guest.sendall(b"new [started by hand]\n")
        await asyncio.wait_for(queue.get(), 5)
    told = tail(short / "console.log")
    assert (
        latest(told) == b"new [started by hand]\n"
        and b"old boot\n\n[started 2026-01-02T04:04:05Z]\n" in told
    )
    assert latest(b"no mark\n") == b"no mark\n" and latest(b"") == b""


async def test_the_disk_bears_a_burst_and_then_a_pace_and_the_log_says_what_it_lacks(
    short: Path,
) -> None:
    async with printing(short) as (_, guest):
        began = time.monotonic()
        sent = await pour(guest, 1.5)
        seconds = time.monotonic() - began
    log = short / "console.log"
    text = (
        log.with_suffix(".old").read_bytes() + log.read_bytes()
        if log.with_suffix(".old").exists()
        else log.read_bytes()
    )
    marks = re.findall(
        rb"\n\[(\d+) bytes were not kept: they came faster than \d+ a second\]\n", text
    )
    kept = len(re.sub(rb"\n\[\d+ bytes were not kept[^\n]*\]\n", b"", text))
    assert sent > 2 * LOG_BURST, "the guest was held up instead"
    assert kept + sum(int(mark) for mark in marks) == sent
    assert kept <= LOG_BURST + LOG_RATE * (seconds + 1) and 1 <= len(marks) <= seconds + 2


async def test_a_boot_is_kept_whole(short: Path) -> None:
    boot = b"".join(
        b"[%5d.%06d] a line of a kernel that boots\n" % (number // 100, number)
        for number in range(20_000)
    )
    assert LOG_RATE < len(boot) < LOG_BURST
    async with printing(short) as (_, guest):
        await asyncio.get_running_loop().sock_sendall(guest, boot)
    assert tail(short / "console.log", LOG_CAP) == boot


async def test_a_guest_that_prints_without_end_takes_its_share_of_the_loop(short: Path) -> None:
    async with printing(short) as (_, guest):

        def shout() -> None:
            guest.settimeout(0.1)
            until = time.monotonic() + 1.5
            with contextlib.suppress(OSError):
                while time.monotonic() < until:
                    with contextlib.suppress(TimeoutError):
                        guest.sendall(b"x" * 65536)

        shouting = asyncio.create_task(asyncio.to_thread(shout))
        await asyncio.sleep(0.5)
        began, spent = time.monotonic(), time.thread_time()
        await asyncio.sleep(0.8)
        share = (time.thread_time() - spent) / (time.monotonic() - began)
        await shouting
    assert share < 0.3, f"it took {share:.0%} of the loop"


@pytest.mark.parametrize("size", [0, 10, 100_000])
async def test_a_viewer_that_reads_gets_what_the_disk_does_not_keep(short: Path, size: int) -> None:
    async with printing(short) as (console, guest):
        await pour(guest, 0.3)  # more than is kept
        async with console.view() as queue:
            await asyncio.get_running_loop().sock_sendall(guest, b"y" * size + b"!")
            got = b""
            while not got.endswith(b"!"):
                got += await asyncio.wait_for(queue.get(), 5)
    assert got.endswith(b"y" * size + b"!")
