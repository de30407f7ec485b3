"""The connections that this kernel tracks: read, and taken out one by one (nfnetlink,
linux/netfilter/nfnetlink_conntrack.h).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from virtuary.model.firewall import Address

NETFILTER, GET, DELETE = 12, 0x0101, 0x0102
REQUEST, ACK, DUMP, DONE, ERROR = 1, 4, 0x300, 3, 2
NESTED = 0x3FFF
"""Bits of an attribute's type that are its number."""
ORIGINAL, REPLY, STATUS, ZONE, IDENTITY = 1, 2, 3, 18, 12
SOURCE4, TARGET4, SOURCE6, TARGET6 = 1, 2, 3, 4
SOURCE_TRANSLATED, TARGET_TRANSLATED = 1 << 4, 1 << 5
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
_MESSAGE, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=HH")


@dataclass(frozen=True)
class End:
    """One direction of a connection, as its packets are addressed."""

    source: Address
    target: Address
    port: int | None = None
    """That is called; None for protocols without ports."""
    from_port: int | None = None


@dataclass(frozen=True)
class Flow:
    """A connection. In the reply its addresses and ports are after translation, the other way
    round.
    """

    protocol: str
    """tcp, udp, icmp, or a number."""
    original: End
    reply: End
    status: int
    key: bytes = b""
    """What names it to the kernel."""

    @property
    def translated(self) -> bool:
        """Whether it was called by another address or port than that which answers."""
        return bool(self.status & TARGET_TRANSLATED)

    @property
    def masked(self) -> bool:
        """Whether its caller is seen under another address."""
        return bool(self.status & SOURCE_TRANSLATED)


def open_socket() -> socket.socket:
    """To ask with; of the network namespace of whoever opens it. Raises OSError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
    sock.settimeout(5)
    return sock


class Glance(NamedTuple):
    """What is quickly seen of a connection: the addresses of both directions, packed, and the port
    that was called.
    """

    source: bytes
    target: bytes
    answers: bytes
    answered: bytes
    port: int


def find(
    sock: socket.socket, near: Callable[[Glance], bool], wanted: Callable[[Flow], bool]
) -> list[Flow]:
    """The tracked connections that are wanted, of both address families. Raises OSError.

    `near`: which are worth a look. A host may track hundreds of thousands, and a whole one takes
    fifty times as long as a glance.
    """
    sock.send(
        _MESSAGE.pack(20, GET, REQUEST | DUMP, 1, 0) + struct.pack(">BBH", socket.AF_UNSPEC, 0, 0)
    )
    found = list[Flow]()
    while True:
        for kind, body in _messages(sock.recv(1 << 18)):
            if kind == DONE:
                return found
            if kind == ERROR:
                raise _failure(body)
            seen = glance(body)
            if seen and not near(seen):
                continue
            flow = parse(body)
            if flow and wanted(flow):
                found.append(flow)


def remove(sock: socket.socket, flows: Iterable[Flow]) -> int:
    """Forget these connections; how many there still were. Raises OSError."""
    count = 0
    for flow in flows:
        sock.send(_MESSAGE.pack(16 + len(flow.key), DELETE, REQUEST | ACK, 2, 0) + flow.key)
        for kind, body in _messages(sock.recv(1 << 16)):
            error = _failure(body) if kind == ERROR else None
            if error and error.errno not in (0, errno.ENOENT):
                raise error
            count += error is not None and not error.errno
    return count


def glance(body: bytes) -> Glance | None:
    """A connection as the kernel lays it out always; None for a message that is laid out otherwise.
    Pure.
    """
    size = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}.get(body[0] if body else 0)
    if size is None or len(body) < 2 * _SHORTEST[size]:
        return None
    length, kind = _ATTRIBUTE.unpack_from(body, 4)
    if kind & NESTED != ORIGINAL or _ATTRIBUTE.unpack_from(body, 4 + length)[1] & NESTED != REPLY:
        return None
    source, answers = 16, 16 + length
    target = source + size + 4
    # of the protocol: its own head, its number, the port called from
    port = target + size + 4 + 8 + 8 + 4
    return Glance(
        body[source : source + size], body[target : target + size], body[answers : answers + size],
        body[answers + size + 4 : answers + 2 * size + 4], int.from_bytes(body[port : port + 2],
        "big"),
    )  # fmt: skip


_SHORTEST = {4: 40, 16: 64}
"""Bytes of one direction, by those of its addresses."""


def parse(body: bytes) -> Flow | None:
    """A connection from the kernel's message; None for what is none of ours to understand. Pure."""
    parts = dict(_attributes(body[4:]))
    if ORIGINAL not in parts or REPLY not in parts:
        return None
    (original, number), (reply, _) = _end(parts[ORIGINAL]), _end(parts[REPLY])
    if original is None or reply is None:
        return None
    key = body[:4] + _whole(ORIGINAL | 0x8000, parts[ORIGINAL])
    key += b"".join(_whole(kind, parts[kind]) for kind in (ZONE, IDENTITY) if kind in parts)
    status = int.from_bytes(parts.get(STATUS, b""), "big")
    return Flow(PROTOCOLS.get(number, str(number)), original, reply, status, key)


def _end(data: bytes) -> tuple[End | None, int]:
    parts = dict(_attributes(data))
    addresses, protocol = dict(_attributes(parts.get(1, b""))), dict(_attributes(parts.get(2, b"")))
    number = int.from_bytes(protocol.get(1, b"\0"), "big")
    ports = tuple(
        int.from_bytes(protocol[kind], "big") if kind in protocol else None for kind in (3, 2)
    )
    if SOURCE4 in addresses and TARGET4 in addresses:
        return End(IPv4Address(addresses[SOURCE4]), IPv4Address(addresses[TARGET4]), *ports), number
    if SOURCE6 in addresses and TARGET6 in addresses:
        return End(IPv6Address(addresses[SOURCE6]), IPv6Address(addresses[TARGET6]), *ports), number
    return None, number


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 16 <= len(data):
        length, kind, *_ = _MESSAGE.unpack_from(data, at)
        if length < 16:
            return
        yield kind, data[at + 16 : at + length]
        at += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            return
        yield kind & NESTED, data[at + 4 : at + length]
        at += (length + 3) & ~3


def _whole(kind: int, data: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + bytes(-len(data) % 4)


def _failure(body: bytes) -> OSError:
    number = -struct.unpack_from("=i", body)[0]
    return OSError(number, os.strerror(number))
