"""Every document of a kind, read again only where it has changed: documents are frozen, there may
be hundreds, and all are looked through often.
"""

from __future__ import annotations

from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from virtuary.model.meta import Document
from virtuary.store.api import Store

D = TypeVar("D", bound=Document)
_known: WeakKeyDictionary[Store, dict[str, dict[str, Any]]] = WeakKeyDictionary()


def every(store: Store, kind: type[D]) -> list[D]:
    """All of them as they are now, by key."""
    known = _known.setdefault(store, {})
    before, found = known.get(kind.prefix, {}), dict[str, Any]()
    for record in store.list(f"{kind.prefix}/").records:
        document = before.get(record.key)
        if document is None or document.meta.revision != record.revision:
            document = kind.load(record.value, record.revision)
        found[record.key] = document
    known[kind.prefix] = found
    return list(found.values())
