"""From any accepted image to a qcow2 of our own, by QEMU's block layer in the jail.

Promises: the tool works on exactly the file that was inspected (one descriptor, inspected again
after opening); formats are explicit; no file an image names is opened; memory, time and output are
bounded, the output by what is reserved for it before the first byte; the target appears whole,
synced and read-only, or not at all. Internal snapshots of the source are left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Conflict, Failed
from virtuary.base.files import publish
from virtuary.base.units import GIB, format_size
from virtuary.images.checksums import hash_file
from virtuary.images.formats import File, Header, inspect, open_reader
from virtuary.images.header import Report
from virtuary.images.vhd import unpack_vhd
from virtuary.images.vhdx import unpack_vhdx
from virtuary.storage.blocks import TooLarge, block_layer, deadline_for, written
from virtuary.storage.directory import reserving
from virtuary.storage.full import fresh
from virtuary.storage.own import check_disk

UNPACKED, LEAST = 16, GIB
"""How many times larger than its file an image is taken to be when it is unpacked, and what any
image may have; besides its tables.
"""

declare("image-converted")


async def to_qcow2(
    source: Path, header: Header, target: Path, report: Report, kept: int | None = None
) -> str:
    """Convert the image `source`, which was inspected as `header`, into the qcow2 file `target`;
    returns its sha256.

    `target` is replaced when it exists; it is mode 0400 and durable when this returns. Raises
    Conflict when `source` is not (or does not stay) what was inspected, NoRoom when the disk is
    full, on which `kept` bytes stay free, Failed when the tool gives up. `report` hears a sentence
    and the fraction done.
    """
    partial = target.with_name(f".{target.name}.partial")
    most = room_for(header)
    room = most + (header.file_size if _is_unpacked(header) else 0)
    with (
        open_reader(source) as reader,
        reserving(target.parent, room, "converting the image", kept),
        fresh(partial) as output,
    ):
        before = _stamp(reader)
        await asyncio.to_thread(_check_same, reader, header)  # a log's checksums take a while
        # a small one is finished before anything else is heard of it
        report("converting the image", 0.0)
        await _convert(reader, header, target.parent, output, most, report)
        if _stamp(reader) != before:
            raise Conflict(
                f"{source.name} was written to while it was converted",
                "give a file nobody else writes to",
            )
        report("checking the result", None)
        check_disk(partial, (), header.virtual_size)
        digest = (await asyncio.to_thread(hash_file, output))["sha256"]
        crashpoint("image-converted")
        publish(partial, target, 0o400)
    return digest


def room_for(header: Header) -> int:
    """Bytes that the converted image may have: what all of its disk needs, and no more than an
    honest file unpacks to. Pure.
    """
    return min(
        written(header.virtual_size),
        max(UNPACKED * header.file_size, LEAST) + header.virtual_size // 4096,
    )


async def _convert(
    reader: File, header: Header, folder: Path, output: int, most: int, report: Report
) -> None:
    def tell(fraction: float) -> None:
        report("converting the image", fraction)

    try:
        async with (
            _plain(reader, header, folder, tell) as (handle, form, size),
            block_layer(most, deadline_for(header.virtual_size)) as blocks,
        ):
            image = await blocks.add(handle, form, size=size)
            await blocks.copy(image, await blocks.make(output, header.virtual_size), tell)
    except TooLarge as error:
        raise Failed(
            f"the image unpacks to more than {format_size(most)}, which no honest file of "
            f"{format_size(header.file_size)} does",
            "import a qcow2 or raw file of it that is not compressed",
        ) from error
    tell(1.0)


@contextlib.asynccontextmanager
async def _plain(
    reader: File, header: Header, folder: Path, tell: Callable[[float], None]
) -> AsyncIterator[tuple[int, str, int | None]]:
    """What the block layer is given: the file and its format, or what only our own reader
    understands as a raw disk. A size where it is the beginning of the file.
    """
    if not _is_unpacked(header):
        fixed = header.format == "vhd"
        yield (
            reader.descriptor,
            "raw" if fixed else header.format,
            header.virtual_size if fixed else None,
        )
    else:
        unpack = unpack_vhd if header.format == "vhd" else unpack_vhdx
        with tempfile.TemporaryFile(dir=folder) as disk:
            await asyncio.to_thread(unpack, reader, header, disk.fileno(), tell)
            handle = os.open(
                f"/proc/self/fd/{disk.fileno()}", os.O_RDONLY | os.O_CLOEXEC
            )  # the tool is to read, and nothing else
            try:
                yield handle, "raw", None
            finally:
                os.close(handle)


def _is_unpacked(header: Header) -> bool:
    """Whether our own reader makes a raw disk of it first."""
    return header.details.get("kind" if header.format == "vhd" else "log") in (
        "dynamic",
        "replayed",
    )


def _check_same(reader: File, header: Header) -> None:
    """Raise Conflict unless the opened file still is what was inspected; Invalid when it isn't
    acceptable any more.
    """
    if inspect(reader, header.format, max_virtual_size=header.virtual_size) != header:
        raise Conflict(
            "the image file was exchanged after it had been checked", "repeat the import"
        )


def _stamp(reader: File) -> tuple[int, ...]:
    stat = os.fstat(reader.descriptor)
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
