"""A disk that stands alone: everything a chain of qcow2 files says, in one file.

The files below are those that we know of, each checked and described with its format; nothing is
read from what a header says of the file below.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from virtuary.base.crash import crashpoint, declare
from virtuary.base.files import publish, remove
from virtuary.base.units import MIB
from virtuary.storage.blocks import TooLarge, block_layer, deadline_for, written
from virtuary.storage.directory import reserving
from virtuary.storage.overlay import write_overlay
from virtuary.storage.own import UNTOUCHED, Damaged, check_disk

Report = Callable[[str, float | None], None]
declare("full.after_convert")


def make_empty(disk: Path, size: int) -> None:
    """An empty disk of `size` bytes on nothing. Not synced."""
    write_overlay(disk, None, size)


def needed(files: Sequence[Path], size: int) -> int:
    """Bytes that one file can need which holds what these say of a disk of `size` bytes."""
    return min(sum(path.stat().st_blocks * 512 for path in files), size) + size // 4096 + 4 * MIB


SPREADS = (2, 16)
"""How many times larger the one file may be than what the others occupy: they allocate in pieces of
4 KiB, it does in 64 KiB.
"""


async def flatten(
    files: Sequence[Path], disk: Path, size: int, report: Report, kept: int | None = None
) -> None:
    """Write what these files say, the lowest first, into the new file `disk`, which appears whole
    and durable.

    Space is reserved before the first byte, on a disk on which `kept` bytes stay free, and no more
    is written. Nobody may write to the files meanwhile. Nothing stays of a flattening that is
    cancelled or fails. Raises Damaged, NoRoom or Failed.
    """
    for spread in SPREADS:
        most = min(written(size), spread * needed(files, size) + 64 * MIB)
        try:
            with reserving(disk.parent, most, "a full copy", kept):
                await _flatten(files, disk, size, most, report)
            return
        except TooLarge as error:
            if spread == SPREADS[-1]:
                raise Damaged(
                    f"the disk {files[-1].name} says more than its file can hold", UNTOUCHED
                ) from error


async def _flatten(files: Sequence[Path], disk: Path, size: int, most: int, report: Report) -> None:
    partial = disk.with_name(f".{disk.name}.partial")
    with fresh(partial) as handle, contextlib.ExitStack() as opened:
        async with block_layer(most, deadline_for(size)) as blocks:
            source = await blocks.chain(files, size, opened)
            target = await blocks.make(handle, size)
            await blocks.copy(source, target, lambda fraction: report("copying the disk", fraction))
        crashpoint("full.after_convert")
        check_disk(partial, (), size)
        await asyncio.to_thread(publish, partial, disk, 0o600)


@contextlib.contextmanager
def fresh(partial: Path) -> Iterator[int]:
    """A descriptor of a new empty file, to read and write; the file is gone at the end unless it
    was renamed.
    """
    remove(partial)
    handle = os.open(
        partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        yield handle
    finally:
        os.close(handle)
        remove(partial)
