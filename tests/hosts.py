"""A second host's way to a store that two of them share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from virtuary.store.api import Change, Page, Record, Store


class Through:
    """The same store, looked at from somewhere else."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def revision(self) -> int:
        return self.store.revision

    def get(self, key: str) -> Record | None:
        return self.store.get(key)

    def list(self, prefix: str, after: str = "", limit: int | None = None) -> Page:
        return self.store.list(prefix, after, limit)

    async def txn(
        self, expect: Mapping[str, int], puts: Mapping[str, bytes], deletes: Sequence[str] = ()
    ) -> int:
        return await self.store.txn(expect, puts, deletes)

    def changes(self, since: int) -> Sequence[Change]:
        return self.store.changes(since)

    def watch(self, prefix: str, since: int) -> AsyncIterator[Change]:
        return self.store.watch(prefix, since)

    async def close(self) -> None:
        return None
