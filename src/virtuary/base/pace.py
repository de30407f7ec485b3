"""How much one may take of what all share: bytes of a disk, events a second, time of the loop. What
is over is put off or dropped.

The daemon is one loop, and each server's QEMU and guest may be an adversary's: whatever they send,
they are given their share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
BURST, SHARE = 0.05, 0.1
"""Seconds of the loop one peer may take at once, and what part of it for long."""


class Bucket:
    """A token bucket: `burst` at once, `rate` a second for long."""

    def __init__(
        self, burst: float, rate: float, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._rate, self._now = burst, rate, now
        self._left, self._at = burst, now()

    def left(self) -> float:
        """How much may be taken now; below zero when too much was."""
        now = self._now()
        self._left, self._at = min(self._burst, self._left + (now - self._at) * self._rate), now
        return self._left

    def take(self, amount: float) -> float:
        """Take so much, also what is not there; the seconds until it would be."""
        self._left = self.left() - amount
        return max(0.0, -self._left / self._rate)


class Share:
    """The time of the loop that one peer may take, which pays for it after it was taken."""

    def __init__(self) -> None:
        self._bucket, self._debt = Bucket(BURST, SHARE), 0.0

    def owe(self, seconds: float) -> None:
        self._debt += seconds

    async def pay(self) -> None:
        """Let others go first; for long, where too much was taken."""
        debt, self._debt = self._debt, 0.0
        await asyncio.sleep(self._bucket.take(debt))


def offer(queue: asyncio.Queue[T], item: T) -> None:
    """Put something into a queue of limited size; where it is full the oldest goes."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(item)
