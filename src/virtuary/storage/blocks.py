"""QEMU's block layer as a tool in the jail: a QEMU without a machine, which is given descriptors
and opens nothing by name.

Neither qemu-img nor qemu-storage-daemon takes descriptors of files that they may not open
themselves.

Every node is described whole: its descriptor, its format, what lies below it. So no tool probes,
and what stands in an image of other files leads nowhere: there are none in the jail. What is
written is bounded by the kernel, in bytes and in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from virtuary.base.answers import read
from virtuary.base.errors import Failed, GuestSilent, NoRoom, VirtuaryError
from virtuary.base.units import GIB, MIB
from virtuary.jail.tool import Surroundings, confined
from virtuary.jail.walls import Bounds
from virtuary.qemu.argv import SANDBOX
from virtuary.qemu.platforms.table import USUAL
from virtuary.qemu.process import listening_socket
from virtuary.qemu.qmp import CommandFailed, Monitor, open_monitor
from virtuary.storage.own import open_disk

MEMORY = 2 * GIB
"""Bytes of address space: a pool of 64 threads has half a GiB of stacks, of which it uses next to
nothing.
"""
AROUND = Surroundings(environment={"LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "2"})
THREADS, FILES = 160, 256
SLOWEST = 4 * MIB
"""Bytes of a disk a second, on the slowest machine we still wait for."""
MOST_TIME = 24 * 3600.0
CLUSTER = 65536
MONITOR = 20
COMMAND = (
    *(
        USUAL.program,
        "-machine",
        "none",
        "-accel",
        "tcg,tb-size=1",
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-S",
    ),
    *(
        "-sandbox",
        SANDBOX,
        "-chardev",
        f"socket,id=qmp,fd={MONITOR},server=on,wait=off",
        "-mon",
        "chardev=qmp,mode=control",
    ),
)
READY = 20.0
"""Seconds it may take until it answers."""
Report = Callable[[float], None]
"""Hears the fraction done."""


class TooLarge(Failed):
    """More was to be written than was allowed."""


def deadline_for(size: int) -> float:
    """Seconds that work on a disk of this size may take."""
    return min(MOST_TIME, 300 + size / SLOWEST)


def written(size: int) -> int:
    """Bytes that a qcow2 file of a disk of this size can have, all of it written."""
    return size + size // 512 + 64 * MIB


class Blocks:
    """Nodes of a block layer that was just started; ends with the `with` of `block_layer`."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._names = 0

    async def add(
        self,
        handle: int,
        kind: str,
        *,
        below: str | None = None,
        write: bool = False,
        size: int | None = None,
    ) -> str:
        """A node of this format over a descriptor; its name. `below`: the node below it, where the
        format has one. `size`: of raw bytes, those of the beginning that are the disk.
        """
        name, self._names = f"node{self._names}", self._names + 1
        number = await self._monitor.give(handle, name)
        shared: dict[str, Any] = {"read-only": not write, **({"discard": "unmap"} if write else {})}
        file = {
            "driver": "file",
            "filename": f"/dev/fdset/{number}",
            "node-name": f"{name}-file",
            "locking": "off",
            **shared,
        }
        await self._monitor.run("blockdev-add", READY, **file)
        node: dict[str, Any] = {"driver": kind, "file": f"{name}-file", "node-name": name, **shared}
        if size is not None:
            node["size"] = size
        if kind in ("qcow2", "vmdk"):
            node["backing"] = below
        if write:
            node["detect-zeroes"] = "unmap"
        await self._monitor.run("blockdev-add", READY, **node)
        return name

    async def chain(self, files: Sequence[Path], most: int, handles: contextlib.ExitStack) -> str:
        """The disk, of at most `most` bytes, that these files of ours say, the lowest first, each
        checked as it is opened.
        """
        below: str | None = None
        for place, path in enumerate(files):
            handle = open_disk(path, files[place - 1] if place else None, most)
            handles.callback(os.close, handle)
            below = await self.add(handle, "qcow2", below=below)
        assert below
        return below

    async def make(self, handle: int, size: int) -> str:
        """An empty qcow2 of `size` bytes in an empty file, on nothing; its node."""
        number = await self._monitor.give(handle, "new")
        file: dict[str, Any] = {
            "driver": "file",
            "filename": f"/dev/fdset/{number}",
            "node-name": "new-file",
            "locking": "off",
        }
        await self._monitor.run("blockdev-add", READY, **file)
        options: dict[str, Any] = {
            "driver": "qcow2",
            "file": "new-file",
            "size": size,
            "version": "v3",
            "cluster-size": CLUSTER,
        }
        await self._monitor.run("blockdev-create", READY, **{"job-id": "make", "options": options})
        await self._until_over("make", None)
        await self._monitor.run("blockdev-del", **_node("new-file"))
        return await self.add(handle, "qcow2", write=True)

    async def copy(self, source: str, target: str, report: Report) -> None:
        """All that one node says into the other."""
        job: dict[str, Any] = {"job-id": "copy", "device": source, "target": target, "sync": "full"}
        errors = {"on-source-error": "report", "on-target-error": "report", "auto-dismiss": False}
        await self._monitor.run("blockdev-backup", READY, **job, **errors)
        await self._until_over("copy", report)
        # all of it is in the file then
        await self._monitor.run("blockdev-del", READY, **_node(target))

    async def resize(self, node: str, size: int) -> None:
        await self._monitor.run("block_resize", READY, **_node(node), size=size)
        await self._monitor.run("blockdev-del", READY, **_node(node))

    async def _until_over(self, name: str, report: Report | None) -> None:
        while True:
            jobs = read(
                await self._monitor.run("query-jobs", READY), "the tool that works on disks"
            )
            found = next((job for job in jobs.items() if job.text("id") == name), None)
            if found is None:
                raise Failed("the tool that works on disks forgot what it was to do")
            if report and (total := found.number("total-progress")):
                report(min(1.0, found.number("current-progress") / total))
            if found.text("status") == "concluded":
                break
            await asyncio.sleep(0.02 if not report else 0.1)
        await self._monitor.run("job-dismiss", READY, id=name)
        if error := found.text("error", ""):
            raise _translated(error)


@contextlib.asynccontextmanager
async def block_layer(largest: int, deadline: float) -> AsyncIterator[Blocks]:
    """A block layer that may write files of at most `largest` bytes, for at most `deadline`
    seconds.

    Raises NoRoom when the disk is full, Failed when it gives up or is given up.
    """
    bounds = Bounds(
        file_size=largest, processes=THREADS, files=FILES, memory=MEMORY, cpu=int(deadline)
    )
    with (
        tempfile.TemporaryDirectory(prefix="virtuary-blocks-") as folder,
        contextlib.ExitStack() as stack,
    ):
        place = Path(folder) / "qmp"
        door = listening_socket(place)
        stack.callback(os.close, door)
        try:
            async with asyncio.timeout(deadline):
                async with confined(COMMAND, {MONITOR: door}, bounds, AROUND):
                    monitor = await open_monitor(place, READY)
                    try:
                        yield Blocks(monitor)
                    finally:
                        await monitor.close()
        except TimeoutError:
            raise Failed(f"the work on the disk did not end within {deadline:.0f} s") from None
        except CommandFailed as error:
            raise _translated(error.sentence) from error
        except GuestSilent as error:
            raise Failed(
                "the tool that works on disks ended: it was refused what it wanted, or met a defect"
            ) from error


def _node(name: str) -> dict[str, Any]:
    return {"node-name": name}


def _translated(words: str) -> VirtuaryError:
    if "No space left on device" in words:
        return NoRoom(
            "the disk is full: what is to be written does not fit", "free some space and repeat"
        )
    if "File too large" in words:
        return TooLarge(
            "more would be written than is reserved for it",
            "the image is damaged, or made to do harm",
        )
    return Failed(f"the disk could not be worked on: {words[:300]}")
