"""What this host does next about one server. Pure: a world goes in, the next step comes out; None
means wait.

A tuple of small planners, the first answer wins. Boot, recovery after a crash, shutdown and
deletion are rows of the same function. Steps are idempotent, so a crash between any two of them is
just another look.
"""

from __future__ import annotations

import re
import signal
from datetime import timedelta
from typing import Any, NamedTuple

from virtuary.model.operation import STARTS
from virtuary.model.vm import NO_CLOUD_INIT, State, Vm
from virtuary.node.birth import never_handed_out, unborn, undecided
from virtuary.node.nics import plugging
from virtuary.node.slow import explaining
from virtuary.node.tuning import follows, shortfall, tuned, tuning
from virtuary.node.world import Step, World

CRASH_WINDOW = timedelta(minutes=10)
CRASH_LIMIT = 5
STOP_TIMEOUT = 90.0
"""Seconds a guest is given to shut down when nobody said otherwise."""
ASK_AGAIN = 15.0
"""A guest that is still booting ignores the power button: it is pressed again."""
BEHIND = 0.5
"""Seconds by which a clock may be behind without a word."""
LESS_MEMORY = "with less memory for a while, because its host is short of it"
NO_SSH = "no answer on SSH since its start"
NETWORK_LIMIT = 30.0
"""Seconds for which a start that was asked for waits for a network that fails."""
UNBORN_LIMIT = 120.0
"""Seconds for which the guest of a live copy may keep silent before the copy is given up."""


def plan(me: str, world: World) -> Step | None:
    """The next step of host `me` about one server; None means wait."""
    if world.vm.spec.owner != me or world.held:
        return None
    for planner in (
        cancelling,
        removal,
        ended,
        tidying,
        copying,
        stopping,
        preparing,
        tuning,
        plugging,
        running,
        reporting,
        finishing,
        explaining,
    ):
        if step := planner(world):
            return step
    return None


def cancelling(world: World) -> Step | None:
    """A cancelled start is undone: the server is stopped, and removed if it was never there
    before.
    """
    operation = world.operation
    if not operation or not operation.spec.cancel:
        return None
    return Step("cancel_operation", operation)


def removal(world: World) -> Step | None:
    """A server whose deletion is final: no process, then no files, then no document."""
    if not world.vm.meta.purge:
        return None
    if world.process == "alive":
        return Step("kill", "delete")
    if world.process == "stray":
        return Step("end_stray")
    return Step("forget")


def ended(world: World) -> Step | None:
    """A process that is over: note why, clean up, and let the restart policy decide what is wished
    now.
    """
    runtime = world.vm.status.runtime
    if world.process == "stray":
        return Step("end_stray")
    if runtime and world.process == "absent":
        return (
            Step("drop_copy", why_unborn(world))
            if unborn(world.vm)
            else Step("collect", after_end(world))
        )
    if world.process != "alive" or runtime is None or runtime.end:
        return (
            Step("kill", runtime.end)
            if world.process == "alive" and runtime and runtime.end
            else None
        )
    if world.qemu == "shutdown":  # by its own hand, or because we asked
        return Step("kill", why_shut_down(world))
    if world.qemu in ("guest-panicked", "internal-error"):
        return Step("kill", "panic" if world.qemu == "guest-panicked" else "internal-error")
    return None


def why_shut_down(world: World) -> str:
    """Why a guest has shut itself down. Pure."""
    if world.vm.spec.power == "stopped":
        return "stop"
    return "host" if world.leaving else "restart" if world.restart_due else "shutdown"


OWN_DEFECTS = (-signal.SIGABRT, -signal.SIGSEGV)
"""How a QEMU ends by a defect of its own. One with several emulated processors meets an assertion
(iotlb_to_section) now and then.
"""


class End(NamedTuple):
    """What becomes of a server whose process is over."""

    state: State
    reason: str | None
    crashed: bool
    again: bool


def after_end(world: World) -> End:
    """Judge the end of a process by why it was ended, the restart policy and the recent crashes.
    Pure.
    """
    runtime, spec = world.vm.status.runtime, world.vm.spec
    assert runtime
    why = runtime.end
    if why in ("stop", "cancel", "delete"):
        return End("stopped", None, False, False)
    if why == "restart":
        return End("stopped", None, False, spec.power != "stopped")
    if why == "host":
        return End("stopped", "its host went down", False, True)
    if why == "shutdown":
        again = spec.restart_policy == "always" and spec.power != "stopped"
        return End("stopped", "the guest shut itself down", False, again)
    # a copy that failed on the way is no crash of the server's: it boots instead
    if why == "cold" or never_handed_out(world.vm):
        return End("stopped", None, False, spec.power != "stopped")
    reason = crash_reason(world)
    recent = [crash for crash in world.vm.status.crashes if world.wall - crash.at < CRASH_WINDOW]
    again = (
        spec.restart_policy in ("always", "on-failure")
        and spec.power != "stopped"
        and len(recent) + 1 < CRASH_LIMIT
    )
    if (
        world.vm.status.state == "starting"
        and world.exit_status in OWN_DEFECTS
        and not recent
        and spec.power != "stopped"
    ):
        # nobody has used it yet
        return End("crashed", f"{reason}; it is started once more", True, True)
    if not again and spec.restart_policy != "no" and len(recent) + 1 >= CRASH_LIMIT:
        reason += f"; not restarted, because it crashed {CRASH_LIMIT} times within 10 minutes"
    return End("crashed", reason, True, again)


def why_unborn(world: World) -> str:
    """Why a live copy ended before it was a machine of its own. Pure."""
    runtime = world.vm.status.runtime
    match runtime.end if runtime else "stop":
        case "silent":
            return f"its guest agent did not answer within {UNBORN_LIMIT:.0f} s"
        case None:
            return crash_reason(world)
        case _:
            return "it was ended before it was a machine of its own"


def crash_reason(world: World) -> str:
    runtime = world.vm.status.runtime
    assert runtime
    if (
        runtime.boot_id
        and world.exit_status is None
        and not world.last_words
        and runtime.end is None
    ):
        return "QEMU ended while nobody watched (the host was restarted, or the process was killed)"
    if runtime.end == "panic":
        return "the guest's kernel panicked"
    if runtime.end:
        return f"QEMU ended: {runtime.end}"
    how = ""
    if world.exit_status is not None:
        how = (
            f"killed by signal {-world.exit_status}"
            if world.exit_status < 0
            else f"exit status {world.exit_status}"
        )
    return "QEMU died: " + (_plain(world.last_words) or how or "it said nothing")


def _plain(words: str) -> str:
    """QEMU's last line that is no mere warning, without its time and its own name."""
    lines = [line for line in words.splitlines() if " warning: " not in line]
    return re.sub(r"^\S+Z (qemu-system-\w+: )?", "", lines[-1])[:300] if lines else ""


def tidying(world: World) -> Step | None:
    """What a crash in the middle of copying left in the server's folder."""
    return Step("tidy_home") if "leftover" in world.files else None


def copying(world: World) -> Step | None:
    """As a source: give the copy that waits longest what it is made of, or tell it why not. And end
    what a copy left behind.
    """
    vm = world.vm
    if (
        world.process == "alive"
        and world.connected
        and world.qemu in ("finish-migrate", "postmigrate")
    ):
        return Step("end_save")
    if not world.copies or vm.meta.deleted or not vm.status.disk_ready:
        return None
    copy = world.copies[0]
    origin = copy.spec.origin
    assert origin
    if origin.mode == "live":
        if why := no_live_source(world):
            return Step("refuse_copy", (copy, why))
        return Step("save_live", copy) if world.connected and "agent" in world.signals else None
    if world.process == "alive":
        return (
            Step("refuse_copy", (copy, f"{vm.name} runs")) if vm.spec.power != "stopped" else None
        )
    if world.process == "absent" and "disk" not in world.files:
        return Step("refuse_copy", (copy, f"the disk of {vm.name} is gone"))
    return (
        Step("share_disk" if origin.mode == "overlay" else "convert_disk", copy)
        if world.process == "absent"
        else None
    )


def no_live_source(world: World) -> str | None:
    """Why the machine can't be copied as it runs; None also where that can't be told yet. Pure."""
    vm = world.vm
    if world.process != "alive" or vm.spec.power == "stopped" or world.restart_due:
        return f"{vm.name} does not run any more"
    if vm.spec.power == "paused" or world.qemu in ("paused", "prelaunch", "io-error", "inmigrate"):
        return f"{vm.name} is paused"
    if world.silent or world.qemu not in ("running", None):
        return f"{vm.name} does not run as it should"
    return None


def stopping(world: World) -> Step | None:
    """Stop what should not run: ask the guest, ask again, and at the end of its time pull the
    plug.
    """
    vm = world.vm
    leaving = world.leaving and vm.spec.power != "stopped"
    if world.process != "alive" or not (vm.spec.power == "stopped" or world.restart_due or leaving):
        return None
    why = (
        "host"
        if leaving
        else "restart"
        if world.restart_due and vm.spec.power != "stopped"
        else "stop"
    )
    params = (
        world.operation.spec.params
        if world.operation and world.operation.spec.kind in ("stop", "restart", "delete")
        else {}
    )
    # a guest that never ran can't be asked
    unheard = world.qemu in ("prelaunch", "inmigrate") or never_handed_out(vm)
    left = world.operation is None and vm.status.state == "starting"  # by a start that failed
    off = leaving and vm.spec.on_host_shutdown == "off"
    if params.get("force") or unheard or left or off:
        return Step("kill", why)
    timeout = float(params.get("timeout", vm.spec.shutdown_timeout if leaving else STOP_TIMEOUT))
    if world.asked_to_stop is None:
        return Step("ask_shutdown", why)
    if world.now - world.asked_to_stop >= timeout:
        return Step("kill", why)
    return Step("ask_shutdown", why) if world.now - world.asked_last >= ASK_AGAIN else None


def preparing(world: World) -> Step | None:
    """What must be there before QEMU can be started."""
    vm, image = world.vm, world.image
    if world.process != "absent" or vm.meta.deleted:
        return None
    if vm.spec.origin and not vm.status.copied:
        return Step("drop_copy", why) if (why := forsaken(world)) else None
    if image is None:
        return Step("fail", f"the image {vm.spec.image} is gone")
    if image.status.state == "failed":
        return Step("fail", f"the image {vm.spec.image} could not be made: {image.status.reason}")
    if image.status.state != "ready":
        return Step("follow_image") if world.operation else None
    if (
        vm.spec.user_data
        and not image.status.cloud_init
        and not vm.status.disk_ready
        and vm.spec.origin is None
    ):
        return Step("fail", NO_CLOUD_INIT.format(image=vm.spec.image))
    if not vm.status.disk_ready:
        return Step("make_disk" if vm.spec.origin is None else "stand_on_layer")
    if undecided(vm) and vm.spec.power != "stopped":
        return Step("make_disk")
    # never made anew: an empty disk in the place of a lost one would hide the loss
    if "disk" not in world.files:
        return (
            Step("fail", f"the disk of {vm.name} is gone") if vm.spec.power != "stopped" else None
        )
    if vm.spec.power != "stopped" and world.waits:
        return None
    if vm.spec.power != "stopped" and world.network[0] != "ready":
        lost = world.network[0] == "gone" or waited_too_long(world)
        return Step("fail", world.network[1]) if lost else None
    if unborn(vm):
        if vm.spec.power == "stopped" or "state" not in world.files:
            return Step(
                "drop_copy",
                why_unborn(world)
                if vm.spec.power == "stopped"
                else "the memory it was to go on with is gone",
            )
        return Step("start_live")
    if vm.spec.power == "stopped":
        return None
    warm = vm.status.template is not None and vm.status.identity is None
    if vm.spec.disk and vm.status.disk_size and vm.spec.disk > vm.status.disk_size and not warm:
        return Step("grow_disk", vm.spec.disk)
    seeded = vm.spec.user_data or not image.status.agent or image.status.makes_login
    if seeded and image.status.cloud_init and "seed" not in world.files:
        return Step("make_seed")
    return Step("start_warm" if warm else "start")


def waited_too_long(world: World) -> bool:
    """Whether somebody who asked for a start is to be told that its network does not come; a server
    that starts by itself waits on. Pure.
    """
    operation = world.operation
    if world.network[0] != "failed" or operation is None or operation.spec.kind not in STARTS:
        return False
    asked = (world.wall - operation.meta.created).total_seconds()
    return min(asked, world.network_failing) >= NETWORK_LIMIT


def forsaken(world: World) -> str | None:
    """Why a copy that waits for its source waits in vain, None when it does not. Pure."""
    origin, source = world.vm.spec.origin, world.source
    assert origin
    if source is None or source.meta.deleted or source.meta.purge:
        return f"{origin.name} is gone"
    if world.operation is None or world.operation.spec.kind != "copy":
        return "it was given up"
    return None


def running(world: World) -> Step | None:
    """Make a living machine do what is wished: network, release, identity, pause and resume."""
    vm, runtime = world.vm, world.vm.status.runtime
    if (
        world.process != "alive"
        or runtime is None
        or not world.connected
        or vm.spec.power == "stopped"
        or world.restart_due
    ):
        return None
    if runtime.network in ("passt", "qemu-user") and not world.network_alive and not unborn(vm):
        # a live copy is heard by nobody as long as it takes itself for its source
        return Step("start_network")
    if world.qemu == "inmigrate":
        return Step("load_live" if runtime.live else "load_state")
    hold = vm.status.held_for_memory
    if hold and (
        vm.spec.power == "paused" or (world.operation and world.operation.spec.kind == "resume")
    ):
        return Step("let_go")  # its owner has the last word
    wanted = "paused" if vm.spec.power == "paused" or hold else "running"
    if world.qemu in ("prelaunch", "paused") and wanted == "running":
        return Step("resume")
    if world.qemu == "io-error" and wanted == "running" and world.space:
        return Step("resume")
    if world.qemu == "running" and wanted == "paused":
        return Step("pause")
    if (
        world.qemu == "running"
        and ("agent" in world.signals or world.wakes)
        and world.identity_wanted
    ):
        return Step(identity_step(vm))
    if world.qemu == "running" and unborn(vm) and world.age > UNBORN_LIMIT:
        return Step("kill", "silent")
    return None


def identity_step(vm: Vm) -> str:
    """How the guest becomes who it is to be. Pure."""
    if vm.status.identity is not None:
        return "give_identity"
    if unborn(vm):
        return "renew_live"
    if never_handed_out(vm):
        return "renew_identity"
    return "renew_copy" if vm.status.renew else "give_identity"


def reporting(world: World) -> Step | None:
    """Write what was seen, when it differs from what is written."""
    state, reason = state_of(world)
    status = world.vm.status
    stages = {stage: round(seconds, 2) for stage, seconds in world.signals.items()}
    seen = {
        **status.stages,
        **{stage: at for stage, at in stages.items() if stage not in status.stages},
    }
    addresses = world.addresses or status.addresses
    cpus, memory = (
        (world.cpus or status.cpus, world.memory or status.memory)
        if world.process == "alive"
        else (None, None)
    )
    found: dict[str, Any] = {
        "state": state,
        "reason": reason,
        "stages": seen,
        "addresses": addresses,
        "cpus": cpus,
        "memory": memory,
    }
    if world.cloud_init:
        found["cloud_init"] = world.cloud_init
    return (
        Step("report", found)
        if any(getattr(status, field) != value for field, value in found.items())
        else None
    )


def state_of(world: World) -> tuple[State, str | None]:
    """The state people are shown, and why where that is not plain. Pure."""
    vm, status = world.vm, world.vm.status
    if world.process == "absent":
        if vm.meta.deleted:
            return "trashed", None
        if not status.disk_ready:
            return "creating", status.reason
        if vm.spec.power != "stopped" and world.waits == "boot":
            return "stopped", "it is started when it is its turn"
        if vm.spec.power != "stopped" and world.network[0] == "failed":
            return "starting", f"{world.network[1]}; it is started as soon as that is"
        if status.state == "starting":  # what it waited for is here, or it is not wished any more
            return "stopped", None
        if status.state in ("crashed", "stopped"):
            return status.state, status.reason
        return "stopped", status.reason
    if world.silent:
        return "unresponsive", "QEMU does not answer its monitor"
    if vm.spec.power == "stopped" or world.restart_due or world.leaving:
        return "stopping", None
    if world.qemu is None:
        return (
            (status.state, status.reason) if status.state != "unresponsive" else ("unknown", None)
        )
    if world.qemu == "io-error":
        return "paused", "no space: the pool that holds the disk is full; it resumes by itself"
    known = (
        status.reason if status.state == "starting" else None
    )  # by a start that was given up meanwhile, and may come all the same
    why_slow = (world.operation.status.why or None) if world.operation else known
    if world.qemu == "paused" or _held(world):
        hold = status.held_for_memory
        return "paused", hold.why if hold and vm.spec.power == "running" else None
    if world.qemu != "running":
        return "starting", why_slow
    if never_handed_out(vm) or (vm.status.renew and world.identity_wanted):
        return "starting", why_slow
    if (
        world.image
        and world.image.status.agent
        and "agent" not in {**status.stages, **world.signals}
    ):
        return "starting", why_slow
    if status.identity_refused:
        return "running", f"its guest did not take the name {vm.name}: {status.identity_refused}"
    if _unheard(world):
        return "running", NO_SSH
    return "running", LESS_MEMORY if status.reclaimed else shortfall(world) or _clock_words(world)


def _unheard(world: World) -> bool:
    """Whether nothing was ever heard of a guest without an agent, and nobody waits for it. Pure."""
    heard = {**world.vm.status.stages, **world.signals}
    without_agent = world.image is not None and not world.image.status.agent
    runtime = world.vm.status.runtime
    listened = runtime is not None and runtime.ssh_port is not None
    return world.operation is None and without_agent and listened and "ssh" not in heard


def _clock_words(world: World) -> str | None:
    """That its clock is wrong since it stood still, and nobody can set it. Pure."""
    has_agent = world.image is None or world.image.status.agent
    if world.behind < BEHIND or (has_agent and world.clock_fault is None):
        return None
    why = world.clock_fault or "it has no guest agent"
    return f"it stood still, and its clock is wrong unless a service of its own sets it: {why}"


def finishing(world: World) -> Step | None:
    """End an operation whose wish has come true."""
    operation = world.operation
    if operation is None:
        return None
    return (
        Step("finish", operation)
        if _fulfilled(world, operation.spec.kind, operation.spec.params)
        else _progress(world)
    )


def _held(world: World) -> bool:
    """Whether a machine that is wished paused is: also one that was never released."""
    return world.vm.spec.power == "paused" and world.qemu in ("prelaunch", "paused", "io-error")


def _fulfilled(world: World, kind: str, params: dict[str, Any]) -> bool:
    vm, runtime = world.vm, world.vm.status.runtime
    idle = world.process == "absent" and runtime is None
    match kind:
        case "stop":
            return idle
        case "delete":
            return idle and vm.meta.deleted is not None
        case "pause":
            return world.qemu == "paused" or _held(world)
        case "resume":
            return world.qemu == "running"
        case "create":
            return vm.status.disk_ready
        case "copy" if vm.spec.power == "stopped":
            return vm.status.disk_ready
        case "set":
            return follows(world) if params else tuned(world)
        case "launch" | "copy":
            return world.ready or _held(world)
        case "start" | "restart":
            fresh = runtime is not None and runtime.restarts >= vm.spec.restarts
            return fresh and (
                _held(world)
                or (world.ready if params.get("wait") == "ready" else world.qemu == "running")
            )
    return False


def _progress(world: World) -> Step | None:
    """The stage an operation is in, for whoever follows it."""
    operation, status = world.operation, world.vm.status
    assert operation
    if operation.spec.kind not in STARTS or world.process != "alive":
        return None
    stage = current_stage(world) if not unborn(world.vm) else "becoming a machine of its own"
    return (
        Step("note", stage)
        if stage != operation.status.stage or operation.status.phase == "pending" or not status
        else None
    )


def current_stage(world: World) -> str:
    """The stage being worked on now: the first one in order without a signal. Pure."""
    seen = {**world.vm.status.stages, **world.signals}
    for stage, waits_for in (
        ("firmware", "kernel"),
        ("kernel", "agent"),
        ("network", "network"),
        ("ssh", "ssh"),
    ):
        if stage == "kernel" and world.image and not world.image.status.agent:
            waits_for = "ssh"
        if waits_for not in seen:
            return stage
    return "agent" if world.identity_wanted else "ssh"
