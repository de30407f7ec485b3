"""The qcow2 header, read before any tool sees the file.

Field layout and limits: "docs/interop/qcow2" of the QEMU documentation. Refused although QEMU could
open it: anything that names a second file (backing file, external data file), encryption, dirty or
damaged images, and bits we do not know.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from virtuary.images.header import Bytes, Header, check_virtual_size, inside, refuse, take

MAGIC = b"QFI\xfb"
MAX_L1_BYTES = 32 * 1024 * 1024  # QEMU's own limits
MAX_REFCOUNT_TABLE_BYTES = 8 * 1024 * 1024
MAX_SNAPSHOTS = 256
MAX_EXTENSIONS = 32
FLATTEN = "flatten it where its other files are: qemu-img convert -O qcow2 IMAGE NEW"

DIRTY, CORRUPT, DATA_FILE, COMPRESSION_TYPE, EXTENDED_L2 = (1 << bit for bit in range(5))
EXTENSION_END = 0
EXTENSIONS_REFUSED = {
    0xE2792ACA: "names the format of a backing file",
    0x44415441: "names an external data file",
    0x0537BE77: "holds the header of an encryption",
}


class _Fields(NamedTuple):
    """The 72 bytes versions 2 and 3 share."""

    magic: bytes
    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    size: int
    encryption: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    snapshots_offset: int


class _More(NamedTuple):
    """What version 3 adds; the defaults are what version 2 means."""

    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    header_length: int = 72


def read_qcow2(reader: Bytes, max_virtual_size: int) -> Header:
    """The header of a self-contained, clean qcow2 image; raises Invalid for any other."""
    fields = _Fields._make(
        struct.unpack(">4sIQIIQIIQQIIQ", take(reader, 0, 72, "the qcow2 header"))
    )
    if fields.version not in (2, 3):
        refuse(
            f"qcow version {fields.version} is not supported",
            "convert it: qemu-img convert -O qcow2 IMAGE NEW",
        )
    more = (
        _More._make(struct.unpack(">QQQII", take(reader, 72, 32, "the qcow2 header")))
        if fields.version == 3
        else _More()
    )
    _check_company(fields, more)
    _check_geometry(fields, more)
    compression = _compression(reader, more)
    check_virtual_size(fields.size, max_virtual_size)
    _check_tables(reader, fields, more)
    _check_extensions(reader, fields, more)
    details: dict[str, int | str] = {
        "cluster_size": 1 << fields.cluster_bits,
        "snapshots": fields.snapshots,
        "compression": compression,
        "extended_l2": int(bool(more.incompatible & EXTENDED_L2)),
    }
    return Header("qcow2", fields.size, str(fields.version), reader.size, details)


def _check_company(fields: _Fields, more: _More) -> None:
    """Nothing outside this file may be needed to read it, and it must be whole."""
    if fields.backing_offset or fields.backing_length:
        refuse("the qcow2 image names a backing file", FLATTEN)
    if more.incompatible & DATA_FILE:
        refuse("the qcow2 image keeps its data in another file", FLATTEN)
    if fields.encryption:
        refuse("the qcow2 image is encrypted", "decrypt it first: qemu-img convert with its secret")
    if more.incompatible & CORRUPT:
        refuse(
            "the qcow2 image is marked as damaged", "repair it first: qemu-img check -r all IMAGE"
        )
    if more.incompatible & DIRTY:
        refuse(
            "the qcow2 image was not closed cleanly", "repair it first: qemu-img check -r all IMAGE"
        )
    unknown = more.incompatible & ~(DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2)
    if unknown:
        refuse(
            f"the qcow2 image needs features unknown here (bits {unknown:#x})",
            "convert it with the program that made it",
        )


def _check_geometry(fields: _Fields, more: _More) -> None:
    if not 9 <= fields.cluster_bits <= 21:
        refuse(
            f"the qcow2 image says its clusters have 2^{fields.cluster_bits} bytes; 2^9 to 2^21 "
            "are possible"
        )
    if more.incompatible & EXTENDED_L2 and fields.cluster_bits < 14:
        refuse("the qcow2 image uses extended L2 entries with clusters below 16 KiB")
    if more.refcount_order > 6:
        refuse(
            f"the qcow2 image says its reference counts have 2^{more.refcount_order} bits; at "
            "most 2^6 are possible"
        )
    smallest = 104 if fields.version == 3 else 72
    if (
        more.header_length < smallest
        or more.header_length % 8
        or more.header_length > 1 << fields.cluster_bits
    ):
        refuse(
            f"the qcow2 image says its header has {more.header_length} bytes, which is not possible"
        )
    if fields.snapshots > MAX_SNAPSHOTS:
        refuse(
            f"the qcow2 image says it holds {fields.snapshots} snapshots; at most "
            f"{MAX_SNAPSHOTS} are accepted"
        )


def _compression(reader: Bytes, more: _More) -> str:
    """Name of the compression; the field exists only in headers longer than 104 bytes."""
    number = take(reader, 104, 1, "the qcow2 header")[0] if more.header_length > 104 else 0
    if number > 1 or bool(number) != bool(more.incompatible & COMPRESSION_TYPE):
        refuse(
            f"the qcow2 image uses compression type {number}, which does not fit its feature bits"
        )
    return ("zlib", "zstd")[number]


def _check_tables(reader: Bytes, fields: _Fields, more: _More) -> None:
    cluster = 1 << fields.cluster_bits
    per_l2 = cluster // (16 if more.incompatible & EXTENDED_L2 else 8)
    needed = -(-fields.size // (cluster * per_l2))
    if fields.l1_entries * 8 > MAX_L1_BYTES:
        refuse(
            f"the qcow2 image says its L1 table has {fields.l1_entries} entries, more than any "
            "sound image has"
        )
    if fields.l1_entries < needed:
        refuse(
            f"the L1 table of the qcow2 image has {fields.l1_entries} entries, but its disk "
            f"needs {needed}"
        )
    _check_table(
        reader, cluster, fields.l1_offset, fields.l1_entries * 8, "the L1 table of the qcow2 image"
    )
    if not 0 < fields.refcount_clusters * cluster <= max(MAX_REFCOUNT_TABLE_BYTES, cluster):
        refuse(
            f"the qcow2 image says its refcount table has {fields.refcount_clusters} clusters, "
            "which is not possible"
        )
    length = fields.refcount_clusters * cluster
    _check_table(
        reader, cluster, fields.refcount_offset, length, "the refcount table of the qcow2 image"
    )
    if fields.snapshots:
        _check_table(
            reader,
            cluster,
            fields.snapshots_offset,
            fields.snapshots * 40,
            "the snapshot table of the qcow2 image",
        )


def _check_table(reader: Bytes, cluster: int, offset: int, length: int, what: str) -> None:
    if offset < cluster or offset % cluster:
        refuse(f"{what} does not begin at a cluster of its own")
    inside(reader, offset, length, what)


def _check_extensions(reader: Bytes, fields: _Fields, more: _More) -> None:
    """Walk the header extensions; they end within the first cluster, with type 0 or where the
    cluster ends.
    """
    cluster = 1 << fields.cluster_bits
    offset = more.header_length
    for _ in range(MAX_EXTENSIONS):
        if offset + 8 > cluster:
            return
        kind, length = struct.unpack(
            ">II", take(reader, offset, 8, "the header extensions of the qcow2 image")
        )
        if kind == EXTENSION_END:
            return
        if kind in EXTENSIONS_REFUSED:
            refuse(f"the qcow2 image {EXTENSIONS_REFUSED[kind]}", FLATTEN)
        offset += 8 + (length + 7) // 8 * 8
        if offset > cluster:
            refuse("a header extension of the qcow2 image is longer than its header")
    refuse(f"the qcow2 image has more than {MAX_EXTENSIONS} header extensions")
