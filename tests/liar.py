"""A monitor that answers what a test wishes, on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


class Liar:
    """The side of the socket where QEMU should be."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def raw(self, data: bytes) -> None:
        self.writer.write(data)

    def say(self, value: Any) -> None:
        self.raw(json.dumps(value).encode() + b"\r\n")

    async def asked(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.reader.readuntil(b"\n"))
        return found

    async def greet(self) -> None:
        self.raw(GREETING)
        self.say({"return": {}, "id": (await self.asked())["id"]})

    async def serve(self, answer: Callable[[str], Any]) -> None:
        """Answer every command by its name."""
        while True:
            request = await self.asked()
            self.say({"return": answer(request["execute"]), "id": request["id"]})


Talk = Callable[[Liar], Awaitable[None]]


@asynccontextmanager
async def lying(folder: Path, talk: Talk, name: str = "qmp") -> AsyncIterator[Path]:
    """A socket at which `talk` answers every caller; ends with them."""
    place = folder / name
    place.unlink(missing_ok=True)
    tasks: list[asyncio.Future[None]] = []

    async def on_call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(talk(Liar(reader, writer)))
        tasks.append(task)
        await asyncio.gather(task, return_exceptions=True)
        writer.close()

    server = await asyncio.start_unix_server(on_call, str(place))
    try:
        yield place
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        server.close()
