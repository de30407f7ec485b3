"""Tar archives as no honest tar writes them: any name, kind, order and size."""

from __future__ import annotations

import io
from typing import NamedTuple

KINDS = {
    "file": b"0",
    "hard link": b"1",
    "link": b"2",
    "character device": b"3",
    "block device": b"4",
    "folder": b"5",
    "pipe": b"6",
}


class Item(NamedTuple):
    """One entry; `size` is what its header says where that is not so."""

    name: bytes
    kind: str = "file"
    content: bytes = b""
    target: bytes = b""
    mode: int = 0o644
    size: int | None = None


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def header(
    name: bytes,
    kind: bytes,
    size: int,
    target: bytes = b"",
    mode: int = 0o644,
    modified: bytes = b"14000000000",
) -> bytes:
    """One ustar header with its right sum."""
    number = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    fields = [
        name[:100].ljust(100, b"\0"),
        b"%07o\0" % mode,
        b"0000000\0",
        b"0000000\0",
        number,
        modified.ljust(12, b"\0"),
        b" " * 8,
        kind,
    ]
    block = padded(b"".join(fields) + target[:100].ljust(100, b"\0") + b"ustar\x0000")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def long(kind: bytes, text: bytes) -> bytes:
    """GNU's header for a name (L) or a link's target (K) that does not fit."""
    return header(b"././@LongLink", kind, len(text) + 1) + padded(text + b"\0")


def pax(**fields: bytes) -> bytes:
    """A pax header of these fields."""
    records = b""
    for key, value in fields.items():
        rest = b" " + key.encode() + b"=" + value + b"\n"
        size = len(rest)
        while size != len(rest) + len(str(size)):
            size = len(rest) + len(str(size))
        records += str(size).encode() + rest
    return header(b"./PaxHeaders/x", b"x", len(records)) + padded(records)


def archive(*items: Item, end: bool = True) -> bytes:
    parts = []
    for item in items:
        if b"\0" in item.name + item.target:
            parts.append(pax(path=item.name, linkpath=item.target))
        else:
            parts += [long(b"L", item.name)] if len(item.name) > 100 else []
            parts += [long(b"K", item.target)] if len(item.target) > 100 else []
        size = len(item.content) if item.size is None else item.size
        parts.append(
            header(item.name, KINDS[item.kind], size, item.target, item.mode) + padded(item.content)
        )
    return b"".join(parts) + (bytes(1024) if end else b"")


def stream(*items: Item) -> io.BytesIO:
    return io.BytesIO(archive(*items))
