"""QEMU's monitor protocol: one session on one socket, commands with deadlines, events, descriptors
handed over.

What QEMU says is a guest's that broke into it, until it was read: lines are capped, what waits to
be heard is bounded and its oldest is dropped, and a session ends at the first line that makes no
sense. Descriptors that QEMU sends are never taken: the kernel drops them. One owner per monitor. A
command that misses its deadline raises `GuestSilent`; its late reply is dropped and the session
goes on. `Monitor.misses` counts deadlines missed in a row, for the worker to judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from virtuary.base.answers import Answer, read
from virtuary.base.errors import Failed, GuestSilent, Misbehaves
from virtuary.base.lines import CHUNK, Lines
from virtuary.base.pace import offer

DEADLINE = 20.0
"""Seconds for what a machine is to do: one that is emulated on a busy host takes a while."""
LOOK = 5.0
"""Seconds for who only looks how it is."""
HEARD = (
    "STOP", "RESUME", "SHUTDOWN", "RESET", "POWERDOWN", "GUEST_PANICKED", "BLOCK_IO_ERROR",
    "VSERPORT_CHANGE",
    "MEMORY_DEVICE_SIZE_CHANGE", "BALLOON_CHANGE", "DEVICE_DELETED", "NIC_RX_FILTER_CHANGED",
    "NETDEV_STREAM_CONNECTED", "NETDEV_STREAM_DISCONNECTED",
)  # fmt: skip
QUEUE_CAP = 100
EVENT_CAP = 4096
"""Bytes of an event: those of QEMU take some hundred."""
UNSENT_CAP = 256 * 1024
"""Bytes of commands that a QEMU which does not read may leave in the daemon."""


class CommandFailed(Failed):
    """QEMU refused a command."""


class Event(NamedTuple):
    name: str
    data: Answer
    moment: float
    """Seconds since 1970, by QEMU's clock."""


class Heard:
    """Events of some kinds from a moment on, for whoever waits for one or wants to know when two of
    them were.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue(QUEUE_CAP)
        self._seen: deque[Event] = deque(maxlen=QUEUE_CAP)

    async def wait(self, seconds: float) -> None:
        """Until the next event, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if event := await self.queue.get():
                    self._seen.append(event)

    def clear(self) -> None:
        while not self.queue.empty():
            self.queue.get_nowait()
        self._seen.clear()

    async def span(self, first: str, last: str, limit: float = 2.0) -> float:
        """Seconds by QEMU's clock from the first event of one kind to the next one of the other;
        those heard within `limit`.
        """
        until = asyncio.get_running_loop().time() + limit
        while True:
            begin = next((event.moment for event in self._seen if event.name == first), None)
            ends = [event.moment for event in self._seen if event.name == last]
            if begin is not None and (after := [end for end in ends if end >= begin]):
                return after[0] - begin
            if asyncio.get_running_loop().time() > until:
                raise GuestSilent(f"QEMU did not say {first} and {last}")
            await self.wait(0.1)


class Monitor:
    """A QMP session with one machine; made by `open_monitor`, closed with `close`."""

    def __init__(
        self, sock: socket.socket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._sock, self._writer, self._lines = sock, writer, Lines(reader, "QEMU")
        self.misses = 0
        self.fault: Misbehaves | None = None
        """What QEMU said that ended the session."""
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Answer]] = {}
        self._events = Heard(HEARD)
        self._hearing = {self._events}
        self._ended = asyncio.Event()
        self._beginning = True
        self._reading: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Greet; commands are taken from then on."""
        if "QMP" not in read(await self._lines.next()):
            raise Misbehaves("QEMU's monitor did not greet")
        self._reading = asyncio.create_task(self._read())
        await self.run("qmp_capabilities")
        self._beginning = False

    async def run(self, command: str, deadline: float = DEADLINE, **arguments: Any) -> object:
        """Run a command and return what it answers, for `read`. Raises CommandFailed, or
        GuestSilent when QEMU does not answer.
        """
        return await self._run(command, deadline, arguments)

    async def _run(
        self,
        command: str,
        deadline: float,
        arguments: dict[str, Any],
        descriptors: Sequence[int] = (),
    ) -> object:
        number = next(self._numbers)
        self._asked[number] = future = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(deadline):
                self._send({"execute": command, "arguments": arguments, "id": number}, descriptors)
                answer = await future
        except TimeoutError:
            self.misses += 1
            raise GuestSilent(f"QEMU did not answer {command} within {deadline:.0f} s") from None
        finally:
            del self._asked[number]
        self.misses = 0
        if "error" in answer:
            raise CommandFailed(
                f"QEMU refused {command}: "
                f"{answer.inner('error').words('desc', 'it gives no reason')}"
            )
        return answer.value("return")

    def _send(self, request: dict[str, Any], descriptors: Sequence[int]) -> None:
        """Descriptors go with the first byte of their command, past the writer, which has nothing
        left to send then.
        """
        unsent = self._writer.transport.get_write_buffer_size()
        if not self.alive:
            raise self._gone()
        if unsent > UNSENT_CAP or (descriptors and unsent):
            raise GuestSilent("QEMU does not read what its monitor is told")
        line = json.dumps(request).encode() + b"\n"
        if descriptors:
            try:
                line = line[socket.send_fds(self._sock, [line], list(descriptors)) :]
            except OSError as error:
                raise self._gone(str(error)) from error
        self._writer.write(line)

    def _gone(self, why: str = "") -> GuestSilent:
        return self.fault or GuestSilent("QEMU's monitor is gone" + (f": {why}" if why else ""))

    async def _read(self) -> None:
        """Hear what QEMU says until it ends, or makes no sense."""
        try:
            while True:
                line = await self._lines.raw()
                self._take(read(self._lines.parse(line)), len(line))
        except Misbehaves as error:
            self.fault = error
        except (EOFError, OSError):
            pass
        finally:
            self._end()

    def _take(self, said: Answer, size: int) -> None:
        if "event" in said:
            self._hear(said, size)
        elif "id" in said:
            future = self._asked.get(said.number("id"))
            if future and not future.done():
                future.set_result(said)
        elif "error" not in said and not ("QMP" in said and self._beginning):
            # a QEMU that is still starting may greet twice
            raise Misbehaves("QEMU said something that is neither an answer nor an event")

    def _hear(self, said: Answer, size: int) -> None:
        name = said.text("event")
        listeners = [heard for heard in self._hearing if name in heard.names]
        if not listeners:
            return
        if size > EVENT_CAP:
            raise Misbehaves(f"QEMU told an event of {size} bytes")
        at = said.inner("timestamp")
        event = Event(
            name,
            said.inner("data"),
            at.number("seconds", 0, least=-1) + at.number("microseconds", 0, least=-1) / 1e6,
        )
        for heard in listeners:
            offer(heard.queue, event)

    def _end(self) -> None:
        self._ended.set()
        # what is unsent stays so: somebody who does not read is not waited for
        self._writer.transport.abort()
        for future in self._asked.values():
            if not future.done():
                future.set_exception(self._gone())
        for heard in self._hearing:
            offer(heard.queue, None)

    async def give(self, descriptor: int, purpose: str) -> int:
        """Hand a copy of a descriptor over to QEMU; the number of its set there, which has
        `purpose` as its mark.
        """
        return read(await self._run("add-fd", DEADLINE, {"opaque": purpose}, [descriptor])).number(
            "fdset-id"
        )

    async def send_descriptor(self, descriptor: int, name: str) -> None:
        """Hand a copy of a descriptor over to QEMU, to be used by this name once."""
        await self._run("getfd", DEADLINE, {"fdname": name}, [descriptor])

    @contextlib.contextmanager
    def hearing(self, *names: str) -> Iterator[Heard]:
        """Events of these kinds, besides those that `events` gives."""
        heard = Heard(names)
        self._hearing.add(heard)
        try:
            yield heard
        finally:
            self._hearing.discard(heard)

    async def status(self, deadline: float = LOOK) -> str:
        """QEMU's run state: running, paused, prelaunch, shutdown, guest-panicked, io-error ..."""
        return read(await self.run("query-status", deadline)).text("status")

    async def events(self) -> AsyncIterator[tuple[str, Answer]]:
        """Events as they come, with their data; ends when the session ends, with Misbehaves where
        that was why. One consumer.
        """
        while event := await self._events.queue.get():
            yield event.name, event.data
        if self.fault:
            raise self.fault

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    async def gone(self) -> None:
        """Return once the session has ended."""
        await self._ended.wait()

    async def close(self) -> None:
        if self._reading:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.transport.abort()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def open_monitor(path: Path, deadline: float = LOOK) -> Monitor:
    """Connect to the monitor socket at `path`; raises GuestSilent at the deadline (seconds),
    Misbehaves where no QEMU answers.
    """
    sock = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    monitor: Monitor | None = None
    try:
        async with asyncio.timeout(deadline):
            await asyncio.get_running_loop().sock_connect(sock, str(path))
            monitor = Monitor(sock, *await asyncio.open_unix_connection(sock=sock, limit=CHUNK))
            await monitor.begin()
            return monitor
    except BaseException as error:
        await monitor.close() if monitor else sock.close()
        if isinstance(error, TimeoutError):
            raise GuestSilent(f"QEMU's monitor did not answer within {deadline:.0f} s") from None
        if isinstance(error, OSError | EOFError):
            raise GuestSilent(f"QEMU's monitor can't be reached: {error}") from error
        raise
