"""What was read of a store last: documents by key, and by what is asked of them often. Followed by
what the store says has changed; used by `store/documents.py` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from virtuary.model.meta import Document
from virtuary.store.api import Compacted, Store

D = TypeVar("D", bound=Document)


class Index(Generic[D]):
    """What documents of a kind are found by, besides their key: the words that each has."""

    def __init__(self, kind: type[D], words: Callable[[D], Iterable[str]]) -> None:
        self.kind, self.words = kind, words


class Kept(Generic[D]):
    """The documents of a kind whose bytes `holds`, by key, as they were at a revision."""

    def __init__(self, kind: type[D], holds: Callable[[bytes], bool]) -> None:
        self._kind, self._holds = kind, holds
        self._revision = -1
        self._found: dict[str, D] = {}
        self._indexes: dict[Index[D], dict[str, dict[str, D]]] = {}

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

    def by(self, store: Store, index: Index[D], word: str) -> dict[str, D]:
        """Those that have this word, by key."""
        found = self.catch_up(store)
        if index not in self._indexes:
            self._indexes[index] = {}
            for key, document in found.items():
                self._enter(index, key, document)
        return self._indexes[index].get(word, {})

    def _list(self, store: Store) -> None:
        page = store.list(self._kind.place())
        self._indexes = {}
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
        changes, place = store.changes(self._revision), self._kind.place()
        last = {change.key: change for change in changes if change.key.startswith(place)}
        for change in last.values():
            holds = change.value is not None and self._holds(change.value)
            read = self._kind.load(change.value or b"", change.revision) if holds else None
            self._take(change.key, read)
        self._revision = max(now, changes[-1].revision) if changes else now

    def _take(self, key: str, document: D | None) -> None:
        before = self._found.pop(key, None)
        for index, words in self._indexes.items():
            for word in set(index.words(before)) if before else ():
                words[word].pop(key, None)
            if document:
                self._enter(index, key, document)
        if document:
            self._found[key] = document

    def _enter(self, index: Index[D], key: str, document: D) -> None:
        for word in index.words(document):
            self._indexes[index].setdefault(word, {})[key] = document


class Known:
    """What was read of one store."""

    def __init__(self) -> None:
        self.kept: dict[str, Kept[Any]] = {}
        self.single: dict[str, tuple[int, int, Document]] = {}
        """By key: the revisions of what is true everywhere, and of what this host has of it."""
        self.host = ""
        """The host that looks; none for whoever has no part of anything."""


_known: WeakKeyDictionary[Store, Known] = WeakKeyDictionary()


def known(store: Store) -> Known:
    return _known.setdefault(store, Known())


def kept(
    store: Store, kind: type[D], holds: Callable[[bytes], bool] | None = None, what: str = ""
) -> Kept[D]:
    """The documents of a kind, or those of them that `holds`, which is called `what`."""
    found, name = known(store).kept, what or kind.prefix
    if name not in found:
        found[name] = Kept(kind, holds or _any)
    return found[name]


def _any(value: bytes) -> bool:
    return True
