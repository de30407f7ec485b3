"""Volumes are there before a server starts, are plugged and unplugged while it runs, grow with
their machine, and are let go when no machine of the server has them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.model.deeds import AttachDisk, DetachDisk
from virtuary.model.disk import Disk
from virtuary.model.operation import Operation
from virtuary.model.volume import Volume
from virtuary.node.power.plan import Fail
from virtuary.node.server.step import Step, Wait
from virtuary.node.server.world import World

SHOWS = "virtuary disk list shows the disks"


@dataclass(frozen=True)
class PlugDisk(Step):
    disk: Disk
    volume: Volume


@dataclass(frozen=True)
class UnplugDisk(Step):
    number: int


@dataclass(frozen=True)
class GrowVolume(Step):
    """Grow a volume under the guest that runs."""

    disk: Disk
    volume: Volume


@dataclass(frozen=True)
class CancelDisk(Step):
    """Somebody does not want any more that a disk is attached, or detached: it is as it was."""

    operation: Operation
    deed: AttachDisk | DetachDisk


@dataclass(frozen=True)
class ReleaseVolume(Step):
    """Nobody of this server has the volume any more: another one may."""

    volume: Volume


def cancel(world: World) -> Step | None:
    """An attachment that is cancelled is taken back, and so is a detachment."""
    operation = world.operation
    if operation is None or not operation.spec.cancel:
        return None
    deed = operation.spec.deed
    return CancelDisk(operation, deed) if isinstance(deed, (AttachDisk, DetachDisk)) else None


def release(world: World) -> Step | None:
    """A volume that the server holds without having it, or wanting it."""
    vm = world.vm
    runtime = vm.status.runtime if not world.absent else None
    wished = {disk.volume for disk in vm.spec.disks} if not vm.meta.purge else set[str]()
    there = {disk.volume for disk in runtime.disks} if runtime else set[str]()
    idle = (item for item in world.volumes.holding if item.id not in wished | there)
    volume = next(idle, None)
    return ReleaseVolume(volume) if volume else None


def await_volumes(world: World) -> Step | None:
    """Before a start each of its volumes is there, and as large as it is wished."""
    for disk in world.vm.spec.disks:
        if not disk.volume:
            continue
        volume = world.volumes.listed.get(disk.number)
        if volume is None or volume.meta.deleted or volume.status.state == "failed":
            return Fail(f"the disk {disk.serial} is not to be had: {_why(volume)}", SHOWS)
        if not volume.usable:
            return Wait()
        if why := world.volumes.away.get(volume.id):
            return Fail(f"the disk {volume.name} is not to be had: {why}", SHOWS)
    return None


def _why(volume: Volume | None) -> str:
    if volume is None:
        return "it is gone"
    return volume.status.reason or "it lies in the trash"


def plug(world: World) -> Step | None:
    """A disk that is wished and not there, or there and not so wished; the root disk stays."""
    runtime = world.vm.status.runtime
    if runtime is None or runtime.end or not world.takes_devices:
        return None
    wished = {disk.number: disk for disk in world.vm.spec.disks if disk.volume}
    there = {disk.number: disk for disk in runtime.disks}
    if (wished or there) and not world.volumes.plugged_known:
        return Wait()  # a guest that boots finds all its disks
    wrong = _otherwise(wished, there)
    if due := [number for number in wrong if not _put_off(world, number)]:
        # a guest that stands still lets go of nothing, and would as soon as it goes on
        return UnplugDisk(due[0]) if world.process.qemu == "running" else None
    has = set(there) - world.volumes.lost
    return _first_of(world, [disk for n, disk in wished.items() if n not in wrong], has)


def _otherwise(wished: dict[int, Disk], there: dict[int, Disk]) -> list[int]:
    """Disks that are there and not wished, or not so."""
    return [n for n, disk in there.items() if n not in wished or not same(wished[n], disk)]


def _first_of(world: World, disks: list[Disk], has: set[int]) -> Step | None:
    steps = (_towards(world, disk, there=disk.number in has) for disk in disks)
    return next((step for step in steps if step), None)


def _put_off(world: World, number: int) -> bool:
    """Whether plugging this disk, or taking it out, failed a moment ago, and nobody waits for
    it.
    """
    return f"disk{number}" in world.tuning.refused


def _towards(world: World, disk: Disk, *, there: bool) -> Step | None:
    """What one disk of a machine that runs needs to be as wished."""
    volume = world.volumes.listed.get(disk.number)
    if volume is None or volume.status.size is None or _put_off(world, disk.number):
        return None
    if not there:
        return PlugDisk(disk, volume)
    return None if volume.usable else GrowVolume(disk, volume)


def same(one: Disk, other: Disk) -> bool:
    """Whether both are the same device to a guest."""
    return (one.volume, one.serial, one.read_only) == (other.volume, other.serial, other.read_only)


def is_attached(world: World) -> bool:
    """A machine that runs has it; a server that does not run has it as soon as it is written."""
    deed, runtime = _deed(world.operation), world.vm.status.runtime
    if runtime is None or not world.alive:
        return isinstance(deed, AttachDisk)
    has = {disk.number for disk in runtime.disks} - world.volumes.lost
    return isinstance(deed, AttachDisk) and world.volumes.plugged_known and deed.number in has


def is_detached(world: World) -> bool:
    deed = _deed(world.operation)
    return all(volume.id != deed.volume for volume in world.volumes.holding)


def _deed(operation: Operation | None) -> AttachDisk | DetachDisk:
    assert operation and isinstance(operation.spec.deed, (AttachDisk, DetachDisk))
    return operation.spec.deed
