"""Copies of servers, seen from the source and from the copy. Pure.

A copy is a document that waits for its source, which gives it what it is made of. A live copy goes
on with its source's memory, and becomes a machine of its own in its first run, or it is nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.model.deeds import Copy
from virtuary.model.vm import Vm
from virtuary.node.power.ends import crash_reason
from virtuary.node.power.plan import Kill, is_launched
from virtuary.node.server.pre_identity import awaits_identity
from virtuary.node.server.step import Step, Wait
from virtuary.node.server.world import World

SILENT_LIMIT = 120.0
"""Seconds for which the guest of a live copy may keep silent before the copy is given up."""


@dataclass(frozen=True)
class TidyHome(Step):
    """Remove what a crash in the middle of copying left in the server's folder."""


@dataclass(frozen=True)
class EndSave(Step):
    """Let a source run on that stands still since a save of it was cut off."""


@dataclass(frozen=True)
class RefuseCopy(Step):
    copy: Vm
    why: str


@dataclass(frozen=True)
class SaveLive(Step):
    copy: Vm


@dataclass(frozen=True)
class ShareDisk(Step):
    copy: Vm


@dataclass(frozen=True)
class ConvertDisk(Step):
    copy: Vm


@dataclass(frozen=True)
class DropCopy(Step):
    """The copy is nothing, and removed."""

    why: str


@dataclass(frozen=True)
class StandOnLayer(Step):
    """Make the copy's disk: an overlay on what its source gave."""


@dataclass(frozen=True)
class StartLive(Step):
    pass


@dataclass(frozen=True)
class LoadLive(Step):
    """Read the source's memory into the copy."""


# ---- as a source


def tidy(world: World) -> Step | None:
    """Nothing of a copy that was cut off stays."""
    return TidyHome() if "leftover" in world.disks.files else None


def give(world: World) -> Step | None:
    """The copy that waits longest is given what it is made of, or told why not."""
    vm, seen = world.vm, world.process
    if world.alive and seen.connected and seen.qemu in ("finish-migrate", "postmigrate"):
        return EndSave()
    if not world.copies.waiting or vm.meta.deleted or not vm.status.disk.ready:
        return None
    copy = world.copies.waiting[0]
    mode = copy.spec.origin.mode if copy.spec.origin else "full"
    return _give_live(world, copy) if mode == "live" else _give_disk(world, copy, mode)


def _give_live(world: World, copy: Vm) -> Step | None:
    if why := no_live_source(world):
        return RefuseCopy(copy, why)
    return SaveLive(copy) if world.process.connected and "agent" in world.guest.signals else None


def _give_disk(world: World, copy: Vm, mode: str) -> Step | None:
    vm = world.vm
    if world.alive:
        return RefuseCopy(copy, f"{vm.name} runs") if vm.wanted != "stopped" else None
    if not world.absent:
        return None
    if "disk" not in world.disks.files:
        return RefuseCopy(copy, f"the disk of {vm.name} is gone")
    return ShareDisk(copy) if mode == "overlay" else ConvertDisk(copy)


def no_live_source(world: World) -> str | None:
    """Why the machine can't be copied as it runs; None also where that can't be told yet."""
    vm, seen = world.vm, world.process
    if not world.alive or vm.wanted == "stopped" or world.restart_due:
        return f"{vm.name} does not run any more"
    stands = seen.qemu in ("paused", "prelaunch", "io-error", "inmigrate")
    if vm.wanted == "paused" or stands:
        return f"{vm.name} is paused"
    if seen.silent or seen.qemu not in ("running", None):
        return f"{vm.name} does not run as it should"
    return None


# ---- as a copy


def hands_off(world: World) -> Step | None:
    """While its source hands over, nobody else touches the copy."""
    return Wait() if world.copies.held else None


def end_without_identity(world: World) -> Step | None:
    """A live copy whose process is over before it was a machine of its own is nothing."""
    over = world.absent and world.vm.status.runtime is not None
    return DropCopy(why_no_machine(world)) if over and awaits_identity(world.vm) else None


def why_no_machine(world: World) -> str:
    """Why a live copy ended before it was a machine of its own."""
    runtime = world.vm.status.runtime
    match runtime.end if runtime else "stop":
        case "silent":
            return f"its guest agent did not answer within {SILENT_LIMIT:.0f} s"
        case None:
            return crash_reason(world)
        case _:
            return "it was ended before it was a machine of its own"


def await_source(world: World) -> Step | None:
    """A copy waits until its source has given; it waits for nobody in vain."""
    if not world.vm.spec.origin or world.vm.status.origin.copied:
        return None
    why = in_vain(world)
    return DropCopy(why) if why else Wait()


def in_vain(world: World) -> str | None:
    """Why a copy that waits for its source waits in vain, None when it does not."""
    origin, source = world.vm.spec.origin, world.copies.source
    if source is None or source.meta.deleted or source.meta.purge:
        return f"{origin.name if origin else 'its source'} is gone"
    if world.operation is None or not isinstance(world.operation.spec.deed, Copy):
        return "it was given up"
    return None


def stand(world: World) -> Step | None:
    """What was given is built upon once."""
    copied = world.vm.spec.origin is not None and not world.vm.status.disk.ready
    return StandOnLayer() if copied else None


def start_live(world: World) -> Step | None:
    """A live copy goes on with the memory it was given, or is nothing."""
    if not awaits_identity(world.vm):
        return None
    if world.vm.wanted == "stopped":
        return DropCopy(why_no_machine(world))
    if "state" not in world.disks.files:
        return DropCopy("the memory it was to go on with is gone")
    return StartLive()


def load_live(world: World) -> Step | None:
    runtime = world.vm.status.runtime
    live = runtime is not None and runtime.live
    return LoadLive() if live and world.process.qemu == "inmigrate" else None


def end_silent(world: World) -> Step | None:
    """A live copy whose guest does not answer is not waited for without end."""
    silent = world.process.qemu == "running" and world.process.age > SILENT_LIMIT
    return Kill("silent") if silent and awaits_identity(world.vm) else None


# ---- what was asked for has come true


def is_copied(world: World) -> bool:
    if world.vm.wanted == "stopped":
        return world.vm.status.disk.ready
    return is_launched(world)
