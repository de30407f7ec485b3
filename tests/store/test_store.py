"""The store's promises, one suite over every implementation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from virtuary.base.errors import Bug, Conflict
from virtuary.store.api import ABSENT, Change, Compacted, Record, Store
from virtuary.store.memory import MemoryStore
from virtuary.store.sealed import SealedStore
from virtuary.store.sqlite import SqliteStore

KINDS = ("memory", "sqlite", "sealed")


def make(kind: str, folder: Path) -> Store:
    if kind == "sealed":
        return SealedStore(SqliteStore(folder / "store.db"), folder / "secret.key")
    return MemoryStore() if kind == "memory" else SqliteStore(folder / "store.db")


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    found = make(request.param, tmp_path)
    yield found
    await found.close()


async def fill(store: Store, *keys: str) -> int:
    revision = 0
    for key in keys:
        revision = await store.txn({}, {key: key.encode()})
    return revision


async def take(changes: AsyncIterator[Change], number: int) -> list[Change]:
    async with asyncio.timeout(5):
        return [await anext(changes) for _ in range(number)]


async def test_what_was_put_is_there_with_its_revision(store: Store) -> None:
    revision = await store.txn({}, {"vm/a": b"1", "vm/b": b"\0\xff"})
    assert store.get("vm/a") == Record("vm/a", b"1", revision)
    assert store.get("vm/b") == Record("vm/b", b"\0\xff", revision)
    assert store.get("vm/c") is None and store.revision == revision


async def test_a_list_holds_the_prefix_in_order_of_keys(store: Store) -> None:
    await fill(store, "vm/b", "vm-name/x", "vm/a", "vma", "image/a", "vm/ä", "vm/", "vm")
    page = store.list("vm/")
    assert [record.key for record in page.records] == ["vm/", "vm/a", "vm/b", "vm/ä"]
    assert page.revision == store.revision


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 100, None])
async def test_pages_hold_everything_once(store: Store, limit: int | None) -> None:
    keys = [f"vm/{number:02}" for number in range(7)]
    await fill(store, "a", *reversed(keys), "z")
    seen: list[str] = []
    while records := store.list("vm/", after=seen[-1] if seen else "", limit=limit).records:
        seen += [record.key for record in records]
    assert seen == keys


async def test_a_cursor_outside_of_the_prefix_is_harmless(store: Store) -> None:
    await fill(store, "image/a", "vm/a", "vm/b", "zoo/a")
    assert [record.key for record in store.list("vm/", after="image/a").records] == ["vm/a", "vm/b"]
    assert store.list("vm/", after="zoo/a").records == []


async def test_a_transaction_is_all_or_nothing(store: Store) -> None:
    before = await fill(store, "a", "b")
    with pytest.raises(Conflict):
        await store.txn({"a": 1, "b": 999}, {"a": b"new", "c": b"new"}, ["b"])
    assert store.revision == before and store.get("c") is None
    assert [record.value for record in store.list("").records] == [b"a", b"b"]


EXPECTATIONS = {
    "there already": ("a", ABSENT, "a exists already"),
    "gone": ("nobody", 1, "nobody is gone"),
    "changed": ("a", 77, "a changed meanwhile"),
}


@pytest.mark.parametrize("case", EXPECTATIONS)
async def test_a_conflict_names_the_key_and_why(store: Store, case: str) -> None:
    await fill(store, "a")
    key, revision, sentence = EXPECTATIONS[case]
    with pytest.raises(Conflict) as caught:
        await store.txn({key: revision}, {"b": b""})
    assert caught.value.sentence == sentence and caught.value.details == {"key": key}


async def test_expectations_that_hold_let_it_through(store: Store) -> None:
    first = await fill(store, "a")
    assert await store.txn({"a": first, "new": ABSENT}, {"a": b"2", "new": b"1"}) == first + 1


async def test_deleting_is_a_change_and_deleting_nothing_is_none(store: Store) -> None:
    since = await fill(store, "a")
    deleted = await store.txn({}, {}, ["a", "nobody"])
    await fill(store, "b")
    assert await take(store.watch("", since), 2) == [
        Change(deleted, "a", None),
        Change(deleted + 1, "b", b"b"),
    ]
    assert store.get("a") is None


async def test_an_empty_transaction_is_harmless(store: Store) -> None:
    before = await fill(store, "a")
    assert await store.txn({"a": before}, {}) >= before
    assert store.get("a") == Record("a", b"a", before)


async def test_of_many_at_once_with_one_expectation_one_wins(store: Store) -> None:
    first = await fill(store, "a")
    done = await asyncio.gather(
        *(store.txn({"a": first}, {"a": b"%d" % n}) for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(item, int) for item in done) == 1
    assert sum(isinstance(item, Conflict) for item in done) == 19


async def test_a_counter_under_contention_loses_nothing(store: Store) -> None:
    await store.txn({}, {"n": b"0"})

    async def add() -> None:
        while True:
            record = store.get("n")
            assert record
            try:
                await store.txn({"n": record.revision}, {"n": b"%d" % (int(record.value) + 1)})
            except Conflict:
                await asyncio.sleep(0)
                continue
            return

    await asyncio.gather(*(add() for _ in range(25)))
    assert store.get("n") == Record("n", b"25", store.revision)


async def test_a_key_both_put_and_deleted_is_refused_and_the_store_goes_on(store: Store) -> None:
    with pytest.raises(Bug):
        await store.txn({}, {"a": b"1"}, ["a"])
    await fill(store, "b")
    assert store.get("b") and not store.get("a")


# ---- watching


async def test_a_watch_tells_the_past_then_the_present_without_gap_or_double(store: Store) -> None:
    since = await fill(store, "vm/0")
    changes = store.watch("vm/", since)
    await fill(store, "vm/1", "image/x", "vm/2")
    heard = await take(changes, 1)
    waiting = asyncio.create_task(take(changes, 4))
    for number in range(3, 6):
        await fill(store, f"vm/{number}", f"image/{number}")
    heard += await waiting
    assert [change.key for change in heard] == [f"vm/{number}" for number in range(1, 6)]
    assert [change.revision for change in heard] == sorted({change.revision for change in heard})


async def test_a_watch_from_a_page_misses_nothing(store: Store) -> None:
    await fill(store, "a")
    page = store.list("")
    await fill(store, "b")
    assert [change.key for change in await take(store.watch("", page.revision), 1)] == ["b"]


async def test_watchers_hear_changes_while_others_write(store: Store) -> None:
    """Watchers that join at any moment hear each later change exactly once."""
    total = 60

    async def follow() -> list[int]:
        since = store.revision
        heard = await take(store.watch("k", since), total - since)
        return (
            [change.revision for change in heard] == list(range(since + 1, total + 1)) and [1]
        ) or [0]

    tasks = []
    for number in range(total):
        if number % 10 == 0:
            tasks.append(asyncio.create_task(follow()))
            await asyncio.sleep(0)
        await fill(store, f"k{number}")
    assert await asyncio.gather(*tasks) == [[1]] * 6


async def test_a_watch_ends_when_the_store_closes(store: Store) -> None:
    changes = store.watch("", 0)
    waiting = asyncio.create_task(anext(changes, None))
    await asyncio.sleep(0.01)
    await store.close()
    async with asyncio.timeout(2):
        assert await waiting is None


async def test_a_write_that_is_cancelled_is_still_told_to_watchers_and_stays_cancelled(
    store: Store,
) -> None:
    changes = store.watch("", store.revision)
    heard = asyncio.create_task(take(changes, 1))
    await asyncio.sleep(0)

    async def write() -> str:
        await store.txn({}, {"a": b"1"})
        await asyncio.sleep(0.2)
        return "went on as if nothing had happened"

    task = asyncio.create_task(write())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if store.get("a"):
        assert [change.key for change in await heard] == ["a"]
    heard.cancel()


async def test_what_is_forgotten_is_refused_and_listing_again_helps() -> None:
    store = MemoryStore(log_length=5)
    await fill(store, *"abcdefghij")
    with pytest.raises(Compacted, match="forgotten"):
        await anext(store.watch("", 2))
    assert [change.key for change in await take(store.watch("", 5), 5)] == list("fghij")


async def test_a_change_of_many_keys_is_forgotten_whole() -> None:
    store = MemoryStore(log_length=2)
    await store.txn({}, {"a": b"", "b": b"", "c": b""})
    with pytest.raises(Compacted):
        await anext(store.watch("", 0))


# ---- a model of the store, played against both


class Model(RuleBasedStateMachine):
    """A dictionary and a list of changes are the model; the store must agree with them after every
    step.
    """

    folders: Iterator[Path]
    kind = "memory"
    names = st.sampled_from(["vm/a", "vm/b", "vm/c", "image/a", "x", "vm/\U0001f40d"])

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = next(self.folders)
        self.store = self.loop.run_until_complete(self.opened())
        self.model: dict[str, Record] = {}
        self.changes: list[Change] = []
        self.revision = 0

    async def opened(self) -> Store:
        return make(self.kind, self.folder)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    @rule(
        puts=st.dictionaries(names, st.binary(max_size=8), max_size=3),
        deletes=st.sets(names, max_size=2),
        bad=st.booleans(),
        data=st.data(),
    )
    def transact(
        self, puts: dict[str, bytes], deletes: set[str], bad: bool, data: st.DataObject
    ) -> None:
        deletes -= set(puts)
        watched = data.draw(st.sets(self.names, max_size=2))
        expect = {key: self.model[key].revision if key in self.model else ABSENT for key in watched}
        if bad and expect:
            expect[min(expect)] += 1
            with pytest.raises(Conflict):
                self.run(self.store.txn(expect, puts, sorted(deletes)))
            return
        self.revision = revision = self.run(self.store.txn(expect, puts, sorted(deletes)))
        self.changes += [Change(revision, key, value) for key, value in puts.items()]
        self.changes += [
            Change(revision, key, None) for key in sorted(deletes) if self.model.pop(key, None)
        ]
        self.model |= {key: Record(key, value, revision) for key, value in puts.items()}

    @rule(
        prefix=st.sampled_from(["", "vm/", "i", "none"]),
        after=st.sampled_from(["", "vm/a", "vm/b", "z"]),
        limit=st.none() | st.integers(1, 4),
    )
    def look(self, prefix: str, after: str, limit: int | None) -> None:
        page = self.store.list(prefix, after, limit)
        wanted = [
            self.model[key] for key in sorted(self.model) if key.startswith(prefix) and key > after
        ]
        assert page.records == wanted[:limit] and page.revision == self.revision

    @rule(data=st.data())
    def remember(self, data: st.DataObject) -> None:
        since = data.draw(st.integers(0, self.revision))
        wanted = [change for change in self.changes if change.revision > since]
        found = self.run(take(self.store.watch("", since), len(wanted)))
        assert [change.revision for change in found] == [change.revision for change in wanted]
        assert set(found) == set(wanted), "the changes of one transaction come in any order"

    @precondition(lambda self: self.kind == "sqlite")
    @rule()
    def open_again(self) -> None:
        self.run(self.store.close())
        self.store = self.run(self.opened())

    @invariant()
    def agrees(self) -> None:
        assert self.store.revision == self.revision
        assert {key: self.store.get(key) for key in self.model} == self.model

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_the_store_agrees_with_its_model(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    numbers = count()
    home = tmp_path_factory.mktemp(kind)
    fresh: Callable[[], Path] = lambda: _mkdir(home / str(next(numbers)))  # noqa: E731
    machine = type(f"Model_{kind}", (Model,), {"kind": kind, "folders": iter(fresh, None)})
    steps = settings(
        max_examples=40 if kind == "memory" else 12,
        stateful_step_count=20,
        derandomize=True,
        deadline=None,
    )
    run_state_machine_as_test(machine, settings=steps)  # type: ignore[no-untyped-call]


def _mkdir(folder: Path) -> Path:
    folder.mkdir()
    return folder
