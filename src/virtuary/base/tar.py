"""Reads a tar archive that another machine makes while it is read: whatever comes, there is one
kind of error and a bound on memory.

Knows what tar programs write of their own accord: ustar, pax headers and GNU's long names. Writes
nothing, interprets no name. Sparse files and volumes are refused: tar makes them only when asked
to. Source: POSIX.1-2017 pax, and tar(5) of libarchive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from virtuary.base.errors import Failed

Kind = Literal["file", "folder", "link", "hard link", "special"]
BLOCK = 512
CHUNK = 1024 * 1024
HEADER_CAP = 1024 * 1024
"""Bytes that one header before an entry may have."""
PADDING_CAP = 1024 * 1024
"""Bytes that may follow the end of the archive: tar fills its last record."""
_KINDS: dict[bytes, Kind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "hard link",
    b"2": "link",
    b"5": "folder",
}
_DATALESS = b"123456"
_LAST_SECOND = 2**33
_SECONDS = re.compile(rb"-?\d{1,15}(\.\d*)?")
_NO_ARCHIVE = "what came is no tar archive, or a damaged one"


@dataclass(frozen=True)
class Entry:
    """What the archive says of one file; nothing of it is checked."""

    name: bytes
    kind: Kind
    mode: int
    modified: int
    """Seconds since 1970, between 0 and 2**33."""
    size: int
    """Bytes of content that follow."""
    target: bytes
    """What a link leads to."""


class Archive:
    """Entries in their order, each with its content, which may be left unread. Every fault is a
    Failed.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = self._fill = 0

    def __iter__(self) -> Iterator[Entry]:
        told: dict[bytes, bytes] = {}
        said = 0
        while header := self._header():
            kind, size = header[156:157], _number(header[124:136])
            said += size if kind in b"xgLK" else -said
            if said > HEADER_CAP:
                raise Failed(
                    f"the archive says {said} bytes of one file before it comes, and at most "
                    f"{HEADER_CAP} are read"
                )
            if kind == b"x":
                told |= _records(self._whole(size))
            elif kind == b"g":
                self._whole(size)  # what is said of all files at once is nothing that matters here
            elif kind in b"LK":
                told[b"path" if kind == b"L" else b"linkpath"] = self._whole(size).partition(b"\0")[
                    0
                ]
            else:
                entry = _entry(header, told)
                told = {}
                self._left, self._fill = entry.size, -entry.size % BLOCK
                yield entry
                self._skip()
        self._end()

    def content(self) -> Iterator[bytes]:
        """The content of the entry that came last, in pieces."""
        while self._left:
            piece = self._exactly(min(self._left, CHUNK))
            self._left -= len(piece)
            yield piece

    def _skip(self) -> None:
        for _ in self.content():
            pass
        self._exactly(self._fill)

    def _header(self) -> bytes:
        """The next header; empty at the end of the archive."""
        block = self._exactly(BLOCK)
        if block.count(0) == BLOCK:
            return b""
        said, plain = _number(block[148:156]), block[:148] + b" " * 8 + block[156:]
        # old tars summed signed bytes
        if said != sum(plain) and said != sum(memoryview(plain).cast("b")):
            raise Failed(_NO_ARCHIVE)
        return block

    def _whole(self, size: int) -> bytes:
        if size > HEADER_CAP:
            raise Failed(
                f"the archive has a header of {size} bytes, and at most {HEADER_CAP} are read"
            )
        return self._exactly(size + -size % BLOCK)[:size]

    def _exactly(self, size: int) -> bytes:
        data = self._stream.read(size)
        if len(data) < size:
            raise Failed("the archive was cut: it ends before its end")
        return data

    def _end(self) -> None:
        if len(self._stream.read(PADDING_CAP + 1)) > PADDING_CAP:
            raise Failed("the archive goes on after its end")


def _entry(header: bytes, told: dict[bytes, bytes]) -> Entry:
    kind = header[156:157]
    if kind in b"SM" or any(key.startswith(b"GNU.sparse.") for key in told):
        raise Failed("the archive has sparse files or volumes, which are not read")
    name = told.get(b"path", _name(header))
    size = _decimal(told[b"size"]) if b"size" in told else _number(header[124:136])
    return Entry(
        name=name,
        kind="folder" if kind == b"\0" and name.endswith(b"/") else _KINDS.get(kind, "special"),
        mode=_number(header[100:108]) & 0o777,
        modified=_seconds(told[b"mtime"])
        if b"mtime" in told
        else max(0, min(_number(header[136:148], signed=True), _LAST_SECOND)),
        size=0 if kind in _DATALESS else size,
        target=told.get(b"linkpath", _text(header[157:257])),
    )


def _name(header: bytes) -> bytes:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes, signed: bool = False) -> int:
    """Octal digits, or GNU's binary form, whose first bit is set."""
    if field[0] & 0x80:
        value = (
            int.from_bytes(field, "big", signed=True)
            if field[0] == 0xFF
            else int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        )
    else:
        digits = field.strip(b" \0")
        if digits.strip(b"01234567"):
            raise Failed(_NO_ARCHIVE)
        value = int(digits or b"0", 8)
    if value < 0 and not signed:
        raise Failed(_NO_ARCHIVE)
    return value


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise Failed(_NO_ARCHIVE)
    return int(text)


def _seconds(text: bytes) -> int:
    if not _SECONDS.fullmatch(text):
        raise Failed(_NO_ARCHIVE)
    return max(0, min(int(text.partition(b".")[0]), _LAST_SECOND))


def _records(data: bytes) -> dict[bytes, bytes]:
    """What a pax header tells: records `LENGTH KEY=VALUE\\n`, where the length counts itself."""
    told, at = {}, 0
    while at < len(data):
        space = data.find(b" ", at, at + 9)
        end = at + _decimal(data[at:space]) if space > 0 else 0
        key, equals, value = data[space + 1 : end].partition(b"=")
        if not space < end <= len(data) or not equals or not value.endswith(b"\n"):
            raise Failed(_NO_ARCHIVE)
        told[key] = value[:-1]
        at = end
    return told
