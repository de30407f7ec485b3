"""When a start takes longer than it usually does, somebody looks why. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from virtuary.node.server.step import Step
from virtuary.node.server.world import World

TIMES = 3
AGAIN = 15.0
"""Seconds until it is looked into again."""


class Finding(NamedTuple):
    why: str
    hopeless: bool = False
    """Whether nothing can come of this start any more."""


@dataclass(frozen=True)
class TellWhy(Step):
    finding: Finding


@dataclass(frozen=True)
class Explain(Step):
    """Find out why the start is still in this stage, and tell."""

    stage: str


def explain(world: World) -> Step | None:
    """Look into a start that hangs."""
    operation = world.operation
    if operation is None or not operation.spec.deed.starts or world.restart_due:
        return None
    if world.vm.wanted == "stopped":
        return None
    if world.absent:
        return _waits_for_network(world, operation.status.why)
    stage = operation.status.stage
    if not world.alive or world.vm.status.runtime is None or world.process.qemu != "running":
        return None
    if stage not in world.slow.usual or in_stage(world) < world.slow.usual[stage] * TIMES:
        return None
    return Explain(stage) if world.now - world.slow.explained >= AGAIN else None


def _waits_for_network(world: World, told: str | None) -> Step | None:
    network = world.network
    if network.state not in ("creating", "failed") or not world.vm.status.disk.ready:
        return None
    why = network.why or "its network is being made"
    return TellWhy(Finding(why)) if told != why else None


def in_stage(world: World) -> float:
    """Seconds since something was last heard of a start."""
    heard = {**world.vm.status.stages, **world.guest.signals}
    return world.process.age - max(heard.values(), default=0.0)
