"""Marks of requests that may be repeated: when one was made, what it asked, and the operation that
it began. Each is written with what it marks, and kept for a day.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import NamedTuple

from virtuary.store.api import Store

_PLACE = "idempotency/"
_MOMENT = 26
"""Characters of a moment with its microseconds: what comes after is the zone, always UTC."""


class Mark(NamedTuple):
    digest: str
    operation: str | None

    def dump(self, at: datetime) -> bytes:
        return f"{at.isoformat()} {self.digest} {self.operation or '-'}".encode()


def key_of(scope: str) -> str:
    """The key of the mark of a request; `scope` says who asked what under which name."""
    return f"{_PLACE}{hashlib.sha256(scope.encode()).hexdigest()}"


def is_mark(key: str) -> bool:
    return key.startswith(_PLACE)


def read(store: Store, key: str) -> Mark | None:
    """The mark of a request that was made before."""
    record = store.get(key)
    if record is None:
        return None
    _, digest, operation = record.value.decode().split(" ")
    return Mark(digest, None if operation == "-" else operation)


def older(store: Store, limit: datetime) -> list[str]:
    """The keys of those made before that moment."""
    before = limit.isoformat()[:_MOMENT].encode()
    return [item.key for item in store.list(_PLACE).records if item.value[:_MOMENT] < before]
