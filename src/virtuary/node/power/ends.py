"""What becomes of a server whose process is over: judged by why it was ended, the restart policy
and the recent crashes. Pure.
"""

from __future__ import annotations

import re
import signal
from datetime import timedelta
from typing import NamedTuple

from virtuary.model.status import State
from virtuary.node.server.pre_identity import never_handed_out
from virtuary.node.server.world import World

CRASH_WINDOW = timedelta(minutes=10)
CRASH_LIMIT = 5
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
    """Judge the end of a process."""
    runtime, spec = world.vm.status.runtime, world.vm.spec
    why = runtime.end if runtime else None
    wished = world.vm.wanted != "stopped"
    match why:
        case "stop" | "cancel" | "delete":
            return End("stopped", None, False, False)
        case "restart":
            return End("stopped", None, False, wished)
        case "host":
            return End("stopped", "its host went down", False, True)
        case "shutdown":
            again = spec.policy.restart == "always" and wished
            return End("stopped", "the guest shut itself down", False, again)
    # a copy that failed on the way is no crash of the server's: it boots instead
    if why == "cold" or never_handed_out(world.vm):
        return End("stopped", None, False, wished)
    return _after_crash(world)


def _after_crash(world: World) -> End:
    spec, reason = world.vm.spec, crash_reason(world)
    wished = world.vm.wanted != "stopped"
    crashes = world.vm.status.power.crashes
    recent = [crash for crash in crashes if world.wall - crash.at < CRASH_WINDOW]
    often = len(recent) + 1 >= CRASH_LIMIT
    again = spec.policy.restart in ("always", "on-failure") and wished and not often
    unused = world.vm.status.state == "starting"  # nobody has used it yet
    if unused and world.process.exit_status in OWN_DEFECTS and not recent and wished:
        return End("crashed", f"{reason}; it is started once more", True, True)
    if often and spec.policy.restart != "no":
        reason += f"; not restarted, because it crashed {CRASH_LIMIT} times within 10 minutes"
    return End("crashed", reason, True, again)


def crash_reason(world: World) -> str:
    """In words, why the process is over that nobody ended."""
    runtime, seen = world.vm.status.runtime, world.process
    if runtime is None or (
        runtime.boot_id and seen.exit_status is None and not seen.last_words and runtime.end is None
    ):
        return "QEMU ended while nobody watched (the host was restarted, or the process was killed)"
    if runtime.end == "panic":
        return "the guest's kernel panicked"
    if runtime.end:
        return f"QEMU ended: {runtime.end}"
    how, status = "", seen.exit_status
    if status is not None:
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return "QEMU died: " + (_plain(seen.last_words) or how or "it said nothing")


def _plain(words: str) -> str:
    """QEMU's last line that is no mere warning, without its time and its own name."""
    lines = [line for line in words.splitlines() if " warning: " not in line]
    return re.sub(r"^\S+Z (qemu-system-\w+: )?", "", lines[-1])[:300] if lines else ""


def why_shut_down(world: World) -> str:
    """Why a guest has shut itself down."""
    if world.vm.wanted == "stopped":
        return "stop"
    return "host" if world.turn.leaving else "restart" if world.restart_due else "shutdown"
