"""What is over is forgotten, however much of it there is."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

from virtuary.base.paths import Paths
from virtuary.model.deeds import Start
from virtuary.model.meta import Meta, utcnow
from virtuary.model.operation import Operation, OperationSpec, OperationStatus
from virtuary.model.vm import Vm
from virtuary.node import housekeeping
from virtuary.node.housekeeping import KEPT_OPERATIONS, TRASH_LIFE
from virtuary.node.site import Site
from virtuary.store import documents, marks
from virtuary.store.memory import MemoryStore

# test folders are no packages; this one shares a file
sys.path.insert(0, str(Path(__file__).parent))
from worlds import ME, vm


def ended(number: int) -> Operation:
    meta = Meta(name="start", created=utcnow() - timedelta(seconds=number))
    spec = OperationSpec(deed=Start(), target="vm/a", target_name="a")
    return Operation(meta=meta, spec=spec, status=OperationStatus(phase="done"))


async def test_old_operations_are_forgotten_however_many_there_are(paths: Paths) -> None:
    store, found = MemoryStore(), [ended(number) for number in range(KEPT_OPERATIONS + 300)]
    for item in found:
        await store.txn({}, {item.key: item.dump()})
    running = ended(10**6).seen(phase="running")
    await store.txn({}, {running.key: running.dump()})
    await housekeeping.forget_operations(Site(paths, store, ME))
    left = documents.every(store, Operation)
    assert {item.id for item in left} == {running.id, *(i.id for i in found[:KEPT_OPERATIONS])}


async def test_marks_of_requests_are_forgotten_after_a_day(paths: Paths) -> None:
    store = MemoryStore()
    for number in range(300):
        at = utcnow() - timedelta(hours=25 if number < 250 else 23)
        await store.txn({}, {marks.key_of(str(number)): marks.Mark("digest", None).dump(at)})
    await housekeeping.forget_marks(Site(paths, store, ME))
    left = [number for number in range(300) if marks.read(store, marks.key_of(str(number)))]
    assert left == list(range(250, 300))


async def test_the_trash_is_emptied_after_its_time(paths: Paths) -> None:
    store = MemoryStore()
    for name, age in (("old", TRASH_LIFE * 2), ("young", TRASH_LIFE / 2), ("there", None)):
        deleted = utcnow() - age if age else None
        lying = Vm(meta=Meta(id=name, name=name, deleted=deleted), spec=vm().spec)
        await store.txn({}, {lying.key: lying.dump()})
    await housekeeping.empty_trash(Site(paths, store, ME))
    assert {item.id: item.meta.purge for item in documents.every(store, Vm)} == {
        "old": True, "young": False, "there": False,
    }  # fmt: skip
