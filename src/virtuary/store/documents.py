"""The one door to documents: one by its id, one by its name, all of a kind, and a change of one.

A document is read again only where it has changed: documents are frozen, there may be hundreds, and
all are looked through often. What changed since the last look the store tells. Which key a document
or its name has says its kind, and nobody else spells it.

For one thread, the one whose loop the daemon runs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from virtuary.base.errors import Conflict
from virtuary.base.log import say
from virtuary.model import upgrade
from virtuary.model.meta import Document
from virtuary.model.operation import Operation
from virtuary.store.api import Compacted, Store

logger = logging.getLogger("virtuary.store")
D = TypeVar("D", bound=Document)
FORMAT_KEY = "format"
REMEMBERED = 2000
"""So many documents that were asked for one by one are kept as they were read."""


def get(store: Store, kind: type[D], identity: str | None) -> D | None:
    """The document with this id; None where it is gone, or nobody is named."""
    if not identity:
        return None
    return at(store, kind, kind.key_of(identity))


def at(store: Store, kind: type[D], key: str) -> D | None:
    """The document with this key; None where it is gone."""
    record, known = store.get(key), _known.setdefault(store, _Known()).single
    if record is None:
        known.pop(key, None)
        return None
    found = known.get(key)
    if found is None or found.meta.revision != record.revision:
        found = known[key] = kind.load(record.value, record.revision)
        if len(known) > REMEMBERED:
            known.pop(next(iter(known)))
    return found  # type: ignore[return-value]  # the key says the kind


def find(store: Store, kind: type[D], name: str) -> D | None:
    """The document that has this name now, or this id; those in the trash have no name."""
    record = store.get(kind.name_key(name.lower()))
    return get(store, kind, record.value.decode() if record else name)


def names(store: Store, kind: type[D]) -> list[str]:
    """Every name of the kind that is taken."""
    prefix = kind.name_key("")
    return [record.key.removeprefix(prefix) for record in store.list(prefix).records]


def own_name(store: Store, document: Document) -> list[str]:
    """The key of its name, where it still has it: whoever came after may have taken it."""
    record = store.get(document.named)
    return [document.named] if record and record.value.decode() == document.id else []


def every(store: Store, kind: type[D]) -> list[D]:
    """All of them as they are now, by key."""
    return [document for _, document in sorted(_kept(store, kind, kind.prefix, _any).items())]


def open_operations(store: Store) -> list[Operation]:
    """The operations that have not ended, oldest first; of those that have, hundreds are kept."""
    found = _kept(store, Operation, "open", Operation.looks_open)
    return sorted(found.values(), key=lambda item: (item.meta.created, item.meta.id))


async def change(
    store: Store,
    kind: type[D],
    key: str,
    how: Callable[[D], D | None],
    expect: Mapping[str, int] | None = None,
    puts: Mapping[str, bytes] | None = None,
) -> D | None:
    """Change a document over whatever others changed in it meanwhile: `how` is asked again with
    what it became. Answers the document as it is then; None where it is gone.

    `how` answers with None where nothing is to be written. `expect`, `puts`: other documents,
    which must not have changed and are written with it, also where this one stays as it was;
    raises Conflict when one has.
    """
    while (current := at(store, kind, key)) is not None:
        changed = how(current)
        if changed is None or (changed == current and not expect and not puts):
            return current
        try:
            revision = await store.txn(
                {key: current.meta.revision, **(expect or {})},
                {key: changed.dump(), **(puts or {})},
            )
        except Conflict:
            if expect:
                raise
            continue
        return changed.but(meta=changed.meta.but(revision=revision))
    return None


async def bring_over(store: Store) -> None:
    """Have all documents in today's format, where an older version wrote them. Costs nothing when
    it was done; done again, it changes nothing.

    Where a newer version wrote them they stay in its format, and so does what the store says of it:
    they are read, with the fields that are known here.
    """
    record = store.get(FORMAT_KEY)
    found = int(record.value) if record else 0
    if found > upgrade.FORMAT:
        say(logger, "documents of a newer Virtuary", logging.WARNING, format=found)
    if found >= upgrade.FORMAT:
        return
    for prefix in upgrade.UPGRADES:
        for kept in store.list(f"{prefix}/").records:
            body = json.loads(kept.value)
            now = upgrade.as_now(prefix, body)
            if now != body:
                text = json.dumps(now, separators=(",", ":"), ensure_ascii=False)
                await store.txn({kept.key: kept.revision}, {kept.key: text.encode()})
    await store.txn({}, {FORMAT_KEY: str(upgrade.FORMAT).encode()})


# ---- what was read last


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


class _Known:
    """What was read of one store."""

    def __init__(self) -> None:
        self.kept: dict[str, _Kept[Any]] = {}
        self.single: dict[str, Document] = {}


_known: WeakKeyDictionary[Store, _Known] = WeakKeyDictionary()


def _kept(store: Store, kind: type[D], what: str, holds: Callable[[bytes], bool]) -> dict[str, D]:
    known = _known.setdefault(store, _Known()).kept
    if what not in known:
        known[what] = _Kept(kind, holds)
    return known[what].catch_up(store)


def _any(value: bytes) -> bool:
    return True
