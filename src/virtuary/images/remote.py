"""The fetcher, seen from the daemon: started in the jail for one answer, asked, and ended with whoever asked.

What it says is hostile text: lines are capped and typed, and the body is counted by whoever reads it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtuary.base.errors import Failed, PeerAway, Refused
from virtuary.base.units import MIB
from virtuary.images.addresses import Url
from virtuary.images.partial import AGAIN
from virtuary.images.special import Address
from virtuary.jail.launching import Tied
from virtuary.jail.tool import Surroundings, confined
from virtuary.jail.walls import Bounds

PROGRAM = Path(__file__).with_name("fetcher.py")
BOUNDS = Bounds(file_size=0, processes=8, files=64, memory=768 * MIB)
AROUND = Surroundings(
    readable=(
        *([Path(sys.base_prefix)] if sys.base_prefix != "/usr" else []),
        *(Path("/etc") / name for name in ("hosts", "host.conf", "nsswitch.conf", "gai.conf", "services")),
        *(Path("/etc/ssl") / name for name in ("certs", "openssl.cnf")),
        *(Path("/etc/pki/tls"), Path("/etc/pki/ca-trust/extracted"), Path("/etc/crypto-policies")),
    ),
    internet=True,
)
LONGEST = 64 * 1024
GRACE = 5.0
"""Seconds that it may take besides what was given to the other side."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """By their names in lower case; those that the fetcher tells, no others."""


class Remote:
    """A fetcher that was just started; made by `open_remote`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, program: Tied) -> None:
        self._reader, self._writer, self._program = reader, writer, program

    async def look_up(self, host: str, port: int, patience: float) -> list[Address]:
        """The addresses of a name; raises PeerAway when it has none."""
        answer = await self._ask({"name": host, "port": port}, patience)
        found = answer.get("addresses")
        if not isinstance(found, list) or answer.get("error"):
            raise PeerAway(f"the name {host} can't be resolved", "check the name and this host's name service")
        try:
            return [ipaddress.ip_address(str(text).partition("%")[0]) for text in found]
        except ValueError as error:
            raise Failed("the fetcher answered something unexpected") from error

    async def get(
        self, url: Url, addresses: Sequence[str], headers: Mapping[str, str], *, connect: float, silence: float, trust: str
    ) -> Answer:
        """The answer of the first address that takes the connection; its body is `chunks`. Host and SNI carry the name."""
        where = {"get": url.target, "scheme": url.scheme, "host": url.host, "port": url.port, "addresses": list(addresses)}
        how = {"headers": {**headers, "Host": url.authority}, "connect": connect, "silence": silence, "trust": trust}
        answer = await self._ask({**where, **how}, connect * len(addresses) + silence)
        status, told = answer.get("status"), answer.get("headers")
        if not isinstance(status, int) or not isinstance(told, dict):
            raise _refusal(url, answer.get("error"))
        return Answer(status, {str(name): str(value) for name, value in told.items()})

    async def chunks(self, silence: float) -> AsyncIterator[bytes]:
        """The body, piece by piece. Raises PeerAway when it breaks off or nothing comes for so many seconds."""
        broken = PeerAway("the connection broke off", AGAIN)
        try:
            while True:
                async with asyncio.timeout(silence + GRACE):
                    piece = await self._reader.read(65536)
                if not piece:
                    break
                yield piece
            async with asyncio.timeout(GRACE):
                if await self._program.wait() != 0:
                    raise broken
        except (TimeoutError, OSError) as error:
            raise broken from error

    async def _ask(self, question: dict[str, Any], patience: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(patience + GRACE):
                self._writer.write(json.dumps(question).encode() + b"\n")
                answer = json.loads(await self._reader.readuntil(b"\n"))
        except TimeoutError:
            raise PeerAway("the server does not answer", AGAIN) from None
        except (OSError, asyncio.IncompleteReadError) as error:
            async with asyncio.timeout(GRACE):
                status = await self._program.wait()  # raises HostLacks where it never began
            raise Failed(f"the fetcher ended with status {status}") from error
        except (asyncio.LimitOverrunError, ValueError, RecursionError) as error:
            raise Failed("the fetcher answered something unexpected") from error
        if not isinstance(answer, dict):
            raise Failed("the fetcher answered something unexpected")
        return answer


def _refusal(url: Url, error: object) -> Exception:
    match error:
        case "certificate":
            return Refused(f"{url.host} could not prove that it is {url.host}: its certificate is not valid")
        case "broke":
            return PeerAway(f"{url.host} broke off before it answered", AGAIN)
        case "connect":
            return PeerAway(f"{url.host} can't be reached", "check the network; " + AGAIN)
    return Failed("the fetcher answered something unexpected")


@contextlib.asynccontextmanager
async def open_remote() -> AsyncIterator[Remote]:
    """A fetcher for one answer, gone at the end of the `with`."""
    ours, theirs = socket.socketpair()
    with theirs:
        reader, writer = await asyncio.open_connection(sock=ours, limit=LONGEST)
        try:
            words = (os.path.realpath(sys.executable), "-I", "-S", "-c", PROGRAM.read_text(encoding="utf-8"))
            async with confined(words, {0: theirs.fileno()}, BOUNDS, AROUND) as program:
                theirs.close()
                yield Remote(reader, writer, program)
        finally:
            writer.close()
