"""Notes on operations: each stands in order, nothing is written twice, and an end is an end."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

from virtuary.base.errors import Failed
from virtuary.model.meta import Meta, utcnow
from virtuary.model.operation import LINE, LOG_LINES
from virtuary.node import operations
from virtuary.store.memory import MemoryStore

# test folders are no packages; this one shares a file
sys.path.insert(0, str(Path(__file__).parent))
from worlds import operation, runtime, vm

KEY = operation("launch").key


async def begun() -> MemoryStore:
    store = MemoryStore()
    await store.txn({}, {KEY: operation("launch").dump()})
    return store


async def test_the_first_note_begins_it_and_each_note_is_told_once() -> None:
    store = await begun()
    await operations.note(store, KEY, "making the disk", stage="disk")
    before = store.revision
    await operations.note(store, KEY, "making the disk", stage="disk")
    found = operations.load(store, KEY)
    assert found and (found.status.phase, found.status.stage, len(found.status.log)) == (
        "running",
        "disk",
        1,
    )
    assert found.status.started and store.revision == before


async def test_a_line_that_has_no_end_is_cut() -> None:
    store = await begun()
    await operations.note(store, KEY, "a" * 10**6)
    await operations.note(store, KEY, "a" * 10**6)
    found = operations.load(store, KEY)
    assert found and [line.text for line in found.status.log] == ["a" * LINE]


async def test_the_end_is_final() -> None:
    store = await begun()
    await operations.finish(store, KEY, Failed("it broke", "mend it"))
    await operations.finish(store, KEY)
    await operations.note(store, KEY, "too late")
    found = operations.load(store, KEY)
    assert (
        found
        and found.status.phase == "failed"
        and found.status.error
        and found.status.error["hint"] == "mend it"
    )
    assert [line.text for line in found.status.log] == ["it broke"] and operations.open_operations(
        store
    ) == []


async def test_why_a_start_failed_is_known_while_its_machine_is_there() -> None:
    store, gone = MemoryStore(), vm(runtime=runtime())
    failed = operations.finished(operation("launch"), Failed("its kernel panicked"))
    other = operation("set")
    await store.txn({}, {KEY: failed.dump(), "operation/x": other.dump()})
    assert operations.failed_start(store, gone) == "its kernel panicked"
    later = runtime(started=utcnow() + timedelta(seconds=1))
    assert operations.failed_start(store, vm(runtime=later)) is None, "that is another start"
    assert operations.failed_start(store, vm()) is None
    again = operation("restart").but(meta=Meta(id="again", name="restart"))
    await store.txn({}, {again.key: again.dump()})
    assert operations.failed_start(store, gone) is None, "one is under way"


async def test_notes_at_the_same_time_are_all_kept() -> None:
    store = await begun()
    await asyncio.gather(*(operations.note(store, KEY, f"note {number}") for number in range(30)))
    found = operations.load(store, KEY)
    assert found and {line.text for line in found.status.log} == {
        f"note {number}" for number in range(30)
    }


async def test_the_log_is_capped() -> None:
    store = await begun()
    for number in range(LOG_LINES + 5):
        await operations.note(store, KEY, str(number))
    found = operations.load(store, KEY)
    assert (
        found
        and len(found.status.log) == LOG_LINES
        and found.status.log[-1].text == str(LOG_LINES + 4)
    )


async def test_a_note_on_what_is_gone_is_harmless() -> None:
    await operations.note(MemoryStore(), KEY, "hello")
