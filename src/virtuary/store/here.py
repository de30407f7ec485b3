"""What only one host has of a document lies apart from what is true everywhere: under
`here/HOST/KIND/ID`, beside `KIND/ID`. A document is read as both together, and written as both.

Which fields of its status are one host's says each kind (`Document.local`).
"""

from __future__ import annotations

import json

from virtuary.model import keys
from virtuary.model.meta import Document, text_of
from virtuary.store.api import Record, Store

PREFIX = "here"


def key_of(host: str, what: str) -> str:
    """The key of what a host has of the document with this key, or has besides all documents."""
    return keys.key_of(PREFIX, keys.key_of(host, what))


def origin(key: str) -> tuple[str, str] | None:
    """The host, and what it is of, of such a key; None for every other one."""
    if keys.kind_of(key) != PREFIX:
        return None
    host, _, what = keys.id_of(key).partition("/")
    return host, what


def others(store: Store, host: str, key: str) -> dict[str, int]:
    """The keys of what other hosts have of a document, and their revisions."""
    found = store.list(keys.key_of(PREFIX, "")).records
    return {
        record.key: record.revision
        for record in found
        if (whose := origin(record.key)) and whose[0] != host and whose[1] == key
    }


def split(document: Document, record: Record | None) -> tuple[bytes, bytes]:
    """A document as it is kept: what is true everywhere, and what this host has of it. `record`:
    what it had before; a field that is not known stays where it was found.
    """
    body = document.body()
    body["meta"].pop("revision")
    own = {*document.local, *(json.loads(record.value) if record else ())}
    mine = {name: value for name, value in body["status"].items() if name in own}
    rest = {name: value for name, value in body["status"].items() if name not in own}
    return text_of({**body, "status": rest}), text_of(mine)
