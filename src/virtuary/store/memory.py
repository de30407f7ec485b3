"""A store in memory: for tests and for simulations. Keeps every promise but durability."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence

from virtuary.store.api import Change, Compacted, Page, Record, conflict, told
from virtuary.store.feed import Feed
from virtuary.store.limits import check


class MemoryStore:
    def __init__(self, log_length: int = 10_000) -> None:
        self._records: dict[str, Record] = {}
        self._revision = 0
        self._log: deque[Change] = deque()
        self._log_length = log_length
        self._compacted = 0
        self._feed = Feed(self.changes)

    @property
    def revision(self) -> int:
        return self._revision

    def get(self, key: str) -> Record | None:
        return self._records.get(key)

    def list(self, prefix: str, after: str = "", limit: int | None = None) -> Page:
        keys = sorted(key for key in self._records if key.startswith(prefix))
        first = bisect.bisect_right(keys, after)
        return Page([self._records[key] for key in keys[first:][:limit]], self._revision)

    async def txn(
        self, expect: Mapping[str, int], puts: Mapping[str, bytes], deletes: Sequence[str] = ()
    ) -> int:
        check(expect, puts, deletes)
        for key, wanted in expect.items():
            record = self._records.get(key)
            found = record.revision if record else 0
            if found != wanted:
                raise conflict(key, wanted, found)
        self._revision += 1
        changes = [Change(self._revision, key, value) for key, value in puts.items()]
        changes += [
            Change(self._revision, key, None) for key in deletes if self._records.pop(key, None)
        ]
        self._records.update(
            {key: Record(key, value, self._revision) for key, value in puts.items()}
        )
        self._remember(told(changes))
        self._feed.publish(told(changes))
        return self._revision

    def _remember(self, changes: Sequence[Change]) -> None:
        self._log.extend(changes)
        while len(self._log) > self._log_length:
            self._compacted = self._log.popleft().revision

    def changes(self, since: int) -> Sequence[Change]:
        if since < self._compacted:
            raise Compacted(f"changes up to revision {self._compacted} are forgotten")
        return [change for change in self._log if change.revision > since]

    def watch(self, prefix: str, since: int) -> AsyncIterator[Change]:
        return self._feed.watch(prefix, since)

    async def close(self) -> None:
        self._feed.close()
