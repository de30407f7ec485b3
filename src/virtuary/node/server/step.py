"""What a host can do for a server: steps, what each of them does, and what a capability brings.

A step is a frozen dataclass. Its type is its name, its fields are all that its effect needs to know
besides the world it was planned for. Planners are pure and answer with a step or None; effects do
it, and may be ended between any two lines by a crash: the next look finds out and goes on.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from virtuary.base.errors import GuestSilent, VirtuaryError
from virtuary.node.server.process import Process
from virtuary.node.server.server import Server
from virtuary.node.server.world import World


@dataclass(frozen=True)
class Step:
    """One thing to do next, decided by a planner."""

    @property
    def name(self) -> str:
        """The name in logs: the type's, in small letters. Of `MakeDisk` it is make_disk."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()


@dataclass(frozen=True)
class Wait(Step):
    """Nothing more can be done now of what the rows of the order are about among which it is the
    answer: towards a start, or at all.
    """


S = TypeVar("S", bound=Step)
Planner = Callable[[World], Step | None]
Effect = Callable[[Server, World, Any], Awaitable[None]]
GiveUp = Callable[[Server, World, Step, VirtuaryError], Awaitable[None]]


def does(
    step: type[S], effect: Callable[[Server, World, S], Awaitable[None]]
) -> tuple[type[Step], Effect]:
    """A row of a capability's effects."""
    return step, effect


def does_with(
    step: type[S], effect: Callable[[Server, Process, World, S], Awaitable[None]]
) -> tuple[type[Step], Effect]:
    """A row whose effect needs the server's process; GuestSilent is raised where there is none."""

    async def given(server: Server, world: World, what: S) -> None:
        await effect(server, process_of(server), world, what)

    return step, given


def process_of(server: Server) -> Process:
    """The server's process. Raises GuestSilent where there is none, or none that is known."""
    if server.process is None:
        raise GuestSilent("QEMU's monitor is not connected")
    return server.process


@dataclass(frozen=True)
class Capability:
    """What one thing that a server can do brings to its loop."""

    effects: Mapping[type[Step], Effect]
    fails: GiveUp | None = None
    """What a step of its own that failed for good means; None: the end of what was asked for."""


def capability(*rows: tuple[type[Step], Effect], fails: GiveUp | None = None) -> Capability:
    """What these rows do together."""
    return Capability(dict(rows), fails)
