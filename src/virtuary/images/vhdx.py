"""The VHDX header, region table and metadata (Hyper-V), read before any tool sees the file.

Layout: MS-VHDX. Refused: differencing disks (HasParent or a parent locator), required items we do
not know, wrong checksums, contradictory copies. What a log waits to write is taken for written, and
such a disk is unpacked by vhdx_log.py: a tool that replays it would rewrite what was checked.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable
from typing import NamedTuple

from virtuary.images.crc32c import crc32c
from virtuary.images.header import (
    Bytes,
    Header,
    check_virtual_size,
    inside,
    is_power_of_two,
    refuse,
    take,
)
from virtuary.images.vhdx_log import Layout, Log, replayed, unpack

__all__ = ["MAGIC", "PARENT_LOCATOR", "crc32c", "read_vhdx", "unpack_vhdx"]

MAGIC = b"vhdxfile"
KIB, MIB = 1024, 1024 * 1024
HEADERS = (64 * KIB, 128 * KIB)
REGION_TABLES = (192 * KIB, 256 * KIB)
FIRST_REGION = 1 * MIB
REGION_BAT = uuid.UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
REGION_METADATA = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
FILE_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
DISK_ID = uuid.UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR = uuid.UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR = uuid.UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT_LOCATOR = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
LENGTHS = {FILE_PARAMETERS: 8, DISK_SIZE: 8, DISK_ID: 16, LOGICAL_SECTOR: 4, PHYSICAL_SECTOR: 4}
MAX_REGIONS, MAX_ITEMS = 16, 64
HAS_PARENT = 2
MERGE = "merge it in Hyper-V first: Convert-VHD -Path IMAGE -DestinationPath NEW -VHDType Dynamic"
_NO_LOG = bytes(16)


class _Region(NamedTuple):
    offset: int
    length: int


def read_vhdx(reader: Bytes, max_virtual_size: int) -> Header:
    """The header of a VHDX without a parent; raises Invalid for any other."""
    log = _find_log(reader)
    if log.identity != _NO_LOG:
        reader = replayed(reader, log)
    regions = _regions(reader)
    items = _metadata(reader, regions[REGION_METADATA])
    block, flags = struct.unpack("<II", items[FILE_PARAMETERS])
    if flags & HAS_PARENT:
        refuse("the VHDX is the difference to a parent disk", MERGE)
    if not is_power_of_two(block) or not MIB <= block <= 256 * MIB:
        refuse(
            f"the VHDX says its blocks have {block} bytes; powers of two from 1 MiB to 256 MiB "
            "are possible"
        )
    (size,) = struct.unpack("<Q", items[DISK_SIZE])
    (sector,) = struct.unpack("<I", items[LOGICAL_SECTOR])
    if sector not in (512, 4096) or size % sector:
        refuse(f"the VHDX says its sectors have {sector} bytes, which is not possible")
    check_virtual_size(size, max_virtual_size)
    _check_block_table(regions[REGION_BAT], size, block, sector)
    details: dict[str, int | str] = {"block_size": block, "sector_size": sector}
    if log.identity != _NO_LOG:
        details |= {"log": "replayed", "table": regions[REGION_BAT].offset}
    return Header("vhdx", size, "1", reader.size, details)


def unpack_vhdx(
    reader: Bytes, header: Header, target: int, report: Callable[[float], None]
) -> None:
    """Write the disk of a VHDX whose log waits to be replayed, that was read as `header`, into an
    empty file. Blocks.
    """
    block = int(header.details["block_size"])
    layout = Layout(
        int(header.details["table"]),
        header.virtual_size,
        block,
        (1 << 23) * int(header.details["sector_size"]) // block,
    )
    unpack(replayed(reader, _find_log(reader)), layout, target, report)


def _find_log(reader: Bytes) -> Log:
    """Of the two copies of the header the valid one with the higher sequence number counts."""
    copies = []
    for offset in HEADERS:
        piece = take(reader, offset, 4 * KIB, "the VHDX header")
        if piece[:4] == b"head" and _sum_fits(piece):
            copies.append(piece)
    if not copies:
        refuse("the VHDX has no valid header; both copies are damaged")
    sequences = [struct.unpack_from("<Q", piece, 8)[0] for piece in copies]
    if len(copies) == 2 and sequences[0] == sequences[1] and copies[0] != copies[1]:
        refuse("the two headers of the VHDX contradict each other")
    active = copies[sequences.index(max(sequences))]
    log, log_version, version = struct.unpack_from("<16sHH", active, 48)
    if version != 1 or log_version != 0:
        refuse(f"VHDX version {version} is not supported; 1 is", MERGE)
    length, offset = struct.unpack_from("<IQ", active, 68)
    return Log(log, offset, length)


def _regions(reader: Bytes) -> dict[uuid.UUID, _Region]:
    """Where block table and metadata lie. Both copies of the table must be valid and equal."""
    first, second = (
        take(reader, offset, 64 * KIB, "the VHDX region table") for offset in REGION_TABLES
    )
    if first[:4] != b"regi" or not _sum_fits(first):
        refuse("the region table of the VHDX is damaged")
    if second != first:
        refuse("the two region tables of the VHDX contradict each other")
    (count,) = struct.unpack_from("<I", first, 8)
    if count > MAX_REGIONS:
        refuse(f"the VHDX says it has {count} regions, more than any sound image has")
    regions: dict[uuid.UUID, _Region] = {}
    for index in range(count):
        guid, offset, length, required = struct.unpack_from("<16sQII", first, 16 + 32 * index)
        _add_region(
            reader, regions, uuid.UUID(bytes_le=guid), _Region(offset, length), bool(required & 1)
        )
    if set(regions) != {REGION_BAT, REGION_METADATA}:
        refuse("the VHDX lacks its block table or its metadata")
    return regions


def _add_region(
    reader: Bytes,
    regions: dict[uuid.UUID, _Region],
    name: uuid.UUID,
    region: _Region,
    required: bool,
) -> None:
    if name not in (REGION_BAT, REGION_METADATA):
        if required:
            refuse(f"the VHDX needs a region unknown here ({name})", MERGE)
        return
    if name in regions:
        refuse("the VHDX has the same region twice")
    if (
        region.offset < FIRST_REGION
        or region.offset % MIB
        or region.length % MIB
        or not region.length
    ):
        refuse("a region of the VHDX does not begin or end at a whole MiB")
    inside(reader, region.offset, region.length, "a region of the VHDX")
    if any(
        region.offset < other.offset + other.length and other.offset < region.offset + region.length
        for other in regions.values()
    ):
        refuse("two regions of the VHDX overlap")
    regions[name] = region


def _metadata(reader: Bytes, region: _Region) -> dict[uuid.UUID, bytes]:
    """The values of the known metadata items, all of them present."""
    table = take(reader, region.offset, 64 * KIB, "the VHDX metadata")
    signature, count = struct.unpack_from("<8s2xH", table)
    if signature != b"metadata" or count > MAX_ITEMS:
        refuse("the metadata of the VHDX is damaged")
    items: dict[uuid.UUID, bytes] = {}
    for index in range(count):
        guid, offset, length, flags = struct.unpack_from("<16sIII", table, 32 + 32 * index)
        name = uuid.UUID(bytes_le=guid)
        if name == PARENT_LOCATOR:
            refuse("the VHDX names a parent disk", MERGE)
        if name not in LENGTHS:
            if flags & 4:
                refuse(f"the VHDX needs a metadata item unknown here ({name})", MERGE)
            continue
        if (
            name in items
            or length != LENGTHS[name]
            or offset < 64 * KIB
            or offset + length > region.length
        ):
            refuse("a metadata item of the VHDX is damaged")
        items[name] = take(reader, region.offset + offset, length, "the VHDX metadata")
    if missing := set(LENGTHS) - set(items):
        refuse(f"the VHDX lacks {len(missing)} of its required metadata items")
    return items


def _check_block_table(region: _Region, size: int, block: int, sector: int) -> None:
    """The table has an entry for each block and one after each chunk of them (MS-VHDX 2.5)."""
    chunk = (1 << 23) * sector // block
    blocks = -(-size // block)
    entries = blocks + (blocks - 1) // chunk
    if entries * 8 > region.length:
        refuse(f"the block table of the VHDX is too short for a disk of {size} bytes")


def _sum_fits(piece: bytes) -> bool:
    """Whether the checksum at byte 4 is that of the piece with the checksum itself as zeros."""
    (stored,) = struct.unpack_from("<I", piece, 4)
    return bool(crc32c(piece[:4] + bytes(4) + piece[8:]) == stored)
