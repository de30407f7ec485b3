"""What passes between a client and the daemon, without saying how it is carried.

An exchange is a generator: it yields requests, is sent the daemon's answers, and returns what the
caller gets. A client carries each request and knows no other part of any call, so whatever is true
of a call is written once, for the synchronous client and for the asynchronous one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")
Query = dict[str, Any]


class Request(NamedTuple):
    """One request; its fields are what `Wire.call` takes, in the same order."""

    method: str
    target: str
    body: Any = None
    query: Query | None = None
    headers: dict[str, str] | None = None


Exchange = Generator[Request, Any, T]
"""Requests go out, decoded answers come in, and `T` is the result."""


@dataclass(frozen=True)
class Listing(Generic[T]):
    """A list that the daemon answers page by page, and what each of its items becomes."""

    target: str
    read: Callable[[Any], T]
    query: Query

    def page(self, cursor: str) -> Request:
        """The page that begins at `cursor`, the first one at the empty one."""
        return get(self.target, **self.query, limit=100, cursor=cursor)

    def whole(self) -> Exchange[list[T]]:
        """All pages, one after the other."""
        found: list[T] = []
        cursor = ""
        while True:
            page = yield self.page(cursor)
            found += map(self.read, page["items"])
            cursor = page["next"] or ""
            if not cursor:
                return found


def get(target: str, **query: Any) -> Request:
    return Request("GET", target, query=query or None)


def once(method: str, target: str, body: Any = None, query: Query | None = None) -> Request:
    """A request that the daemon carries out once, however often it arrives."""
    return Request(method, target, body, query, {"Idempotency-Key": secrets.token_hex(16)})
