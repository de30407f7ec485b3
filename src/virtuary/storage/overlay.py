"""An empty qcow2 overlay as bytes: what `qemu-img create -b` would write, without starting a
program for four small tables.

Layout and limits: docs/interop/qcow2.txt of the QEMU source (qcow2.rst in newer ones). Version 3;
clusters of 128 KiB, which extended L2 entries allocate in pieces of 4 KiB; 16-bit refcounts. The
clusters in turn: header, refcount table, one refcount block, L1 table. All of the disk is read from
the backing file until it is written.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from virtuary.base.errors import Invalid

MAGIC, VERSION = b"QFI\xfb", 3
CLUSTER_BITS = 17
CLUSTER = 1 << CLUSTER_BITS
REFCOUNT_ORDER = 4
EXTENDED_L2 = 1 << 4
L2_ENTRY = 16
SECTOR = 512
MAX_L1_BYTES = 32 * 1024 * 1024
MAX_NAME = 1023
HEADER_LENGTH = 104
BACKING_FORMAT, END = 0xE2792ACA, 0


def pieces(backing: str | None, size: int) -> list[tuple[int, bytes]]:
    """What stands where in the file, everything between being zero; the last piece ends the file.
    Pure.

    `size` is the disk's, in bytes; whole sectors are made of it, as QEMU counts in them. `backing`:
    None for a disk on nothing.
    """
    name = os.fsencode(backing) if backing is not None else b""
    entries = max(1, -(-size // (CLUSTER * (CLUSTER // L2_ENTRY))))
    if len(name) > MAX_NAME or backing == "":
        raise Invalid(
            f"the name of the image below a disk has {len(name)} bytes, and qcow2 holds {MAX_NAME}"
        )
    if size <= 0 or entries * 8 > MAX_L1_BYTES:
        raise Invalid(f"a disk of {size} bytes can't be made", "up to 4 PiB are possible")
    tables = -(-entries * 8 // CLUSTER)
    return [
        (0, header(name, -(-size // SECTOR) * SECTOR, entries)),
        # the refcount table: where its first block is
        (1 * CLUSTER, struct.pack(">Q", 2 * CLUSTER)),
        # each cluster of this file is used once
        (2 * CLUSTER, struct.pack(">H", 1) * (3 + tables)),
        (3 * CLUSTER, bytes(tables * CLUSTER)),
    ]


def header(name: bytes, size: int, entries: int) -> bytes:
    extensions = (
        struct.pack(">II8sII", BACKING_FORMAT, len(b"qcow2"), b"qcow2", END, 0)
        if name
        else struct.pack(">II", END, 0)
    )
    fields = struct.pack(
        ">4sIQIIQIIQQIIQQQQII",
        MAGIC, VERSION, HEADER_LENGTH + len(extensions) if name else 0, len(name), CLUSTER_BITS,
        size,
        0, entries, 3 * CLUSTER,  # no encryption; the L1 table
        1 * CLUSTER, 1, 0, 0,  # the refcount table, one cluster; no snapshots
        EXTENDED_L2, 0, 0, REFCOUNT_ORDER, HEADER_LENGTH,
    )  # fmt: skip
    return fields + extensions + name


def write_overlay(path: Path, backing: str | None, size: int) -> None:
    """Make the file `path`, which must not be there yet, for its owner only. Not synced."""
    parts = pieces(backing, size)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        for offset, content in parts:
            if content.strip(b"\0"):
                os.pwrite(handle, content, offset)
        offset, content = parts[-1]
        os.ftruncate(handle, offset + len(content))
    finally:
        os.close(handle)
