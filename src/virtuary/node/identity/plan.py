"""How a guest becomes who it is to be: told its name, or made a machine of its own. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.model.vm import Vm
from virtuary.node.server.pre_identity import awaits_identity, never_handed_out
from virtuary.node.server.step import Step
from virtuary.node.server.world import World


@dataclass(frozen=True)
class GiveIdentity(Step):
    """Tell the guest its name and keys."""


@dataclass(frozen=True)
class RenewIdentity(Step):
    """Make a copy of a warm template a machine of its own."""


@dataclass(frozen=True)
class RenewCopy(Step):
    """Make the copy of a stopped server a machine of its own."""


@dataclass(frozen=True)
class RenewLive(Step):
    """Make a live copy a machine of its own."""


def give(world: World) -> Step | None:
    """A guest that can be told who it is, and does not know."""
    heard = "agent" in world.guest.signals or world.guest.wakes
    wanted = world.process.qemu == "running" and heard and world.identity_wanted
    return how(world.vm) if wanted else None


def how(vm: Vm) -> Step:
    """How this guest is told."""
    if vm.status.identity.given is not None:
        return GiveIdentity()
    if awaits_identity(vm):
        return RenewLive()
    if never_handed_out(vm):
        return RenewIdentity()
    return RenewCopy() if vm.status.identity.renew else GiveIdentity()
