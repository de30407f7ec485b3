"""The serial console of one machine: one reader for the machine's life, any number of viewers, a capped log on disk.

The guest's output is hostile bytes: it is stored and passed on, never interpreted here beyond looking for words. While
nobody is connected QEMU drops what the guest prints; a viewer that does not read loses the oldest bytes, not the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

LOG_CAP = 4 * 1024 * 1024
VIEWER_QUEUE = 256


class Console:
    def __init__(self, log: Path, heard: Callable[[bytes], None]) -> None:
        """`heard` is told of every chunk, with a little of what came before it."""
        self._log, self._heard = log, heard
        self._viewers: set[asyncio.Queue[bytes]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._before = b""

    async def follow(self, socket: Path) -> None:
        """Read the console until it closes."""
        reader, self._writer = await asyncio.open_unix_connection(str(socket))
        try:
            with contextlib.suppress(OSError):
                while chunk := await reader.read(16384):
                    self._take(chunk)
        finally:
            self._writer.close()
            self._writer = None
            for viewer in self._viewers:
                _offer(viewer, b"")

    def _take(self, chunk: bytes) -> None:
        self._append(chunk)
        self._heard(self._before + chunk)
        self._before = (self._before + chunk)[-256:]
        for viewer in self._viewers:
            _offer(viewer, chunk)

    def _append(self, chunk: bytes) -> None:
        with contextlib.suppress(OSError):
            handle = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if os.fstat(handle).st_size + len(chunk) > LOG_CAP:
                    os.replace(self._log, self._log.with_suffix(".old"))
                    os.close(handle)
                    handle = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                os.write(handle, chunk)
            finally:
                os.close(handle)

    async def write(self, data: bytes) -> None:
        """Type into the console; dropped while it is not connected."""
        if self._writer:
            self._writer.write(data)
            await self._writer.drain()

    @asynccontextmanager
    async def view(self) -> AsyncIterator[asyncio.Queue[bytes]]:
        """A queue of what is printed from now on; an empty chunk says that the console has closed."""
        queue: asyncio.Queue[bytes] = asyncio.Queue(VIEWER_QUEUE)
        self._viewers.add(queue)
        try:
            yield queue
        finally:
            self._viewers.discard(queue)


def _offer(queue: asyncio.Queue[bytes], chunk: bytes) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(chunk)


def tail(log: Path, size: int = 16384) -> bytes:
    """The last `size` bytes the console printed, over the change of log files."""
    parts = b""
    for path in (log.with_suffix(".old"), log):
        with contextlib.suppress(OSError), path.open("rb") as handle:
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - size))
            parts += handle.read(size)
    return parts[-size:]
