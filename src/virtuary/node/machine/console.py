"""The serial console of one machine: one reader for the machine's life, any number of viewers, a
log on disk, capped in size and pace.

The guest's output is hostile bytes: it is stored and passed on, never interpreted here beyond
looking for words. While nobody is connected QEMU drops what the guest prints; a viewer that does
not read loses the oldest bytes, not the guest. What is printed faster than the disk is to bear is
seen by viewers alone, and a line in the log says how much that was. Printing takes no more of the
loop than a peer's share.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

from virtuary.base.lines import BYTE_COST, COST
from virtuary.base.pace import Bucket, Share, offer

LOG_CAP = 4 * 1024 * 1024
LOG_BURST, LOG_RATE = 1024 * 1024, 256 * 1024
"""Bytes that are kept at once, and a second for long."""
CHUNK = 16 * 1024
RECENT = 8 * 1024
VIEWER_QUEUE = 256


class Console:
    def __init__(self, log: Path, heard: Callable[[bytes], None]) -> None:
        """`heard` is told of every chunk, with a little of what came before it."""
        self._log, self._heard = log, heard
        self._viewers: set[asyncio.Queue[bytes]] = set()
        self._writer: asyncio.StreamWriter | None = None
        self._before = b""
        self._pace = Bucket(LOG_BURST, LOG_RATE)
        self._dropped = 0
        self.recent = b""
        """The end of what was printed since somebody listens."""

    async def follow(self, socket: Path) -> None:
        """Read the console until it closes."""
        reader, self._writer = await asyncio.open_unix_connection(str(socket))
        share = Share()
        try:
            with contextlib.suppress(OSError):
                while chunk := await reader.read(CHUNK):
                    began = time.thread_time()
                    self._take(chunk)
                    share.owe(time.thread_time() - began + COST + len(chunk) * BYTE_COST)
                    await share.pay()
        finally:
            self._append(self._told_dropped())
            self._writer.close()
            self._writer = None
            for viewer in self._viewers:
                offer(viewer, b"")

    def _take(self, chunk: bytes) -> None:
        self._append(self._kept(chunk))
        self._heard(self._before + chunk)
        self._before = (self._before + chunk)[-256:]
        self.recent = (self.recent + chunk)[-RECENT:]
        for viewer in self._viewers:
            offer(viewer, chunk)

    def _kept(self, chunk: bytes) -> bytes:
        """What of a chunk goes to the disk. Once something was dropped nothing is kept until there
        is room for a second's worth.
        """
        left = self._pace.left()
        if len(chunk) > left or (self._dropped and left < LOG_RATE):
            self._dropped += len(chunk)
            return b""
        self._pace.take(len(chunk))
        return self._told_dropped() + chunk

    def _told_dropped(self) -> bytes:
        """The line that says how much was not kept, once; nothing, where all was."""
        dropped, self._dropped = self._dropped, 0
        return (
            b"\n[%d bytes were not kept: they came faster than %d a second]\n" % (dropped, LOG_RATE)
            if dropped
            else b""
        )

    def _append(self, chunk: bytes) -> None:
        if not chunk:
            return
        with contextlib.suppress(OSError):
            handle = os.open(
                self._log,
                os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o600,
            )
            try:
                if os.fstat(handle).st_size + len(chunk) > LOG_CAP:
                    os.replace(self._log, self._log.with_suffix(".old"))
                    os.close(handle)
                    handle = os.open(
                        self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
                    )
                os.write(handle, chunk)
            finally:
                os.close(handle)

    def mark(self, moment: datetime) -> None:
        """Note in the log that the machine is started now: what stands before is of an earlier
        run.
        """
        self._append(b"\n[started %s]\n" % moment.strftime("%Y-%m-%dT%H:%M:%SZ").encode())

    async def write(self, data: bytes) -> None:
        """Type into the console; dropped while it is not connected."""
        if self._writer:
            self._writer.write(data)
            await self._writer.drain()

    @asynccontextmanager
    async def view(self) -> AsyncIterator[asyncio.Queue[bytes]]:
        """A queue of what is printed from now on; an empty chunk says that the console has
        closed.
        """
        queue: asyncio.Queue[bytes] = asyncio.Queue(VIEWER_QUEUE)
        self._viewers.add(queue)
        try:
            yield queue
        finally:
            self._viewers.discard(queue)


_STARTED = re.compile(rb"(?:\A|\n)\[started \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\]\n")


def latest(told: bytes) -> bytes:
    """Of the end of the log what was printed since the machine was started last. Pure."""
    return _STARTED.split(told)[-1]


def tail(log: Path, size: int = 16384) -> bytes:
    """The last `size` bytes the console printed, over the change of log files."""
    parts = b""
    for path in (log.with_suffix(".old"), log):
        with contextlib.suppress(OSError), path.open("rb") as handle:
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - size))
            parts += handle.read(size)
    return parts[-size:]
