"""What every header reader of this room shares: a window on the bytes, the typed answer, and the
checks all of them make.

Readers are pure: they see a file only as `Bytes` (offset and length in, bytes out, plus the size),
read a bounded number of bounded pieces, and either return a `Header` or raise `Invalid`. So the
same code runs on bytes in a test and on a file opened by descriptor, and nothing here follows a
name that stands inside an image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

from virtuary.base.errors import Invalid
from virtuary.base.units import TIB, format_size

SECTOR = 512
MAX_VIRTUAL_SIZE = 16 * TIB
# hears what is being done and the fraction done, None where it is not known
Report = Callable[[str, float | None], None]
# no reader asks for more at once; a defect above, not a property of any format
MAX_PIECE = 64 * 1024 * 1024


class Bytes(Protocol):
    """A file as bytes. `read` returns less than asked for at the end, and never raises for an
    offset beyond it.
    """

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes: ...


@dataclass(frozen=True)
class Memory:
    """Bytes held in memory."""

    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        return self.content[offset : offset + length]


class File:
    """A regular file or block device, read by descriptor with pread; the descriptor stays the
    caller's unless `owned`.
    """

    def __init__(self, descriptor: int, *, owned: bool = False) -> None:
        self.descriptor = descriptor
        self._owned = owned
        self._size = os.lseek(descriptor, 0, os.SEEK_END)

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        if offset >= self._size:
            return b""
        return os.pread(self.descriptor, min(length, MAX_PIECE), offset)

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        if self._owned:
            os.close(self.descriptor)


def open_reader(source: Path | str | int) -> File:
    """A reader over a path (opened here, closed at the end of the `with`) or over a descriptor
    (which stays open).

    The last component of a path is never followed as a symbolic link, and nothing but a regular
    file or a block device is read.
    """
    if isinstance(source, int):
        return File(source)
    try:
        # O_NONBLOCK: a named pipe must not hold us up; on a regular file it means nothing
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Invalid(
            f"the image file {Path(source).name!r} can't be opened: {error.strerror}"
        ) from error
    mode = os.fstat(descriptor).st_mode
    if (mode & 0o170000) not in (0o100000, 0o060000):
        os.close(descriptor)
        raise Invalid(
            f"{Path(source).name!r} is not a regular file",
            "give an image file, not a folder, pipe or link",
        )
    return File(descriptor, owned=True)


@dataclass(frozen=True)
class Header:
    """What a disk image says of itself, after all checks: safe to hand to a tool with `format`
    given explicitly.
    """

    format: str  # "qcow2" | "raw" | "vmdk" | "vhdx" | "vhd" | "vdi"
    virtual_size: int  # bytes the guest would see
    version: str
    file_size: int
    details: Mapping[str, int | str] = field(default_factory=dict)


def refuse(sentence: str, hint: str | None = None) -> NoReturn:
    """Raise Invalid: the one way a reader says no."""
    raise Invalid(sentence, hint)


def take(reader: Bytes, offset: int, length: int, what: str) -> bytes:
    """Exactly `length` bytes at `offset`; raises Invalid when the file ends before."""
    if length > MAX_PIECE:
        refuse(f"{what} would be {format_size(length)} long, more than any sound image has")
    piece = reader.read(offset, length) if 0 <= offset <= reader.size else b""
    if len(piece) < length:
        refuse(
            f"the file ends in the middle of {what}", "it was probably not transferred completely"
        )
    return piece


def inside(reader: Bytes, offset: int, length: int, what: str) -> None:
    """Raise Invalid unless `length` bytes at `offset` lie within the file."""
    if offset < 0 or length < 0 or offset + length > reader.size:
        refuse(
            f"{what} lies outside the file",
            "the image is damaged or was not transferred completely",
        )


def check_virtual_size(size: int, most: int) -> None:
    """Raise Invalid for a disk that is empty, not whole sectors, or larger than allowed."""
    if size <= 0:
        refuse("the image holds a disk of no size")
    if size % SECTOR:
        refuse(f"the disk in the image is {size} bytes, not a multiple of {SECTOR}")
    if size > most:
        refuse(
            f"the disk in the image is {format_size(size)}, more than the {format_size(most)} "
            "allowed"
        )


def is_power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0
