"""What a host does next about one server: the whole order on one screen. Pure; None means wait.

A world goes in, the first planner that has an answer gives the next step. Boot, recovery after a
crash, shutdown and deletion are rows of the same order. Steps are idempotent, so a crash between
any two of them is just another look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from virtuary.model import deeds
from virtuary.node.copies import plan as copies
from virtuary.node.disks import plan as disks
from virtuary.node.identity import plan as identity
from virtuary.node.nics import plan as nics
from virtuary.node.power import plan as power
from virtuary.node.report import plan as report
from virtuary.node.server.step import Planner, Step, Wait
from virtuary.node.server.world import World
from virtuary.node.slow import plan as slow
from virtuary.node.tuning import plan as tuning
from virtuary.node.volumes import plan as volumes
from virtuary.node.warm import plan as warm

TOWARDS_A_START: tuple[Planner, ...] = (
    copies.await_source,  # a copy is nothing before its source gave what it is made of
    disks.await_image,  # a disk lies on its image
    copies.stand,  # the disk of a copy lies on what was given, not on the image
    disks.make,  # once, also for a server that is not to start
    power.may_start,  # its turn and its networks: what follows is for servers that are to start
    volumes.await_volumes,  # and its other disks are there
    copies.start_live,  # whoever goes on from a memory has its disk as that memory knows it,
    power.stay_off,
    disks.grow,  # so only others' are grown
    disks.seed,
    warm.start,  # instead of a boot, where a template was chosen with the disk
    power.start,
)
"""No process is there. An answer of Wait ends this part of the order."""

WHILE_IT_RUNS: tuple[Planner, ...] = (
    power.serve,  # a guest that is let run finds its network
    copies.load_live,  # a state is loaded before its CPUs may run
    warm.load,
    power.release,
    identity.give,  # by the guest itself, so once it runs
    copies.end_silent,
)
"""The monitor answers, and nobody wishes it stopped."""


def towards_a_start(world: World) -> Step | None:
    """What must be there before QEMU can be started."""
    if not world.absent or world.vm.meta.deleted:
        return None
    step = _first(TOWARDS_A_START, world)
    return None if isinstance(step, Wait) else step


def while_it_runs(world: World) -> Step | None:
    """Make a living machine do what is wished."""
    there = world.alive and world.vm.status.runtime is not None and world.process.connected
    stops = world.vm.wanted == "stopped" or world.restart_due
    return _first(WHILE_IT_RUNS, world) if there and not stops else None


FULFILLED: Mapping[type[deeds.Deed], Callable[[World], bool]] = {
    deeds.Create: disks.is_made,
    deeds.Launch: power.is_launched,
    deeds.Copy: copies.is_copied,
    deeds.Start: power.is_started,
    deeds.Restart: power.is_started,
    deeds.Stop: power.has_stopped,
    deeds.Delete: power.is_deleted,
    deeds.Pause: power.is_paused,
    deeds.Resume: power.is_resumed,
    deeds.Change: tuning.is_changed,
    deeds.AttachDisk: volumes.is_attached,
    deeds.DetachDisk: volumes.is_detached,
}
"""When what was asked for has come true."""


def finish(world: World) -> Step | None:
    """An operation ends when its wish has come true."""
    operation = world.operation
    if operation is None:
        return None
    fulfilled = FULFILLED.get(type(operation.spec.deed))
    return report.Finish(operation) if fulfilled and fulfilled(world) else None


ORDER: tuple[Planner, ...] = (
    power.leave_to_owner,  # only the owner decides
    copies.hands_off,  # and nobody while a source hands over
    volumes.cancel,  # what is over comes first: nothing is planned for what nobody wants,
    power.cancel,
    volumes.release,  # a disk that a server is rid of may be another's at once
    power.remove,
    copies.end_without_identity,
    power.end,  # or for a process that is over
    copies.tidy,  # before another copy is made beside what the last one left
    copies.give,  # before it is stopped or started by its own wish
    power.stop,
    towards_a_start,
    tuning.follow,  # limits hold before the CPUs are let run
    nics.plug,  # a guest that boots finds all its NICs
    volumes.plug,  # and all its disks
    while_it_runs,
    report.write,  # what was seen is written before whoever waits for it is told
    finish,
    report.note,
    slow.explain,  # only where nothing else is to be done
)


def plan(world: World) -> Step | None:
    """The next step of this host about one server; None means wait."""
    step = _first(ORDER, world)
    return None if isinstance(step, Wait) else step


def _first(planners: tuple[Planner, ...], world: World) -> Step | None:
    for planner in planners:
        if step := planner(world):
            return step
    return None
