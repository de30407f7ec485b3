"""What a machine that runs is given: decided by `tuning`, made true by the steps here. Limits and
shares at once, CPUs, memory and disk by the guest's leave; what a guest does not take in time is
taken back, and said.
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
from virtuary.base.units import MIB, format_size
from virtuary.guest import room
from virtuary.host import capacity, shares
from virtuary.host.cgroups import set_bounds
from virtuary.jail.walls import may_raise
from virtuary.model.host import NumaNode
from virtuary.model.operation import Operation
from virtuary.model.resources import Cpu, DiskIo
from virtuary.model.vm import Vm
from virtuary.node import operations
from virtuary.node.effects import Effect, monitor_of
from virtuary.node.run import Run
from virtuary.node.server import Server
from virtuary.node.world import Step, Tuning, World
from virtuary.qemu import tune, warm
from virtuary.qemu.describe import THREADS, disk_bound, memory_bound
from virtuary.qemu.qmp import CommandFailed

logger = logging.getLogger("virtuary.tuning")
NEAR = 16 * MIB
"""What a guest may keep of memory it was asked to give back: some pages can't be moved."""
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


def tuning_of(vm: Vm, cpus: int) -> Tuning:
    return Tuning(vm.spec.cpu, vm.spec.disk_io, cpus, vm.spec.memory_merge)


def pinned(cpu: Cpu, nodes: Sequence[NumaNode]) -> tuple[int, ...]:
    """The CPUs of the host it may run on: those it is pinned to, or those of its NUMA node; empty
    for all. Pure.
    """
    return cpu.pin or next((node.cpus for node in nodes if node.number == cpu.node), ())


def untuned(cpus: int) -> Tuning:
    """What a process has that was just started."""
    return Tuning(Cpu(), DiskIo(), cpus)


def tuning(world: World) -> Step | None:
    """The planner: make a living machine have what its spec says, as far as its process can.
    Pure.
    """
    vm, runtime = world.vm, world.vm.status.runtime
    if (
        world.process != "alive"
        or runtime is None
        or not world.connected
        or vm.spec.power == "stopped"
        or world.restart_due
    ):
        return None
    shape = runtime.shape
    if shape is None or world.qemu in ("inmigrate", None):
        return None
    if not tuned(world):
        return Step("tune", tuning_of(vm, world.cpus or vm.spec.cpus))
    if world.qemu != "running" or world.cpus is None or world.memory is None or not _settled(world):
        return None
    wishes = {field: getattr(vm.spec, field) for field in RESIZES.values()}
    open_wishes = {
        field: wish for field, wish in wishes.items() if world.refused.get(field) != wish
    }
    if (cpus := open_wishes.get("cpus")) and world.cpus != cpus and shape.allows(cpus=cpus):
        return Step("resize_cpus", cpus)
    memory = open_wishes.get("memory")
    if (
        memory
        and not near(world.memory, memory)
        and shape.allows(memory=memory)
        and not world.reclaimed
    ):
        return Step("resize_memory", memory)
    if (disk := open_wishes.get("disk")) and vm.status.disk_size and disk > vm.status.disk_size:
        return Step("resize_disk", disk)
    return None


def shortfall(world: World) -> str | None:
    """What a server that runs has less than it was given, in words, because its guest keeps it so.
    Pure.
    """
    spec = world.vm.spec
    if (
        "memory" in world.refused
        and world.memory is not None
        and world.memory + warm.STEP <= spec.memory
    ):
        return (
            f"its guest has {format_size(world.memory)} of its {format_size(spec.memory)} of "
            "memory and takes no more"
        )
    if "cpus" in world.refused and world.cpus is not None and world.cpus < spec.cpus:
        return f"its guest has {world.cpus} of its {spec.cpus} CPUs and takes no more"
    return None


def follows(world: World) -> bool:
    """Whether a machine that was changed has all of it that it can have now. Pure."""
    runtime = world.vm.status.runtime
    if (
        world.process != "alive"
        or runtime is None
        or runtime.shape is None
        or world.qemu != "running"
    ):
        return True
    return world.cpus is not None and world.memory is not None and tuning(world) is None


def tuned(world: World) -> bool:
    """Whether the limits and shares of a machine are those that are wished. Pure."""
    runtime = world.vm.status.runtime
    if world.process != "alive" or runtime is None or runtime.shape is None:
        return True
    return world.tuned == tuning_of(world.vm, world.cpus or world.vm.spec.cpus)


def near(has: int, wanted: int) -> bool:
    """Whether this is the memory that is wished, as far as a guest can follow. Pure."""
    return wanted - warm.STEP < has < wanted + NEAR


def _settled(world: World) -> bool:
    """Whether the guest is up and its own machine, so that it may be asked for something."""
    if world.vm.status.identity is None and world.image and world.image.status.agent:
        return False
    return world.ready or "ssh" in {**world.vm.status.stages, **world.signals}


# ---- the steps


async def apply(worker: Server, world: World, wanted: Tuning) -> None:
    """Set limits and shares; what this host can't give is written down."""
    monitor, runtime = monitor_of(worker), world.vm.status.runtime
    assert runtime
    threads: list[int] = []
    if (
        wanted.cpu.limit is not None
        or wanted.cpu.pin
        or wanted.cpu.node is not None
        or worker.tuned != untuned(wanted.cpus)
    ):
        threads = await tune.find_threads(monitor, runtime.pid)
    weight = worker.site.weight_of(world.vm)
    cpu = wanted.cpu.but(pin=pinned(wanted.cpu, capacity.find_numa()))
    gaps = await asyncio.to_thread(shares.apply_cpu, world.vm.id, threads, cpu, weight)
    if (now := worker.site.weight_of(world.vm)) != weight:  # others came or went meanwhile
        shares.set_weight(world.vm.id, now)
    if wanted.merge and not capacity.merges_pages():
        gaps.append(
            "equal pages are not merged (KSM is off: 1 into /sys/kernel/mm/ksm/run turns it on "
            "for the whole host)"
        )
    if (
        wanted.io.weight != shares.ORDINARY
        or worker.tuned is None
        or worker.tuned.io.weight != shares.ORDINARY
    ):
        gap = shares.set_io_weight(world.vm.id, wanted.io.weight)
        gaps += [gap] if gap and wanted.io.weight != shares.ORDINARY else []
    if wanted.io.limited or worker.tuned is None or worker.tuned.io.limited:
        try:
            await tune.limit_disk(monitor, wanted.io)
        except CommandFailed as error:
            gaps.append(f"no limit of disk traffic ({error.sentence})")
    worker.tuned = wanted
    crashpoint("tune.after")
    if tuple(gaps) != world.vm.status.gaps:
        await worker.write(world.vm, gaps=tuple(gaps))


async def resize_cpus(worker: Server, world: World, wanted: int) -> None:
    """Plug or unplug virtual CPUs, and see that the guest uses them."""
    await _resize(worker, world, "cpus", wanted)


async def resize_memory(worker: Server, world: World, wanted: int) -> None:
    """Offer the guest memory, or ask it to give some back."""
    await _resize(worker, world, "memory", wanted)


async def _resize(worker: Server, world: World, field: str, wanted: int) -> None:
    monitor, run = monitor_of(worker), worker.run
    assert run
    base = run.base
    words = "CPUs" if field == "cpus" else "memory"
    if world.operation:
        await operations.note(
            worker.site.store, world.operation.key, f"the guest is given other {words}", stage=words
        )
    crashpoint("resize.before")
    try:
        if field == "memory":
            raise_memory(world.vm, max(wanted, run.size.memory if run.size else 0))
            await _tell(run, room.before_memory())
        await (
            tune.offer_cpus(monitor, wanted)
            if field == "cpus"
            else tune.offer_memory(monitor, base, wanted)
        )
        crashpoint("resize.after_offer")
        if field == "cpus":
            await _tell(run, room.after_cpus(wanted))
        await _wait_for(worker, field, wanted)
    except VirtuaryError as error:
        if not run.ended:
            await _take_back(worker, world, field, error)
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


async def _wait_for(worker: Server, field: str, wanted: int) -> None:
    """Until the guest has what it was offered; raises GuestSilent when it does not take it. Returns
    early when something else is wished.
    """
    run, clock = worker.run, worker.site.clock
    assert run
    patience = worker.site.settings.resources.patience
    until = clock.now() + patience
    while True:
        now = worker.load()
        if (
            now is None
            or run.ended
            or getattr(now.spec, field) != wanted
            or now.spec.power != "running"
            or now.status.held_for_memory
        ):
            return
        await run.measure()
        has = run.size and getattr(run.size, field)
        there = has is not None and (near(has, wanted) if field == "memory" else has == wanted)
        if there and await _sees(worker, field, wanted):
            return
        if clock.now() > until:
            raise GuestSilent(
                f"its guest has {_say(field, has)} instead of {_say(field, wanted)} after "
                f"{patience:.0f} s"
            )
        await clock.sleep(0.1)


def _say(field: str, amount: int | None) -> str:
    return format_size(amount) if field == "memory" and amount is not None else str(amount)


async def _sees(worker: Server, field: str, wanted: int) -> bool:
    """Whether the guest itself counts so many CPUs; memory is counted as taken only once its driver
    says so.
    """
    run = worker.run
    if field != "cpus" or run is None or run.agent is None:
        return True
    try:
        return await run.agent.cpus(deadline=5) == wanted
    except VirtuaryError:
        return True  # an agent that does not know: QEMU's word counts


async def give_up(worker: Server, world: World, step: Step, error: VirtuaryError) -> None:
    """A step failed: the machine runs on with what it has. What its guest was to take is taken
    back; limits are tried again.
    """
    if step.name in RESIZES:
        await _take_back(worker, world, RESIZES[step.name], error)
    elif operation := _asked(world):
        sentence = (
            f"limits and shares of {world.vm.name} can't be set now, and are tried again: "
            f"{error.sentence}"
        )
        await operations.finish(worker.site.store, operation.key, type(error)(sentence, error.hint))


def _asked(world: World) -> Operation | None:
    """The operation by which somebody asked for a change."""
    return world.operation if world.operation and world.operation.spec.kind == "set" else None


def _wish_before(world: World, field: str) -> tuple[object, bool]:
    """What was wished before the change that its guest refused, and whether somebody asked for that
    change: what nobody asked for stays a wish, and what a guest says it has never becomes one.
    Pure.
    """
    operation = _asked(world)
    if operation and field in operation.spec.params:
        return operation.spec.params[field], True
    return getattr(world.vm.spec, field), False


async def _take_back(worker: Server, world: World, field: str, error: VirtuaryError) -> None:
    """The guest refused: what it was offered is withdrawn, the wish is what it was, and the
    operation says why. It runs on in any case; a wish that stays is not put to the guest again for
    a while.
    """
    run, current = worker.run, worker.load()
    if run is None or run.monitor is None or current is None:
        return
    (before, asked), status, operation = _wish_before(world, field), current.status, _asked(world)
    if not asked:
        worker.refuse(field, before)
    if field == "disk":  # what QEMU has made larger stays so
        size = await tune.find_disk(run.monitor)
        before, status = (
            (before, status) if size == status.disk_size else (size, status.but(disk_size=size))
        )
    elif asked and isinstance(before, int):
        offer = (
            tune.offer_cpus(run.monitor, before)
            if field == "cpus"
            else tune.offer_memory(run.monitor, run.base, before)
        )
        await offer
    changed = current.but(spec=current.spec.but(**{field: before}), status=status)
    await worker.site.store.txn({worker.key: current.meta.revision}, {worker.key: changed.dump()})
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
        await operations.finish(worker.site.store, operation.key, refused)


async def resize_disk(worker: Server, world: World, wanted: int) -> None:
    """Grow the disk under the running guest, then the guest's partition and filesystem."""
    monitor, run = monitor_of(worker), worker.run
    assert run
    if world.operation:
        await operations.note(
            worker.site.store, world.operation.key, "growing the disk", stage="disk"
        )
    with contextlib.suppress(ProcessLookupError):  # who watches it tells
        raise_file_size(run.runtime.pid, disk_bound(wanted))
    try:
        await warm.resize_disk(monitor, wanted)
    except CommandFailed as error:
        await _take_back(worker, world, "disk", error)
        return
    crashpoint("grow.after_resize")
    await _tell(run, room.after_disk(wanted))
    crashpoint("grow.after_record")
    await worker.write(world.vm, disk_size=wanted)


RESIZES = {"resize_cpus": "cpus", "resize_memory": "memory", "resize_disk": "disk"}
"""Steps that change what the guest has, and of what."""
STEPS: dict[str, Effect] = {
    "tune": apply,
    **{effect.__name__: effect for effect in (resize_cpus, resize_memory, resize_disk)},
}
