"""A VMDK of several files, read together as the one raw disk that they are, while it is sent.

What leads from file to file is followed here, by whom the files belong to: the descriptor names its
extents, which have to lie beside it, and nothing else is opened. Flat, zero and sparse extents are
read (monolithicFlat, twoGbMaxExtent*, VMFS as ESX exports it); differences to a parent, compressed
grains and ESX's own sparse formats are refused. Layout: "Virtual Disk Format 5.0" (VMware technical
note).
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO, NamedTuple

from virtuary.base.errors import Invalid

SECTOR = 512
DESCRIPTOR_CAP = 128 * 1024
MOST = 16 * 1024**4
PIECE = 1024 * 1024
FLAT, SPARSE, ZERO = ("FLAT", "VMFS"), "SPARSE", "ZERO"
MARK = b"# disk descriptorfile"
CONVERT = (
    "make one self-contained file of it: qemu-img convert -O vmdk -o "
    "subformat=streamOptimized IMAGE NEW"
)
_EXTENT = re.compile(r'^(RW|RDONLY)\s+(\d{1,15})\s+([A-Z]+)(?:\s+"([^"]*)")?(?:\s+(\d{1,15}))?$')
_SPARSE = struct.Struct("<4sIIQQQQIQQQB4sH")


class Extent(NamedTuple):
    sectors: int
    kind: str
    name: str
    offset: int
    """Sectors before it in its file."""


def find_extents(path: str) -> list[Extent] | None:
    """What a descriptor on its own names; None for any other file. Raises Invalid where it is no
    disk that can be read.
    """
    with open(path, "rb") as handle:
        text = handle.read(DESCRIPTOR_CAP + 1)
    if not text[:1024].lower().lstrip().startswith(MARK):
        return None
    if len(text) > DESCRIPTOR_CAP:
        raise Invalid(f"{path} begins as the descriptor of a VMDK, and is longer than any")
    return parse(text.decode("utf-8", "replace"))


def parse(text: str) -> list[Extent]:
    """The extents of a descriptor, in the order of the disk. Pure. Raises Invalid."""
    extents, values = [], {}
    for line in (line.strip() for line in text.splitlines()):
        if found := _EXTENT.match(line):
            extents.append(Extent(int(found[2]), found[3], found[4] or "", int(found[5] or 0)))
        elif line.startswith(("RW ", "RDONLY ", "NOACCESS ")):
            raise Invalid(f"an extent of the VMDK is not understood: {line[:80]!r}", CONVERT)
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values[key.strip().lower()] = value.strip().strip('"')
    if values.get("parentcid", "ffffffff").lower() != "ffffffff" or "parentfilenamehint" in values:
        raise Invalid("the VMDK is the difference to a parent disk", CONVERT)
    if not extents or not 0 < sum(extent.sectors for extent in extents) * SECTOR <= MOST:
        raise Invalid(
            "the descriptor of the VMDK names no disk of a size that is possible", CONVERT
        )
    for extent in extents:
        _check(extent)
    return extents


def _check(extent: Extent) -> None:
    if extent.kind not in (*FLAT, SPARSE, ZERO):
        raise Invalid(
            f"the VMDK has an extent of the kind {extent.kind[:20]}, which is not read", CONVERT
        )
    if extent.kind != ZERO and (
        not extent.name or "/" in extent.name or "\\" in extent.name or extent.name in (".", "..")
    ):
        raise Invalid(
            f"an extent of the VMDK is no file beside it: {extent.name[:80]!r}",
            "put all its files into one folder",
        )


def size_of(extents: list[Extent]) -> int:
    return sum(extent.sectors for extent in extents) * SECTOR


def read_disk(path: str, extents: list[Extent]) -> Iterator[bytes]:
    """All bytes of the disk, in pieces. Raises Invalid for a file that is not there or is not what
    the descriptor says, before the first piece.
    """
    with ExitStack() as stack:
        files = [
            stack.enter_context(_open(path, extent)) if extent.kind != ZERO else None
            for extent in extents
        ]
        pieces = [_begin(file, extent) for file, extent in zip(files, extents, strict=True)]
        for each in pieces:
            yield from each


def _open(path: str, extent: Extent) -> BinaryIO:
    place = os.path.join(os.path.dirname(path), extent.name)
    try:
        if not stat.S_ISREG(os.stat(place).st_mode):
            raise Invalid(f"{place}, an extent of the VMDK, is no plain file")
        return open(place, "rb")
    except OSError as error:
        raise Invalid(
            f"{place}, an extent of the VMDK, can't be read: {error.strerror}",
            "put all its files into one folder",
        ) from None


def _begin(file: BinaryIO | None, extent: Extent) -> Iterator[bytes]:
    length = extent.sectors * SECTOR
    if file is None:
        return _zeros(length)
    if extent.kind == SPARSE:
        return _grains(file, extent.name, length)
    if os.fstat(file.fileno()).st_size < extent.offset * SECTOR + length:
        raise Invalid(
            f"{extent.name} is shorter than its VMDK says",
            "it was probably not transferred completely",
        )
    return _plain(file, extent.offset * SECTOR, length)


def _zeros(length: int) -> Iterator[bytes]:
    for at in range(0, length, PIECE):
        yield bytes(min(PIECE, length - at))


def _plain(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    for at in range(0, length, PIECE):
        yield _exactly(file, offset + at, min(PIECE, length - at))


def _exactly(file: BinaryIO, offset: int, length: int) -> bytes:
    piece = os.pread(file.fileno(), length, offset)
    if len(piece) < length:
        raise Invalid(
            f"{file.name} ends before its end", "it was probably not transferred completely"
        )
    return piece


def _grains(file: BinaryIO, name: str, length: int) -> Iterator[bytes]:
    """A sparse extent: a directory of tables of grains."""
    fields = _SPARSE.unpack_from(_exactly(file, 0, SECTOR))
    magic, _, flags, capacity, grain, _, _, per_table, _, directory, _, _, _, compression = fields
    if magic != b"KDMV" or flags & 1 << 16 or compression:
        raise Invalid(
            f"{name} is no sparse extent that is read: it is another format, or compressed", CONVERT
        )
    if (
        capacity * SECTOR < length
        or not 8 <= grain <= 16384
        or grain & (grain - 1)
        or not 0 < per_table <= 512
    ):
        raise Invalid(f"{name} is damaged: its header says what is not possible")
    tables = -(-length // (grain * per_table * SECTOR))
    places = struct.unpack(f"<{tables}I", _exactly(file, directory * SECTOR, tables * 4))
    return _of_tables(file, places, per_table, grain * SECTOR, length)


def _of_tables(
    file: BinaryIO, places: tuple[int, ...], per_table: int, grain: int, length: int
) -> Iterator[bytes]:
    left = length
    for place in places:
        table = (
            struct.unpack(f"<{per_table}I", _exactly(file, place * SECTOR, per_table * 4))
            if place
            else (0,) * per_table
        )
        for entry in table:
            if left <= 0:
                return
            size = min(grain, left)
            yield _exactly(file, entry * SECTOR, size) if entry > 1 else bytes(size)
            left -= size
