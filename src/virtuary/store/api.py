"""The store's promises, written as what must be atomic. One suite of tests runs over every
implementation.

Documents are bytes under keys. One revision counts every transaction of the whole store; a key
remembers the revision of its last write. A watch sees every change once, in order, from any
revision that is still remembered.

What is under `secret/` is neither remembered nor told, and once it was deleted or written anew no
byte of it is left.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from virtuary.base.errors import Changed, Conflict

SECRETS = "secret/"
ABSENT = 0
"""As an expected revision: the key must not be there."""


class Record(NamedTuple):
    key: str
    value: bytes
    revision: int


class Page(NamedTuple):
    records: list[Record]
    revision: int
    """The store's revision at which the page was read: watch from here and nothing is missed."""


class Change(NamedTuple):
    revision: int
    key: str
    value: bytes | None
    """None: the key was deleted."""


class Compacted(Conflict):
    """The revision asked for is no longer remembered; list again, then watch from there."""

    code, status = "compacted", 410


class Store(Protocol):
    def get(self, key: str) -> Record | None:
        """The record under `key`. Small, answered at once, never behind a write."""

    def list(self, prefix: str, after: str = "", limit: int | None = None) -> Page:
        """Records whose key begins with `prefix` and is greater than `after`, by key, at most
        `limit`.
        """

    @property
    def revision(self) -> int:
        """The revision of the last transaction."""

    async def txn(
        self, expect: Mapping[str, int], puts: Mapping[str, bytes], deletes: Sequence[str] = ()
    ) -> int:
        """Apply all of it or nothing, durably before returning; the new revision.

        `expect` names for any keys the revision they must have now (`ABSENT`: not there); raises
        `Changed` naming the first that differs. A key may not be put and deleted at once, and what
        `store/limits.py` says is the most: more is a `Bug`. Raises `StoreAway` when the outcome is
        not durable; nothing has changed then.
        """

    def changes(self, since: int) -> Sequence[Change]:
        """Every change after revision `since` until now, in order. Raises `Compacted`."""

    def watch(self, prefix: str, since: int) -> AsyncIterator[Change]:
        """Every change after revision `since` to keys beginning with `prefix`, for ever. Raises
        `Compacted`.
        """

    async def close(self) -> None:
        """Release everything; watches end."""


def conflict(key: str, wanted: int, found: int) -> Changed:
    """The error for an expectation that does not hold."""
    if wanted == ABSENT:
        return Changed(f"{key} exists already", key=key)
    if found == ABSENT:
        return Changed(f"{key} is gone", key=key)
    return Changed(f"{key} changed meanwhile", "look again and repeat", key=key)


def told(changes: Sequence[Change]) -> list[Change]:
    """Those of `changes` that are remembered, and that watchers hear of."""
    return [change for change in changes if not change.key.startswith(SECRETS)]
