"""A machine saved with its memory and its disk as they are at one instant, while it goes on; and
the memory read into another.

The disk is mirrored until both sides are the same, and from then on each write goes to both. The
memory is written while it still changes. What is left of it is written with the machine stopped,
and in that moment the mirror is ended: its target is the disk as the memory knows it. (A
point-in-time backup begun then can't be: QEMU gives up its disks to end the migration, which a
running job does not allow.) Whatever fails, the machine runs on as before: `end_save` puts
everything away, also what another daemon left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from virtuary.base.answers import Answer, read
from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed, GuestSilent, VirtuaryError
from virtuary.qemu.qmp import CommandFailed, Heard, Monitor
from virtuary.qemu.warm import NO_REASON, find_migration, why_not

NAME = "copy0"
"""Of the job, of the node that is the copy's disk, and of what descriptors were handed over for."""
STILL, STILL_LATER, LATER = 20, 50, 3.0
"""Milliseconds the machine may stand still for the rest of its memory; the same when that was not
enough for so many seconds.
"""
PATIENCE = 30.0
"""Seconds the memory may take to become still by itself; then the machine is stopped for as long as
the rest takes.
"""
STOPPED_LIMIT = 60.0
"""Seconds a machine may stand still at most."""
MOST_STILL = 2_000_000
UNDER_WAY = ("setup", "active", "pre-switchover", "device", "cancelling", "wait-unplug")
declare("live.standing", "live.before_going_on")
Report = Callable[[str, float | None], None]


class Still(NamedTuple):
    """How long the machine stood still."""

    seconds: float
    forced: bool
    """Whether it wrote to its memory faster than that could be saved."""
    mapped: bool
    """Whether each page has its place in the state, which is never larger than the memory then."""


async def save(
    monitor: Monitor,
    state: int,
    disk: int,
    below: str | None,
    flush: Sequence[int],
    report: Report,
    check: Callable[[], None],
) -> Still:
    """Write memory and devices to the descriptor `state` and what the root disk has of its own to
    the qcow2 file `disk`.

    `below`: the node under both disks. `flush`: files to bring to the disk first, so that the
    machine need not wait for that. `check` is called again and again and raises when it is to be
    given up. The machine has to run.
    """
    await end_save(monitor)
    try:
        with monitor.hearing("MIGRATION", "JOB_STATUS_CHANGE", "STOP", "RESUME") as heard:
            still = await _save(monitor, heard, state, disk, below, flush, report, check)
    except BaseException:
        with contextlib.suppress(VirtuaryError):
            await end_save(monitor)
        raise
    await end_save(monitor)
    return still


async def _save(
    monitor: Monitor, heard: Heard, state: int, disk: int, below: str | None, flush: Sequence[int],
    report: Report,
    check: Callable[[], None],
) -> Still:  # fmt: skip
    address = f"file:/dev/fdset/{await monitor.give(state, NAME)}"
    await _mirror(monitor, heard, await monitor.give(disk, NAME), below, report, check)
    for handle in flush:
        await asyncio.to_thread(os.fdatasync, handle)
    known = read(await monitor.run("query-migrate-capabilities")).items()
    mapped = "mapped-ram" in {item.text("capability") for item in known}
    await _set(
        monitor,
        {
            "pause-before-switchover": True,
            "events": True,
            **({"mapped-ram": True} if mapped else {}),
        },
    )
    await monitor.run("migrate-set-parameters", **{"max-bandwidth": 0, "downtime-limit": STILL})
    heard.clear()
    await monitor.run("migrate", uri=address)
    forced = await _until_still(monitor, heard, state, report, check)
    try:
        async with asyncio.timeout(STOPPED_LIMIT):
            crashpoint("live.standing")
            # of a mirror that is ready: it ends well
            await monitor.run("block-job-cancel", device=NAME)
            await _until_job(monitor, heard, "concluded")
            await monitor.run("migrate-continue", state="pre-switchover")
            await _until_migrated(monitor, heard)
            crashpoint("live.before_going_on")
            await _go_on(monitor)
    except TimeoutError:
        raise GuestSilent(
            f"the rest of the memory could not be saved within {STOPPED_LIMIT:.0f} s"
        ) from None
    return Still(await heard.span("STOP", "RESUME"), forced, mapped)


async def _mirror(
    monitor: Monitor,
    heard: Heard,
    number: int,
    below: str | None,
    report: Report,
    check: Callable[[], None],
) -> None:
    place = f"/dev/fdset/{number}"
    # it is brought to the disk when it is whole
    shared: dict[str, Any] = {"discard": "unmap", "cache": {"no-flush": True}}
    file = {
        "node-name": f"{NAME}-file",
        "driver": "file",
        "filename": place,
        "locking": "on",
        **shared,
    }
    node = {
        "node-name": NAME,
        "driver": "qcow2",
        "file": f"{NAME}-file",
        "backing": below,
        **shared,
    }
    job: dict[str, Any] = {
        "job-id": NAME,
        "device": "disk0",
        "target": NAME,
        "sync": "top",
        "copy-mode": "write-blocking",
    }
    await monitor.run("blockdev-add", **file)
    await monitor.run("blockdev-add", **node)
    await monitor.run("blockdev-mirror", **job, **{"auto-dismiss": False})
    while (found := await _job(monitor)).text("status") != "ready":
        check()
        report(
            "copying the disk",
            _share(found.number("current-progress"), found.number("total-progress")),
        )
        await heard.wait(0.25)


async def _until_still(
    monitor: Monitor, heard: Heard, state: int, report: Report, check: Callable[[], None]
) -> bool:
    """Wait until the machine stands still with the rest of its memory to be written; whether it had
    to be forced.
    """
    loop = asyncio.get_running_loop()
    began, allowed = loop.time(), STILL
    while True:
        answer = await find_migration(monitor)
        if answer.text("status") == "pre-switchover":
            return allowed == MOST_STILL
        _check_migration(answer)
        check()
        memory = answer.inner("ram")
        total = memory.number("total", 0)
        too_much = os.fstat(state).st_blocks * 512 > 2 * total > 0
        if (limit := choose_limit(loop.time() - began, too_much)) > allowed:
            allowed = limit
            await monitor.run("migrate-set-parameters", **{"downtime-limit": allowed})
        if loop.time() - began > PATIENCE + STOPPED_LIMIT:
            raise GuestSilent("the memory could not be saved in time")
        report("saving the memory", _share(total - memory.number("remaining", 0), total))
        await heard.wait(0.1)


def choose_limit(seconds: float, too_much: bool) -> int:
    """How many milliseconds the machine may stand still after so many seconds of saving. Pure."""
    if too_much or seconds > PATIENCE:
        return MOST_STILL
    return STILL if seconds < LATER else STILL_LATER


async def _until_migrated(monitor: Monitor, heard: Heard) -> None:
    while (answer := await find_migration(monitor)).text("status") != "completed":
        _check_migration(answer)
        await heard.wait(0.05)


def _check_migration(answer: Answer) -> None:
    if answer.text("status", None) in ("failed", "cancelled", "cancelling"):
        raise Failed(f"the memory could not be saved: {why_not(answer)}")


async def _find_jobs(monitor: Monitor) -> list[Answer]:
    return [job for job in read(await monitor.run("query-jobs")).items() if job.text("id") == NAME]


async def _job(monitor: Monitor) -> Answer:
    for job in await _find_jobs(monitor):
        if job.text("error", None):
            raise Failed(f"the disk could not be copied: {job.words('error', NO_REASON)}")
        return job
    raise Failed("the disk could not be copied: its job is gone")


async def _until_job(monitor: Monitor, heard: Heard, status: str) -> None:
    while (await _job(monitor)).text("status") != status:
        await heard.wait(0.05)


def _share(done: int, total: int) -> float | None:
    return round(min(done / total, 1.0), 2) if total else None


async def _set(monitor: Monitor, wanted: dict[str, bool]) -> None:
    """Exactly these capabilities; a resumed machine still has the one that leaves memory in files
    out.
    """
    every = {"x-ignore-shared": False, **wanted}
    await monitor.run(
        "migrate-set-capabilities",
        capabilities=[{"capability": name, "state": on} for name, on in every.items()],
    )


async def end_save(monitor: Monitor) -> None:
    """Let the machine run and put away everything a saving has left, whether it ended well or not.
    Repeats harmlessly.
    """
    status = (await find_migration(monitor)).text("status", None)
    if status in UNDER_WAY:
        await monitor.run("migrate_cancel")
        await _until_none(lambda: _migrates(monitor))
    if await monitor.status() in ("finish-migrate", "postmigrate", "paused"):
        await _go_on(monitor)
    if await _find_jobs(monitor):
        if await _works(monitor):
            await monitor.run("block-job-cancel", device=NAME, force=True)
        await _until_none(lambda: _works(monitor))
        await monitor.run("job-dismiss", id=NAME)
    nodes = read(await monitor.run("query-named-block-nodes", flat=True)).items()
    there = {node.text("node-name") for node in nodes}
    for name in (NAME, f"{NAME}-file"):
        node: dict[str, Any] = {"node-name": name}
        if name in there:
            await monitor.run("blockdev-del", **node)
    for group in read(await monitor.run("query-fdsets")).items():
        if any(item.text("opaque", None) == NAME for item in group.items("fds")):
            await monitor.run("remove-fd", **{"fdset-id": group.number("fdset-id")})
    if status is not None:
        await _set(monitor, {"pause-before-switchover": False, "events": False})


async def _go_on(monitor: Monitor, limit: float = 5.0) -> None:
    """Let the machine run. For a moment after a migration has ended QEMU refuses, because it is not
    done with it.
    """
    until = asyncio.get_running_loop().time() + limit
    while True:
        try:
            await monitor.run("cont")
            return
        except CommandFailed:
            if asyncio.get_running_loop().time() > until:
                raise
        await asyncio.sleep(0.001)


async def _migrates(monitor: Monitor) -> bool:
    return (await find_migration(monitor)).text("status", None) in UNDER_WAY


async def _works(monitor: Monitor) -> bool:
    return any(job.text("status") != "concluded" for job in await _find_jobs(monitor))


async def _until_none(goes_on: Callable[[], Awaitable[bool]], limit: float = 30.0) -> None:
    until = asyncio.get_running_loop().time() + limit
    while await goes_on():
        if asyncio.get_running_loop().time() > until:
            raise GuestSilent("QEMU does not put away what a copy has left")
        await asyncio.sleep(0.01)


async def load(monitor: Monitor, address: str, mapped: bool, limit: float) -> None:
    """Read memory and devices into a machine that waits for them; it is paused then. Raises Failed,
    or GuestSilent at the limit.
    """
    await _set(monitor, {"mapped-ram": True} if mapped else {})
    await monitor.run("migrate-incoming", uri=address)
    until = asyncio.get_running_loop().time() + limit
    while (status := (answer := await find_migration(monitor)).text("status", None)) != "completed":
        if status in ("failed", "cancelled"):
            raise Failed(f"the memory can't be taken over: {why_not(answer)}")
        if asyncio.get_running_loop().time() > until:
            raise GuestSilent("the memory was not taken over in time")
        await asyncio.sleep(0.005)
