"""What a machine that runs is given: limits and shares at once; CPUs, memory and disk by its
guest's leave. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from virtuary.base.units import MIB, format_size
from virtuary.model.cpu import CpuShares
from virtuary.model.deeds import Change
from virtuary.model.disk import DiskIo
from virtuary.model.vm import Sized, Vm
from virtuary.node.server.step import Step
from virtuary.node.server.world import Tuning, World
from virtuary.qemu.warm import STEP

NEAR = 16 * MIB
"""What a guest may keep of memory it was asked to give back: some pages can't be moved."""


@dataclass(frozen=True)
class Tune(Step):
    """Set limits and shares."""

    wanted: Tuning


@dataclass(frozen=True)
class Resize(Step):
    """Have the guest take or give of what its type names."""

    field: ClassVar[Sized]
    wanted: int


@dataclass(frozen=True)
class ResizeCpus(Resize):
    field = "cpus"


@dataclass(frozen=True)
class ResizeMemory(Resize):
    field = "memory"


@dataclass(frozen=True)
class ResizeDisk(Resize):
    field = "disk"


def follow(world: World) -> Step | None:
    """A living machine has what its spec says, as far as its process can."""
    vm, runtime, qemu = world.vm, world.vm.status.runtime, world.process.qemu
    if not world.alive or runtime is None or not world.process.connected:
        return None
    if vm.wanted == "stopped" or world.restart_due or runtime.shape is None:
        return None
    if qemu in ("inmigrate", None):
        return None
    if not tuned(world):
        return Tune(tuning_of(vm, world.tuning.cpus or vm.spec.cpu.count))
    return _resize(world) if qemu == "running" and _settled(world) else None


def _resize(world: World) -> Step | None:
    """The first of CPUs, memory and disk that is wished otherwise and was not refused."""
    vm, runtime, has = world.vm, world.vm.status.runtime, world.tuning
    shape = runtime.shape if runtime else None
    if shape is None or has.cpus is None or has.memory is None:
        return None
    cpus, memory = vm.spec.cpu.count, vm.spec.memory.size
    if has.cpus != cpus and shape.allows(cpus=cpus) and not refused(world, "cpus"):
        return ResizeCpus(cpus)
    follows = near(has.memory, memory) or vm.status.pressure.reclaimed
    if not follows and shape.allows(memory=memory) and not refused(world, "memory"):
        return ResizeMemory(memory)
    return _grow(world)


def _grow(world: World) -> Step | None:
    """A disk that is wished larger."""
    wish, has = world.vm.spec.root.size, world.vm.status.disk.size
    larger = wish is not None and has and wish > has
    return ResizeDisk(wish) if wish and larger and not refused(world, "disk") else None


def refused(world: World, field: Sized) -> bool:
    """Whether the guest would not take just this lately."""
    return world.tuning.refused.get(field) == world.vm.spec.sizes[field]


def _settled(world: World) -> bool:
    """Whether the guest is up and its own machine, so that it may be asked for something."""
    if world.vm.status.identity.given is None and world.image and world.image.status.agent:
        return False
    return world.ready or "ssh" in {**world.vm.status.stages, **world.guest.signals}


def shortfall(world: World) -> str | None:
    """What a server that runs has less than it was given, in words, because its guest keeps it
    so.
    """
    spec, has = world.vm.spec, world.tuning
    if "memory" in has.refused and has.memory is not None and has.memory + STEP <= spec.memory.size:
        return (
            f"its guest has {format_size(has.memory)} of its {format_size(spec.memory.size)} of "
            "memory and takes no more"
        )
    if "cpus" in has.refused and has.cpus is not None and has.cpus < spec.cpu.count:
        return f"its guest has {has.cpus} of its {spec.cpu.count} CPUs and takes no more"
    return None


def is_changed(world: World) -> bool:
    """Whether a change that somebody asked for is made, as far as it can be now."""
    deed = world.operation.spec.deed if world.operation else None
    return follows(world) if isinstance(deed, Change) and deed.resizes else tuned(world)


def follows(world: World) -> bool:
    """Whether a machine that was changed has all of it that it can have now."""
    runtime, has = world.vm.status.runtime, world.tuning
    if not world.alive or runtime is None or runtime.shape is None:
        return True
    if world.process.qemu != "running":
        return True
    return has.cpus is not None and has.memory is not None and follow(world) is None


def tuned(world: World) -> bool:
    """Whether the limits and shares of a machine are those that are wished."""
    runtime = world.vm.status.runtime
    if not world.alive or runtime is None or runtime.shape is None:
        return True
    return world.tuning.tuned == tuning_of(world.vm, world.tuning.cpus or world.vm.spec.cpu.count)


def near(has: int, wanted: int) -> bool:
    """Whether this is the memory that is wished, as far as a guest can follow."""
    return wanted - STEP < has < wanted + NEAR


def tuning_of(vm: Vm, cpus: int) -> Tuning:
    there = {disk.number for disk in vm.status.runtime.disks} if vm.status.runtime else set[int]()
    others = tuple(
        (disk.number, disk.io) for disk in vm.spec.disks if disk.number in there and disk.io.limited
    )
    return Tuning(vm.spec.cpu.shares, vm.spec.root.io, cpus, vm.spec.memory.merge, others)


def untuned(cpus: int) -> Tuning:
    """What a process has that was just started."""
    return Tuning(CpuShares(), DiskIo(), cpus)
