"""The fewest hosts for a few servers, by branch and bound, with the proof where the time suffices.

For every number of hosts from the bound on: is there any placement? The server with the fewest
hosts that still take it is placed next; of hosts that look alike only one is tried; states that led
nowhere are remembered. A number that was searched in vain proves a better bound, so that even a
search that ran out of time may tell something new.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from virtuary.planning.lanes import Bin, Frame, Item

MOST = 16  # servers
REMEMBERED = 200_000


class Found(NamedTuple):
    bins: list[Bin] | None
    """A plan with fewer hosts than the one known; None when there is none, or none was found in
    time.
    """
    bound: int
    """No plan has fewer hosts."""


class _OutOfTime(Exception):
    pass


def search(
    items: Sequence[Item],
    frame: Frame,
    bound: int,
    known: int,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Look for a plan with at least `bound` and fewer than `known` hosts; every server fits on an
    empty host.
    """
    until = clock() + seconds
    while bound < known:
        try:
            bins = _Search(items, frame, bound, until, clock).run()
        except _OutOfTime:
            return Found(None, bound)
        if bins is not None:
            return Found(bins, bound)
        bound += 1
    return Found(None, bound)


class _Search:
    """All placements onto a fixed number of hosts."""

    def __init__(
        self,
        items: Sequence[Item],
        frame: Frame,
        hosts: int,
        until: float,
        clock: Callable[[], float],
    ) -> None:
        self.bins = [Bin(frame) for _ in range(hosts)]
        self.frame, self.until, self.clock = frame, until, clock
        self.waiting = sorted(items, key=lambda item: (-item.size, item.index))
        self.vain: set[tuple[int, tuple[tuple[int, int], ...]]] = set()
        self.conflicting = any(item.conflicts for item in items)

    def run(self) -> list[Bin] | None:
        return [bin for bin in self.bins if bin.items] if self._place() else None

    def _place(self) -> bool:
        if not self.waiting:
            return True
        if self.clock() > self.until:
            raise _OutOfTime
        key = self._key()
        if key in self.vain:
            return False
        item, places = self._hardest()
        self.waiting.remove(item)
        for bin in places:
            bin.add(item)
            if self._place():
                return True
            bin.remove(item)
        self.waiting.append(item)
        if len(self.vain) < REMEMBERED:
            self.vain.add(key)
        return False

    def _key(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """What the future depends on: who waits, and the loads of the hosts in any order; who is
        there, if some must not meet.
        """
        waiting = sum(1 << item.index for item in self.waiting)
        return waiting, tuple(
            sorted((bin.state, bin.present if self.conflicting else 0) for bin in self.bins)
        )

    def _hardest(self) -> tuple[Item, list[Bin]]:
        """The waiting server with the fewest hosts that take it, and these hosts, the fullest
        first; of empty ones only one.
        """
        best: tuple[Item, list[Bin]] | None = None
        for item in sorted(self.waiting, key=lambda item: (-item.size, item.index)):
            places, empty = [], False
            for bin in self.bins:
                if (bin.items or not empty) and bin.fits(item):
                    places.append(bin)
                    empty = empty or not bin.items
            if best is None or len(places) < len(best[1]):
                best = item, places
            if not places:
                break
        assert best
        return best[0], sorted(best[1], key=lambda bin: -bin.size)
