"""JSON lines from a peer that may be an adversary's: capped, read with suspicion, and never more of
the loop than a peer's share.

Nothing is stored ahead but one chunk and what the stream below holds of it. A peer that sends
faster than it is listened to waits at its socket.
"""

from __future__ import annotations

import asyncio
import re
import time

from virtuary.base.answers import LINE_CAP, parse
from virtuary.base.errors import Misbehaves
from virtuary.base.pace import Share

CHUNK = 64 * 1024
"""Bytes that are taken at once."""
COST, BYTE_COST = 20e-6, 3e-9
"""Seconds a line or a chunk takes besides its parsing, and each byte of it until it is here."""
END = re.compile(rb"\n")


class Lines:
    """`who`: what the peer is called in errors."""

    def __init__(self, reader: asyncio.StreamReader, who: str) -> None:
        self._reader, self._who = reader, who
        self._share = Share()
        self._chunk, self._at = b"", 0

    async def next(self) -> object:
        """The value in the next line. Raises Misbehaves, or EOFError at the end."""
        return self.parse(await self.raw())

    def parse(self, line: bytes) -> object:
        began = time.thread_time()
        try:
            return parse(line, self._who)
        finally:
            self._share.owe(time.thread_time() - began)

    async def raw(self) -> bytes:
        """The next line, without its end and without marks of a conversation's beginning."""
        line = bytearray()
        while True:
            piece, end = await self.piece(END)
            line += piece
            if len(line) > LINE_CAP:
                raise Misbehaves(f"{self._who} answered more than {LINE_CAP} bytes in a line")
            if end:
                return bytes(line).lstrip(b"\xff").strip()

    async def skip(self, mark: re.Pattern[bytes]) -> None:
        """Leave out everything up to a mark."""
        while not (await self.piece(mark))[1]:
            pass

    async def piece(self, ends: re.Pattern[bytes]) -> tuple[bytes, bytes]:
        """What is there up to the next end, and that end; empty where it has not come yet."""
        self._share.owe(COST)
        await self._share.pay()
        if self._at >= len(self._chunk):
            self._chunk, self._at = await self._reader.read(CHUNK), 0
            self._share.owe(len(self._chunk) * BYTE_COST)
            if not self._chunk:
                raise EOFError(f"{self._who} has closed the connection")
        began, found = self._at, ends.search(self._chunk, self._at)
        self._at = found.end() if found else len(self._chunk)
        return (
            (self._chunk[began : found.start()], found[0]) if found else (self._chunk[began:], b"")
        )
