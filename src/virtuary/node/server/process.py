"""One process of a server, and all that is true only while it lives.

It is made when QEMU is started or found again, and dropped when the process has ended: nothing in
here is ever reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from dataclasses import dataclass, field

from virtuary.base.errors import GuestSilent
from virtuary.guest.agent import Agent
from virtuary.guest.seed import HostKey
from virtuary.node.machine.run import Run
from virtuary.node.server.world import Tuning
from virtuary.qemu.qmp import Monitor

AGAIN = 600.0
"""Seconds after which a guest that refused is asked again, where its server is still wished
otherwise.
"""


@dataclass
class Process:
    run: Run
    tuned: Tuning | None = None
    """Limits and shares it was given; None when another daemon gave them."""
    refused: dict[str, tuple[object, float]] = field(default_factory=dict)
    """What its guest would not take of cpus, memory, disk and identity, and until when (monotonic)
    it is not asked again.
    """
    asked_to_stop: float | None = None
    """Monotonic time at which its guest was first asked to shut down."""
    asked_last: float = 0.0
    explained: float = -math.inf
    """Monotonic time at which it was looked last into why its start takes so long."""
    host_key: asyncio.Task[HostKey] | None = None
    """The host key of a copy, made while the copy comes up."""

    @property
    def monitor(self) -> Monitor:
        """The machine's monitor; raises GuestSilent where it is not connected."""
        if self.run.monitor is None:
            raise GuestSilent("QEMU's monitor is not connected")
        return self.run.monitor

    @property
    def agent(self) -> Agent:
        """The guest's agent; raises GuestSilent where it does not answer."""
        if self.run.agent is None:
            raise GuestSilent("the guest agent is gone")
        return self.run.agent

    def refuse(self, field: str, wish: object, now: float, again: float = AGAIN) -> None:
        """Its guest would not have so much of cpus, memory or disk, or not that identity, or a disk
        could not be plugged: it is not tried again for `again` seconds.
        """
        self.refused[field] = (wish, now + again)

    async def close(self) -> None:
        """Stop listening to it, and making a key for it: whoever makes that writes into a folder
        that is to go. The machine runs on, if it still does.
        """
        await self.run.close()
        making, self.host_key = self.host_key, None
        if making:
            making.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(making, return_exceptions=True)
