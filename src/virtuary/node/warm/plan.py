"""Copies of warm templates: started with a template's state instead of a boot. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.node.server.step import Step
from virtuary.node.server.world import World


@dataclass(frozen=True)
class StartWarm(Step):
    pass


@dataclass(frozen=True)
class LoadState(Step):
    """Read the template's state into the copy."""


def start(world: World) -> Step | None:
    """A server whose disk lies on a template's, and that is nobody yet, goes on from its state."""
    status = world.vm.status
    nobody = status.identity.given is None
    return StartWarm() if nobody and status.warm.template is not None else None


def load(world: World) -> Step | None:
    return LoadState() if world.process.qemu == "inmigrate" else None
