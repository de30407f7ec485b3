"""Disks as qcow2 files in a directory: an overlay per server on its immutable image.

Every file is made beside its place, synced and renamed. Backing names are relative and written by
us with their format; formats are stated in every call of a tool, never probed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Invalid, NoRoom
from virtuary.base.files import publish, remove
from virtuary.base.space import reserve
from virtuary.base.units import MIB, format_size
from virtuary.storage.blocks import block_layer, written
from virtuary.storage.overlay import write_overlay
from virtuary.storage.own import open_disk, read_size

declare(
    "disk.before_overlay",
    "disk.after_overlay",
    "disk.before_rename",
    "disk.after_rename",
    "disk.after_grow",
    "disk.after_empty",
)


def free_space(folder: Path, kept: int | None = None) -> int:
    """Bytes that may still be used below `folder`, and that nobody has reserved; `kept`: what is to
    stay free, by rule when not set.
    """
    usage = shutil.disk_usage(folder)
    return usage.free - reserve(usage.total, kept) - _reserved[os.stat(folder).st_dev]


def check_space(folder: Path, needed: int, what: str, kept: int | None = None) -> None:
    """Raise NoRoom, with the missing number, when `needed` bytes do not fit below `folder`, on
    which `kept` bytes stay free.
    """
    free = free_space(folder, kept)
    if free < needed:
        raise NoRoom(
            f"{what} needs {format_size(needed)} of disk space and {format_size(max(free, 0))} "
            "can be used: "
            f"{format_size(needed - max(free, 0))} are missing",
            "delete images or servers that are not needed, or free space otherwise",
            needed=needed,
            free=max(free, 0),
        )


_reserved: Counter[int] = Counter()
"""Bytes that are about to be written, by the file system."""


@contextlib.contextmanager
def reserving(folder: Path, needed: int, what: str, kept: int | None = None) -> Iterator[None]:
    """Keep `needed` bytes below `folder` for what is written meanwhile; raises NoRoom before the
    first one when they are not there.
    """
    check_space(folder, needed, what, kept)
    device = os.stat(folder).st_dev
    _reserved[device] += needed
    try:
        yield
    finally:
        _reserved[device] -= needed


async def ensure_overlay(
    disk: Path, base: Path, base_size: int, wanted: int | None, kept: int | None = None
) -> int:
    """Make `disk` an overlay on the qcow2 image `base`, `wanted` bytes large; its virtual size.
    Repeats harmlessly.
    """
    size = max(base_size, wanted or 0)
    if wanted is not None and wanted < base_size:
        raise Invalid(
            f"the image needs a disk of {format_size(base_size)} and {format_size(wanted)} were "
            "asked for",
            f"ask for at least {format_size(base_size)}",
        )
    if not disk.exists():
        check_space(disk.parent, 16 * MIB, "a disk", kept)
        partial = disk.with_name(f".{disk.name}.partial")
        remove(partial)
        crashpoint("disk.before_overlay")
        backing = os.path.relpath(base, disk.parent)
        write_overlay(partial, backing, size)
        crashpoint("disk.after_overlay")
        crashpoint("disk.before_rename")
        publish(partial, disk)
        crashpoint("disk.after_rename")
    return size


async def ensure_empty(disk: Path, size: int, kept: int | None = None) -> None:
    """Make `disk` an empty disk of `size` bytes that lies on nothing. Repeats harmlessly. Raises
    NoRoom.
    """
    if disk.exists():
        return
    check_space(disk.parent, 16 * MIB, "a disk", kept)
    partial = disk.with_name(f".{disk.name}.partial")
    remove(partial)
    write_overlay(partial, None, size)
    crashpoint("disk.after_empty")
    publish(partial, disk)


async def grow(disk: Path, layers: Sequence[Path], size: int, kept: int | None = None) -> None:
    """Make the disk of a stopped server, on these layers, `size` bytes large; never smaller. Raises
    Damaged, NoRoom or Failed.
    """
    check_space(disk.parent, 1 * MIB, "growing a disk", kept)
    handle = open_disk(disk, layers[-1] if layers else None, size, os.O_RDWR)
    try:
        if read_size(handle) < size:
            async with block_layer(written(size), 120) as blocks:
                await blocks.resize(await blocks.add(handle, "qcow2", write=True), size)
        await asyncio.to_thread(os.fsync, handle)
    finally:
        os.close(handle)
    crashpoint("disk.after_grow")


def allocated(folder: Path) -> int:
    """Bytes the files below `folder` really occupy."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
