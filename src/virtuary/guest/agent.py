"""The QEMU guest agent: one connection, one request at a time, each under a deadline; replies are hostile text with a cap.

The agent has no greeting and may hold leftovers of an earlier conversation, so each conversation begins with
`guest-sync-delimited`. After a missed deadline the next request synchronises again.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

from virtuary.base.errors import Failed, GuestSilent, Invalid

REPLY_CAP = 64 * 1024 * 1024
STATISTICS_CAP = 256 * 1024
DEADLINE = 10.0
_ids = itertools.count(1)


class Outcome(NamedTuple):
    """How a command in the guest ended."""

    status: int
    stdout: bytes
    stderr: bytes
    truncated: bool


class Agent:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._turn = asyncio.Lock()
        self._in_step = False

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def run(self, command: str, deadline: float = DEADLINE, cap: int = REPLY_CAP, **arguments: Any) -> Any:
        """Run an agent command. Raises GuestSilent at the deadline (seconds), Failed when the agent refuses, Invalid beyond `cap` bytes."""
        async with self._turn:
            try:
                async with asyncio.timeout(deadline):
                    if not self._in_step:
                        await self._synchronise()
                    self._in_step = False
                    self._send({"execute": command, "arguments": arguments})
                    answer = _parse(await self._line(), cap)
                    self._in_step = True
            except (TimeoutError, asyncio.IncompleteReadError, OSError, asyncio.LimitOverrunError) as error:
                raise GuestSilent("the guest agent did not answer", "it may not be running in the guest") from error
        if "error" in answer:
            raise Failed(f"the guest agent refused {command}: {_describe(answer['error'])}")
        return answer.get("return")

    async def _synchronise(self) -> None:
        number = next(_ids)
        self._writer.write(b"\xff")
        self._send({"execute": "guest-sync-delimited", "arguments": {"id": number}})
        while True:
            await self._reader.readuntil(b"\xff")
            await asyncio.sleep(0)  # a guest may have filled the buffer with marks: others get their turn, the deadline too
            with contextlib.suppress(Invalid):
                if _parse(await self._line()).get("return") == number:
                    return

    def _send(self, request: dict[str, Any]) -> None:
        self._writer.write(json.dumps(request).encode() + b"\n")

    async def _line(self) -> bytes:
        return await self._reader.readuntil(b"\n")

    async def execute(
        self, command: list[str], stdin: bytes = b"", deadline: float = 60, poll: float = 0.02, slowest: float = 0.5
    ) -> Outcome:
        """Run a command in the guest and wait for its end; output is captured by the agent (16 MiB each).

        Raises Failed when it can't be started, GuestSilent at the deadline (the command goes on in the guest). Its end is asked for
        after `poll` seconds, then ever more seldom, at least every `slowest`.
        """
        arguments: dict[str, Any] = {"path": command[0], "arg": command[1:], "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        pid = _field(await self.run("guest-exec", **arguments), "pid")
        if not isinstance(pid, int):
            raise Invalid("the guest agent answered something unexpected")
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        while True:
            answer = await self.run("guest-exec-status", pid=pid)
            if _field(answer, "exited"):
                return _outcome(answer)
            if loop.time() > end:
                raise GuestSilent(f"the command did not end within {deadline:.0f} s", "it goes on in the guest")
            await asyncio.sleep(poll)
            poll = min(poll * 1.5, slowest)

    async def addresses(self) -> tuple[str, ...]:
        """The guest's own addresses, without loopback and link-local ones; IPv4 first."""
        found: list[str] = []
        for link in _items(await self.run("guest-network-get-interfaces")):
            if link.get("name") == "lo":
                continue
            for item in _items(link.get("ip-addresses")):
                text = str(item.get("ip-address", ""))[:64]
                if text and not text.startswith(("fe80:", "127.", "169.254.", "::1")):
                    found.append(text)
        return tuple(sorted(found[:32], key=lambda text: ":" in text))

    async def traffic(self, mac: str, deadline: float = DEADLINE) -> tuple[int, int] | None:
        """Bytes that the guest's card of this address received and sent, or where none has it all its cards; None when it counts none."""
        links = _items(await self.run("guest-network-get-interfaces", deadline, cap=STATISTICS_CAP))[:1000]
        outward = [link for link in links if link.get("name") != "lo"]
        chosen = [link for link in outward if str(link.get("hardware-address")).lower() == mac] or outward
        counted = [facts for link in chosen if isinstance(facts := link.get("statistics"), dict)]
        if not counted:
            return None
        return sum(_counter(facts.get("rx-bytes")) for facts in counted), sum(
            _counter(facts.get("tx-bytes")) for facts in counted
        )


def _parse(line: bytes, cap: int = REPLY_CAP) -> dict[str, Any]:
    if len(line) > cap:  # parsing it would hold up everybody
        raise Invalid(f"the guest agent answered more than {cap} bytes")
    try:
        answer = json.loads(line.lstrip(b"\xff"))
    except (ValueError, RecursionError):
        raise Invalid("the guest agent answered something that is not JSON") from None
    if not isinstance(answer, dict):
        raise Invalid("the guest agent answered something unexpected")
    return answer


def _items(answer: Any) -> list[dict[str, Any]]:
    """The objects in a list, and nothing else."""
    return [item for item in answer if isinstance(item, dict)] if isinstance(answer, list) else []


def _counter(value: Any) -> int:
    """A guest's counter: a number of at most 64 bits, or nothing."""
    return value if isinstance(value, int) and 0 <= value < 2**64 else 0


def _field(answer: Any, name: str) -> Any:
    if not isinstance(answer, dict) or name not in answer:
        raise Invalid("the guest agent answered something unexpected")
    return answer[name]


def _describe(error: Any) -> str:
    text = str(error.get("desc", error)) if isinstance(error, dict) else str(error)
    return "".join(char for char in text if char.isprintable())[:300]


def _outcome(answer: dict[str, Any]) -> Outcome:
    try:
        out = base64.b64decode(answer.get("out-data", ""), validate=True)
        err = base64.b64decode(answer.get("err-data", ""), validate=True)
        status = int(answer["exitcode"]) if "exitcode" in answer else 128 + int(answer.get("signal", 0))
    except (binascii.Error, ValueError, TypeError, OverflowError):
        raise Invalid("the guest agent answered something unexpected") from None
    return Outcome(status, out, err, bool(answer.get("out-truncated") or answer.get("err-truncated")))


async def open_agent(path: Path) -> Agent:
    """Connect to the agent's socket; says nothing about whether an agent listens in the guest."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=REPLY_CAP)
    return Agent(reader, writer)
