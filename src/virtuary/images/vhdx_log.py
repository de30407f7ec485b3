"""The log of a VHDX that was not closed cleanly, replayed by our own reader, and such a disk
unpacked: the file itself is not changed.

What the log says was to be written is laid over the file's bytes, and all checks are made of what
comes of it. No tool of others sees the file: it would replay the log itself, after the checks.
Layout: MS-VHDX 2.3 (log) and 2.5 (blocks).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import NamedTuple

from virtuary.images.crc32c import crc32c
from virtuary.images.header import Bytes, inside, refuse, take

SECTOR, MIB = 4096, 1024 * 1024
MAX_LOG = 16 * MIB
MAX_SUMMED = 8 * MIB
"""Bytes of entries whose checksums are computed: a log is mostly stale."""
MAX_ZEROED = 256 * MIB
TRIES = 16
DAMAGED = "attach it once in Hyper-V and detach it again"
NOT_PRESENT, FULL = (0, 1, 2, 3), 6
_ENTRY = struct.Struct("<4sIIIQI4x16sQQ")
_DESCRIPTOR = struct.Struct("<4s4s8sQQ")
_ZEROS = bytes(SECTOR)


class Log(NamedTuple):
    identity: bytes
    offset: int
    length: int


class _Entry(NamedTuple):
    place: int
    length: int
    tail: int
    sequence: int
    descriptors: int
    flushed: int
    last: int


class Patched:
    """A file with other bytes in some of its sectors."""

    def __init__(self, reader: Bytes, sectors: dict[int, bytes], size: int) -> None:
        self._reader, self._sectors, self.size = reader, sectors, size

    def read(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        piece = self._reader.read(offset, length).ljust(length, b"\0")
        first, last = offset // SECTOR, (offset + length - 1) // SECTOR
        if not length or not any(number in self._sectors for number in range(first, last + 1)):
            return piece
        whole = bytearray(piece)
        for number in range(first, last + 1):
            if (sector := self._sectors.get(number)) is not None:
                begin = max(offset, number * SECTOR)
                end = min(offset + length, (number + 1) * SECTOR)
                whole[begin - offset : end - offset] = sector[
                    begin - number * SECTOR : end - number * SECTOR
                ]
        return bytes(whole)


def replayed(reader: Bytes, log: Log) -> Patched:
    """The file as it is to be once its log was replayed. Raises Invalid where the log is damaged,
    or too much.
    """
    if log.offset < MIB or log.offset % MIB or log.length % MIB or not 0 < log.length <= MAX_LOG:
        refuse(
            "the log of the VHDX does not lie where it may, or is larger than any sound one",
            DAMAGED,
        )
    inside(reader, log.offset, log.length, "the log of the VHDX")
    told = take(reader, log.offset, log.length, "the log of the VHDX")
    entries = _active(told, _entries(told, log.identity))
    if entries[-1].flushed > reader.size:
        refuse(
            "the VHDX is shorter than its log says", "it was probably not transferred completely"
        )
    sectors: dict[int, bytes] = {}
    for entry in entries:
        _apply(_piece(told, entry.place, entry.length), entry, sectors, log)
    return Patched(
        reader, sectors, max(reader.size, min(entries[-1].last, reader.size + MAX_ZEROED))
    )


def _piece(told: bytes, place: int, length: int) -> bytes:
    """Bytes of the log, which goes on at its beginning."""
    return told[place : place + length] + told[: max(0, place + length - len(told))]


def _entries(told: bytes, identity: bytes) -> dict[int, _Entry]:
    """What looks like an entry of this log, by its place; checksums come later."""
    found = {}
    for place in range(0, len(told), SECTOR):
        if told[place : place + 4] != b"loge":
            continue
        _, _, length, tail, sequence, descriptors, guid, flushed, last = _ENTRY.unpack_from(
            told, place
        )
        fits = (
            0 < length <= len(told)
            and length % SECTOR == 0
            and tail % SECTOR == 0
            and tail < len(told)
        )
        if guid == identity and fits and sequence and descriptors <= (length - 64) // 32:
            found[place] = _Entry(place, length, tail, sequence, descriptors, flushed, last)
    return found


def _active(told: bytes, found: dict[int, _Entry]) -> list[_Entry]:
    """The entries to be replayed: those from the tail of the youngest one on that follow each other
    without a gap.
    """
    summed = [0]
    for head in sorted(found.values(), key=lambda entry: -entry.sequence)[:TRIES]:
        chain = _chain(told, found, head, summed)
        if chain:
            return chain
    refuse("the VHDX was not closed cleanly: its log waits to be replayed, and is damaged", DAMAGED)


def _chain(told: bytes, found: dict[int, _Entry], head: _Entry, summed: list[int]) -> list[_Entry]:
    chain: list[_Entry] = []
    place = head.tail
    while entry := found.get(place):
        if (chain and entry.sequence != chain[-1].sequence + 1) or not _is_whole(
            told, entry, summed
        ):
            return []
        chain.append(entry)
        if entry.place == head.place:
            return chain
        place = (place + entry.length) % len(told)
        if sum(each.length for each in chain) > len(told):
            return []
    return []


def _is_whole(told: bytes, entry: _Entry, summed: list[int]) -> bool:
    summed[0] += entry.length
    if summed[0] > MAX_SUMMED:
        refuse(
            f"the log of the VHDX holds more than {MAX_SUMMED // MIB} MiB that wait to be replayed",
            DAMAGED,
        )
    piece = _piece(told, entry.place, entry.length)
    return bool(crc32c(piece[:4] + bytes(4) + piece[8:]) == int.from_bytes(piece[4:8], "little"))


def _apply(piece: bytes, entry: _Entry, sectors: dict[int, bytes], log: Log) -> None:
    at = -(-(64 + 32 * entry.descriptors) // SECTOR) * SECTOR
    for number in range(entry.descriptors):
        kind, trailing, leading, offset, sequence = _DESCRIPTOR.unpack_from(piece, 64 + 32 * number)
        length = int.from_bytes(leading, "little") if kind == b"zero" else SECTOR
        if kind not in (b"zero", b"desc") or sequence != entry.sequence:
            refuse("an entry of the log of the VHDX is damaged", DAMAGED)
        inner = offset < log.offset + log.length and log.offset < offset + length
        if offset % SECTOR or length % SECTOR or offset < MIB or offset >= 1 << 60 or inner:
            refuse("the log of the VHDX would write where it may not", DAMAGED)
        if kind == b"zero":
            _zero(sectors, offset, length)
            continue
        data = piece[at : at + SECTOR]
        if data[:4] != b"data" or data[4:8] + data[-4:] != struct.pack(
            "<II", entry.sequence >> 32, entry.sequence & 0xFFFFFFFF
        ):
            refuse("an entry of the log of the VHDX is damaged", DAMAGED)
        sectors[offset // SECTOR] = leading + data[8:-4] + trailing
        at += SECTOR


def _zero(sectors: dict[int, bytes], offset: int, length: int) -> None:
    if length + len(sectors) * SECTOR > MAX_ZEROED:
        refuse("the log of the VHDX would write more zeros than any sound one", DAMAGED)
    for number in range(offset // SECTOR, (offset + length) // SECTOR):
        sectors[number] = _ZEROS


class Layout(NamedTuple):
    table: int
    size: int
    block: int
    chunk: int
    """Blocks after which the table has an entry for their bitmaps."""


def unpack(reader: Bytes, layout: Layout, target: int, report: Callable[[float], None]) -> None:
    """Write the disk into an empty file; what is zeros takes no space. Blocks. Raises Invalid for
    blocks in each other or outside of the file.
    """
    blocks = -(-layout.size // layout.block)
    places = {}
    for number in range(blocks):
        if number % 1024 == 0:
            row = _row(reader, layout, number, min(1024, blocks - number))
        state, place = row[number % 1024] & 7, row[number % 1024] >> 20 << 20
        if state == FULL:
            places[number] = place
        elif state not in NOT_PRESENT:
            refuse("the VHDX has blocks of a parent disk", DAMAGED)
    before = 0
    for place in sorted(places.values()):
        if place < max(before, MIB) or place + layout.block > reader.size:
            refuse(
                "the blocks of the VHDX lie in each other or outside of the file",
                "the image is damaged or was not transferred completely",
            )
        before = place + layout.block
    os.ftruncate(target, layout.size)
    for done, (number, place) in enumerate(places.items()):
        _copy(
            reader,
            place,
            min(layout.block, layout.size - number * layout.block),
            target,
            number * layout.block,
        )
        report(done / len(places))


def _row(reader: Bytes, layout: Layout, first: int, count: int) -> list[int]:
    """Entries of the table for these blocks, without those for bitmaps."""
    begin, end = (
        first + first // layout.chunk,
        first + count - 1 + (first + count - 1) // layout.chunk,
    )
    piece = take(
        reader, layout.table + begin * 8, (end - begin + 1) * 8, "the block table of the VHDX"
    )
    entries = struct.unpack(f"<{len(piece) // 8}Q", piece)
    return [
        entries[number + number // layout.chunk - begin] for number in range(first, first + count)
    ]


def _copy(reader: Bytes, place: int, length: int, target: int, to: int) -> None:
    for at in range(0, length, MIB):
        piece = take(reader, place + at, min(MIB, length - at), "a block of the VHDX")
        if piece.count(0) != len(piece):
            os.pwrite(target, piece, to + at)
