"""Change a machine that runs: CPUs, memory, disk and its traffic; and see what it has. QEMU's view,
which a guest may not follow.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

from virtuary.base.answers import read
from virtuary.base.errors import Misbehaves
from virtuary.model.disk import ROOT, DiskIo
from virtuary.qemu.qmp import CommandFailed, Monitor
from virtuary.qemu.warm import GROWTH, MOST_MEMORY, STEP, find_places, find_plugged, plug

DISK = "/machine/peripheral/disk{number}-device/virtio-backend"


class Size(NamedTuple):
    """What a machine has now."""

    cpus: int
    memory: int
    """Bytes the guest may use: what it began with and took since, without what it gave back."""
    given: int = 0
    """Bytes it gave back of what it began with; its own system may count them as used."""


async def find_size(monitor: Monitor, base: int) -> Size:
    """What the machine has; `base`: bytes of memory it began with."""
    cpus = len(read(await monitor.run("query-cpus-fast")).items())
    plugged = 0
    with contextlib.suppress(CommandFailed):  # it can't grow
        plugged = await find_plugged(monitor)
    kept = base
    with contextlib.suppress(CommandFailed):  # no driver in the guest: nothing was given back
        kept = min(
            read(await monitor.run("query-balloon")).number("actual", most=MOST_MEMORY), base
        )  # it does not count what was plugged
    return Size(cpus, kept + plugged, base - kept)


async def offer_memory(monitor: Monitor, base: int, wanted: int) -> None:
    """Ask the guest to have `wanted` bytes: above the base it is offered more, below it is asked to
    give back. It may take its time.
    """
    with contextlib.suppress(CommandFailed):
        extra = -(-max(wanted - base, 0) // STEP) * STEP
        await monitor.run("qom-set", path=GROWTH, property="requested-size", value=extra)
    with contextlib.suppress(CommandFailed):
        await monitor.run("balloon", value=min(wanted, base))


async def offer_cpus(monitor: Monitor, wanted: int) -> None:
    """Plug CPUs until there are `wanted`, or ask the guest to let go of those plugged last. It may
    take its time.
    """
    places = await find_places(monitor)
    plugged = [place for place in places if "qom-path" in place]
    if len(plugged) < wanted:
        await plug(monitor, wanted, 0)
    for place in plugged[: max(len(plugged) - wanted, 0)]:  # QEMU tells the last first
        name = place.text("qom-path").rpartition("/")[2]
        with contextlib.suppress(CommandFailed):  # asked already
            await monitor.run("device_del", id=name)


async def limit_disk(monitor: Monitor, io: DiskIo, number: int = ROOT) -> None:
    """Limit a disk's traffic, or take its limits away."""
    names = {
        "iops": "iops", "iops_rd": "read_iops", "iops_wr": "write_iops",
        "bps": "bandwidth", "bps_rd": "read_bandwidth", "bps_wr": "write_bandwidth",
    }  # fmt: skip
    limits: dict[str, int] = {}
    for name, field in names.items():
        limits[name] = value = getattr(io, field) or 0
        if value and io.burst > 1:
            limits[f"{name}_max"] = round(value * io.burst)
            limits[f"{name}_max_length"] = io.burst_seconds
    await monitor.run("block_set_io_throttle", id=DISK.format(number=number), **limits)


async def find_disk(monitor: Monitor) -> int:
    """Bytes of the root disk as the guest sees it."""
    for node in read(await monitor.run("query-named-block-nodes", flat=True)).items():
        if node.text("node-name") == "disk0":
            return node.inner("image").number("virtual-size")
    raise Misbehaves("QEMU answered something unexpected: it knows no root disk")


async def find_threads(monitor: Monitor, pid: int) -> list[int]:
    """The host's ids of the threads that are the virtual CPUs of process `pid`; QEMU knows them by
    the ids of its own namespace.
    """
    inner = {cpu.number("thread-id") for cpu in read(await monitor.run("query-cpus-fast")).items()}
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError, StopIteration):
            text = (task / "status").read_text(encoding="ascii", errors="replace")
            line = next(line for line in text.splitlines() if line.startswith("NSpid:"))
            if int(line.split()[-1]) in inner:
                found.append(int(task.name))
    return sorted(found)
