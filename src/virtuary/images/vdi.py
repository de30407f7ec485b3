"""The VDI header (VirtualBox), version 1.1, read before any tool sees the file.

Accepted are dynamic and static images; undo and differencing images need a parent and are refused.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from virtuary.images.header import SECTOR, Bytes, Header, check_virtual_size, inside, refuse, take

MAGIC = b"\x7f\x10\xda\xbe"
MAGIC_OFFSET = 64
VERSION = 0x00010001
BLOCK = 1024 * 1024  # the only block size VirtualBox writes and QEMU reads
KINDS = {1: "dynamic", 2: "static"}
MERGE = "merge it in VirtualBox first: VBoxManage clonemedium disk IMAGE NEW --format VDI"
NO_UUID = bytes(16)


class _Fields(NamedTuple):
    """From the magic on; the geometry and the description in between are skipped."""

    magic: bytes
    version: int
    header_size: int
    kind: int
    map_offset: int
    data_offset: int
    sector_size: int
    size: int
    block_size: int
    block_extra: int
    blocks: int
    allocated: int
    link: bytes
    parent: bytes


def read_vdi(reader: Bytes, max_virtual_size: int) -> Header:
    """The header of a VDI without a parent; raises Invalid for any other."""
    piece = take(reader, MAGIC_OFFSET, 448 - MAGIC_OFFSET + 8, "the VDI header")
    fields = _Fields._make(struct.unpack_from("<4sIII4x256xII12xI4xQIIII32x16s16s", piece))
    if fields.version != VERSION:
        refuse(
            f"VDI version {fields.version >> 16}.{fields.version & 0xFFFF} is not supported; 1.1 "
            "is",
            MERGE,
        )
    if fields.kind not in KINDS:
        refuse(
            "the VDI is the difference to a parent disk"
            if fields.kind in (3, 4)
            else f"VDI kind {fields.kind} is unknown",
            MERGE,
        )
    if fields.link != NO_UUID or fields.parent != NO_UUID:
        refuse("the VDI names a parent disk", MERGE)
    check_virtual_size(fields.size, max_virtual_size)
    _check_layout(reader, fields)
    details: dict[str, int | str] = {"kind": KINDS[fields.kind], "block_size": fields.block_size}
    return Header("vdi", fields.size, "1.1", reader.size, details)


def _check_layout(reader: Bytes, fields: _Fields) -> None:
    if not 0x180 <= fields.header_size <= 4096:
        refuse(f"the VDI says its header has {fields.header_size} bytes, which is not possible")
    if fields.sector_size != SECTOR or fields.block_size != BLOCK or fields.block_extra:
        refuse("the VDI uses sector or block sizes other than 512 bytes and 1 MiB", MERGE)
    if fields.blocks != -(-fields.size // BLOCK) or fields.allocated > fields.blocks:
        refuse(
            f"the VDI says it has {fields.blocks} blocks, which does not fit its disk of "
            f"{fields.size} bytes"
        )
    if fields.map_offset % SECTOR or fields.map_offset < SECTOR or fields.data_offset % SECTOR:
        refuse("the block map or the data of the VDI does not begin at a sector of its own")
    if fields.data_offset < fields.map_offset + 4 * fields.blocks:
        refuse("block map and data of the VDI overlap")
    inside(reader, fields.map_offset, 4 * fields.blocks, "the block map of the VDI")
    if fields.kind == 2:
        inside(reader, fields.data_offset, fields.size, "the data of the static VDI")
