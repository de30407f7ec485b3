"""A WebSocket on the daemon's Unix socket, as far as a command in a guest needs it: RFC 6455
without extensions and fragments of ours.

By hand, for `virtuary exec` is to start as quickly as `list`: the library takes 60 ms to load.
Nothing is masked by anything but zeros, which the protocol allows and which hides nothing: masks
protect proxies, and there is none in a Unix socket.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import NamedTuple

from virtuary.base.errors import PeerAway

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MESSAGE_CAP = 16 * 1024 * 1024
_HELLO = (
    "GET {target} HTTP/1.1\r\nHost: virtuary\r\nUpgrade: websocket\r\nConnection: "
    "Upgrade\r\nSec-WebSocket-Key: dmlydHVhcnkgdmlydHVhcg==\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: binary\r\n\r\n"
)


class Message(NamedTuple):
    kind: int
    data: bytes


class Frames:
    """Messages in and out of a connected socket, which stays blocking."""

    def __init__(self, sock: socket.socket, target: str) -> None:
        """Shake hands. Raises PeerAway where what answers speaks no WebSocket there."""
        self.sock = sock
        self._left = b""
        self._parts: list[bytes] = []
        sock.sendall(_HELLO.format(target=target).encode())
        while b"\r\n\r\n" not in self._left:
            if not self._more():
                raise PeerAway("the daemon went away before it answered")
        head, _, self._left = self._left.partition(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise PeerAway(
                "the daemon does not know this call",
                "it may be older than this program: virtuary version tells",
            )

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, kind: int, data: bytes) -> None:
        """Send a message as one frame. Where the other side has closed, what it said before still
        is there to be taken.
        """
        size = len(data)
        length = (
            bytes([0x80 | size])
            if size < 126
            else struct.pack(">BH", 0xFE, size)
            if size < 65536
            else struct.pack(">BQ", 0xFF, size)
        )
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(bytes([0x80 | kind]) + length + b"\0\0\0\0" + data)

    def take(self) -> list[Message]:
        """Read what is there, waiting for something; the messages that are whole by then. An end of
        the connection is a CLOSE.
        """
        if not self._more():
            return [Message(CLOSE, b"")]
        return self.whole()

    def whole(self) -> list[Message]:
        """Messages that came already."""
        found = []
        while frame := self._frame():
            final, kind, data = frame
            if kind == PING:
                self.send(PONG, data)
            elif kind == CLOSE:
                found.append(Message(CLOSE, data))
            elif kind in (0, TEXT, BINARY):
                self._kind = kind or self._kind
                self._parts.append(data)
                if final:
                    found.append(Message(self._kind, b"".join(self._parts)))
                    self._parts.clear()
        return found

    _kind = BINARY

    def _more(self) -> bool:
        try:
            piece = self.sock.recv(1024 * 1024)
        except ConnectionResetError:
            piece = b""
        self._left += piece
        return bool(piece)

    def _frame(self) -> tuple[bool, int, bytes] | None:
        """The next frame: whether it is the last of its message, its kind, what it holds."""
        left = self._left
        if len(left) < 2:
            return None
        size, at = left[1] & 127, 2
        if size > 125:
            at = 4 if size == 126 else 10
            size = int.from_bytes(left[2:at], "big") if len(left) >= at else MESSAGE_CAP
        if size > MESSAGE_CAP:
            raise PeerAway("the daemon sent a message of more than 16 MiB")
        if len(left) < at + size:
            return None
        self._left = left[at + size :]
        return bool(left[0] & 0x80), left[0] & 15, left[at : at + size]
