"""The guest's clock, set by its agent after it stood still: a paused guest goes on with the time at
which it was paused.
"""

from __future__ import annotations

from collections.abc import Callable

from virtuary.base.answers import read
from virtuary.base.errors import Failed
from virtuary.guest.agent import WHO, Agent

NEAR = 0.1
"""Seconds by which a clock may differ and is left alone."""
TRIES = 3


async def find_offset(agent: Agent, wall: Callable[[], float]) -> float:
    """Seconds by which the guest's clock is before ours, as exact as its answer is quick."""
    before = wall()
    told = read(await agent.run("guest-get-time"), WHO).number() / 1e9
    return told - (before + wall()) / 2


async def set_clock(agent: Agent, wall: Callable[[], float]) -> float:
    """Set the guest's clock to ours; the seconds by which it differs then. `wall`: our seconds
    since 1970.

    Raises GuestSilent; Failed with the agent's reason where it stays wrong.
    """
    why: Failed | None = None
    lead = 0.0
    for _ in range(TRIES):
        offset = await find_offset(agent, wall)
        if abs(offset) < NEAR:
            return offset
        try:
            await agent.run("guest-set-time", 30, time=int((wall() + lead) * 1e9))
        except Failed as error:
            # also where it set its clock and could not write that to its hardware
            why = error
        after = await find_offset(agent, wall)
        if abs(after) < NEAR:
            return after
        lead -= max(-1.0, min(1.0, after))  # as late as it set it, it will set it again
    if abs(after) > 0.5:
        raise why or Failed(
            f"the guest agent did not set the clock, which differs by {after:.1f} s"
        )
    return after
