"""Limits and shares of a machine that runs, set at once; CPUs, memory and disk, by its guest's
leave. What a guest does not take in time is taken back, and said.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
from collections.abc import Sequence

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed, GuestSilent, NoRoom, VirtuaryError
from virtuary.base.log import say
from virtuary.base.units import format_size
from virtuary.guest import room
from virtuary.host import capacity, shares
from virtuary.host.cgroups import set_bounds
from virtuary.jail.walls import may_raise
from virtuary.model.cpu import CpuShares
from virtuary.model.deeds import Change
from virtuary.model.disk import ROOT, DiskIo
from virtuary.model.host import NumaNode
from virtuary.model.operation import Operation
from virtuary.model.vm import Sized, Vm
from virtuary.node import operations
from virtuary.node.machine.run import Run
from virtuary.node.server import parts
from virtuary.node.server.notes import note_on
from virtuary.node.server.process import Process
from virtuary.node.server.server import Server
from virtuary.node.server.step import Step, capability, does_with
from virtuary.node.server.world import Tuning, World
from virtuary.node.tuning.plan import (
    Resize,
    ResizeCpus,
    ResizeDisk,
    ResizeMemory,
    Tune,
    near,
    untuned,
)
from virtuary.qemu import tune, warm
from virtuary.qemu.bounds import THREADS, disk_bound, memory_bound
from virtuary.qemu.qmp import CommandFailed

logger = logging.getLogger("virtuary.tuning")
SCRIPT_LIMIT = 30.0
"""Seconds a guest is given to do its part of a change."""
declare(
    "tune.after",
    "resize.before",
    "resize.after_offer",
    "resize.after",
    "grow.after_resize",
    "grow.after_record",
)


def pinned(cpu: CpuShares, nodes: Sequence[NumaNode]) -> tuple[int, ...]:
    """The CPUs of the host it may run on: those it is pinned to, or those of its NUMA node; empty
    for all. Pure.
    """
    return cpu.pin or next((node.cpus for node in nodes if node.number == cpu.node), ())


async def apply(server: Server, process: Process, world: World, step: Tune) -> None:
    """Set limits and shares; what this host can't give is written down."""
    wanted, had = step.wanted, process.tuned
    held = wanted.cpu.limit is not None or wanted.cpu.pin or wanted.cpu.node is not None
    threads: list[int] = []
    if held or had != untuned(wanted.cpus):
        threads = await tune.find_threads(process.monitor, process.run.runtime.pid)
    weight = server.site.weight_of(world.vm)
    cpu = wanted.cpu.but(pin=pinned(wanted.cpu, capacity.find_numa()))
    gaps = await asyncio.to_thread(shares.apply_cpu, world.vm.id, threads, cpu, weight)
    if (now := server.site.weight_of(world.vm)) != weight:  # others came or went meanwhile
        shares.set_weight(world.vm.id, now)
    if wanted.merge and not capacity.merges_pages():
        gaps.append(
            "equal pages are not merged (KSM is off: 1 into /sys/kernel/mm/ksm/run turns it on "
            "for the whole host)"
        )
    ordinary = had is not None and had.io.weight == shares.ORDINARY
    if wanted.io.weight != shares.ORDINARY or not ordinary:
        gap = shares.set_io_weight(world.vm.id, wanted.io.weight)
        gaps += [gap] if gap and wanted.io.weight != shares.ORDINARY else []
    gaps += await _limit_disks(process, had, wanted)
    process.tuned = wanted
    crashpoint("tune.after")
    if tuple(gaps) != world.vm.status.tuning.gaps:
        await server.write(tuning={"gaps": tuple(gaps)})


async def _limit_disks(process: Process, had: Tuning | None, wanted: Tuning) -> list[str]:
    """Limit the traffic of each disk, and take limits away that are not wished any more; what can't
    be, in words.
    """
    gaps = []
    before = had.limits if had else {ROOT: DiskIo()}  # which nobody knows
    for number in sorted({*before, *wanted.limits}):
        try:
            limit = wanted.limits.get(number, DiskIo())
            await tune.limit_disk(process.monitor, limit, number)
        except CommandFailed as error:
            if number in wanted.limits:
                gaps.append(f"no limit of disk traffic ({error.sentence})")
    return gaps


async def resize(server: Server, process: Process, world: World, step: Resize) -> None:
    """Plug or unplug virtual CPUs, and see that the guest uses them; or offer it memory, or ask it
    to give some back.
    """
    monitor, run, field, wanted = process.monitor, process.run, step.field, step.wanted
    words = "CPUs" if field == "cpus" else "memory"
    await note_on(server, world, f"the guest is given other {words}", stage=words)
    crashpoint("resize.before")
    try:
        if field == "memory":
            raise_memory(world.vm, max(wanted, run.size.memory if run.size else 0))
            await _tell(run, room.before_memory())
        await (
            tune.offer_cpus(monitor, wanted)
            if field == "cpus"
            else tune.offer_memory(monitor, run.base, wanted)
        )
        crashpoint("resize.after_offer")
        if field == "cpus":
            await _tell(run, room.after_cpus(wanted))
        await _wait_for(server, run, field, wanted)
    except VirtuaryError as error:
        if not run.ended:
            await _take_back(server, process, world, field, error)
        return
    crashpoint("resize.after")
    await run.measure()


def raise_memory(vm: Vm, memory: int) -> None:
    """What the processes of a machine may have together follows what its guest is given; it falls
    with the next start.
    """
    runtime = vm.status.runtime
    shape = runtime.shape if runtime else None
    if runtime and shape:
        most = max(shape.cpus, shape.max_cpus)
        set_bounds(
            vm.id,
            memory_bound(memory, shape.memory, most, emulated=runtime.accel == "tcg"),
            THREADS + most,
        )


def raise_file_size(pid: int, most: int) -> None:
    """Let a process write larger files, where it was given a bound of them that is smaller."""
    if os.getuid() == 0 and not may_raise():
        return
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    if 0 <= soft < most:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, max(most, hard) if hard >= 0 else hard))


async def _tell(run: Run, script: bytes) -> None:
    """Have the guest do its part, where it has an agent; what it says does not matter, for what it
    then has is measured.
    """
    if run.agent:
        with contextlib.suppress(VirtuaryError):
            await run.agent.execute(["/bin/sh"], stdin=script, deadline=SCRIPT_LIMIT, poll=0.05)


async def _wait_for(server: Server, run: Run, field: Sized, wanted: int) -> None:
    """Until the guest has what it was offered; raises GuestSilent when it does not take it. Returns
    early when something else is wished.
    """
    clock = server.site.clock
    patience = server.site.settings.resources.patience
    until = clock.now() + patience
    while True:
        now = server.load()
        if (
            now is None
            or run.ended
            or now.spec.sizes[field] != wanted
            or now.wanted != "running"
            or now.status.pressure.held
        ):
            return
        await run.measure()
        has = run.size and getattr(run.size, field)
        there = has is not None and (near(has, wanted) if field == "memory" else has == wanted)
        if there and await _sees(run, field, wanted):
            return
        if clock.now() > until:
            raise GuestSilent(
                f"its guest has {_say(field, has)} instead of {_say(field, wanted)} after "
                f"{patience:.0f} s"
            )
        await clock.sleep(0.1)


def _say(field: str, amount: int | None) -> str:
    return format_size(amount) if field == "memory" and amount is not None else str(amount)


async def _sees(run: Run, field: Sized, wanted: int) -> bool:
    """Whether the guest itself counts so many CPUs; memory is counted as taken only once its driver
    says so.
    """
    if field != "cpus" or run.agent is None:
        return True
    try:
        return await run.agent.cpus(deadline=5) == wanted
    except VirtuaryError:
        return True  # an agent that does not know: QEMU's word counts


async def give_up(server: Server, world: World, step: Step, error: VirtuaryError) -> None:
    """A step failed: the machine runs on with what it has. What its guest was to take is taken
    back; limits are tried again.
    """
    if isinstance(step, Resize):
        if server.process:
            await _take_back(server, server.process, world, step.field, error)
    elif operation := _asked(world):
        sentence = (
            f"limits and shares of {world.vm.name} can't be set now, and are tried again: "
            f"{error.sentence}"
        )
        await operations.finish(server.site.store, operation.key, type(error)(sentence, error.hint))


def _asked(world: World) -> Operation | None:
    """The operation by which somebody asked for a change."""
    operation = world.operation
    return operation if operation and isinstance(operation.spec.deed, Change) else None


def _wish_before(world: World, field: Sized) -> tuple[int | None, bool]:
    """What was wished before the change that its guest refused, and whether somebody asked for that
    change: what nobody asked for stays a wish, and what a guest says it has never becomes one.
    Pure.
    """
    operation = _asked(world)
    if operation and field in operation.spec.deed.model_fields_set:
        return getattr(operation.spec.deed, field), True
    return world.vm.spec.sizes[field], False


async def _take_back(
    server: Server, process: Process, world: World, field: Sized, error: VirtuaryError
) -> None:
    """The guest refused: what it was offered is withdrawn, the wish is what it was, and the
    operation says why. It runs on in any case; a wish that stays is not put to the guest again for
    a while.
    """
    run, current = process.run, server.load()
    if run.monitor is None or current is None:
        return
    (before, asked), status, operation = _wish_before(world, field), current.status, _asked(world)
    if not asked:
        process.refuse(field, before, server.site.clock.now())
    if field == "disk":  # what QEMU has made larger stays so
        size = await tune.find_disk(run.monitor)
        if size != status.disk.size:
            before, status = size, status.but(**parts.grown(ROOT, size))
    elif asked and isinstance(before, int):
        offer = (
            tune.offer_cpus(run.monitor, before)
            if field == "cpus"
            else tune.offer_memory(run.monitor, run.base, before)
        )
        await offer
    changed = current.but(spec=current.spec.resized(field, before), status=status)
    await server.site.store.txn({server.key: current.meta.revision}, {server.key: changed.dump()})
    await run.measure()
    say(logger, "resize refused", logging.WARNING, vm=current.name, field=field, why=error.sentence)
    if operation and asked:
        sentence = (
            f"{current.name} could not follow the change of {field}, which is as it was: "
            f"{error.sentence}"
        )
        hint = (
            f"change it while {current.name} is stopped; virtuary logs {current.name} may tell why"
        )
        refused = error if isinstance(error, NoRoom) else Failed(sentence, hint)
        await operations.finish(server.site.store, operation.key, refused)


async def resize_disk(server: Server, process: Process, world: World, step: ResizeDisk) -> None:
    """Grow the disk under the running guest, then the guest's partition and filesystem."""
    run, wanted = process.run, step.wanted
    await note_on(server, world, "growing the disk", stage="disk")
    with contextlib.suppress(ProcessLookupError):  # who watches it tells
        raise_file_size(run.runtime.pid, disk_bound(wanted))
    try:
        await warm.resize_disk(process.monitor, wanted)
    except CommandFailed as error:
        await _take_back(server, process, world, "disk", error)
        return
    crashpoint("grow.after_resize")
    await _tell(run, room.after_disk(wanted))
    crashpoint("grow.after_record")
    await server.write(**parts.grown(ROOT, wanted))


CAPABILITY = capability(
    does_with(Tune, apply),
    does_with(ResizeCpus, resize),
    does_with(ResizeMemory, resize),
    does_with(ResizeDisk, resize_disk),
    fails=give_up,
)
