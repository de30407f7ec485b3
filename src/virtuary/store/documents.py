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
from typing import TypeVar

from virtuary.base.errors import Bug, Conflict
from virtuary.base.log import say
from virtuary.model import upgrade
from virtuary.model.keys import key_of
from virtuary.model.meta import Document, text_of
from virtuary.model.operation import Operation
from virtuary.store.api import ABSENT, Change, Page, Record, Store
from virtuary.store.here import key_of as _apart
from virtuary.store.here import origin, others, split
from virtuary.store.kept import Index, kept, known

logger = logging.getLogger("virtuary.store")
D = TypeVar("D", bound=Document)
__all__ = [
    "Index", "at", "begun", "bring_over", "by", "change", "every", "expected", "find", "get",
    "here", "home", "is_here", "look_from", "named", "names", "open_operations", "own_name", "page",
    "read", "removed", "shown", "wished", "written",
]  # fmt: skip
FORMAT_KEY = "format"
REMEMBERED = 2000
"""So many documents that were asked for one by one are kept as they were read."""


def get(store: Store, kind: type[D], identity: str | None) -> D | None:
    """The document with this id; None where it is gone, or nobody is named."""
    if not identity:
        return None
    return at(store, kind, kind.key_of(identity))


def at(store: Store, kind: type[D], key: str) -> D | None:
    """The document with this key, with what this host has of it; None where it is gone."""
    record, single = store.get(key), known(store).single
    if record is None:
        single.pop(key, None)
        return None
    mine = _mine(store, kind, key)
    stamp = record.revision, mine.revision if mine else 0
    found = single.get(key)
    if found is None or found[:2] != stamp:
        read = kind.load(record.value, record.revision, mine.value if mine else None)
        found = single[key] = (*stamp, read)
        if len(single) > REMEMBERED:
            single.pop(next(iter(single)))
    return found[2]  # type: ignore[return-value]  # the key says the kind


def find(store: Store, kind: type[D], name: str) -> D | None:
    """The document that has this name now, or this id; those in the trash have no name."""
    return get(store, kind, named(store, kind, name.lower()) or name)


def named(store: Store, kind: type[D], name: str) -> str | None:
    """The id of whoever has this name now; None where it is free."""
    record = store.get(kind.name_key(name))
    return record.value.decode() if record else None


def begun(store: Store, kind: type[D], beginning: str) -> list[D]:
    """At most two of those whose ids begin so: enough to know whether there is one, and one
    alone.
    """
    found = store.list(kind.key_of(beginning), limit=2).records if beginning else []
    return [kind.load(record.value, record.revision) for record in found]


def read(kind: type[D], found: Record | Change) -> D | None:
    """The document of a record, or what it became by a change; None where it was deleted."""
    return None if found.value is None else kind.load(found.value, found.revision)


def names(store: Store, kind: type[D]) -> list[str]:
    """Every name of the kind that is taken."""
    prefix = kind.name_key("")
    return [record.key.removeprefix(prefix) for record in store.list(prefix).records]


def own_name(store: Store, document: Document) -> list[str]:
    """The key of its name, where it still has it: whoever came after may have taken it."""
    has_it = named(store, type(document), document.name) == document.id
    return [document.named] if has_it else []


def every(store: Store, kind: type[D]) -> list[D]:
    """All of them as they are now, by key."""
    found = sorted(kept(store, kind).catch_up(store).items())
    if not kind.local:
        return [document for _, document in found]
    joined = (at(store, kind, key) for key, _ in found)
    return [document for document in joined if document]


def by(store: Store, index: Index[D], word: str) -> list[D]:
    """Those that have this word in an index, by key; the others are not looked at."""
    found = kept(store, index.kind).by(store, index, word)
    return [document for _, document in sorted(found.items())]


def open_operations(store: Store) -> list[Operation]:
    """The operations that have not ended, oldest first; of those that have, hundreds are kept."""
    found = kept(store, Operation, _looks_open, "open operations").catch_up(store)
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
        writes = written(store, changed)
        try:
            revision = await store.txn(
                {**expected(store, current), **(expect or {})}, {**writes, **(puts or {})}
            )
        except Conflict:
            if expect:
                raise
            continue
        return changed.but(meta=changed.meta.but(revision=revision)) if key in writes else changed
    return None


# ---- what only this host has of a document


def look_from(store: Store, host: str) -> None:
    """Have documents of this store read and written as this host's. Once: another host looks at a
    store of its own, or through one.
    """
    if known(store).host not in ("", host):
        raise Bug("a store is looked at from one host")
    known(store).host = host


def is_here(store: Store, document: Document) -> bool:
    """Whether this host has, or is to have, a part of it: it makes and removes nothing else."""
    if not document.local or not known(store).host:
        return True
    return _mine(store, type(document), document.key) is not None


def here(store: Store, kind: type[D]) -> list[D]:
    """All those of which this host has a part, by key."""
    return [document for document in every(store, kind) if is_here(store, document)]


def written(store: Store, document: Document) -> dict[str, bytes]:
    """What a transaction puts for a document: of what is true everywhere and this host's part what
    is not there already. From then on it is here.
    """
    if not document.local or not known(store).host:
        return {document.key: document.dump()}
    mine = _mine(store, type(document), document.key)
    own = _apart(known(store).host, document.key)
    puts = {**wished(store, document), own: split(document, mine)[1]}
    return {
        place: value
        for place, value in puts.items()
        if (record := store.get(place)) is None or record.value != value
    }


def wished(store: Store, document: Document) -> dict[str, bytes]:
    """The same for what is true everywhere alone: whoever wishes something of a document does not
    have it here by that.
    """
    if not document.local or not known(store).host:
        return {document.key: document.dump()}
    mine = _mine(store, type(document), document.key)
    return {document.key: split(document, mine)[0]}


def expected(store: Store, document: Document) -> dict[str, int]:
    """The revisions of a document, and of this host's part of it, as it was read just now."""
    expect = {document.key: document.meta.revision}
    if document.local and (host := known(store).host):
        mine = _mine(store, type(document), document.key)
        expect[_apart(host, document.key)] = mine.revision if mine else ABSENT
    return expect


def removed(store: Store, document: Document) -> tuple[dict[str, int], list[str]]:
    """What a transaction expects and deletes once nothing of a document is left on this host: its
    part of it, and where no other host has one the document with its name.
    """
    host, key = known(store).host, document.key
    own = [_apart(host, key)] if document.local and host else []
    left = others(store, host, key) if own else {}
    gone = [] if left else [key, *own_name(store, document)]
    return {key: document.meta.revision, **left}, [*own, *gone]


def home(store: Store, key: str) -> str:
    """The key of the document that a change of this key is about: also where it is this host's part
    of it. Empty for another host's.
    """
    if (whose := origin(key)) is None:
        return key
    return whose[1] if whose[0] == known(store).host else ""


def _mine(store: Store, kind: type[Document], key: str) -> Record | None:
    host = known(store).host
    return store.get(_apart(host, key)) if kind.local and host else None


# ---- bytes that are passed on


def page(
    store: Store,
    kind: type[D],
    after: str = "",
    limit: int | None = None,
    wanted: Callable[[D], bool] | None = None,
) -> Page:
    """A page of documents, as the bytes that are kept: whoever shows hundreds of them does not read
    and write each again. Which of them are `wanted` is asked of documents, not of bytes. Those of
    which hosts have parts are few, and put together.
    """
    if kind.local:
        found = store.list(kind.place(), after, limit)
        joined = ((record, at(store, kind, record.key)) for record in found.records)
        records = [record._replace(value=item.dump()) for record, item in joined if item]
        return Page(records, found.revision)
    if wanted is None:
        return store.list(kind.place(), after, limit)
    found, known_ones = store.list(kind.place(), after), kept(store, kind).catch_up(store)
    chosen = [record for record in found.records if wanted(known_ones[record.key])]
    return Page(chosen[:limit], found.revision)


def shown(record: Record) -> bytes:
    """A document that is kept as JSON with its revision, without being read: the meta is the first
    thing of it, as `Document.dump` has it.
    """
    assert record.value.startswith(_OPENING)
    return _OPENING + b'"revision":%d,' % record.revision + record.value[len(_OPENING) :]


_OPENING = b'{"meta":{'


def _looks_open(value: bytes) -> bool:
    """Whether stored bytes are of an operation that has not ended, without reading it: those that
    have are many, and nobody asks for them.

    A quote inside a string is escaped, so no text can look like a field.
    """
    return any(phase in value for phase in _OPEN)


_OPEN = (b'"status":{"phase":"pending"', b'"status":{"phase":"running"')


# ---- documents of an older format


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
        for item in store.list(key_of(prefix, "")).records:
            body = json.loads(item.value)
            now = upgrade.as_now(prefix, body)
            if now != body:
                await store.txn({item.key: item.revision}, {item.key: text_of(now)})
    if known(store).host:
        await _set_apart(store, known(store).host)
    await store.txn({}, {FORMAT_KEY: str(upgrade.FORMAT).encode()})


async def _set_apart(store: Store, host: str) -> None:
    """Of what stood together make what is true everywhere and what is this host's, the only one
    there was.
    """
    for prefix, own in upgrade.SET_APART.items():
        for item in store.list(key_of(prefix, "")).records:
            mine, body = upgrade.set_apart(json.loads(item.value), own)
            if mine:
                puts = {item.key: text_of(body), _apart(host, item.key): text_of(mine)}
                await store.txn({item.key: item.revision}, puts)
    if record := store.get(upgrade.BOOT):
        await store.txn({}, {_apart(host, "boot"): record.value}, [upgrade.BOOT])
