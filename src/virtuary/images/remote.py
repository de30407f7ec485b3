"""Servers of images, seen from the daemon: names are looked up and answers read by programs in the
jail, connections made here.

A connection is made by the kernel alone and leads to the very address that was checked; the program
that reads what comes through it has no other way out. What both say is hostile text: capped and
typed, and the body is counted by whoever reads it.
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
from virtuary.jail.tool import Surroundings, confined, run
from virtuary.jail.walls import Bounds

FETCHER = Path(__file__).with_name("fetcher.py")
LOOKUP = """
import json, socket, sys
try:
    found = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_STREAM)
except (OSError, UnicodeError):
    found = []
print(json.dumps(list(dict.fromkeys(str(item[4][0]) for item in found))[:64]))
"""
PYTHON = (os.path.realpath(sys.executable), "-I", "-S", "-c")
BOUNDS = Bounds(file_size=0, processes=8, files=64, memory=768 * MIB)
_LIBRARY = [Path(sys.base_prefix)] if sys.base_prefix != "/usr" else []
TRUSTING = Surroundings(
    readable=(
        *(*_LIBRARY, *(Path("/etc/ssl") / name for name in ("certs", "openssl.cnf"))),
        *(Path("/etc/pki/tls"), Path("/etc/pki/ca-trust/extracted"), Path("/etc/crypto-policies")),
    )
)
NAMING = Surroundings(
    readable=(
        *_LIBRARY,
        *(
            Path("/etc") / name
            for name in ("hosts", "host.conf", "nsswitch.conf", "gai.conf", "services")
        ),
    ),
    # many addresses in one datagram: it has no TCP
    environment={"LC_ALL": "C.UTF-8", "RES_OPTIONS": "edns0"},
    reach="names",
)
LONGEST = 64 * 1024
GRACE = 5.0
"""Seconds that they may take besides what was given to the other side."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """By their names in lower case; those that the fetcher tells, no others."""


class Remote:
    """A fetcher that was just started; made by `open_remote`."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, program: Tied
    ) -> None:
        self._reader, self._writer, self._program = reader, writer, program

    async def get(
        self, url: Url, headers: Mapping[str, str], *, silence: float, trust: str
    ) -> Answer:
        """The answer to a request; its body is `chunks`. Host and SNI carry the URL's name."""
        question = {
            "get": url.target,
            "scheme": url.scheme,
            "host": url.host,
            "headers": {**headers, "Host": url.authority},
        }
        answer = await self._ask({**question, "patience": silence, "trust": trust}, silence)
        status, told = answer.get("status"), answer.get("headers")
        if not isinstance(status, int) or not isinstance(told, dict):
            raise _refusal(url, answer.get("error"))
        return Answer(status, {str(name): str(value) for name, value in told.items()})

    async def chunks(self, silence: float) -> AsyncIterator[bytes]:
        """The body, piece by piece. Raises PeerAway when it breaks off or nothing comes for so many
        seconds.
        """
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
            return Refused(
                f"{url.host} could not prove that it is {url.host}: its certificate is not valid"
            )
        case "broke":
            return PeerAway(f"{url.host} broke off before it answered", AGAIN)
    return Failed("the fetcher answered something unexpected")


async def look_up(host: str, port: int, patience: float) -> list[Address]:
    """The addresses of a name, as the host's resolver has them. Raises PeerAway when it has none,
    and after so many seconds.
    """
    away = PeerAway(
        f"the name {host} can't be resolved", "check the name and this host's name service"
    )
    try:
        done = await run([*PYTHON, LOOKUP, host, str(port)], BOUNDS, patience + GRACE, NAMING)
    except Failed as error:
        raise away from error
    try:
        found = [
            ipaddress.ip_address(text.partition("%")[0])
            for text in json.loads(done.stdout[:LONGEST])
        ]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Failed(
            "the program that looks names up answered something unexpected", status=done.status
        ) from error
    if not found:
        raise away
    return found


async def connect(url: Url, addresses: Sequence[str], patience: float) -> socket.socket:
    """A connection to the first of these addresses that takes it, each tried for so many seconds.
    Raises PeerAway.
    """
    for address in addresses:
        connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        connection.setblocking(False)
        try:
            async with asyncio.timeout(patience):
                await asyncio.get_running_loop().sock_connect(connection, (address, url.port))
            return connection
        except OSError:  # TimeoutError is one
            connection.close()
        except BaseException:
            connection.close()
            raise
    raise PeerAway(f"{url.host} can't be reached", "check the network; " + AGAIN)


@contextlib.asynccontextmanager
async def open_remote(connection: socket.socket) -> AsyncIterator[Remote]:
    """A fetcher for one answer on this connection, which it takes over; both are gone at the end of
    the `with`.
    """
    ours, theirs = socket.socketpair()
    with connection, theirs:
        reader, writer = await asyncio.open_connection(sock=ours, limit=LONGEST)
        try:
            words = (*PYTHON, FETCHER.read_text(encoding="utf-8"))
            async with confined(
                words, {0: theirs.fileno(), 3: connection.fileno()}, BOUNDS, TRUSTING
            ) as program:
                theirs.close()
                connection.close()
                yield Remote(reader, writer, program)
        finally:
            writer.close()
