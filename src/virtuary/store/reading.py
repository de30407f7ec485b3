"""Documents of a kind, each read again only where it has changed: documents are frozen, there may
be hundreds, and all are looked through often. What changed since the last look the store tells.

For one thread, the one whose loop the daemon runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from virtuary.model.meta import Document
from virtuary.model.operation import Operation
from virtuary.store.api import Compacted, Store

D = TypeVar("D", bound=Document)


class _Kept(Generic[D]):
    """The documents of a kind whose bytes `holds`, by key, as they were at a revision."""

    def __init__(self, kind: type[D], holds: Callable[[bytes], bool]) -> None:
        self._kind, self._holds = kind, holds
        self._place = f"{kind.prefix}/"
        self._revision = -1
        self._found: dict[str, D] = {}

    def catch_up(self, store: Store) -> dict[str, D]:
        """Them as they are now; the caller changes nothing of it."""
        if self._revision < 0:
            self._list(store)
        elif (now := store.revision) != self._revision:
            try:
                self._follow(store, now)
            except Compacted:
                self._list(store)
        return self._found

    def _list(self, store: Store) -> None:
        page = store.list(self._place)
        self._found = {
            record.key: self._kind.load(record.value, record.revision)
            for record in page.records
            if self._holds(record.value)
        }
        self._revision = page.revision

    def _follow(self, store: Store, now: int) -> None:
        """Take in what changed, each document as it is last; nothing is lost when one can't be
        read.
        """
        changes = store.changes(self._revision)
        last = {change.key: change for change in changes if change.key.startswith(self._place)}
        for change in last.values():
            if change.value is not None and self._holds(change.value):
                self._found[change.key] = self._kind.load(change.value, change.revision)
            else:
                self._found.pop(change.key, None)
        self._revision = max(now, changes[-1].revision) if changes else now


_known: WeakKeyDictionary[Store, dict[str, _Kept[Any]]] = WeakKeyDictionary()


def _kept(store: Store, kind: type[D], what: str, holds: Callable[[bytes], bool]) -> dict[str, D]:
    known = _known.setdefault(store, {})
    if what not in known:
        known[what] = _Kept(kind, holds)
    return known[what].catch_up(store)


def _any(value: bytes) -> bool:
    return True


def every(store: Store, kind: type[D]) -> list[D]:
    """All of them as they are now, by key."""
    return [document for _, document in sorted(_kept(store, kind, kind.prefix, _any).items())]


def open_operations(store: Store) -> list[Operation]:
    """The operations that have not ended, oldest first; of those that have, hundreds are kept."""
    found = _kept(store, Operation, "open", Operation.looks_open)
    return sorted(found.values(), key=lambda item: (item.meta.created, item.meta.id))
