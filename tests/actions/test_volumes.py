"""What may be asked of disks, and what is told when it may not: documents alone, no host."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from virtuary.actions import pools, power, vms, volumes
from virtuary.actions.context import Context
from virtuary.base.errors import (
    Conflict,
    Exists,
    Invalid,
    NoRoom,
    NotFound,
    PeerAway,
    VirtuaryError,
)
from virtuary.base.units import GIB, MIB
from virtuary.model.deeds import AttachDisk, CreateDisk, DetachDisk, ResizeDisk, Start
from virtuary.model.disk import MAX_DISKS
from virtuary.model.pool import Pool, PoolChange, PoolSpace, PoolWish
from virtuary.model.vm import VmWish
from virtuary.model.volume import AttachWish, Volume, VolumeChange, VolumeWish
from virtuary.store import documents

from .test_account import context, settle


async def made(ctx: Context, name: str = "data", size: int = GIB) -> Volume:
    """A disk whose file is there."""
    volume, operation = await volumes.create(ctx, VolumeWish(name=name, size=size))
    assert isinstance(operation.spec.deed, CreateDisk)
    await documents.change(
        ctx.store, Volume, volume.key, lambda now: now.seen(state="ready", size=now.spec.size)
    )
    await settle(ctx)
    found = documents.get(ctx.store, Volume, volume.id)
    assert found
    return found


async def server(ctx: Context, name: str, **wish: Any) -> None:
    await vms.create(
        ctx, VmWish(image="tiny", name=name, memory=128 * MIB, power="stopped", **wish)
    )
    await settle(ctx)


@pytest.fixture
async def ctx() -> AsyncIterator[Context]:
    found = await context()
    await server(found, "a")
    await server(found, "b")
    yield found


async def test_a_disk_is_held_by_one_server_until_that_let_go(ctx: Context) -> None:
    await made(ctx)
    held, operation = await volumes.attach(ctx, "data", AttachWish(server="a"))
    assert isinstance(operation.spec.deed, AttachDisk) and held.spec.attached
    vm = documents.find(ctx.store, vms.Vm, "a")
    assert vm and [(disk.number, disk.serial) for disk in vm.spec.disks] == [
        (0, "root"),
        (1, "data"),
    ]
    await settle(ctx)
    with pytest.raises(Conflict, match="attached to a already"):
        await volumes.attach(ctx, "data", AttachWish(server="b"))
    with pytest.raises(Conflict, match="attached to a"):
        await volumes.delete(ctx, "data")
    _, leaving = await volumes.detach(ctx, "data")
    assert isinstance(leaving.spec.deed, DetachDisk)
    await settle(ctx)
    with pytest.raises(Conflict, match="attached to a already"):
        await volumes.attach(ctx, "data", AttachWish(server="b"))  # its machine may have it yet
    with pytest.raises(Conflict, match="attached to no server"):
        await volumes.detach(ctx, "data")


async def test_of_two_who_want_a_disk_at_once_one_is_told(ctx: Context) -> None:
    import asyncio

    await made(ctx)
    done = await asyncio.gather(
        *(volumes.attach(ctx, "data", AttachWish(server=name)) for name in ("a", "b")),
        return_exceptions=True,
    )
    assert sum(isinstance(item, Conflict) for item in done) == 1
    found = documents.find(ctx.store, Volume, "data")
    assert found and len(found.spec.attached) == 1


async def test_a_disk_grows_and_never_shrinks(ctx: Context) -> None:
    await made(ctx)
    changed, operation = await volumes.change(ctx, "data", VolumeChange(size=2 * GIB))
    assert operation and operation.spec.deed == ResizeDisk(before=GIB)
    assert changed.spec.size == 2 * GIB
    await settle(ctx)
    with pytest.raises(Invalid, match="disks only grow"):
        await volumes.change(ctx, "data", VolumeChange(size=GIB))
    same, nothing = await volumes.change(ctx, "data", VolumeChange(size=2 * GIB))
    assert nothing is None and same.meta.revision == changed.meta.revision
    labelled, nothing = await volumes.change(ctx, "data", VolumeChange(labels={"a": "b"}))
    assert nothing is None and labelled.meta.labels == {"a": "b"}


async def test_disks_are_promises_like_any_other(ctx: Context) -> None:
    with pytest.raises(NoRoom, match="disk space"):
        await volumes.create(ctx, VolumeWish(name="huge", size=4096 * GIB))
    await made(ctx, size=40 * GIB)
    with pytest.raises(NoRoom, match="data"):
        await volumes.change(ctx, "data", VolumeChange(size=4096 * GIB))
    with pytest.raises(NoRoom, match="data 40 GiB"):
        await server(ctx, "c", disks=(4096 * GIB,))


async def test_the_trash_gives_the_name_back(ctx: Context) -> None:
    first = await made(ctx)
    _, operation = await volumes.delete(ctx, "data")
    assert operation is None, "what lies in the trash is there at once"
    with pytest.raises(NotFound):
        volumes.find(ctx.store, "data")
    second = await made(ctx)
    await volumes.delete(ctx, first.id)  # it is there already, and its successor keeps its name
    assert volumes.find(ctx.store, "data").id == second.id
    with pytest.raises(Exists, match="is there already"):
        await volumes.undelete(ctx, "data")
    back = await volumes.undelete(ctx, "data", "old")
    assert back.id == first.id != second.id and back.name == "old"
    with pytest.raises(NotFound, match="lies in the trash"):
        await volumes.purge(ctx, "old")
    await volumes.delete(ctx, "old")
    await volumes.purge(ctx, "old")
    gone = documents.get(ctx.store, Volume, first.id)
    assert gone and gone.meta.purge


async def test_a_server_is_made_with_its_disks_or_not_at_all(ctx: Context) -> None:
    await server(ctx, "c", disks=({"size": GIB}, {"name": "logs", "size": GIB, "serial": "L"}))
    vm, logs = documents.find(ctx.store, vms.Vm, "c"), documents.find(ctx.store, Volume, "logs")
    assert vm and logs and logs.spec.holds(vm.id)
    assert [(disk.number, disk.serial, disk.size) for disk in vm.spec.disks] == [
        (0, "root", GIB),
        (1, "L", None),
    ]
    for wrong, why in (
        (({}, {"name": "logs", "size": GIB}), "there already"),
        (({}, {"name": "x", "size": GIB}, {"name": "x", "size": GIB}), "two disks"),
        (({}, {"size": GIB}), "has no name"),
        (({}, {"name": "root", "size": GIB}), "serial root"),
        (({}, {"name": "Not A Name", "size": GIB}), "not a valid name"),
    ):
        before = ctx.store.revision
        with pytest.raises(VirtuaryError, match=why):
            await server(ctx, "d", disks=wrong)
        assert ctx.store.revision == before


async def test_a_server_has_so_many_disks_and_no_more(ctx: Context) -> None:
    for number in range(MAX_DISKS + 1):
        await made(ctx, f"d{number}", MIB)
    for number in range(MAX_DISKS):
        await volumes.attach(ctx, f"d{number}", AttachWish(server="a"))
        await settle(ctx)
    with pytest.raises(Conflict, match="at most 8 disks"):
        await volumes.attach(ctx, f"d{MAX_DISKS}", AttachWish(server="a"))
    for wrong in ("has space", "", "a" * 21, "-a", "a\n", "a'b", "ä", "$(id)"):
        with pytest.raises(ValueError, match="is no serial"):
            AttachWish(server="a", serial=wrong)


async def test_a_disk_that_failed_is_not_attached(ctx: Context) -> None:
    volume = await made(ctx)
    await documents.change(
        ctx.store, Volume, volume.key, lambda now: now.seen(state="failed", reason="full")
    )
    with pytest.raises(Conflict, match="could not be made: full"):
        await volumes.attach(ctx, "data", AttachWish(server="a"))
    await power.power(ctx, "a", Start())


async def test_a_pool_has_its_own_space(ctx: Context) -> None:
    there: dict[str, PoolSpace] = {}

    def space_of(pool: Pool) -> PoolSpace:
        if pool.name not in there:
            raise PeerAway(f"the pool {pool.name} is not there", "mount it")
        return there[pool.name]

    ctx = replace(ctx, pool_space=space_of)
    await pools.create(ctx, pools.draft(ctx, PoolWish(name="fast", path="/srv/fast")))
    wish = VolumeWish(name="data", size=6 * GIB, pool="fast")
    with pytest.raises(Conflict, match="is not there"):
        await volumes.create(ctx, wish)
    there["fast"] = PoolSpace(10 * GIB, 10 * GIB, GIB)
    volume, _ = await volumes.create(ctx, wish)
    assert volume.spec.pool
    await settle(ctx)
    more = VolumeWish(name="more", size=4 * GIB, pool="fast")
    with pytest.raises(NoRoom, match="3 GiB left: 1 GiB are missing"):
        await volumes.create(ctx, more)
    await pools.change(ctx, "fast", PoolChange(ratio=2))
    await volumes.create(ctx, more)
    there["fast"] = PoolSpace(10 * GIB, GIB // 2, GIB)
    with pytest.raises(NoRoom, match="1 GiB are kept"):
        await volumes.create(ctx, VolumeWish(name="last", size=MIB, pool="fast"))
    with pytest.raises(Conflict, match="disks lie in fast"):
        await pools.delete(ctx, "fast")
    with pytest.raises(NotFound, match="no pool named 'slow'"):
        await volumes.create(ctx, VolumeWish(name="x", size=MIB, pool="slow"))
    for name, path, why in (
        ("fast", "/srv/other", "is there already"),
        ("default", "/srv/other", "is there already"),
        ("inner", "/srv/fast/inner", "lie in each other"),
        ("outer", "/srv", "lie in each other"),
        ("Not It", "/srv/other", "not a valid name"),
    ):
        with pytest.raises(VirtuaryError, match=why):
            pools.draft(ctx, PoolWish(name=name, path=path))
