"""What people are shown of a server, and how whoever waits for something is told. Pure."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from virtuary.model.operation import Operation
from virtuary.model.status import CloudInit, State
from virtuary.node.power.plan import is_paused
from virtuary.node.server.pre_identity import awaits_identity, never_handed_out
from virtuary.node.server.step import Step
from virtuary.node.server.world import World
from virtuary.node.tuning.plan import shortfall

BEHIND = 0.5
"""Seconds by which a clock may be behind without a word."""
LESS_MEMORY = "with less memory for a while, because its host is short of it"
NO_SSH = "no answer on SSH since its start"
Shown = tuple[State, str | None]


@dataclass(frozen=True)
class Report(Step):
    """Write what was seen into the status. Its fields are fields of the status."""

    state: State
    reason: str | None
    stages: dict[str, float]
    addresses: tuple[str, ...]
    cpus: int | None
    memory: int | None
    cloud_init: CloudInit | None

    def values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Note(Step):
    """Tell the operation which stage the start is in."""

    stage: str


@dataclass(frozen=True)
class Finish(Step):
    """What was asked for has come true."""

    operation: Operation


def write(world: World) -> Step | None:
    """What was seen is written, when it differs from what is written."""
    status, guest, tuning = world.vm.status, world.guest, world.tuning
    state, reason = state_of(world)
    heard = {stage: round(seconds, 2) for stage, seconds in guest.signals.items()}
    new = {stage: at for stage, at in heard.items() if stage not in status.stages}
    seen = Report(
        state=state,
        reason=reason,
        stages={**status.stages, **new},
        addresses=guest.addresses or status.addresses,
        cpus=(tuning.cpus or status.cpus) if world.alive else None,
        memory=(tuning.memory or status.memory) if world.alive else None,
        cloud_init=guest.cloud_init or status.cloud_init,
    )
    news = any(getattr(status, name) != value for name, value in seen.values().items())
    return seen if news else None


# ---- the state


def state_of(world: World) -> Shown:
    """The state people are shown, and why where that is not plain."""
    return _without_process(world) if world.absent else _with_process(world)


def _without_process(world: World) -> Shown:
    vm, status = world.vm, world.vm.status
    if vm.meta.deleted:
        return "trashed", None
    if not status.disk.ready:
        return "creating", status.reason
    if vm.wanted != "stopped" and world.turn.waits == "boot":
        return "stopped", "it is started when it is its turn"
    if vm.wanted != "stopped" and world.network.state == "failed":
        return "starting", f"{world.network.why}; it is started as soon as that is"
    if status.state == "starting":  # what it waited for is here, or it is not wished any more
        return "stopped", None
    return ("crashed" if status.state == "crashed" else "stopped"), status.reason


def _with_process(world: World) -> Shown:
    vm, status, qemu = world.vm, world.vm.status, world.process.qemu
    if world.process.silent:
        return "unresponsive", "QEMU does not answer its monitor"
    if vm.wanted == "stopped" or world.restart_due or world.turn.leaving:
        return "stopping", None
    if qemu is None:
        unknown = status.state == "unresponsive"
        return ("unknown", None) if unknown else (status.state, status.reason)
    if is_paused(world) or qemu == "io-error":
        return "paused", _why_paused(world)
    if qemu != "running" or not _is_up(world):
        return "starting", _why_starting(world)
    return "running", _why_not_well(world)


def _why_paused(world: World) -> str | None:
    if world.process.qemu == "io-error":
        return "no space: the pool that holds the disk is full; it resumes by itself"
    hold = world.vm.status.pressure.held
    return hold.why if hold and world.vm.wanted == "running" else None


def _why_not_well(world: World) -> str | None:
    """What of a server that runs is not as it should be."""
    vm, status = world.vm, world.vm.status
    if why := status.identity.refuses(vm.name):
        return f"its guest did not take the name {vm.name}: {why}"
    if _unheard(world):
        return NO_SSH
    return LESS_MEMORY if status.pressure.reclaimed else shortfall(world) or _clock_words(world)


def _unheard(world: World) -> bool:
    """Whether nothing was ever heard of a guest without an agent, and nobody waits for it."""
    runtime = world.vm.status.runtime
    without_agent = world.image is not None and not world.image.status.agent
    listened = runtime is not None and runtime.ssh_port is not None
    heard = {**world.vm.status.stages, **world.guest.signals}
    return world.operation is None and without_agent and listened and "ssh" not in heard


def _is_up(world: World) -> bool:
    """Whether the guest is who it is to be, and was heard, as far as its image can tell."""
    vm = world.vm
    if never_handed_out(vm) or (vm.status.identity.renew and world.identity_wanted):
        return False
    has_agent = world.image is not None and world.image.status.agent
    return not has_agent or "agent" in {**vm.status.stages, **world.guest.signals}


def _why_starting(world: World) -> str | None:
    if world.operation:
        return world.operation.status.why or None
    # by a start that was given up meanwhile, and may come all the same
    status = world.vm.status
    return status.reason if status.state == "starting" else None


def _clock_words(world: World) -> str | None:
    """That its clock is wrong since it stood still, and nobody can set it."""
    guest = world.guest
    has_agent = world.image is None or world.image.status.agent
    if guest.behind < BEHIND or (has_agent and guest.clock_fault is None):
        return None
    why = guest.clock_fault or "it has no guest agent"
    return f"it stood still, and its clock is wrong unless a service of its own sets it: {why}"


# ---- whoever waits


def note(world: World) -> Step | None:
    """The stage a start is in, for whoever follows it."""
    operation = world.operation
    if operation is None or not operation.spec.deed.starts or not world.alive:
        return None
    becoming = "becoming a machine of its own"
    stage = becoming if awaits_identity(world.vm) else current_stage(world)
    news = stage != operation.status.stage or operation.status.phase == "pending"
    return Note(stage) if news else None


def current_stage(world: World) -> str:
    """The stage being worked on now: the first one in order without a signal."""
    seen = {**world.vm.status.stages, **world.guest.signals}
    has_agent = world.image is None or world.image.status.agent
    after_kernel = "agent" if has_agent else "ssh"
    for stage, signal in (
        ("firmware", "kernel"),
        ("kernel", after_kernel),
        ("network", "network"),
        ("ssh", "ssh"),
    ):
        if signal not in seen:
            return stage
    return "agent" if world.identity_wanted else "ssh"
