"""Volumes are plugged in and out while a server runs, and grow under its guest."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed, PeerAway, VirtuaryError, of_system
from virtuary.model.deeds import AttachDisk, DetachDisk
from virtuary.model.disk import Disk
from virtuary.model.operation import Operation
from virtuary.model.vm import Vm
from virtuary.model.volume import Volume
from virtuary.node import operations, pools
from virtuary.node.machine.resolve import volume_disk
from virtuary.node.server.process import Process
from virtuary.node.server.server import Server
from virtuary.node.server.step import Step, capability, does, does_with
from virtuary.node.server.world import World
from virtuary.node.tuning.steps import raise_file_size
from virtuary.node.volumes.plan import CancelDisk, GrowVolume, PlugDisk, ReleaseVolume, UnplugDisk
from virtuary.qemu import plug, warm
from virtuary.qemu.bounds import disk_bound
from virtuary.qemu.platforms.table import PLATFORMS
from virtuary.storage.own import open_disk
from virtuary.store import documents

PUT_OFF = 30.0
"""Seconds until a disk is tried again that nobody waits for."""
declare("volume.after_plug", "volume.after_record", "volume.after_unplug", "volume.after_resize")


async def plug_disk(server: Server, process: Process, world: World, step: PlugDisk) -> None:
    """Give the machine one more disk; its guest sees it appear. Where nobody waits for that it is
    tried again.
    """
    try:
        await _plug(server, process, world, step)
    except (VirtuaryError, OSError) as error:
        what = f"the disk {step.volume.name} can't be plugged"
        raise _final(server, process, world, step.disk.number, what, error) from error


async def _plug(server: Server, process: Process, world: World, step: PlugDisk) -> None:
    pools.check(server.site, step.volume)
    machine = volume_disk(server.site, step.disk, step.volume)
    platform = PLATFORMS[world.vm.spec.arch]
    port = f"port{platform.disk_port(machine.number)}"
    if process.run.devices and port not in process.run.devices:
        raise Failed(
            f"{world.vm.name} runs since an older Virtuary, and has no place for more disks",
            f"virtuary restart {world.vm.name}",
        )
    # first, so that whatever is cut off later is found, and nobody else has it meanwhile
    await _record(server, world.vm, (*_others(world.vm, step.disk.number), step.disk))
    crashpoint("volume.after_record")
    await plug.unplug_disk(process.monitor, machine.name)  # what a plugging cut off left
    with contextlib.suppress(ProcessLookupError):  # who watches it tells
        raise_file_size(process.run.runtime.pid, disk_bound(machine.size))
    access = os.O_RDONLY if machine.read_only else os.O_RDWR
    handle = open_disk(machine.file, None, machine.size, access)
    try:
        await plug.plug_disk(process.monitor, machine, platform, handle)
    finally:
        os.close(handle)
    crashpoint("volume.after_plug")
    await process.run.look_for_devices()


async def unplug_disk(server: Server, process: Process, world: World, step: UnplugDisk) -> None:
    """Take a disk from the machine, when its guest lets go of it. Raises GuestSilent when it does
    not.
    """
    try:
        await plug.unplug_disk(process.monitor, f"disk{step.number}")
    except (VirtuaryError, OSError) as error:
        what = f"disk {step.number} can't be taken out"
        raise _final(server, process, world, step.number, what, error) from error
    crashpoint("volume.after_unplug")
    await _record(server, world.vm, _others(world.vm, step.number))


def _others(vm: Vm, number: int) -> tuple[Disk, ...]:
    runtime = vm.status.runtime
    return tuple(disk for disk in runtime.disks if disk.number != number) if runtime else ()


async def _record(server: Server, vm: Vm, disks: tuple[Disk, ...]) -> None:
    """Write down which disks the machine has now."""
    if runtime := vm.status.runtime:
        ordered = tuple(sorted(disks, key=lambda disk: disk.number))
        await server.write(runtime=runtime.but(disks=ordered))


async def grow_volume(server: Server, process: Process, world: World, step: GrowVolume) -> None:
    """Its guest sees a larger disk; what lies on it is the guest's affair."""
    wanted = step.volume.spec.size
    with contextlib.suppress(ProcessLookupError):
        raise_file_size(process.run.runtime.pid, disk_bound(wanted))
    await warm.resize_disk(process.monitor, wanted, f"disk{step.disk.number}")
    crashpoint("volume.after_resize")
    await _write(server, step.volume, lambda volume: volume.seen(size=wanted))


async def release_volume(server: Server, world: World, step: ReleaseVolume) -> None:
    await _write(server, step.volume, lambda volume: volume.let_go(world.vm.id))


async def _write(server: Server, volume: Volume, how: Callable[[Volume], Volume | None]) -> None:
    await documents.change(server.site.store, Volume, volume.key, how)


def _final(
    server: Server,
    process: Process,
    world: World,
    number: int,
    what: str,
    error: VirtuaryError | OSError,
) -> VirtuaryError:
    """Why it can't be; the end of it where somebody waits for that, else it is tried again after a
    while, in which other things go on.
    """
    why = error if isinstance(error, VirtuaryError) else of_system(error)
    deed = world.operation.spec.deed if world.operation else None
    if not isinstance(deed, (AttachDisk, DetachDisk)) or deed.number != number:
        process.refuse(f"disk{number}", number, server.site.clock.now(), PUT_OFF)
        return PeerAway(f"{what}: {why.sentence}", why.hint)
    kind = Failed if why.retry else type(why)
    return kind(f"{what}: {why.sentence}", why.hint)


async def give_up(server: Server, world: World, step: Step, error: VirtuaryError) -> None:
    """A step failed for good: the machine runs on with the disks it has, and so it is wished."""
    operation = world.operation
    if isinstance(step, GrowVolume):
        await _take_size_back(server, step.volume, error)
    elif operation and isinstance(operation.spec.deed, (AttachDisk, DetachDisk)):
        await _take_back(server, operation, operation.spec.deed, error)


async def cancel_disk(server: Server, world: World, step: CancelDisk) -> None:
    await _take_back(server, step.operation, step.deed, None)


async def _take_back(
    server: Server, operation: Operation, deed: AttachDisk | DetachDisk, error: VirtuaryError | None
) -> None:
    """What was wished is as it was, and the operation has ended: failed, or cancelled."""
    current = server.load()
    if current is None:
        return
    others = tuple(disk for disk in current.spec.disks if disk.number != deed.number)
    disks = others if isinstance(deed, AttachDisk) else (*others, deed.disk)
    ordered = tuple(sorted(disks, key=lambda disk: disk.number))
    changed = current.but(spec=current.spec.but(disks=ordered))
    failed = operations.finished(operation, error, cancelled=error is None)
    await server.site.store.txn(
        {server.key: current.meta.revision, operation.key: operation.meta.revision},
        {server.key: changed.dump(), operation.key: failed.dump()},
    )


async def _take_size_back(server: Server, volume: Volume, error: VirtuaryError) -> None:
    """What was asked of the volume ends, and it is wished as large as it is."""
    store = server.site.store
    active = operations.open_operations(store, volume.key)
    puts = {item.key: operations.finished(item, error).dump() for item in active}
    expect = {item.key: item.meta.revision for item in active}
    await documents.change(
        store,
        Volume,
        volume.key,
        lambda now: now.but(spec=now.spec.but(size=now.status.size or now.spec.size)),
        expect,
        puts,
    )


CAPABILITY = capability(
    does_with(PlugDisk, plug_disk),
    does_with(UnplugDisk, unplug_disk),
    does_with(GrowVolume, grow_volume),
    does(ReleaseVolume, release_volume),
    does(CancelDisk, cancel_disk),
    fails=give_up,
)
