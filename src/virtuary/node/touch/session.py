"""A command that runs in a guest for somebody who is connected: what they say goes in, what it says
goes out, until it ends or they are gone.

Nothing waits in silence: while the server is paused, so is the command, and whoever waits is told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from virtuary.base.errors import GuestSilent, Invalid
from virtuary.guest import relay
from virtuary.guest.relay import BEAT, QUICK, SLOW, WINDOW, Command, End, Piece, Relay
from virtuary.model.vm import Vm
from virtuary.node.machine.run import Run
from virtuary.node.node import Node

T = TypeVar("T")
Say = Callable[[Piece | str | int], Awaitable[None]]
"""Tells the other side: a piece of output, a sentence, or how many bytes of its input were taken.
"""


@dataclass
class Inbox:
    """What the other side said and nobody has heeded yet."""

    data: bytearray = field(default_factory=bytearray)
    deeds: list[tuple[str, int, int]] = field(default_factory=list)
    """`("signal", NUMBER, 0)`, `("size", ROWS, COLUMNS)`, in their order."""
    ended: bool = False
    """Whether no more input comes."""
    gone: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def feed(self, data: bytes) -> None:
        """More input. Raises Invalid for more than was asked for."""
        self.data += data
        if len(self.data) > 2 * WINDOW:
            raise Invalid(f"at most {WINDOW} bytes of input may be sent before they are taken")
        self.news.set()

    def do(self, deed: str, first: int = 0, second: int = 0) -> None:
        self.deeds.append((deed, first, second))
        self.news.set()

    def end(self, gone: bool = False) -> None:
        self.ended, self.gone = True, self.gone or gone
        self.news.set()


class Session:
    def __init__(self, node: Node, vm: Vm, run: Run, inbox: Inbox, say: Say) -> None:
        self._node, self._vm, self._run, self._inbox, self._say = node, vm, run, inbox, say
        self._told_paused = self._closed = False
        self._passed = 0

    async def carry_out(self, command: Command, begun: Callable[[], Awaitable[None]]) -> End | None:
        """Run it to its end; None where the other side went away before. Raises GuestSilent,
        Failed, or what `say` raises.
        """
        assert self._run.agent
        running = await relay.start(self._run.agent, command)
        try:
            await begun()
            return await self._pass(running)
        finally:
            with contextlib.suppress(GuestSilent, TimeoutError):
                async with asyncio.timeout(5):
                    await running.close()

    async def _pass(self, running: Relay) -> End | None:
        pause = QUICK
        while not self._inbox.gone:
            if self._run.ended:
                raise GuestSilent(f"{self._vm.name} ended while the command ran")
            if self._run.qemu_status == "paused":
                await self._wait_paused()
                continue
            try:
                busy = await self._telling(self._hand_in(running))
                found = await self._telling(running.look())
            except GuestSilent:
                await self._run.refresh()
                if self._run.qemu_status == "paused":
                    continue
                raise
            for item in found:
                if isinstance(item, End):
                    return item
                await self._hand_out(running, item)
            pause = QUICK if busy or found else min(pause * 1.4, SLOW)
            await self._wait(pause, running.room > 0)
        return None

    async def _telling(self, asking: Coroutine[Any, Any, T]) -> T:
        """What the guest answers; it may be paused while it is asked, and that is told."""
        task = asyncio.create_task(asking)
        try:
            while not (await asyncio.wait({task}, timeout=0.2))[0]:
                if self._run.qemu_status == "paused":
                    await self._tell_paused()
            return await task
        finally:
            task.cancel()

    async def _tell_paused(self) -> None:
        if not self._told_paused:
            self._told_paused = True
            await self._say(f"{self._vm.name} is paused: the command goes on when it is resumed")

    async def _wait_paused(self) -> None:
        await self._tell_paused()
        await asyncio.sleep(0.2)

    async def _wait(self, seconds: float, room: bool) -> None:
        if not room and not self._inbox.deeds and not self._inbox.gone:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._inbox.news.wait()

    async def _hand_in(self, running: Relay) -> bool:
        """Pass on what was said, as much as there is room for; whether that was anything."""
        inbox, busy = self._inbox, bool(self._inbox.deeds)
        inbox.news.clear()
        for deed, first, second in self._deeds():
            await (running.signal(first) if deed == "signal" else running.resize(first, second))
        if room := min(running.room, len(inbox.data)):
            piece = bytes(inbox.data[:room])
            del inbox.data[:room]
            await running.give(piece)
            await self._say(room)
            busy = True
        if inbox.ended and not inbox.data and not self._closed:
            self._closed = busy = True
            await running.close_input()
        return busy

    def _deeds(self) -> list[tuple[str, int, int]]:
        found, self._inbox.deeds = self._inbox.deeds, []
        return found

    async def _hand_out(self, running: Relay, piece: Piece) -> None:
        """However long the other side takes to read it, the command lives on meanwhile."""
        saying = asyncio.ensure_future(self._say(piece))
        try:
            while not saying.done():
                await asyncio.wait({saying}, timeout=BEAT)
                if not saying.done() and self._run.qemu_status != "paused":
                    with contextlib.suppress(GuestSilent):
                        await running.beat()
            await saying
        finally:
            saying.cancel()
