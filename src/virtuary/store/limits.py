"""How much one transaction may hold, the same for every implementation of the store, and how more
than that is written: in parts, each a transaction of its own.

A store of many hosts takes no larger ones. So whoever writes an unbounded number of documents says
what is true between two parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from virtuary.base.errors import Bug, Invalid
from virtuary.base.units import KIB, MIB, format_size

OPERATIONS = 120
"""Expectations, puts and deletes of a transaction, all together."""
VALUES = 1 * MIB
"""Bytes of the values that it puts, as they are kept: a sealed secret is some bytes longer."""
DOCUMENT = 384 * KIB
"""Bytes of a document as a user may wish it: two of them, and user data, are one transaction."""
PART = VALUES // 2
"""Bytes in a part of what is written in parts; a single value may be longer."""


def check(expect: Mapping[str, int], puts: Mapping[str, bytes], deletes: Sequence[str]) -> None:
    """Raise `Bug` for a transaction that no store takes: one that puts and deletes one key, or that
    is too large.
    """
    if both := set(puts) & set(deletes):
        raise Bug(f"a transaction puts and deletes {min(both)}")
    operations = len(expect) + len(puts) + len(deletes)
    if operations > OPERATIONS:
        raise Bug(f"a transaction of {operations} operations: {OPERATIONS} are the most")
    size = sum(map(len, puts.values()))
    if size > VALUES:
        raise Bug(f"a transaction of {size} bytes: {VALUES} are the most")


def check_wish(puts: Mapping[str, bytes]) -> None:
    """Raise Invalid where what a user wishes makes a document that is too large."""
    longest = max(map(len, puts.values()), default=0)
    if longest > DOCUMENT:
        raise Invalid(
            f"what is wished takes {longest} bytes, and {format_size(DOCUMENT)} are the most",
            "name fewer or shorter keys, rules, labels or ports",
        )


def in_parts(puts: Mapping[str, bytes], each: int = 2) -> Iterator[dict[str, bytes]]:
    """What is to be put, in parts that a transaction holds, with room for some operations more.
    `each`: operations that go with one key, its expectation among them.
    """
    part: dict[str, bytes] = {}
    for key, value in puts.items():
        size = sum(map(len, part.values())) + len(value)
        if part and (size > PART or (len(part) + 1) * each > OPERATIONS - 20):
            yield part
            part = {}
        part[key] = value
    if part:
        yield part


def keys_in_parts(keys: Iterable[str]) -> Iterator[list[str]]:
    """Keys that are to be deleted, so many at once as a transaction holds."""
    left = iter(keys)
    while part := list(islice(left, OPERATIONS)):
        yield part
