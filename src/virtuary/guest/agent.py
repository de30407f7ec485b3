"""The QEMU guest agent: one connection, one request at a time, each under a deadline; replies are a
hostile guest's until they are read.

The agent has no greeting and may hold leftovers of an earlier conversation, so each conversation
begins with `guest-sync-delimited`. After a missed deadline, or an answer that makes no sense, the
next request synchronises again.

Lines are at most 1 MiB but for one: the agent tells a command's whole output, up to 16 MiB of each
kind, in the line that says that it has ended. Its two long texts are taken out as they come, piece
by piece, and what is left of the line is read like any other.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import itertools
import json
import re
from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, NamedTuple

from virtuary.base.answers import Answer, read
from virtuary.base.errors import Failed, GuestSilent, Misbehaves
from virtuary.base.lines import CHUNK, Lines

WHO = "the guest agent"
DEADLINE = 10.0
OUTPUT_CAP = 16 * 1024 * 1024
"""Bytes of output, and of errors, that the agent keeps of a command."""
WORDS_CAP = 64 * 1024
"""Bytes of each that a command of the daemon's own may say."""
STATUS_CAP = 16 * 1024
"""Bytes of the line that tells of a command's end, besides its output."""
UNSENT_CAP = 256 * 1024
"""Bytes of earlier requests that a guest which does not read may leave in the daemon."""
MOST_LINKS, MOST_ADDRESSES = 1000, 32
_MARK, _QUOTE = re.compile(rb"\xff"), re.compile(rb'"')
_QUOTE_OR_END = re.compile(rb'["\n]')
_OUTPUT = re.compile(rb'"(out|err)-data"\s*:\s*"\Z')
_ids = itertools.count(1)


class Outcome(NamedTuple):
    """How a command in the guest ended."""

    status: int
    stdout: bytes
    stderr: bytes
    truncated: bool


class Agent:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._lines, self._writer = Lines(reader, WHO), writer
        self._turn = asyncio.Lock()
        self._in_step = False

    async def close(self) -> None:
        self._writer.transport.abort()  # a guest that does not read is not waited for
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def run(self, command: str, deadline: float = DEADLINE, **arguments: Any) -> object:
        """Run an agent command and return what it answers, for `read`.

        Raises GuestSilent at the deadline (seconds), Failed when the agent refuses, Misbehaves for
        what is no answer.
        """
        return await self._ask(command, deadline, arguments, self._lines.next)

    async def _ask(
        self,
        command: str,
        deadline: float,
        arguments: dict[str, Any],
        take: Callable[[], Awaitable[object]],
    ) -> object:
        async with self._turn:
            try:
                async with asyncio.timeout(deadline):
                    if self._writer.transport.get_write_buffer_size() > UNSENT_CAP:
                        raise GuestSilent("the guest agent does not read what it is asked")
                    if not self._in_step:
                        await self._synchronise()
                    self._in_step = False
                    self._send({"execute": command, "arguments": arguments})
                    answer = read(await take(), WHO).inner()
                    self._in_step = True
            except (TimeoutError, EOFError, OSError) as error:
                raise GuestSilent(
                    "the guest agent did not answer", "it may not be running in the guest"
                ) from error
        if "error" in answer:
            raise Failed(
                f"the guest agent refused {command}: "
                f"{answer.inner('error').words('desc', 'it gives no reason')}"
            )
        return answer.value("return")

    async def _synchronise(self) -> None:
        number = next(_ids)
        self._writer.write(b"\xff")
        self._send({"execute": "guest-sync-delimited", "arguments": {"id": number}})
        while True:
            await self._lines.skip(_MARK)
            with contextlib.suppress(Misbehaves):
                if read(await self._lines.next(), WHO).number("return") == number:
                    return

    def _send(self, request: dict[str, Any]) -> None:
        self._writer.write(json.dumps(request).encode() + b"\n")

    async def _ended(self, output: dict[bytes, bytes], most: int) -> object:
        """The line that may tell of a command's end, without its output, which goes where it
        belongs.
        """
        line = bytearray()
        while True:
            piece, end = await self._lines.piece(_QUOTE_OR_END)
            line += piece + end
            if len(line) > STATUS_CAP:
                raise Misbehaves(
                    f"{WHO} answered more than {STATUS_CAP} bytes besides a command's output"
                )
            if end == b"\n":
                return self._lines.parse(bytes(line).strip())
            if end == b'"' and (begins := _OUTPUT.search(line[-64:])):
                if begins[1] in output:
                    raise Misbehaves(f"{WHO} answered a command's output twice")
                output[begins[1]] = await self._text(most)
                line += b'"'

    async def _text(self, most: int) -> bytes:
        """What is between here and the next quotation mark, decoded."""
        found: list[bytes] = []
        size, rest, end = 0, b"", b""
        while not end:
            piece, end = await self._lines.piece(_QUOTE)
            rest += piece
            whole = len(rest) - (0 if end else len(rest) % 4)
            found.append(decode(rest[:whole]))
            rest, size = rest[whole:], size + len(found[-1])
            if size > most:
                raise Misbehaves(f"{WHO} answered more than {most} bytes of a command's output")
        # what is large is put together beside the loop
        return await asyncio.to_thread(b"".join, found)

    async def execute(
        self, command: list[str], stdin: bytes = b"", deadline: float = 60, poll: float = 0.02,
        slowest: float = 0.5, most: int = WORDS_CAP
    ) -> Outcome:  # fmt: skip
        """Run a command in the guest and wait for its end; output is captured by the agent, of
        which `most` bytes of each kind are taken.

        Raises Failed when it can't be started, GuestSilent at the deadline (the command goes on in
        the guest), Misbehaves where it says more. Its end is asked for after `poll` seconds, then
        ever more seldom, at least every `slowest`.
        """
        arguments: dict[str, Any] = {"path": command[0], "arg": command[1:], "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        pid = read(await self.run("guest-exec", **arguments), WHO).number("pid")
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline
        while True:
            output: dict[bytes, bytes] = {}
            answer = read(
                await self._ask(
                    "guest-exec-status", DEADLINE, {"pid": pid}, partial(self._ended, output, most)
                ),
                WHO,
            )
            if "exited" not in answer:
                raise Misbehaves(
                    f"{WHO} answered something unexpected: it does not say whether the command "
                    "ended"
                )
            if answer.flag("exited"):
                return _outcome(answer, output)
            if loop.time() > end:
                raise GuestSilent(
                    f"the command did not end within {deadline:.0f} s", "it goes on in the guest"
                )
            await asyncio.sleep(poll)
            poll = min(poll * 1.5, slowest)

    async def read_file(self, path: str, cap: int) -> bytes:
        """The beginning of a file in the guest, at most `cap` bytes; no process is started for it.
        Raises Failed when it can't be opened.
        """
        handle = read(await self.run("guest-file-open", path=path, mode="r"), WHO).number()
        try:
            told = read(await self.run("guest-file-read", handle=handle, count=cap), WHO)
            return decode(told.text("buf-b64", most=2 * cap + 4).encode())[:cap]
        finally:
            await self.run("guest-file-close", handle=handle)

    async def addresses(self) -> tuple[str, ...]:
        """The guest's own addresses in their canonical form, without loopback and link-local ones;
        IPv4 first.
        """
        found: dict[IPv4Address | IPv6Address, None] = {}
        for link in await self._links(DEADLINE):
            if link.text("name", None) != "lo":
                texts = [item.text("ip-address", None) for item in link.items("ip-addresses")]
                found |= dict.fromkeys(address for text in texts if (address := to_address(text)))
        return tuple(
            str(address)
            for address in sorted(list(found)[:MOST_ADDRESSES], key=lambda address: address.version)
        )

    async def traffic(self, mac: str, deadline: float = DEADLINE) -> tuple[int, int] | None:
        """Bytes that the guest's card of this address received and sent, or where none has it all
        its cards; None when it counts none.
        """
        outward = [link for link in await self._links(deadline) if link.text("name", None) != "lo"]
        chosen = [
            link for link in outward if (link.text("hardware-address", None) or "").lower() == mac
        ] or outward
        counted = [link.inner("statistics") for link in chosen if "statistics" in link]
        if not counted:
            return None
        received, sent = (
            sum(facts.number(name, 0, most=2**64 - 1) for facts in counted)
            for name in ("rx-bytes", "tx-bytes")
        )
        return received, sent

    async def _links(self, deadline: float) -> list[Answer]:
        found = read(await self.run("guest-network-get-interfaces", deadline), WHO).items()
        return [link.inner() for link in found[:MOST_LINKS]]

    async def trim(self, deadline: float) -> int | None:
        """Have its filesystems tell which blocks they do not use: bytes told of, or None where none
        of them says.
        """
        found = read(await self.run("guest-fstrim", deadline), WHO)
        told = [
            item.number("trimmed") for item in found.items("paths") if "trimmed" in item.inner()
        ]
        return sum(told) if told else None

    async def cpus(self, deadline: float = DEADLINE) -> int:
        """How many CPUs it uses."""
        return sum(
            item.flag("online")
            for item in read(await self.run("guest-get-vcpus", deadline), WHO).items()
        )


def to_address(text: str | None) -> IPv4Address | IPv6Address | None:
    """An address by which a guest can be reached; None where it is none, or one that means nothing
    outside of it.
    """
    try:
        address = ip_address(text or "")
    except ValueError:
        return None
    own = (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
    )
    return None if own or getattr(address, "scope_id", None) else address


def decode(text: bytes) -> bytes:
    """What the agent said as base64. Raises Misbehaves."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise Misbehaves(f"{WHO} answered output that is not base64") from None


def _outcome(answer: Answer, output: dict[bytes, bytes]) -> Outcome:
    status = (
        answer.number("exitcode", least=-(2**31), most=2**32)
        if "exitcode" in answer
        else 128 + answer.number("signal", 0, most=127)
    )
    truncated = answer.flag("out-truncated") or answer.flag("err-truncated")
    out, err = (
        output.get(name)
        or decode(answer.text(f"{name.decode()}-data", "", most=STATUS_CAP).encode())
        for name in (b"out", b"err")
    )
    return Outcome(status, out, err, truncated)


async def open_agent(path: Path) -> Agent:
    """Connect to the agent's socket; says nothing about whether an agent listens in the guest."""
    return Agent(*await asyncio.open_unix_connection(str(path), limit=CHUNK))
