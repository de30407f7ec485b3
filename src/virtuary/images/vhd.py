"""VHD (Virtual PC, Azure, XenServer), read and unpacked here: no tool of others sees one.

A fixed VHD is the disk and behind it a footer. A dynamic one has a table of blocks, each with a
bitmap of its sectors. Layout: "Virtual Hard Disk Image Format Specification" 1.0 (Microsoft). How
large the disk is stands in the footer; QEMU takes the product of its geometry instead for what some
programs wrote, and so loses the end of it. Refused: differences to a parent, wrong checksums,
contradictory copies, blocks that lie in each other.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable
from typing import NamedTuple

from virtuary.images.header import (
    SECTOR,
    Bytes,
    File,
    Header,
    check_virtual_size,
    inside,
    is_power_of_two,
    refuse,
    take,
)

MAGIC = b"conectix"
UNUSED = 0xFFFFFFFF
FIXED, DYNAMIC, DIFFERENCE = 2, 3, 4
KIB, MIB = 1024, 1024 * 1024
MAX_TABLE = 64 * MIB
MERGE = (
    "merge it where it comes from: Convert-VHD -Path IMAGE -DestinationPath NEW -VHDType Dynamic"
)
_FOOTER = struct.Struct(">8sIIQI4sIIQQHBBII16sB")
_HEADER = struct.Struct(">8sQQIIII16sI4x")


class _Footer(NamedTuple):
    cookie: bytes
    features: int
    version: int
    data_offset: int
    time: int
    creator: bytes
    creator_version: int
    creator_host: int
    original_size: int
    size: int
    cylinders: int
    heads: int
    sectors: int
    kind: int
    checksum: int
    identity: bytes
    saved: int


class _Table(NamedTuple):
    offset: int
    entries: int
    block: int


def read_vhd(reader: Bytes, max_virtual_size: int) -> Header:
    """The header of a fixed or dynamic VHD; raises Invalid for any other."""
    piece = take(reader, reader.size - SECTOR, SECTOR, "the VHD footer")
    if not piece.startswith(MAGIC):
        refuse("the VHD does not end with its footer", "it was probably not transferred completely")
    footer = _read_footer(piece)
    check_virtual_size(footer.size, max_virtual_size)
    details: dict[str, int | str] = {"kind": "fixed" if footer.kind == FIXED else "dynamic"}
    if footer.kind == FIXED:
        if footer.size > reader.size - SECTOR:
            refuse(
                f"the VHD says its disk has {footer.size} bytes, more than the file",
                "it was probably not transferred completely",
            )
    else:
        if take(reader, 0, SECTOR, "the VHD header") != piece:
            refuse("the two footers of the VHD contradict each other")
        table = _read_table(reader, footer)
        details |= {"block_size": table.block, "table": table.offset, "entries": table.entries}
    return Header("vhd", footer.size, "1.0", reader.size, details)


def _read_footer(piece: bytes) -> _Footer:
    footer = _Footer._make(_FOOTER.unpack_from(piece))
    if footer.checksum != _sum(piece, 64):
        refuse("the checksum of the VHD footer does not fit: it is damaged")
    if footer.version != 0x10000:
        refuse(f"VHD version {footer.version >> 16} is not supported; 1 is")
    if footer.kind == DIFFERENCE:
        refuse("the VHD is the difference to a parent disk", MERGE)
    if footer.kind not in (FIXED, DYNAMIC):
        refuse(f"VHD kind {footer.kind} is unknown", MERGE)
    if footer.saved:
        refuse(
            "the VHD belongs to a virtual machine that was saved while it ran",
            "shut that down, then export it again",
        )
    return footer


def _read_table(reader: Bytes, footer: _Footer) -> _Table:
    """Where the table of blocks lies, as far as it can be one."""
    if footer.data_offset < SECTOR or footer.data_offset % SECTOR:
        refuse("the header of the VHD does not lie where it may")
    piece = take(reader, footer.data_offset, 1024, "the VHD header")
    cookie, _, table, version, entries, block, checksum, _, _ = _HEADER.unpack_from(piece)
    if cookie != b"cxsparse" or version != 0x10000 or checksum != _sum(piece, 36):
        refuse("the header of the VHD is damaged")
    if not is_power_of_two(block) or not 4 * KIB <= block <= 256 * MIB:
        refuse(
            f"the VHD says its blocks have {block} bytes; powers of two from 4 KiB to 256 MiB "
            "are possible"
        )
    if entries < -(-footer.size // block) or entries * 4 > MAX_TABLE:
        refuse(
            f"the VHD says it has {entries} blocks, which does not fit its disk of {footer.size} "
            "bytes"
        )
    if table < SECTOR or table % SECTOR:
        refuse("the block table of the VHD does not lie where it may")
    inside(reader, table, entries * 4, "the block table of the VHD")
    return _Table(table, entries, block)


def _sum(piece: bytes, at: int) -> int:
    """The checksum of a piece whose own four bytes count as zeros."""
    return ~(sum(piece) - sum(piece[at : at + 4])) & 0xFFFFFFFF


def unpack_vhd(reader: File, header: Header, target: int, report: Callable[[float], None]) -> None:
    """Write the disk of a dynamic VHD, that was read as `header`, into an empty file; what is zeros
    takes no space. Blocks.

    Raises Invalid for blocks outside of the file or in each other: what is written is never more
    than the file holds.
    """
    size, block, offset = (
        header.virtual_size,
        int(header.details["block_size"]),
        int(header.details["table"]),
    )
    count = -(-size // block)
    bitmap = -(-block // SECTOR // 8 // SECTOR) * SECTOR if block >= 8 * SECTOR else SECTOR
    places = array(
        "I",
        b"".join(
            take(reader, offset + at, min(MIB, count * 4 - at), "the block table")
            for at in range(0, count * 4, MIB)
        ),
    )
    places.byteswap()
    _check_places(reader, [place * SECTOR for place in places if place != UNUSED], bitmap + block)
    os.ftruncate(target, size)
    for number, place in enumerate(places):
        if place != UNUSED:
            _copy_block(
                reader,
                place * SECTOR,
                bitmap,
                min(block, size - number * block),
                target,
                number * block,
            )
        if number % 64 == 0:
            report(number / count)


def _check_places(reader: File, places: list[int], length: int) -> None:
    before = 0
    for place in sorted(places):
        if place < before or place < SECTOR or place + length > reader.size:
            refuse(
                "the blocks of the VHD lie in each other or outside of the file",
                "the image is damaged or was not transferred completely",
            )
        before = place + length


def _copy_block(reader: File, place: int, bitmap: int, length: int, target: int, to: int) -> None:
    used = take(reader, place, bitmap, "a block of the VHD")
    whole = used.startswith(b"\xff" * (length // SECTOR // 8))
    for at in range(0, length, MIB):
        piece = take(reader, place + bitmap + at, min(MIB, length - at), "a block of the VHD")
        if not whole:
            piece = _masked(piece, used, at // SECTOR)
        if piece.count(0) != len(piece):
            os.pwrite(target, piece, to + at)


def _masked(piece: bytes, used: bytes, first: int) -> bytes:
    """The sectors that the bitmap says are there; the others are zeros."""
    return b"".join(
        piece[at : at + SECTOR]
        if used[(sector := first + at // SECTOR) >> 3] >> (7 - (sector & 7)) & 1
        else bytes(SECTOR)
        for at in range(0, len(piece), SECTOR)
    )
