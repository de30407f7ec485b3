"""The bandwidth of the NICs on one network, kept as their documents say."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from virtuary.base.errors import Failed, HostLacks
from virtuary.base.log import say
from virtuary.host.capacity import find_links
from virtuary.model.bandwidth import Bandwidth
from virtuary.model.network import Network, link_speed
from virtuary.network import bridge, shaping
from virtuary.network.netns import Netns
from virtuary.node.networks.members import Member

logger = logging.getLogger("virtuary.bandwidth")
NOTHING = Bandwidth()


class Shaper:
    """One network's limits, floors and shares."""

    def __init__(self, netns: Netns) -> None:
        self._netns = netns
        self._numbers: dict[str, int] = {}
        self._applied: shaping.Segment | None = None
        self._leaf: shaping.Leaf | None = None

    async def apply(
        self, network: Network, name: str, members: Iterable[Member], *, look: bool
    ) -> tuple[str, ...]:
        """Have the kernel do what the documents say of the NICs that are there; what it can't do,
        in words.

        `look`: also where nothing changed since the last time, because somebody else may have
        changed it.
        """
        taps = {
            member.tap: member.nic.bandwidth
            for member in members
            if bridge.is_there(member.tap, self._netns.net)
        }
        wanted = any(bandwidth != NOTHING for bandwidth in taps.values())
        if not wanted and self._applied is None:
            return ()
        speed = link_speed(network, find_links())
        ports = tuple(
            shaping.Port(tap, number, taps[tap]) for tap, number in self._number(sorted(taps))
        )
        segment = shaping.Segment(name, speed, ports if wanted else ())
        if segment == self._applied and not look:
            return ()
        try:
            if self._leaf is None:
                found: shaping.Leaf = await self._netns.call(shaping.probe)
                self._leaf = found
            lines = await self._netns.call(shaping.apply, segment, self._leaf)
        except (HostLacks, Failed) as error:
            return (error.sentence,)
        if lines:
            say(
                logger,
                "bandwidth",
                network=network.name,
                ports=len(segment.ports),
                lines=len(lines),
            )
        self._applied = segment if wanted else None
        return ()

    def _number(self, taps: Sequence[str]) -> list[tuple[str, int]]:
        """A number for each tap, its own as long as it lives."""
        self._numbers = {tap: number for tap, number in self._numbers.items() if tap in taps}
        free = (
            number
            for number in range(shaping.FIRST_NUMBER, shaping.LAST_NUMBER + 1)
            if number not in self._numbers.values()
        )
        for tap in taps:
            if tap not in self._numbers:
                self._numbers[tap] = next(free)
        return [(tap, self._numbers[tap]) for tap in taps]
