"""A disk that stands alone: everything a chain of qcow2 files says, in one file.

The files below are those that we know of, each checked and described with its format; nothing is read from what a header says
of the file below.
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
from virtuary.storage.blocks import block_layer, deadline_for, written
from virtuary.storage.overlay import write_overlay
from virtuary.storage.own import check_disk

Report = Callable[[str, float | None], None]
declare("full.after_convert")


def make_empty(disk: Path, size: int) -> None:
    """An empty disk of `size` bytes on nothing. Not synced."""
    write_overlay(disk, None, size)


def needed(files: Sequence[Path], size: int) -> int:
    """Bytes that one file can need which holds what these say of a disk of `size` bytes."""
    return min(sum(path.stat().st_blocks * 512 for path in files), size) + size // 4096 + 4 * MIB


async def flatten(files: Sequence[Path], disk: Path, size: int, report: Report) -> None:
    """Write what these files say, the lowest first, into the new file `disk`, which appears whole and durable.

    Nobody may write to them meanwhile. Nothing stays of a flattening that is cancelled or fails. Raises Damaged, NoRoom or Failed.
    """
    partial = disk.with_name(f".{disk.name}.partial")
    with fresh(partial) as handle, contextlib.ExitStack() as opened:
        async with block_layer(written(size), deadline_for(size)) as blocks:
            source = await blocks.chain(files, size, opened)
            target = await blocks.make(handle, size)
            await blocks.copy(source, target, lambda fraction: report("copying the disk", fraction))
        crashpoint("full.after_convert")
        check_disk(partial, (), size)
        await asyncio.to_thread(publish, partial, disk, 0o600)


@contextlib.contextmanager
def fresh(partial: Path) -> Iterator[int]:
    """A descriptor of a new empty file, to read and write; the file is gone at the end unless it was renamed."""
    remove(partial)
    handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)
        remove(partial)
