"""What somebody else takes from the host's interfaces, and that it passes packets on, is heard, so
that nobody need look all the time (rtnetlink(7)).
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import sys
from collections.abc import Iterator

LINKS, TRAFFIC_CONTROL, ADDRESSES4, ADDRESSES6, SETTINGS4, SETTINGS6 = (
    0x1,
    0x8,
    0x10,
    0x100,
    1 << 23,
    1 << 24,
)
NEW_LINK, DEL_LINK, DEL_ADDRESS, DEL_QUEUE, DEL_CLASS, DEL_FILTER, SETTINGS = (
    16,
    17,
    21,
    37,
    41,
    45,
    80,
)
INTERFACE, FORWARDING, OF_ALL = 1, 2, -1
NAME, UP, ALL = 3, 0x1, 0xFFFFFFFF
_HEADER, _LINK, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BxHIII"), struct.Struct("=HH")
_QUEUE = struct.Struct("=4xI")
_OURS = re.compile(r"v[blt][0-9a-f]{10}|.*-[io]$")
_TAP = re.compile(r"vt[0-9a-f]{10}n[0-9]")


def open_listener() -> socket.socket:
    """Hears of every change of interfaces, their addresses and their traffic control; never
    blocks.
    """
    sock = socket.socket(
        socket.AF_NETLINK,
        socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
        socket.NETLINK_ROUTE,
    )
    sock.bind((0, LINKS | TRAFFIC_CONTROL | ADDRESSES4 | ADDRESSES6 | SETTINGS4 | SETTINGS6))
    return sock


def hear(sock: socket.socket) -> bool:
    """Whether anything was taken away that may be ours, since the last time. True also where the
    kernel had more to tell than it kept.
    """
    found = False
    while True:
        try:
            found = takes_away(sock.recv(1 << 16)) or found
        except BlockingIOError:
            return found
        except OSError:
            return True  # what is left to hear wakes us again


def takes_away(messages: bytes) -> bool:
    """Whether these messages tell of something that may have been ours and is gone. A tap that is
    gone went with its machine.
    """
    return any(_takes_away(kind, body) for kind, body in _split(messages))


def _split(messages: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(messages):
        length, kind, *_ = _HEADER.unpack_from(messages, at)
        if length < _HEADER.size:
            return
        yield kind, messages[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _takes_away(kind: int, body: bytes) -> bool:
    if kind == DEL_ADDRESS:
        return True
    if kind in (DEL_QUEUE, DEL_CLASS, DEL_FILTER) and len(body) >= _QUEUE.size:
        return bool(_OURS.match(_name_of(*_QUEUE.unpack_from(body))))
    if kind == SETTINGS:  # the host passes packets on no more
        told = {
            word: int.from_bytes(data[:4], sys.byteorder, signed=True)
            for word, data in _attributes(body, 4)
        }
        return told.get(INTERFACE) == OF_ALL and told.get(FORWARDING) == 0
    if kind not in (NEW_LINK, DEL_LINK) or len(body) < _LINK.size:
        return False
    family, _, index, flags, changed = _LINK.unpack_from(body)
    name = _told_name(body)
    if kind == NEW_LINK:
        set_down = changed & UP and not flags & UP and changed != ALL  # which a new one's is
        return bool(set_down and _OURS.match(name)) and not _TAP.fullmatch(name)
    if family == socket.AF_BRIDGE:
        return bool(_OURS.match(_name_of(index)))  # it is there, and on its bridge no more
    return not _TAP.fullmatch(name)


def _name_of(index: int) -> str:
    """The name of an interface that is there, else nothing."""
    with contextlib.suppress(OSError):
        return socket.if_indextoname(index)
    return ""


def _told_name(body: bytes) -> str:
    names = (data for kind, data in _attributes(body, _LINK.size) if kind == NAME)
    return next(names, b"").rstrip(b"\0").decode(errors="replace")


def _attributes(body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind, body[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
