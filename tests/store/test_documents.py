"""Documents are read again only where they changed, and are those that a whole list would give."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.errors import Conflict
from virtuary.model.deeds import Start
from virtuary.model.meta import Meta
from virtuary.model.operation import ENDED, Operation, OperationSpec, OperationStatus
from virtuary.model.vm import Vm, VmSpec
from virtuary.store import documents
from virtuary.store.api import Page, Store
from virtuary.store.documents import Index, every, open_operations
from virtuary.store.memory import MemoryStore
from virtuary.store.sealed import SealedStore
from virtuary.store.sqlite import SqliteStore


def operation(number: int, phase: str) -> Operation:
    return Operation(
        meta=Meta(id=f"{number:03}", name="start"),
        spec=OperationSpec(deed=Start(), target=f"vm/{number}", target_name="web1"),
        status=OperationStatus.model_validate({"phase": phase}),
    )


class Counting(MemoryStore):
    """Counts how often everything of a kind was read."""

    lists = 0

    def list(self, prefix: str, after: str = "", limit: int | None = None) -> Page:
        self.lists += 1
        return super().list(prefix, after, limit)


def listed(store: Store) -> list[Operation]:
    records = store.list("operation/").records
    return [Operation.load(record.value, record.revision) for record in records]


@pytest.mark.parametrize("kind", ["memory", "forgetful", "sealed"])
async def test_what_is_followed_is_what_is_listed(kind: str, tmp_path: Path) -> None:
    """Also where changes were forgotten before they were looked at."""
    store: Store = MemoryStore(3 if kind == "forgetful" else 10_000)
    if kind == "sealed":
        store = SealedStore(SqliteStore(tmp_path / "store.db"), tmp_path / "secret.key")
    chance = random.Random(7)
    for _ in range(150):
        found = operation(chance.randrange(9), chance.choice(["pending", "running", *ENDED]))
        deletes = [found.key] if chance.random() < 0.2 else []
        puts = {} if deletes else {found.key: found.dump(), "secret/a": b"1", "vm/a": b"{}"}
        await store.txn({}, puts, deletes)
        if chance.random() < 0.4:
            now = listed(store)
            assert every(store, Operation) == now
            opened = open_operations(store)
            assert sorted(opened, key=lambda item: item.key) == [
                item for item in now if not item.ended
            ]
            assert opened == sorted(opened, key=lambda item: item.meta.created)
    await store.close()


@given(st.text(max_size=60), st.sampled_from(["pending", "running", *ENDED]))
@pytest.mark.slow
def test_no_text_makes_an_operation_look_open_or_ended(text: str, phase: str) -> None:
    """Those that have ended are told by their bytes."""
    forged = '"status":{"phase":"running"' + text
    found = operation(1, phase)
    found = found.but(spec=found.spec.but(target_name=forged)).seen(stage=forged, why=text)
    store = MemoryStore()
    asyncio.run(store.txn({}, {found.key: found.dump()}))
    assert [item.id for item in open_operations(store)] == ([] if found.ended else [found.id])


IMAGES, LAYERS = Index(Vm, lambda vm: (vm.spec.image,)), Index(Vm, lambda vm: vm.status.layers)


@pytest.mark.parametrize("log", [3, 10_000], ids=["forgetful", "memory"])
async def test_what_an_index_finds_is_what_looking_through_all_finds(log: int) -> None:
    store, chance = MemoryStore(log), random.Random(7)
    for _ in range(200):
        found = Vm(
            meta=Meta(id=str(chance.randrange(9)), name="a"),
            spec=VmSpec(image=chance.choice(["tiny", "debian"])),
        ).seen(disks={0: {"layers": tuple(chance.sample("abc", chance.randrange(4)))}})
        gone = chance.random() < 0.2
        await store.txn({}, {} if gone else {found.key: found.dump()}, [found.key] if gone else [])
        if chance.random() < 0.4:
            now = every(store, Vm)
            for image in ("tiny", "debian", "none"):
                wanted = [vm for vm in now if vm.spec.image == image]
                assert documents.by(store, IMAGES, image) == wanted
            for layer in "abc":
                wanted = [vm for vm in now if layer in vm.status.layers]
                assert documents.by(store, LAYERS, layer) == wanted


async def test_a_page_holds_what_is_wanted_as_the_bytes_that_are_kept() -> None:
    store = MemoryStore()
    vms = [
        Vm(meta=Meta(id=f"{n}", name=f"web{n}"), spec=VmSpec(image="tiny", cpu=1 + n % 2))
        for n in range(7)
    ]
    for vm in vms:
        await store.txn({}, {vm.key: vm.dump(), vm.named: vm.id.encode()})
    page = documents.page(store, Vm, "vm/1", 2, lambda vm: vm.spec.cpu.count == 2)
    assert [record.value for record in page.records] == [vms[3].dump(), vms[5].dump()]
    assert page.revision == store.revision
    record = page.records[0]
    body = json.loads(documents.shown(record))
    assert body["meta"].pop("revision") == record.revision and body == json.loads(record.value)
    assert documents.page(store, Vm, "vm/5", 9).records == store.list("vm/6").records


async def test_a_look_reads_nothing_that_did_not_change() -> None:
    store = Counting()
    await store.txn(
        {}, {item.key: item.dump() for item in (operation(1, "running"), operation(2, "done"))}
    )
    (first,) = open_operations(store)
    another = operation(3, "pending")
    for _ in range(5):
        await store.txn({}, {another.key: another.dump()})
        assert open_operations(store)[0] is first
    assert store.lists == 1


async def test_a_document_that_can_not_be_read_is_not_skipped_next_time() -> None:
    store = MemoryStore()
    assert every(store, Operation) == []
    await store.txn({}, {"operation/1": b'{"meta":{"id":"1"}}'})
    for _ in range(2):
        with pytest.raises(ValueError):
            every(store, Operation)
    await store.txn({}, {"operation/1": operation(1, "done").dump()})
    assert [item.meta.name for item in every(store, Operation)] == ["start"]


async def test_what_is_written_with_a_document_is_written_where_that_one_stays_as_it_was() -> None:
    store = MemoryStore()
    vm = Vm(meta=Meta(id="a", name="web1"), spec=VmSpec(image="tiny"))
    await store.txn({}, {vm.key: vm.dump(), "other": b"1"})
    other = store.get("other")
    assert other
    same = await documents.change(
        store, Vm, vm.key, lambda now: now, {"other": other.revision}, {"other": b"2"}
    )
    written = store.get("other")
    assert same and written and written.value == b"2"
    with pytest.raises(Conflict):
        await documents.change(store, Vm, vm.key, lambda now: now, {"other": other.revision})
    before = store.revision
    assert await documents.change(store, Vm, vm.key, lambda now: now) and store.revision == before
