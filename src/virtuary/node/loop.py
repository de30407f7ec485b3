"""The loop about one document: load it, take one step towards what it says, wait, until it is gone.

What differs from kind to kind is the step, what a failure means, and what is let go at the end.
Whoever runs a loop for a document is the only writer of its status.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Mapping
from typing import Generic, TypeVar

from virtuary.base.errors import Conflict, VirtuaryError
from virtuary.model.meta import Document
from virtuary.model.operation import Operation
from virtuary.node import operations
from virtuary.node.site import Site
from virtuary.store import documents

D = TypeVar("D", bound=Document)
FOR_EVER = math.inf
"""Seconds of a wait that only what happens ends."""


class Loop(Generic[D]):
    def __init__(self, site: Site, kind: type[D], identity: str) -> None:
        self.site, self.kind, self.identity = site, kind, identity
        self.key = kind.key_of(identity)
        self.woken = asyncio.Event()

    def wake(self) -> None:
        """Something happened that it may have to do with."""
        self.woken.set()

    def load(self) -> D | None:
        """The document as it is now; None when it is gone."""
        return documents.at(self.site.store, self.kind, self.key)

    async def work(self) -> None:
        """Until the document is gone, or for ever."""
        try:
            while (document := self.load()) is not None:
                self.woken.clear()
                try:
                    here = documents.is_here(self.site.store, document)
                    pause = await self.step(document) if here else FOR_EVER
                except Conflict:
                    continue  # somebody wrote meanwhile: look again
                except (VirtuaryError, OSError) as error:
                    pause = await self.failed(document, error)
                if pause:
                    await self.sleep(pause)
        finally:
            await self.close()

    async def sleep(self, seconds: float) -> None:
        """Until something happens, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if seconds == FOR_EVER else seconds):
                await self.woken.wait()

    async def step(self, document: D) -> float:
        """One step; answers the seconds to sleep then, 0 to look again at once."""
        raise NotImplementedError

    async def failed(self, document: D, error: VirtuaryError | OSError) -> float:
        """What a step that failed means; answers the seconds to sleep then."""
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is held any more for the document."""

    async def write(
        self,
        expect: Mapping[str, int] | None = None,
        ends: str | None = None,
        **changes: object,
    ) -> D:
        """Change status fields of the stored document, over whatever others changed in it
        meanwhile; in the same transaction end the operation with the key `ends`.

        `expect`: other documents that must not have changed. Raises Conflict when one has, or when
        the document is gone.
        """
        store = self.site.store
        while True:
            ended = documents.at(store, Operation, ends) if ends else None
            over = ended if ended and not ended.ended else None
            also = {over.key: over.meta.revision} if over else {}
            puts = {over.key: operations.finished(over).dump()} if over else {}
            try:
                written = await documents.change(
                    store,
                    self.kind,
                    self.key,
                    lambda current: current.seen(**changes),
                    {**(expect or {}), **also},
                    puts,
                )
            except Conflict:
                if expect:
                    raise
                continue
            if written is None:
                raise Conflict(f"{self.key} is gone")
            return written
