"""Starting, stopping, pausing and removing a server. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.model import deeds
from virtuary.model.deeds import Delete, Restart, Stop
from virtuary.model.image import Image
from virtuary.model.operation import Operation
from virtuary.model.patience import STOP_TIMEOUT
from virtuary.model.runtime import Runtime
from virtuary.node.power.ends import End, after_end, why_shut_down
from virtuary.node.server.pre_identity import awaits_identity, never_handed_out
from virtuary.node.server.step import Step, Wait
from virtuary.node.server.world import World

ASK_AGAIN = 15.0
"""A guest that is still booting ignores the power button: it is pressed again."""
NETWORK_LIMIT = 30.0
"""Seconds for which a start that was asked for waits for a network that fails."""


@dataclass(frozen=True)
class CancelOperation(Step):
    operation: Operation


@dataclass(frozen=True)
class LeaveToOwner(Step):
    """End the process here: another host lets the server run."""


@dataclass(frozen=True)
class Forget(Step):
    """Remove every trace of the server, its document last."""


@dataclass(frozen=True)
class EndStray(Step):
    """End a process that was started and never recorded."""


@dataclass(frozen=True)
class Collect(Step):
    """Write down what became of a server whose process is over."""

    end: End


@dataclass(frozen=True)
class AskShutdown(Step):
    why: str


@dataclass(frozen=True)
class Kill(Step):
    why: str


@dataclass(frozen=True)
class Fail(Step):
    """A start can't be: everybody who waits for it is told."""

    sentence: str
    hint: str | None = None


@dataclass(frozen=True)
class Start(Step):
    image: Image


@dataclass(frozen=True)
class StartNetwork(Step):
    """Have somebody serve the machine's NIC again."""

    runtime: Runtime


@dataclass(frozen=True)
class LetGo(Step):
    """The server's owner decides about what was paused for want of memory."""


@dataclass(frozen=True)
class Resume(Step):
    pass


@dataclass(frozen=True)
class Pause(Step):
    pass


# ---- whose it is


def leave_to_owner(world: World) -> Step | None:
    """A host that is not the owner of a server lets nothing of it run, and decides nothing."""
    if world.mine:
        return None
    return LeaveToOwner() if world.alive else Wait()


# ---- what is over


def cancel(world: World) -> Step | None:
    """A cancelled start is undone: the server is stopped, and removed if it was never there."""
    operation = world.operation
    return CancelOperation(operation) if operation and operation.spec.cancel else None


def remove(world: World) -> Step | None:
    """A server whose deletion is final: no process, then no files, then no document."""
    if not world.vm.meta.purge:
        return None
    return {"alive": Kill("delete"), "stray": EndStray()}.get(world.process.state, Forget())


def end(world: World) -> Step | None:
    """A process that is over: note why, clean up, and let the restart policy decide."""
    runtime = world.vm.status.runtime
    if world.process.state == "stray":
        return EndStray()
    if runtime is None:
        return None
    if world.absent:
        return Collect(after_end(world))
    if runtime.end:
        return Kill(runtime.end)
    match world.process.qemu:
        case "shutdown":  # by its own hand, or because we asked
            return Kill(why_shut_down(world))
        case "guest-panicked":
            return Kill("panic")
        case "internal-error":
            return Kill("internal-error")
    return None


def stop(world: World) -> Step | None:
    """Stop what should not run: ask the guest, again, and at the end of its time pull the plug."""
    seen, why = world.process, _why_stop(world)
    if not world.alive or why is None:
        return None
    force, timeout = _asked_with(world, why)
    if force or not _can_be_asked(world, why):
        return Kill(why)
    if seen.asked_to_stop is None:
        return AskShutdown(why)
    if world.now - seen.asked_to_stop >= timeout:
        return Kill(why)
    return AskShutdown(why) if world.now - seen.asked_last >= ASK_AGAIN else None


def _why_stop(world: World) -> str | None:
    """Why the process is to end; None where it is to go on."""
    if world.vm.wanted == "stopped":
        return "stop"
    if world.turn.leaving:
        return "host"
    return "restart" if world.restart_due else None


def _asked_with(world: World, why: str) -> tuple[bool, float]:
    """Whether whoever asked wants it ended at once, and how many seconds its guest has else."""
    deed = world.operation.spec.deed if world.operation else None
    if isinstance(deed, Delete):
        return True, 0
    if isinstance(deed, (Stop, Restart)):
        return deed.force, deed.timeout
    return False, world.vm.spec.policy.shutdown_timeout if why == "host" else STOP_TIMEOUT


def _can_be_asked(world: World, why: str) -> bool:
    """Whether it makes sense to ask the guest to shut down."""
    vm = world.vm
    if world.process.qemu in ("prelaunch", "inmigrate") or never_handed_out(vm):
        return False  # it never ran
    if world.operation is None and vm.status.state == "starting":
        return False  # it was left by a start that failed
    return not (why == "host" and vm.spec.policy.on_host_shutdown == "off")


# ---- towards a start


def may_start(world: World) -> Step | None:
    """Whether it is its turn, and its networks are there."""
    if world.vm.wanted == "stopped":
        return None
    if world.turn.waits:
        return Wait()
    if world.network.state != "ready":
        lost = world.network.state == "gone" or waited_too_long(world)
        hint = "virtuary network list shows the networks"
        return Fail(world.network.why, hint) if lost else Wait()
    return None


def waited_too_long(world: World) -> bool:
    """Whether somebody who asked for a start is to be told that its network does not come; a server
    that starts by itself waits on.
    """
    operation = world.operation
    if world.network.state != "failed" or operation is None or not operation.spec.deed.starts:
        return False
    asked = (world.wall - operation.meta.created).total_seconds()
    return min(asked, world.network.failing) >= NETWORK_LIMIT


def stay_off(world: World) -> Step | None:
    return Wait() if world.vm.wanted == "stopped" else None


def start(world: World) -> Step | None:
    return Start(world.image) if world.image else None


# ---- while it runs


def serve(world: World) -> Step | None:
    """Somebody serves its NIC, if that needs a process of its own."""
    runtime = world.vm.status.runtime
    if runtime is None or runtime.network not in ("passt", "qemu-user"):
        return None
    # a live copy is heard by nobody as long as it takes itself for its source
    wanted = not world.network.served and not awaits_identity(world.vm)
    return StartNetwork(runtime) if wanted else None


def release(world: World) -> Step | None:
    """The virtual CPUs run when they are to, and stand still when they are to."""
    vm, qemu = world.vm, world.process.qemu
    hold = vm.status.pressure.held
    resumed = world.operation is not None and isinstance(world.operation.spec.deed, deeds.Resume)
    if hold and (vm.wanted == "paused" or resumed):
        return LetGo()  # its owner has the last word
    paused = vm.wanted == "paused" or bool(hold)
    if qemu == "running":
        return Pause() if paused else None
    if paused:
        return None
    if qemu in ("prelaunch", "paused") or (qemu == "io-error" and world.disks.space):
        return Resume()
    return None


def held(world: World) -> bool:
    """Whether a machine that is wished paused is: also one that was never released."""
    stands = world.process.qemu in ("prelaunch", "paused", "io-error")
    return world.vm.wanted == "paused" and stands


# ---- what was asked for has come true


def has_stopped(world: World) -> bool:
    return world.absent and world.vm.status.runtime is None


def is_deleted(world: World) -> bool:
    return has_stopped(world) and world.vm.meta.deleted is not None


def is_paused(world: World) -> bool:
    return world.process.qemu == "paused" or held(world)


def is_resumed(world: World) -> bool:
    return world.process.qemu == "running"


def is_launched(world: World) -> bool:
    return world.ready or held(world)


def is_started(world: World) -> bool:
    """Whether it runs since the last restart, and is ready where somebody waits for that."""
    runtime, operation = world.vm.status.runtime, world.operation
    if runtime is None or runtime.restarts < world.vm.spec.restarts:
        return False
    if held(world):
        return True
    deed = operation.spec.deed if operation else None
    ready = isinstance(deed, (deeds.Start, Restart)) and deed.wait == "ready"
    return world.ready if ready else world.process.qemu == "running"
