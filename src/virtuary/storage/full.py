"""A disk that stands alone: everything a chain of qcow2 files says, in one file.

The chain is told to the tool node by node, each with its format; nothing is read from what a header says of the file below.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed, NoRoom
from virtuary.base.files import publish, remove
from virtuary.base.proc import die_with_parent, run
from virtuary.base.units import MIB

OPTIONS = "compat=1.1,cluster_size=65536,lazy_refcounts=off"
SLOWEST = 4 * MIB
"""Bytes of data a second on the slowest disk we still wait for."""
_PROGRESS = re.compile(rb"\((\d{1,3}\.\d{2})/100%\)")
Report = Callable[[str, float | None], None]
declare("full.after_convert")


async def make_empty(disk: Path, size: int) -> None:
    """An empty disk of `size` bytes on nothing. Not synced."""
    await run("qemu-img", "create", "-q", "-f", "qcow2", "-o", OPTIONS, str(disk), str(size))


def chain_of(files: Sequence[Path]) -> str:
    """The uppermost of these files, the lowest first, as a tool of QEMU shall open it. Pure."""
    node: dict[str, object] | None = None
    for path in files:
        node = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": node}
    return "json:" + json.dumps(node)


def needed(files: Sequence[Path], size: int) -> int:
    """Bytes that one file can need which holds what these say of a disk of `size` bytes."""
    return min(sum(path.stat().st_blocks * 512 for path in files), size) + size // 4096 + 4 * MIB


async def flatten(files: Sequence[Path], disk: Path, size: int, report: Report) -> None:
    """Write what these files say, the lowest first, into the new file `disk`, which appears whole and durable.

    Nobody may write to them meanwhile. Nothing stays of a flattening that is cancelled or fails. Raises NoRoom or Failed.
    """
    partial = disk.with_name(f".{disk.name}.partial")
    remove(partial)
    words = ("convert", "-p", "-f", "qcow2", "-O", "qcow2", "-o", OPTIONS, chain_of(files), str(partial))
    try:
        async with _progress(report) as pipe:

            def preexec() -> None:
                die_with_parent()
                os.dup2(pipe, 1)

            await run("qemu-img", *words, deadline=300 + size / SLOWEST, preexec=preexec)
        crashpoint("full.after_convert")
        await asyncio.to_thread(publish, partial, disk, 0o600)
    except Failed as error:
        if "No space left on device" in error.sentence:
            raise NoRoom("the disk is full: the copy does not fit", "free some space and repeat") from error
        raise
    finally:
        remove(partial)


@contextlib.asynccontextmanager
async def _progress(report: Report) -> AsyncIterator[int]:
    """The write end of a pipe; what qemu-img -p writes into it becomes reports."""
    read, write = os.pipe2(os.O_CLOEXEC)
    follower = asyncio.create_task(_follow(read, report))
    try:
        yield write
    finally:
        os.close(write)
        await follower


async def _follow(descriptor: int, report: Report) -> None:
    stream = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(descriptor, "rb"))
    try:
        while piece := await stream.read(4096):
            if found := _PROGRESS.findall(piece):
                report("copying the disk", min(1.0, float(found[-1]) / 100))
    finally:
        transport.close()
