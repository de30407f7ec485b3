"""A disk of ours is hostile input: whoever takes a QEMU over can write any header into it.

Before a disk or a layer is used, by whatever tool, its header is held against what Virtuary writes:
the backing file that it was made on and no other, no external data file, no encryption, no internal
snapshots, no feature that was never asked for, and a size within the disk's. Only the header is
read, by one descriptor, which the caller then goes on with. What its tables say concerns nobody but
the QEMU that opens it, in its jail, with nothing but this file and the layers below it.

Layout: docs/interop/qcow2 of the QEMU documentation.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from virtuary.base.errors import Failed
from virtuary.storage.overlay import (
    BACKING_FORMAT,
    END,
    EXTENDED_L2,
    HEADER_LENGTH,
    MAGIC,
    MAX_L1_BYTES,
    MAX_NAME,
    SECTOR,
)

DIRTY, CORRUPT = 1, 2
LAZY_REFCOUNTS = 1
FEATURE_NAMES = 0x6803F857
LENGTHS = (HEADER_LENGTH, HEADER_LENGTH + 8)
"""Ours, and the one with a type of compression, which QEMU writes."""
CLUSTER_BITS = (16, 17)
LEAST = 4096
"""Bytes that any of our files has; its header and what follows it lie within."""
UNTOUCHED = "it is not touched; launch a new server, or copy one whose disk is sound"
MOST_EXTENSIONS = 8
LAYOUT = struct.Struct(">4sIQIIQIIQQIIQQQQII")


class Damaged(Failed):
    """A disk's header says what nobody of ours wrote."""


class _Fields(NamedTuple):
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
    incompatible: int
    compatible: int
    autoclear: int
    refcount_order: int
    header_length: int


def check_disk(disk: Path, layers: Sequence[Path], most: int | None) -> int:
    """Bytes of the disk that the file `disk` holds on these layers, the lowest first; raises
    Damaged unless each says just that.

    `most`: bytes that it may have at most; None for one that nobody has measured yet.
    """
    size = 0
    for place, path in enumerate((*layers, disk)):
        below = layers[place - 1] if place else None
        handle = open_disk(path, below, most if path == disk else None)
        try:
            size = read_size(handle)
        finally:
            os.close(handle)
    return size


def open_disk(
    path: Path, below: Path | None, most: int | None = None, flags: int = os.O_RDONLY
) -> int:
    """A descriptor of a disk or layer whose header was checked by it; the caller's to close. Raises
    Damaged or Failed.
    """
    try:
        # neither a pipe nor a lease holds us up
        handle = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Failed(f"the disk {path.name} can't be opened: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            _refuse(path.name, "is no file any more")
        check_header(
            os.pread(handle, 1 << CLUSTER_BITS[0], 0),
            os.fstat(handle).st_size,
            below,
            most,
            path.name,
        )
    except BaseException:
        os.close(handle)
        raise
    return handle


def read_size(handle: int) -> int:
    """Bytes of the disk whose file this is, once its header was checked."""
    return int(struct.unpack(">Q", os.pread(handle, 8, 24))[0])


def check_header(
    head: bytes, file_size: int, below: Path | None, most: int | None, name: str
) -> None:
    """Raise Damaged unless a file that begins with `head` is a qcow2 as we write them, on `below`
    (None: on nothing). Pure.
    """
    if len(head) < LEAST or head[:4] != MAGIC:
        _refuse(name, "is no qcow2 file any more")
    fields = _Fields._make(LAYOUT.unpack_from(head))
    if (
        fields.version != 3
        or fields.header_length not in LENGTHS
        or fields.cluster_bits not in CLUSTER_BITS
    ):
        _refuse(name, "has a layout that was never written")
    if fields.incompatible & CORRUPT:
        _refuse(name, "was marked as damaged by QEMU")
    strange = (
        fields.incompatible & ~(DIRTY | EXTENDED_L2)
        or fields.compatible & ~LAZY_REFCOUNTS
        or fields.autoclear
    )
    if (
        strange
        or fields.encryption
        or fields.refcount_order != 4
        or any(head[HEADER_LENGTH : fields.header_length])
    ):
        _refuse(name, "asks for features that it was not made with")
    if fields.snapshots:
        _refuse(name, "has snapshots inside")
    if not 0 < fields.size <= (most or fields.size) or fields.size % SECTOR:
        _refuse(name, f"says that it has {fields.size} bytes")
    if (
        fields.l1_entries * 8 > MAX_L1_BYTES
        or fields.l1_offset > file_size
        or fields.refcount_offset > file_size
    ):
        _refuse(name, "has its tables outside of the file")
    _check_backing(head, fields, below, name)
    _check_extensions(head, fields, name)


def _check_backing(head: bytes, fields: _Fields, below: Path | None, name: str) -> None:
    """The name is relative, as we wrote it: from another folder where a server's disk was made a
    layer since.
    """
    offset, length = fields.backing_offset, fields.backing_length
    written = head[offset : offset + length] if offset and length <= MAX_NAME else b""
    down = written
    while down.startswith(b"../"):
        down = down[3:]
    fits = below is not None and down and os.fsencode(below).endswith(b"/" + down)
    if (offset or length or below) and not fits:
        _refuse(name, "names another file below it")


def _check_extensions(head: bytes, fields: _Fields, name: str) -> None:
    offset = fields.header_length
    for _ in range(MOST_EXTENSIONS):
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == END:
            return
        content = head[offset + 8 : offset + 8 + length]
        if kind not in (BACKING_FORMAT, FEATURE_NAMES) or (
            kind == BACKING_FORMAT and content != b"qcow2"
        ):
            _refuse(name, "names a file or feature that it was not made with")
        offset += 8 + (length + 7) // 8 * 8
        if offset + 8 > len(head):
            break
    _refuse(name, "has a header without an end")


def _refuse(name: str, why: str) -> NoReturn:
    raise Damaged(f"the disk {name} {why}", UNTOUCHED)
