"""From any accepted image to a qcow2 of our own, and the check of such a file; qemu-img, in a cage.

Promises: the tool works on exactly the file that was inspected (one descriptor, inspected again after opening); formats are
explicit; no file an image names is opened (backing is switched off, and Landlock forbids it where the kernel has it);
memory, CPU, time and output are limited; the target appears whole, synced and read-only, or not at all.
Internal snapshots of the source are left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from virtuary.base import proc
from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Conflict, Failed, Invalid, NoRoom
from virtuary.base.files import publish, remove
from virtuary.base.units import GIB, MIB
from virtuary.images.checksums import hash_file
from virtuary.images.confine import READ_FILE, TRUNCATE, WRITE_FILE, Limits, cage
from virtuary.images.formats import File, Header, inspect, open_reader
from virtuary.images.header import Report

MEMORY = GIB + 256 * MIB
SLOWEST = 8 * MIB  # bytes of virtual size a second, on the slowest machine we still wait for
MOST_TIME = 24 * 3600
OPTIONS = "compat=1.1,cluster_size=65536,lazy_refcounts=off"
_PROGRESS = re.compile(rb"\((\d{1,3}\.\d{2})/100%\)")

declare("image-converted")


async def to_qcow2(source: Path, header: Header, target: Path, report: Report) -> str:
    """Convert the image `source`, which was inspected as `header`, into the qcow2 file `target`; returns its sha256.

    `target` is replaced when it exists; it is mode 0400 and durable when this returns. Raises Conflict when `source` is not
    (or does not stay) what was inspected, NoRoom when the disk is full, Failed when the tool gives up. `report` hears a
    sentence and the fraction done.
    """
    partial = target.with_name(f".{target.name}.partial")
    with open_reader(source) as reader, _fresh(partial) as output:
        before = _stamp(reader)
        _check_same(reader, header)
        await _convert(reader, header, output, report)
        if _stamp(reader) != before:
            raise Conflict(f"{source.name} was written to while it was converted", "give a file nobody else writes to")
        report("checking the result", None)
        _check_result(output, header)
        digest = (await asyncio.to_thread(hash_file, output))["sha256"]
        crashpoint("image-converted")
        publish(partial, target, 0o400)
    return digest


async def check(path: Path) -> None:
    """Raise Invalid when the qcow2 file `path` is damaged; lost (leaked) clusters are no damage."""
    with open_reader(path) as reader:
        header = inspect(reader, "qcow2")
        limits = Limits(MEMORY, deadline_for(header.virtual_size), 0)
        with cage(limits, {reader.descriptor: READ_FILE}) as preexec:
            result = await proc.run(
                "qemu-img",
                *("check", "-q", "-f", "qcow2", _node(header, reader.descriptor)),
                deadline=limits.cpu,
                pass_fds=(reader.descriptor,),
                preexec=preexec,
                check=False,
            )
    if result.status not in (0, 3):
        said = proc.last_line(result.stderr) or proc.last_line(result.stdout) or f"exit status {result.status}"
        raise Invalid(
            f"the qcow2 file {path.name} is damaged: {said}", "take it from a backup, or try qemu-img check -r all on a copy"
        )


def deadline_for(virtual_size: int) -> int:
    """Seconds a run over a disk of this size may take."""
    return min(MOST_TIME, 300 + virtual_size // SLOWEST)


def limits_for(header: Header) -> Limits:
    """What the conversion of this image may use: the output can't be larger than the disk and its tables."""
    return Limits(MEMORY, deadline_for(header.virtual_size), header.virtual_size + header.virtual_size // 512 + 64 * MIB)


def _node(header: Header, descriptor: int) -> str:
    """The image as QEMU's block layer shall open it: this descriptor, this format, and nothing behind it."""
    node: dict[str, object] = {"driver": header.format, "file": {"driver": "file", "filename": f"/dev/fd/{descriptor}"}}
    if header.format in ("qcow2", "vmdk"):
        node["backing"] = None
    return "json:" + json.dumps(node)


async def _convert(reader: File, header: Header, output: int, report: Report) -> None:
    report("converting the image", 0.0)  # a small one is finished before anything else is heard of it
    limits = limits_for(header)
    files = {reader.descriptor: READ_FILE, output: READ_FILE | WRITE_FILE | TRUNCATE}
    with cage(limits, files) as enter:
        async with _progress(report) as pipe:

            def preexec() -> None:
                enter()
                os.dup2(pipe, 1)  # the progress goes to us as it is written; base.proc.run keeps stderr

            command = ("convert", "-p", "-f", header.format, "-O", "qcow2", "-o", OPTIONS)
            try:
                await proc.run(
                    "qemu-img",
                    *command,
                    _node(header, reader.descriptor),
                    f"/dev/fd/{output}",
                    deadline=limits.cpu,
                    pass_fds=(reader.descriptor, output),
                    preexec=preexec,
                )
            except Failed as error:
                raise _translated(error) from error


def _translated(error: Failed) -> NoRoom | Failed:
    if "No space left on device" in error.sentence:
        return NoRoom("the disk is full: the converted image does not fit", "free some space and repeat")
    return Failed(f"the image could not be converted: {error.sentence}", "check it with the program that made it")


@contextlib.asynccontextmanager
async def _progress(report: Report) -> AsyncIterator[int]:
    """The write end of a pipe; what qemu-img -p writes into it becomes reports. The reader ends with the `with`."""
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
    last = 0.0
    try:
        while piece := await stream.read(4096):
            found = _PROGRESS.findall(piece)
            if found and float(found[-1]) - last >= 1:
                last = float(found[-1])
                report("converting the image", min(1.0, last / 100))
    finally:
        transport.close()


@contextlib.contextmanager
def _fresh(partial: Path) -> Iterator[int]:
    """A new empty file, open for reading and writing; it is gone at the end unless it was renamed."""
    remove(partial)
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
        remove(partial)


def _check_same(reader: File, header: Header) -> None:
    """Raise Conflict unless the opened file still is what was inspected; Invalid when it isn't acceptable any more."""
    if inspect(reader, header.format, max_virtual_size=header.virtual_size) != header:
        raise Conflict("the image file was exchanged after it had been checked", "repeat the import")


def _check_result(output: int, header: Header) -> None:
    made = inspect(File(output), "qcow2")
    if made.virtual_size != header.virtual_size:
        raise Failed(f"the converted disk has {made.virtual_size} bytes instead of {header.virtual_size}")


def _stamp(reader: File) -> tuple[int, ...]:
    stat = os.fstat(reader.descriptor)
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
