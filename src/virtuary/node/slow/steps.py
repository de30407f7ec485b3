"""Why a start takes longer than it usually does: found from outside and, where its agent answers,
from inside, and told in words.

A stage that takes thrice its usual time is looked into, and again while it lasts. What is usual is
learned from the starts of servers of the same image. What is found stands in the operation and at
the server until it is overcome; where nothing can come of the start any more the operation ends
with it, and the machine is left as it is for whoever wants to look.
"""

from __future__ import annotations

import contextlib
import re

from virtuary.base.errors import Failed, VirtuaryError
from virtuary.base.units import format_size
from virtuary.guest.agent import Agent
from virtuary.model.memory import default_memory
from virtuary.node import operations
from virtuary.node.machine.resolve import firmware_of
from virtuary.node.machine.run import Run
from virtuary.node.server.notes import note_on
from virtuary.node.server.process import Process
from virtuary.node.server.server import Server
from virtuary.node.server.step import capability, does, does_with
from virtuary.node.server.world import World
from virtuary.node.slow.plan import Explain, Finding, TellWhy, in_stage

GIVEN_UP = 12
"""Times the usual after which a machine that printed nothing at all is not waited for any more."""


SIGNS: tuple[tuple[re.Pattern[bytes], Finding], ...] = tuple(
    (re.compile(pattern), Finding(why, hopeless))
    for pattern, why, hopeless in (
        (rb"No bootable (device|option)|not a bootable disk|No bootable medium",
        "its firmware finds nothing on its disk to boot from", True),
        (rb"Kernel panic - not syncing: System is deadlocked on memory",
        "its memory is too small for its kernel", True),
        (rb"VFS: Unable to mount root fs", "its kernel can't find its root file system", True),
        (rb"Kernel panic - not syncing", "its kernel panicked", True),
        (rb"Initramfs unpacking failed|Out of memory: Killed process|Out of memory and no killable",
        "its memory is too small", False),
        (rb"grub rescue>|\ngrub> ", "its boot loader can't go on and waits for a command", False),
        (rb"emergency mode|Press Enter for maintenance|Cannot open access to console|\(initramfs\) ", "its system came up in emergency mode", False),
        (rb"No space left on device", "its disk is full", False),
        (rb"Remounting filesystem read-only|UNEXPECTED INCONSISTENCY", "its file system is damaged",
        False),
    )
)  # fmt: skip
"""What a console says when a start goes wrong, worst first. A guest can only lie about itself."""

LOOK = r"""
df -P / 2>/dev/null | awk 'NR == 2 { sub("%", "", $5); print "full", $5 }'
awk '$2 == "/" { split($4, o, ","); print "root", o[1] }' /proc/mounts | tail -n 1
cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk '$4 == "0A" && $2 ~ /:0016$/ { print "listens"; exit }'
command -v systemctl >/dev/null 2>&1 && systemctl --failed --no-legend --plain 2>/dev/null | awk '{ print "failed", $1 }' | head -n 3
true
"""
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]{1,80}")


async def explain(server: Server, process: Process, world: World, step: Explain) -> None:
    """Find out why it is still in this stage, and tell."""
    process.explained = server.site.clock.now()
    await _tell(server, world, await _find(server, process.run, world, step.stage))


async def tell_why(server: Server, world: World, step: TellWhy) -> None:
    await _tell(server, world, step.finding)


async def _tell(server: Server, world: World, found: Finding) -> None:
    """Note it where it is news; a start of which nothing can come ends with it."""
    operation, name = world.operation, world.vm.name
    if operation and operation.status.why != found.why:
        await note_on(server, world, f"it takes long: {found.why}", why=found.why)
    if operation and found.hopeless:
        hint = (
            f"virtuary logs {name} shows its console; it was left as it is: virtuary stop "
            f"{name} --force"
        )
        await operations.finish(
            server.site.store, operation.key, Failed(f"{name} does not come up: {found.why}", hint)
        )


async def _find(server: Server, run: Run, world: World, stage: str) -> Finding:
    said = run.console.recent
    for sign, finding in SIGNS:
        if sign.search(said):
            return finding
    if run.agent and stage in ("agent", "network", "ssh"):
        return await _find_inside(server, run.agent, world)
    if stage == "firmware":
        return _unheard(world, said)
    if not server.site.networks.addresses.of(world.vm) and any(
        nic.network_id for nic in world.vm.nics
    ):
        return Finding(
            "it has not asked for an address by DHCP yet, and its guest agent has not answered"
        )
    if world.image and world.image.status.agent:
        return Finding(
            "its guest agent has not answered: its host may be busy, or qemu-guest-agent is not "
            "started in it"
        )
    return Finding("nothing answers at its SSH port: is an SSH server installed and started in it?")


def _unheard(world: World, said: bytes) -> Finding:
    """What is to be thought of a machine whose kernel was not heard."""
    usual, spec = default_memory(world.vm.spec.image), world.vm.spec
    how = firmware_of(world.vm, world.image).kind.upper() if world.image else "its firmware"
    nothing = (
        "no kernel was heard on its console"
        if said.strip()
        else "nothing was printed on its console"
    )
    if spec.memory.size < usual:
        asks = (
            f"are {format_size(spec.memory.size)} of memory enough? Servers of {spec.image} are "
            f"given {format_size(usual)}"
        )
    else:
        asks = f"its host may be busy, or its disk can't be booted by {how}"
    return Finding(
        f"{nothing} yet: {asks}",
        not said.strip() and in_stage(world) > world.slow.usual["firmware"] * GIVEN_UP,
    )


async def _find_inside(server: Server, agent: Agent, world: World) -> Finding:
    """What the guest itself tells, and who is in the way of its network."""
    told: list[list[str]] = []
    with contextlib.suppress(VirtuaryError):
        outcome = await agent.execute(["/bin/sh"], stdin=LOOK.encode(), deadline=20)
        told = [line.split() for line in outcome.stdout.decode(errors="replace").splitlines()]
    facts = {words[0]: words[1] for words in told if len(words) == 2}
    if facts.get("full") == "100":
        return Finding("its disk is full")
    if facts.get("root") == "ro":
        return Finding("its root file system is mounted read-only")
    if server.site.examine:
        with contextlib.suppress(VirtuaryError):
            for check in await server.site.examine(world.vm):
                if check.state == "missing":
                    return Finding(check.found)
    failed = [
        words[1]
        for words in told
        if words[0] == "failed" and len(words) == 2 and _UNIT.fullmatch(words[1])
    ]
    broken = f"; what failed in it: {', '.join(failed)}" if failed else ""
    if not told:
        return Finding("its guest agent does not answer any more")
    if ["listens"] not in told:
        return Finding(f"no SSH server listens in it{broken}")
    return Finding(
        "its SSH server listens and does not answer from here: look at the guest's own "
        f"firewall{broken}"
    )


CAPABILITY = capability(
    does_with(Explain, explain),
    does(TellWhy, tell_why),
)
