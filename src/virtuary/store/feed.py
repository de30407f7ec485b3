"""Delivers changes to watchers in order; shared by the store's implementations.

A watcher first reads what the log remembers after its revision, then what is published; nothing is
lost or doubled between the two because a subscription stands before the log is read and revisions
only grow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from virtuary.store.api import Change

_CLOSED = Change(-1, "", None)


class Feed:
    def __init__(self, remembered: Callable[[int], Sequence[Change]]) -> None:
        """`remembered(since)` gives the logged changes after `since`, or raises `Compacted`."""
        self._remembered = remembered
        self._queues: set[asyncio.Queue[Change]] = set()
        self._closed = False

    def publish(self, changes: Sequence[Change]) -> None:
        """Hand committed changes to all watchers; called on the loop, in order of revision."""
        for queue in self._queues:
            for change in changes:
                queue.put_nowait(change)

    def close(self) -> None:
        self._closed = True
        self.publish([_CLOSED])

    async def watch(self, prefix: str, since: int) -> AsyncIterator[Change]:
        queue: asyncio.Queue[Change] = asyncio.Queue()
        self._queues.add(queue)
        try:
            last = since
            for change in self._remembered(since):
                last = change.revision
                if change.key.startswith(prefix):
                    yield change
            while not self._closed:
                change = await queue.get()
                if change is _CLOSED:
                    return
                if change.revision > last and change.key.startswith(prefix):
                    yield change
        finally:
            self._queues.discard(queue)
