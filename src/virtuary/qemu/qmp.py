"""A thin typed layer over qemu.qmp: deadlines, kinds of errors, events; the only file that imports it.

One owner per monitor. A command that misses its deadline raises `GuestSilent`; its late reply is dropped and the session
goes on. `Monitor.misses` counts deadlines missed in a row, for the worker to judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from virtuary.base.errors import Failed, GuestSilent

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
DEADLINE = 5.0
HEARD = (
    "STOP", "RESUME", "SHUTDOWN", "RESET", "POWERDOWN", "GUEST_PANICKED", "BLOCK_IO_ERROR", "VSERPORT_CHANGE",
    "MEMORY_DEVICE_SIZE_CHANGE", "BALLOON_CHANGE", "DEVICE_DELETED", "NIC_RX_FILTER_CHANGED", "NETDEV_STREAM_CONNECTED", "NETDEV_STREAM_DISCONNECTED",
)  # fmt: skip
QUEUE_CAP = 1000


class CommandFailed(Failed):
    """QEMU refused a command."""


class Heard:
    """Events of some kinds from a moment on, for whoever waits for one or wants to know when two of them were."""

    def __init__(self, listener: EventListener) -> None:
        self._listener = listener
        self._seen: list[dict[str, Any]] = []

    async def wait(self, seconds: float) -> None:
        """Until the next event, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                self._seen.append(dict(await self._listener.get()))

    def clear(self) -> None:
        self._listener.clear()
        self._seen.clear()

    async def span(self, first: str, last: str, limit: float = 2.0) -> float:
        """Seconds by QEMU's clock from the first event of one kind to the next one of the other; those heard within `limit`."""
        until = asyncio.get_running_loop().time() + limit
        while True:
            begin = next((_moment(event) for event in self._seen if event["event"] == first), None)
            ends = [_moment(event) for event in self._seen if event["event"] == last]
            if begin is not None and (after := [end for end in ends if end >= begin]):
                return after[0] - begin
            if asyncio.get_running_loop().time() > until:
                raise GuestSilent(f"QEMU did not say {first} and {last}")
            await self.wait(0.1)


def _moment(event: dict[str, Any]) -> float:
    return float(event["timestamp"]["seconds"]) + float(event["timestamp"]["microseconds"]) / 1e6


class Monitor:
    """A QMP session with one machine; made by `open_monitor`, closed with `close`."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client
        self.misses = 0
        self._listener = EventListener(HEARD)
        client.register_listener(self._listener)

    async def run(self, command: str, deadline: float = DEADLINE, **arguments: Any) -> Any:
        """Run a command and return what it answers. Raises CommandFailed, or GuestSilent when QEMU does not answer."""
        try:
            async with asyncio.timeout(deadline):
                answer = await self._client.execute(command, arguments)
        except TimeoutError:
            self.misses += 1
            raise GuestSilent(f"QEMU did not answer {command} within {deadline:.0f} s") from None
        except ExecuteError as error:
            self.misses = 0
            raise CommandFailed(f"QEMU refused {command}: {error}") from error
        except QMPError as error:
            raise GuestSilent(f"QEMU's monitor is gone: {error}") from error
        self.misses = 0
        return answer

    async def give(self, descriptor: int, purpose: str) -> int:
        """Hand a copy of a descriptor over to QEMU; the number of its set there, which has `purpose` as its mark."""
        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, OSError) as error:
            raise GuestSilent(f"QEMU's monitor is gone: {error}") from error
        answer = await self.run("add-fd", opaque=purpose)
        return int(answer["fdset-id"])

    async def lend(self, descriptor: int, name: str) -> None:
        """Hand a copy of a descriptor over to QEMU, to be used by this name once."""
        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, OSError) as error:
            raise GuestSilent(f"QEMU's monitor is gone: {error}") from error
        await self.run("getfd", fdname=name)

    @contextlib.contextmanager
    def hearing(self, *names: str) -> Iterator[Heard]:
        """Events of these kinds, besides those that `events` gives."""
        with self._client.listener(names) as listener:
            yield Heard(listener)

    async def status(self, deadline: float = DEADLINE) -> str:
        """QEMU's run state: running, paused, prelaunch, shutdown, guest-panicked, io-error ..."""
        answer = await self.run("query-status", deadline)
        return str(answer["status"])

    async def events(self) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Events as they come; ends when the session ends. One consumer."""
        with contextlib.suppress(QMPError, EOFError):
            while True:
                event = await self._listener.get()
                data: Any = event.get("data")
                yield str(event["event"]), dict(data or {})

    @property
    def alive(self) -> bool:
        return self._client.runstate.name == "RUNNING"

    async def gone(self) -> None:
        """Return once the session has ended."""
        while self.alive:
            await self._client.runstate_changed()

    async def close(self) -> None:
        with contextlib.suppress(QMPError, EOFError, OSError):
            await self._client.disconnect()


async def open_monitor(path: Path, deadline: float = DEADLINE) -> Monitor:
    """Connect to the monitor socket at `path`; raises GuestSilent at the deadline (seconds)."""
    client = QMPClient("virtuary")
    try:
        async with asyncio.timeout(deadline):
            await client.connect(str(path))
    except TimeoutError:
        with contextlib.suppress(QMPError, EOFError, OSError):
            await client.disconnect()
        raise GuestSilent(f"QEMU's monitor did not answer within {deadline:.0f} s") from None
    except (QMPError, OSError, EOFError) as error:
        raise GuestSilent(f"QEMU's monitor can't be reached: {error}") from error
    return Monitor(client)
