"""Actions that meet: none decides by what another one is about to change, and none works in
vain.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from virtuary.actions.context import all_vms, decides
from virtuary.base.errors import Changed
from virtuary.model.meta import Meta
from virtuary.model.vm import Vm, VmSpec
from virtuary.store.memory import MemoryStore


@dataclass(frozen=True)
class Asking:
    store: MemoryStore


async def test_of_actions_that_meet_each_is_done_once() -> None:
    looked: list[int] = []

    @decides
    async def count(asking: Asking) -> int:
        record = asking.store.get("count")
        number = int(record.value) if record else 0
        looked.append(number)
        await asyncio.sleep(0)
        await asking.store.txn(
            {"count": record.revision if record else 0}, {"count": str(number + 1).encode()}
        )
        return number

    asking = Asking(MemoryStore())
    assert sorted(await asyncio.gather(*(count(asking) for _ in range(20)))) == list(range(20))
    assert looked == list(range(20))


async def test_one_that_somebody_else_was_quicker_than_decides_again() -> None:
    tried: list[int] = []

    @decides
    async def late(asking: Asking) -> int:
        tried.append(1)
        if len(tried) < 3:
            raise Changed("it changed", key="vm/1")
        return len(tried)

    assert await late(Asking(MemoryStore())) == 3


async def test_servers_are_read_as_they_are_now() -> None:
    store = MemoryStore()
    first, second = (Vm(meta=Meta(name=name), spec=VmSpec(image="tiny")) for name in ("a", "b"))
    await store.txn({}, {vm.key: vm.dump() for vm in (first, second)})
    before = {vm.name: vm for vm in all_vms(store)}
    renamed = first.but(meta=first.meta.but(name="c"))
    await store.txn({}, {first.key: renamed.dump()})
    after = {vm.name: vm for vm in all_vms(store)}
    assert set(after) == {"b", "c"} and after["b"] is before["b"]
    await store.txn({}, {}, [second.key])
    assert [vm.name for vm in all_vms(store)] == ["c"]
