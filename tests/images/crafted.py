"""Small disk images built by hand, so that each test can spoil exactly one field of a sound one."""

from __future__ import annotations

import struct
from typing import Any

from virtuary.images import vhdx as vhdx_module
from virtuary.images.vhdx import crc32c

MIB = 1024 * 1024


def put(image: bytes, offset: int, piece: bytes) -> bytes:
    """`image` with `piece` written at `offset`; it grows when needed."""
    image = image.ljust(offset + len(piece), b"\0")
    return image[:offset] + piece + image[offset + len(piece) :]


def qcow2(
    size: int = 64 * MIB, extension: bytes = b"", length: int = 4 * 65536, **changes: Any
) -> bytes:
    """A qcow2 of version 3 with L1 and refcount table in their own clusters; `changes` by field
    name.
    """
    fields = {
        "magic": b"QFI\xfb", "version": 3, "backing_offset": 0, "backing_length": 0,
        "cluster_bits": 16, "size": size,
        "encryption": 0, "l1_entries": max(1, -(-size // (512 * MIB))), "l1_offset": 65536 * 2,
        "refcount_offset": 65536,
        "refcount_clusters": 1, "snapshots": 0, "snapshots_offset": 0, "incompatible": 0,
        "compatible": 0, "autoclear": 0,
        "refcount_order": 4, "header_length": 112, "compression": 0,
    }  # fmt: skip
    assert set(changes) <= set(fields)
    fields.update(changes)
    head = struct.pack(">4sIQIIQIIQQIIQQQQIIB7x", *fields.values())
    return (head + extension).ljust(length, b"\0")


def extension(kind: int, content: bytes) -> bytes:
    return struct.pack(">II", kind, len(content)) + content.ljust(-(-len(content) // 8) * 8, b"\0")


DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=c9072d87
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW {sectors} SPARSE "disk.vmdk"

# The Disk Data Base
#DDB
ddb.virtualHWVersion = "4"
ddb.adapterType = "ide"
"""


def vmdk(
    descriptor: str = DESCRIPTOR, sectors: int = 20480, footer: bytes | None = None, **changes: Any
) -> bytes:
    """A monolithicSparse VMDK; `{sectors}` in the descriptor becomes the number of sectors."""
    fields = {
        "magic": b"KDMV", "version": 1, "flags": 3, "capacity": sectors, "grain": 128,
        "descriptor_offset": 1,
        "descriptor_size": 20, "per_table": 512, "redundant_offset": 21, "directory_offset": 26,
        "overhead": 128,
        "unclean": 0, "newlines": b"\n \r\n", "compression": 0,
    }  # fmt: skip
    assert set(changes) <= set(fields)
    fields.update(changes)
    head = struct.pack("<4sIIQQQQIQQQB4sH", *fields.values()).ljust(512, b"\0")
    text = descriptor.replace("{sectors}", str(sectors)).encode()
    image = (head + text).ljust(128 * 512, b"\0")
    return image if footer is None else image + bytes(512) + footer.ljust(512, b"\0") + bytes(512)


def vdi(size: int = 10 * MIB, length: int = MIB + 1024, **changes: Any) -> bytes:
    fields = {
        "magic": b"\x7f\x10\xda\xbe", "version": 0x00010001, "header_size": 0x190, "kind": 1,
        "map_offset": 512,
        "data_offset": 1024, "sector_size": 512, "size": size, "block_size": MIB, "block_extra": 0,
        "blocks": -(-size // MIB), "allocated": 1, "link": bytes(16), "parent": bytes(16),
    }  # fmt: skip
    assert set(changes) <= set(fields)
    fields.update(changes)
    head = struct.pack("<4sIII4x256xII12xI4xQIIII32x16s16s", *fields.values())
    return (b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(64, b"\0") + head).ljust(
        length, b"\0"
    )


def summed(piece: bytes) -> bytes:
    """`piece` with its CRC-32C at byte 4, as VHDX wants it."""
    return piece[:4] + struct.pack("<I", crc32c(piece[:4] + bytes(4) + piece[8:])) + piece[8:]


def vhdx_header(sequence: int = 1, log: bytes = bytes(16), version: int = 1) -> bytes:
    body = struct.pack(
        "<4sIQ16s16s16sHHIQ", b"head", 0, sequence, b"w" * 16, b"d" * 16, log, 0, version, MIB, MIB
    )
    return summed(body.ljust(4096, b"\0"))


def vhdx_regions(
    *extra: bytes, bat: tuple[int, int] = (3 * MIB, MIB), metadata: tuple[int, int] = (2 * MIB, MIB)
) -> bytes:
    entries = [
        struct.pack("<16sQII", vhdx_module.REGION_BAT.bytes_le, *bat, 1),
        struct.pack("<16sQII", vhdx_module.REGION_METADATA.bytes_le, *metadata, 1),
        *extra,
    ]
    body = struct.pack("<4sIII", b"regi", 0, len(entries), 0) + b"".join(entries)
    return summed(body.ljust(65536, b"\0"))


def vhdx_metadata(
    size: int = 64 * MIB,
    flags: int = 0,
    block: int = MIB,
    sector: int = 512,
    extra: tuple[bytes, ...] = (),
) -> bytes:
    values = {
        vhdx_module.FILE_PARAMETERS: struct.pack("<II", block, flags),
        vhdx_module.DISK_SIZE: struct.pack("<Q", size),
        vhdx_module.DISK_ID: b"i" * 16,
        vhdx_module.LOGICAL_SECTOR: struct.pack("<I", sector),
        vhdx_module.PHYSICAL_SECTOR: struct.pack("<I", 4096),
    }
    table, data = b"", b""
    for name, value in values.items():
        table += struct.pack("<16sIIII", name.bytes_le, 65536 + len(data), len(value), 4, 0)
        data += value
    count = len(values) + len(extra)
    head = b"metadata" + struct.pack("<HH20x", 0, count)
    return (head + table + b"".join(extra)).ljust(65536, b"\0") + data


def vhdx(
    headers: tuple[bytes, bytes] | None = None,
    regions: tuple[bytes, bytes] | None = None,
    metadata: bytes | None = None,
    length: int = 4 * MIB,
) -> bytes:
    first, second = headers or (vhdx_header(1), vhdx_header(2))
    region1, region2 = regions or (vhdx_regions(), vhdx_regions())
    image = put(bytes(length), 0, b"vhdxfile")
    for offset, piece in ((65536, first), (131072, second), (196608, region1), (262144, region2)):
        image = put(image, offset, piece)
    return put(image, 2 * MIB, metadata or vhdx_metadata())


def raw(size: int = 2 * MIB) -> bytes:
    """A raw disk with nothing but the mark of a partition table."""
    return put(bytes(size), 510, b"\x55\xaa")


def vhd_sum(piece: bytes, at: int) -> bytes:
    """The piece with its checksum at `at`."""
    piece = put(piece, at, bytes(4))
    return put(piece, at, struct.pack(">I", ~sum(piece) & 0xFFFFFFFF))


def vhd(
    kind: str = "dynamic", size: int = 5 * MIB, block: int = 2 * MIB,
    places: tuple[int, ...] = (4, 0xFFFFFFFF, 4101), bitmaps: bytes = b"\xff" * 512,
    kind_number: int = 0, version: int = 0x10000, saved: int = 0, data_offset: int = 512,
    entries: int = 3, table: int = 1536, content: bytes = b"",
) -> bytes:  # fmt: skip
    """A VHD with a disk of 5 MiB: dynamic, with blocks 0 and 2 of it, or fixed. Blocks are filled
    with their number and 1.
    """
    number = kind_number or (3 if kind == "dynamic" else 2)
    offset = data_offset if kind == "dynamic" else 2**64 - 1
    footer = struct.pack(
        ">8sIIQI4sIIQQHBBII16sB",
        b"conectix",
        2,
        version,
        offset,
        0,
        b"vbox",
        0,
        0,
        size,
        size,
        1,
        1,
        1,
        number,
        0,
        bytes(16),
        saved,
    )
    footer = vhd_sum(footer.ljust(512, b"\0"), 64)
    if kind == "fixed":
        return (content or raw(5 * MIB)) + footer
    header = struct.pack(">8sQQIIII", b"cxsparse", 2**64 - 1, table, 0x10000, entries, block, 0)
    image = (
        footer
        + vhd_sum(header.ljust(1024, b"\0"), 36)
        + struct.pack(">3I", *places).ljust(512, b"\xff")
    )
    for filled in (1, 3):
        image += bitmaps + bytes([filled]) * (2 * MIB)
    return image + footer


def vhdx_entry(
    sequence: int, writes: dict[int, bytes], tail: int = 0, identity: bytes = b"l" * 16,
    zeros: tuple[tuple[int, int], ...] = (), flushed: int = 4 * MIB,
    last: int = 4 * MIB,
) -> bytes:  # fmt: skip
    """An entry of a log: sectors of 4 KiB that are to be written, and ranges of zeros."""
    body, data = b"", b""
    for offset, sector in writes.items():
        sector = sector.ljust(4096, b"\0")
        body += struct.pack("<4s4s8sQQ", b"desc", sector[-4:], sector[:8], offset, sequence)
        data += (
            b"data"
            + struct.pack("<I", sequence >> 32)
            + sector[8:-4]
            + struct.pack("<I", sequence & 0xFFFFFFFF)
        )
    for offset, length in zeros:
        body += struct.pack("<4s4xQQQ", b"zero", length, offset, sequence)
    size = -(-(64 + len(body)) // 4096) * 4096
    count = len(writes) + len(zeros)
    head = struct.pack(
        "<4sIIIQI4x16sQQ",
        b"loge",
        0,
        size + len(data),
        tail,
        sequence,
        count,
        identity,
        flushed,
        last,
    )
    return summed((head + body).ljust(size, b"\0") + data)


def dirty_vhdx(log: bytes, length: int = 6 * MIB, block: bytes = b"\x07" * MIB) -> bytes:
    """A VHDX of 64 MiB whose log waits, with `block` at 5 MiB, which no table names yet."""
    headers = (vhdx_header(1), vhdx_header(2, log=b"l" * 16))
    return put(put(vhdx(headers=headers, length=length), MIB, log), 5 * MIB, block)
