"""The API spoken over the daemon's Unix socket with nothing but the standard library's cheap parts.

Small on purpose: `virtuary list` as a whole process has to end within 120 ms, and http.client alone
would cost half of that. One connection a call; JSON in, JSON out; problem documents become the
errors they stand for.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

from virtuary.base.errors import PeerAway, from_problem

READ_CAP = 256 * 1024 * 1024


class Wire:
    def __init__(self, path: str, timeout: float = 330.0) -> None:
        """`timeout`: seconds an answer may take to begin or to go on."""
        self.path, self.timeout = path, timeout

    def call(
        self,
        method: str,
        target: str,
        body: Any = None,
        query: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """One request; the decoded answer (None for an empty one). Raises the error the daemon
        answered, or PeerAway.
        """
        content = b"" if body is None else json.dumps(body).encode()
        with self.connect() as sock:
            self._send(sock, method, target, query, content, headers)
            reply = _Reply(sock)
            text = reply.read()
        if reply.status >= 400:
            raise from_problem(_decode(text))
        return _decode(text) if text else None

    def upload(self, target: str, query: dict[str, Any], content: Any, size: int) -> Any:
        """PUT a file's content as it is; `content` is a readable binary file, or pieces that are
        `size` bytes together.
        """
        with self.connect() as sock:
            head = self._head(
                "PUT",
                target,
                query,
                {"Content-Length": str(size), "Content-Type": "application/octet-stream"},
            )
            sock.sendall(head)
            # refused meanwhile: the answer tells why
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if hasattr(content, "fileno"):
                    if size:
                        sock.sendfile(content, 0, size)
                else:
                    for piece in content:
                        sock.sendall(piece)
            reply = _Reply(sock)
            text = reply.read()
        if reply.status >= 400:
            raise from_problem(_decode(text))
        return _decode(text)

    def events(
        self, target: str = "", since: int | None = None, tick: float = 0.2
    ) -> Iterator[dict[str, Any] | None]:
        """Changes as they happen; None every `tick` seconds in which there was none."""
        query: dict[str, Any] = {"target": target} if target else {}
        if since is not None:
            query["since"] = since
        with self.connect() as sock:
            self._send(sock, "GET", "/v1/events", query, b"", {"Accept": "text/event-stream"})
            reply = _Reply(sock)
            if reply.status >= 400:
                raise from_problem(_decode(reply.read()))
            sock.settimeout(tick)
            yield from reply.events()

    def connect(self) -> socket.socket:
        """A connection to the daemon's socket. Raises PeerAway."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(self.timeout)
        try:
            sock.connect(self.path)
        except OSError as error:
            sock.close()
            if isinstance(error, PermissionError):
                raise PeerAway(
                    "the daemon's socket is closed to this user",
                    "an administrator can add you to the group virtuary",
                ) from error
            raise PeerAway(
                f"no daemon answers at {self.path}", "virtuary daemon starts one in the foreground"
            ) from error
        return sock

    def _head(
        self, method: str, target: str, query: dict[str, Any] | None, headers: dict[str, str]
    ) -> bytes:
        if query:
            target += "?" + "&".join(
                f"{key}={_quote(str(value))}" for key, value in query.items() if value is not None
            )
        lines = [f"{method} {target} HTTP/1.1", "Host: virtuary", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def _send(
        self,
        sock: socket.socket,
        method: str,
        target: str,
        query: dict[str, Any] | None,
        content: bytes,
        headers: dict[str, str] | None,
    ) -> None:
        extra = dict(headers or {})
        if content or method in ("POST", "PUT", "PATCH"):
            extra["Content-Length"] = str(len(content))
            if content:
                extra["Content-Type"] = "application/json"
        try:
            # refused meanwhile: the answer tells why
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(self._head(method, target, query, extra) + content)
        except OSError as error:
            raise PeerAway(f"the daemon went away: {error}") from error


class _Reply:
    """An HTTP/1.1 answer: status, headers, and a body by length, in chunks, or to the end."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._left, self._ticking = sock, b"", False
        head = self._until(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        try:
            self.status = int(lines[0].split(" ")[1])
        except (IndexError, ValueError):
            raise PeerAway("what answered is not the daemon") from None
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }

    def _more(self) -> bytes:
        try:
            return self._sock.recv(262144)
        except TimeoutError as error:
            if self._ticking:
                raise
            raise PeerAway(
                "the daemon did not answer in time", "virtuary doctor, or its log, may tell why"
            ) from error
        except OSError as error:
            raise PeerAway(f"the daemon went away: {error}") from error

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._left:
            chunk = self._more()
            if not chunk:
                raise PeerAway(
                    "the daemon went away in the middle of an answer",
                    "virtuary doctor, or its log, may tell why",
                )
            self._left += chunk
        head, _, self._left = self._left.partition(mark)
        return head

    def read(self) -> bytes:
        if "content-length" in self.headers:
            wanted = int(self.headers["content-length"])
            parts, have = [self._left], len(self._left)
            while have < wanted and (chunk := self._more()):
                parts.append(chunk)
                have += len(chunk)
            if have < wanted:
                raise PeerAway(
                    "the daemon went away in the middle of an answer",
                    "virtuary doctor, or its log, may tell why",
                )
            return b"".join(parts)[:wanted]
        if self.headers.get("transfer-encoding") == "chunked":
            return b"".join(self.chunks())
        parts = [self._left]
        while chunk := self._more():
            parts.append(chunk)
        return b"".join(parts)

    def chunks(self) -> Iterator[bytes]:
        while size := int((line := self._until(b"\r\n")).split(b";")[0] or b"0", 16):
            while len(self._left) < size + 2:
                try:
                    more = self._more()
                except TimeoutError:  # a tick: whoever reads on begins with this chunk again
                    self._left = line + b"\r\n" + self._left
                    raise
                if not more:
                    raise PeerAway("the daemon went away in the middle of an answer")
                self._left += more
            chunk, self._left = self._left[:size], self._left[size + 2 :]
            yield chunk

    def events(self) -> Iterator[dict[str, Any] | None]:
        """Server-sent events; a timeout of the socket is a tick."""
        self._ticking = True
        text = b""
        while True:
            try:
                chunk = next(self.chunks())
            except TimeoutError:
                yield None
                continue
            except StopIteration:
                return
            text += chunk
            while b"\n\n" in text:
                block, _, text = text.partition(b"\n\n")
                if event := _event(block):
                    yield event


def _event(block: bytes) -> dict[str, Any] | None:
    fields = dict(
        line.split(b": ", 1)
        for line in block.split(b"\n")
        if b": " in line and not line.startswith(b":")
    )
    if b"data" not in fields:
        return None
    return {
        "id": int(fields.get(b"id", b"0")),
        "event": fields.get(b"event", b"message").decode(),
        "data": json.loads(fields[b"data"]),
    }


def _decode(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise PeerAway("the daemon answered something that is not JSON") from None


_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~/:")


def _quote(text: str) -> str:
    return "".join(chr(byte) if byte in _SAFE else f"%{byte:02X}" for byte in text.encode())


def path_part(text: str) -> str:
    """A name as one segment of a path."""
    return _quote(text).replace("/", "%2F")


def environment_socket() -> str | None:
    """The socket named by VIRTUARY_HOST=unix://PATH, if any. Other addresses come with
    authentication.
    """
    from virtuary.base.errors import Invalid

    value = os.environ.get("VIRTUARY_HOST", "")
    if not value:
        return None
    if not value.startswith("unix://"):
        raise Invalid(
            f"VIRTUARY_HOST={value[:80]!r} is not supported",
            "only unix:///path/to/socket is, for now",
        )
    return value.removeprefix("unix://")
