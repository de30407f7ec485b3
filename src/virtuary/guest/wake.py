"""The port at which a template's guest waits to be told who a copy of it is: lines out, what failed
in. Replies are hostile text with a cap.

Somebody listens from before the template is saved, and before its copy begins to run: so the guest
waits without looking about.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from virtuary.base.errors import GuestSilent, Misbehaves
from virtuary.guest.agent import Outcome

REPLY_CAP = 64 * 1024
_LAST = re.compile(rb"^awake ([0-9]) [01]\n\Z", re.MULTILINE)


class Port:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def close(self) -> None:
        self._writer.close()

    async def wake(self, lines: bytes, deadline: float) -> Outcome:
        """Have the program that waits in the guest do these lines (see awaken.c), once; `status`
        tells how many failed, 9 for more.

        Raises GuestSilent at the deadline (seconds), Misbehaves when it answers something else.
        """
        try:
            async with asyncio.timeout(deadline):
                self._writer.write(b"%08d" % len(lines) + lines)
                return await self._answer()
        except (TimeoutError, OSError) as error:
            raise GuestSilent("the guest did not wake up") from error

    async def _answer(self) -> Outcome:
        answer = b""
        while len(answer) < REPLY_CAP:
            chunk = await self._reader.read(4096)
            answer += chunk
            if last := _LAST.search(answer):
                return Outcome(int(last[1]), answer, b"", False)
            if not chunk:
                raise GuestSilent("the guest ended before it was awake")
        raise Misbehaves("the guest answered something unexpected")


async def open_port(path: Path) -> Port:
    """Connect to the port's socket; raises GuestSilent where nobody offers it."""
    try:
        return Port(*await asyncio.open_unix_connection(str(path), limit=REPLY_CAP))
    except OSError as error:
        raise GuestSilent("the port at which the guest waits is not there") from error
