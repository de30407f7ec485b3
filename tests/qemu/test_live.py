"""A machine saved while it runs: with a real QEMU and no guest, so that everything that can go
wrong can be tried quickly.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from virtuary.base.errors import Failed, VirtuaryError
from virtuary.base.units import MIB
from virtuary.qemu import live
from virtuary.qemu.qmp import Monitor, open_monitor
from virtuary.storage.directory import ensure_overlay

pytestmark = pytest.mark.qemu
SIZE = 8 * MIB
MACHINE = (
    "-nodefaults",
    "-display",
    "none",
    "-S",
    "-machine",
    "q35,memory-backend=ram0",
    "-m",
    "64M",
)
MEMORY = ("-object", '{"qom-type":"memory-backend-ram","id":"ram0","size":67108864}')


@dataclass
class Place:
    """A machine that runs, and where its copy is to be."""

    monitor: Monitor
    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def disk(self) -> Path:
        return self.folder / "copy.qcow2"


def listens(path: Path) -> bool:
    """Whether somebody waits behind this socket: it is there a moment before that."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(path)) == 0


@contextlib.contextmanager
def qemu(folder: Path, disk: Path, *words: str) -> Iterator[Path]:
    """QEMU with this disk on the base; the path of its monitor."""
    nodes = (
        f'{{"node-name":"disk0-base","driver":"qcow2","read-only":true,"file":{{"driver":"file","filename":"{folder}/base.qcow2"}}}}',
        f'{{"node-name":"disk0","driver":"qcow2","backing":"disk0-base","file":{{"driver":"file","filename":"{disk}"}}}}',
    )
    line = [word for node in nodes for word in ("-blockdev", node)]
    place = folder / f"qmp-{disk.name}"
    process = subprocess.Popen(
        ["qemu-system-x86_64", *MACHINE, *MEMORY, *line, "-device", "virtio-blk-pci,drive=disk0",
        "-qmp", f"unix:{place},server=on,wait=off", *words],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        while not listens(place):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
        yield place
    finally:
        process.kill()
        process.wait(10)
        assert process.stderr
        process.stderr.close()


@pytest.fixture
async def place(short: Path) -> AsyncIterator[Place]:
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(short / "base.qcow2"), str(SIZE)],
        check=True,
    )
    disk, copy = short / "disk.qcow2", short / "copy.qcow2"
    for path in (disk, copy):
        await ensure_overlay(path, short / "base.qcow2", SIZE, None)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 5 1M 1M", str(disk)],
        check=True,
        capture_output=True,
    )
    with qemu(short, disk) as socket:
        monitor = await open_monitor(socket)
        try:
            await monitor.run("cont")
            yield Place(monitor, short)
        finally:
            await monitor.close()


async def save(
    place: Place, disk_flags: int = os.O_RDWR, fail_after: int | None = None
) -> live.Still:
    """Save into the files of the place; `fail_after` so many checks somebody wants it no more."""
    left = [fail_after]

    def check() -> None:
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                raise Failed("not wanted any more")

    place.state.unlink(missing_ok=True)
    state = os.open(place.state, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    disk = os.open(place.disk, disk_flags)
    try:
        return await live.save(
            place.monitor, state, disk, "disk0-base", (disk,), lambda text, share: None, check
        )
    finally:
        os.close(state)
        os.close(disk)


async def as_before(place: Place) -> None:
    """It runs, and nothing of a saving is left."""
    monitor = place.monitor
    assert await monitor.status() == "running"
    assert await monitor.run("query-jobs") == [] and await monitor.run("query-fdsets") == []
    assert not [
        node
        for node in await monitor.run("query-named-block-nodes")
        if live.NAME in node["node-name"]
    ]
    on = {
        item["capability"]
        for item in await monitor.run("query-migrate-capabilities")
        if item["state"]
    }
    assert not on & {"pause-before-switchover", "events", "x-ignore-shared"}


async def test_it_runs_on_and_its_disk_and_memory_are_in_the_files(place: Place) -> None:
    for _ in range(2):  # a second copy is like the first
        still = await save(place)
        assert 0 < still.seconds < 5 and not still.forced
        await as_before(place)
    assert place.state.stat().st_size > 64 * 1024
    with qemu(place.folder, place.disk, "-incoming", "defer") as socket:
        other = await open_monitor(socket)
        try:
            handle = os.open(place.state, os.O_RDONLY)
            number = await other.give(handle, "state")
            os.close(handle)
            await live.load(other, f"file:/dev/fdset/{number}", still.mapped, 20)
            assert await other.status() == "paused"
            await other.run("cont")
            assert await other.status() == "running"
        finally:
            await other.close()
    read = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", "-c", "read -P 5 1M 1M", str(place.disk)],
        capture_output=True,
        check=True,
    )
    assert b"verification failed" not in read.stdout
    await as_before(place)


async def test_a_disk_that_can_not_be_written_leaves_everything_as_it_was(place: Place) -> None:
    with pytest.raises(VirtuaryError):
        await save(place, os.O_RDONLY)
    await as_before(place)
    await save(place)


@pytest.mark.parametrize("checks", range(3))
async def test_whenever_it_is_not_wanted_any_more_everything_is_as_it_was(
    place: Place, checks: int
) -> None:
    with contextlib.suppress(Failed):  # it may be faster than so many checks
        await save(place, fail_after=checks)
    await as_before(place)


@pytest.mark.parametrize(
    ("seconds", "too_much", "limit"),
    [
        (0, False, 20),
        (2.9, False, 20),
        (3.1, False, 50),
        (29, False, 50),
        (31, False, 2_000_000),
        (1, True, 2_000_000),
    ],
)
def test_the_longer_it_takes_the_longer_it_may_stand_still(
    seconds: float, too_much: bool, limit: int
) -> None:
    assert live.choose_limit(seconds, too_much) == limit


@pytest.mark.parametrize("moment", ["pre-switchover", "completed"])
async def test_what_another_daemon_left_is_put_away(place: Place, moment: str) -> None:
    monitor = place.monitor
    handles = [
        os.open(place.state, os.O_WRONLY | os.O_CREAT, 0o600),
        os.open(place.disk, os.O_RDWR),
    ]
    state, disk = [await monitor.give(handle, live.NAME) for handle in handles]
    for handle in handles:
        os.close(handle)
    with monitor.hearing("JOB_STATUS_CHANGE") as heard:
        await live._mirror(
            monitor, heard, disk, "disk0-base", lambda text, share: None, lambda: None
        )
    await live._set(monitor, {"pause-before-switchover": moment == "pre-switchover"})
    if moment == "completed":  # as it is when the disk was done with
        await monitor.run("block-job-cancel", device=live.NAME)
    await monitor.run("migrate", uri=f"file:/dev/fdset/{state}")
    while (await monitor.run("query-migrate"))["status"] != moment:
        pass
    assert await monitor.status() in ("finish-migrate", "postmigrate")
    await live.end_save(monitor)
    await as_before(place)
    await live.end_save(monitor)
    await as_before(place)
    await save(place)
