"""No store takes more in one transaction than any other, and what is more is written in parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.errors import Bug, Invalid
from virtuary.base.units import KIB
from virtuary.guest.userdata import LONGEST
from virtuary.store.api import Store
from virtuary.store.limits import (
    DOCUMENT,
    OPERATIONS,
    PART,
    VALUES,
    check_wish,
    in_parts,
    keys_in_parts,
)
from virtuary.store.memory import MemoryStore
from virtuary.store.sealed import SealedStore
from virtuary.store.sqlite import SqliteStore


@pytest.fixture(params=("memory", "sqlite", "sealed"))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    found: Store = MemoryStore()
    if request.param != "memory":
        found = SqliteStore(tmp_path / "store.db")
    if request.param == "sealed":
        found = SealedStore(found, tmp_path / "secret.key")
    yield found
    await found.close()


def keys(number: int, prefix: str = "vm") -> list[str]:
    return [f"{prefix}/{index:03}" for index in range(number)]


async def test_expectations_puts_and_deletes_are_counted_together(store: Store) -> None:
    third = OPERATIONS // 3
    expect, puts = dict.fromkeys(keys(third), 0), dict.fromkeys(keys(third), b"1")
    gone = keys(OPERATIONS - 2 * third, "image")
    revision = await store.txn(expect, puts, gone)
    for more in (
        (dict.fromkeys(keys(OPERATIONS + 1, "x"), 0), {}, []),
        ({}, dict.fromkeys(keys(OPERATIONS + 1, "x"), b""), []),
        ({}, {}, keys(OPERATIONS + 1, "x")),
        (dict.fromkeys(keys(third), revision), puts, [*gone, "one"]),
    ):
        with pytest.raises(Bug, match=f"{OPERATIONS} are the most"):
            await store.txn(*more)
    assert store.revision == revision


async def test_the_bytes_that_are_put_are_bounded_and_those_that_were_there_are_not_counted(
    store: Store,
) -> None:
    half = bytes(VALUES // 2)
    await store.txn({}, {"a": half, "b": half})
    await store.txn({}, {"c": half, "d": half}, ["a", "b"])
    with pytest.raises(Bug, match=f"{VALUES} are the most"):
        await store.txn({}, {"e": half, "f": half + b"1"})
    assert [record.key for record in store.list("").records] == ["c", "d"]


async def test_the_longest_user_data_fits_beside_the_longest_documents(store: Store) -> None:
    await store.txn({}, {"secret/a": bytes(LONGEST), "vm/a": bytes(DOCUMENT)})
    await store.txn({}, {"vm/a": bytes(DOCUMENT), "vm/b": bytes(DOCUMENT)})
    found = store.get("secret/a")
    assert found and found.value == bytes(LONGEST) and LONGEST == 256 * KIB


async def test_secrets_that_lie_in_the_open_are_sealed_however_many_there_are(
    tmp_path: Path,
) -> None:
    inner = MemoryStore()
    for key in keys(130, "secret"):
        await inner.txn({}, {key: bytes(16 * KIB)})
    store = SealedStore(inner, tmp_path / "secret.key")
    await store.seal_all()
    assert all(record.value[:8] == b"\0sealed1" for record in inner.list("secret/").records)
    assert {record.value for record in store.list("secret/").records} == {bytes(16 * KIB)}


sizes = st.lists(st.integers(0, 300 * KIB) | st.integers(0, 9), max_size=150)


@given(sizes, st.integers(1, 3))
@pytest.mark.slow
def test_parts_hold_everything_once_in_order_and_fit(found: list[int], each: int) -> None:
    puts = {f"{number:03}": bytes(size) for number, size in enumerate(found)}
    parts = list(in_parts(puts, each))
    assert [item for part in parts for item in part.items()] == list(puts.items())
    for part in parts:
        assert part and len(part) * each <= OPERATIONS - 20
        assert len(part) == 1 or sum(map(len, part.values())) <= PART


@pytest.mark.parametrize("number", [0, 1, OPERATIONS, OPERATIONS + 1, 500])
def test_keys_come_in_parts_that_a_transaction_holds(number: int) -> None:
    parts = list(keys_in_parts(keys(number)))
    assert [key for part in parts for key in part] == keys(number)
    assert all(0 < len(part) <= OPERATIONS for part in parts)


def test_a_wish_that_is_too_large_is_told_to_whoever_wishes() -> None:
    check_wish({"vm/a": bytes(DOCUMENT), "secret/a": bytes(LONGEST)})
    with pytest.raises(Invalid, match="384 KiB are the most"):
        check_wish({"vm/a": bytes(DOCUMENT + 1)})
