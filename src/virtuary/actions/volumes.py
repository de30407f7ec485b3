"""What a user may ask of disks that are documents of their own. Each function checks everything
first, tells all blockers, and makes one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from virtuary.actions import account, pools
from virtuary.actions.context import (
    Context,
    active,
    all_vms,
    check_free,
    decides,
    find_host,
    find_vm,
    meant,
    new_operation,
    own_vms,
    own_volumes,
    raise_all,
    trashed,
    turn,
    wanted_name,
)
from virtuary.base.errors import Conflict, Exists, Invalid, NotFound, Stale, VirtuaryError
from virtuary.base.units import format_size
from virtuary.model.deeds import AttachDisk, CreateDisk, DeleteDisk, DetachDisk, ResizeDisk
from virtuary.model.disk import MAX_DISKS, Disk, DiskWish
from virtuary.model.meta import Meta, utcnow
from virtuary.model.operation import Operation
from virtuary.model.pool import DEFAULT_POOL, Pool
from virtuary.model.vm import Vm
from virtuary.model.volume import (
    Attachment,
    AttachWish,
    Volume,
    VolumeChange,
    VolumeSpec,
    VolumeWish,
)
from virtuary.store import documents, servers
from virtuary.store.api import Store

LETTERS = 20
"""Of its name, a disk's serial is so many when nobody chose it."""


def find(store: Store, name: str, suggest: bool = True) -> Volume:
    """The disk of this name or id; raises NotFound."""
    found = documents.find(store, Volume, name)
    if found is None:
        hint = meant(store, Volume, name) if suggest else None
        if any(item.meta.deleted and name.lower() in (item.name, item.id) for item in _all(store)):
            hint = f"one lies in the trash: virtuary disk undelete {name[:80]}, or purge"
        raise NotFound(
            f"there is no disk named {name[:80]!r}", hint or "virtuary disk list shows them"
        )
    return found


def _all(store: Store) -> list[Volume]:
    return documents.every(store, Volume)


class Drafted(NamedTuple):
    """A disk as it would be made, and what stands against it."""

    volume: Volume
    blockers: list[VirtuaryError]


def draft(context: Context, wish: VolumeWish) -> Drafted:
    """Work out a disk without writing anything."""
    blockers: list[VirtuaryError] = []
    name = wish.name
    try:
        name = wanted_name(wish.name)
    except Invalid as error:
        blockers.append(error)
    if documents.named(context.store, Volume, name):
        blockers.append(Exists(f"a disk named {name} is there already", "choose another name"))
    pool = None
    try:
        pool = pools.find(context.store, wish.pool) if wish.pool != DEFAULT_POOL else None
        blockers += room(context, pool, wish.size)
    except NotFound as error:
        blockers.append(error)
    spec = VolumeSpec(size=wish.size, owner=context.host_id, pool=pool.id if pool else "")
    return Drafted(Volume(meta=Meta(name=name, labels=wish.labels), spec=spec), blockers)


def room(context: Context, pool: Pool | None, more: int) -> list[VirtuaryError]:
    """Why a pool has not so many bytes more for disks; None: the default one."""
    if pool:
        return pools.room(context, pool, more)
    host = find_host(context.store, context.host_id).status
    if host is None or more <= 0:
        return []
    balances = account.balances(host, own_vms(context), own_volumes(context))
    blockers = account.shortage(account.Claim(disk=more), balances)
    if not blockers and context.disk_free is not None and context.disk_free < host.reserve_disk:
        blockers.append(account.full(host, more, context.disk_free))
    return blockers


class Made(NamedTuple):
    """The disks that a new server has besides its root disk, and what stands against them."""

    disks: tuple[Disk, ...]
    volumes: tuple[Volume, ...]
    blockers: list[VirtuaryError]

    @property
    def expects(self) -> dict[str, int]:
        return {volume.named: 0 for volume in self.volumes}

    @property
    def puts(self) -> dict[str, bytes]:
        found = {volume.key: volume.dump() for volume in self.volumes}
        return found | {volume.named: volume.id.encode() for volume in self.volumes}


def made(context: Context, vm_id: str, root: Disk, wishes: Sequence[DiskWish]) -> Made:
    """Work out the disks that are made with a server, each a document of its own that it holds."""
    found = Made((), (), [])
    for number, wish in enumerate(wishes, 1):
        if wish.name is None or wish.size is None:
            found.blockers.append(
                Invalid(f"disk {number} has no name, or no size", "--disk data=20GiB")
            )
            continue
        volume, blockers = draft(
            context, VolumeWish(name=wish.name, size=wish.size, pool=wish.pool)
        )
        found.blockers.extend(blockers)
        if any(volume.name == other.name for other in found.volumes):
            found.blockers.append(Invalid(f"two disks are to be named {volume.name}"))
            continue
        try:
            disk = place((root, *found.disks), volume, wish)
        except Conflict as error:
            found.blockers.append(error)
            continue
        volumes = (*found.volumes, hold(volume, vm_id))
        found = Made((*found.disks, disk.but(io=wish.io)), volumes, found.blockers)
    return found


@decides
async def create(context: Context, wish: VolumeWish) -> tuple[Volume, Operation]:
    """Have a disk made; it is empty."""
    waits, takes = turn(context)
    volume, blockers = draft(context, wish)
    raise_all(blockers)
    operation = new_operation(context, CreateDisk(), volume)
    expect = {volume.named: 0, **waits}
    puts = {volume.key: volume.dump(), volume.named: volume.id.encode(), **takes}
    revision = await context.commit(expect, puts, operation=operation)
    return volume.but(meta=volume.meta.but(revision=revision)), operation


@decides
async def change(
    context: Context, name: str, wish: VolumeChange, revision: int | None = None
) -> tuple[Volume, Operation | None]:
    """Change a disk: a larger one is grown also while a machine has it, which is an operation to
    follow. Raises Stale when `revision` is not current.
    """
    waits, takes = turn(context)
    volume = find(context.store, name)
    if revision is not None and revision != volume.meta.revision:
        raise Stale(f"{volume.name} changed meanwhile", "look again and repeat")
    raise_all(_unfit_change(context, volume, wish))
    size = wish.size or volume.spec.size
    changed = volume.but(
        spec=volume.spec.but(size=size),
        meta=volume.meta.but(labels=volume.meta.labels if wish.labels is None else wish.labels),
    )
    if changed == volume:
        return volume, None
    operation = None
    if size != volume.spec.size:
        check_free(context.store, volume)
        operation = new_operation(context, ResizeDisk(before=volume.spec.size), volume)
    expect = {volume.key: volume.meta.revision, **waits}
    written = await context.commit(
        expect, {volume.key: changed.dump(), **takes}, operation=operation
    )
    return changed.but(meta=changed.meta.but(revision=written)), operation


def _unfit_change(context: Context, volume: Volume, wish: VolumeChange) -> list[VirtuaryError]:
    if volume.meta.deleted:
        return [_trashed(volume)]
    size = wish.size
    if size is None or size == volume.spec.size:
        return []
    if size < volume.spec.size:
        has = format_size(volume.spec.size)
        hint = "make a smaller disk, and copy what is needed to it inside a server"
        return [Invalid(f"{volume.name} has {has}: disks only grow", hint)]
    if volume.status.state != "ready":
        return [Conflict(f"{volume.name} is {volume.status.state}", "repeat when it is ready")]
    for vm in servers.with_volume(context.store, volume.id):
        runtime = vm.status.runtime
        there = runtime.disks if runtime else ()
        if any(disk.volume == volume.id and disk.read_only for disk in there):
            why = f"{volume.name} is attached to {vm.name} read-only, so that QEMU can't grow it"
            return [Conflict(why, f"virtuary disk detach {volume.name}, or stop {vm.name}")]
    pool = documents.get(context.store, Pool, volume.spec.pool)
    return room(context, pool, size - volume.spec.size)


# ---- attach and detach


@decides
async def attach(context: Context, name: str, wish: AttachWish) -> tuple[Volume, Operation]:
    """Give a server a disk, also while it runs."""
    store = context.store
    volume, vm = find(store, name), find_vm(store, wish.server)
    raise_all(unattachable(context, volume, vm))
    check_free(store, vm)
    disk = place(vm.spec.disks, volume, wish)
    changed = vm.but(spec=vm.spec.but(disks=in_order((*vm.spec.disks, disk))))
    held = hold(volume, vm.id)
    operation = new_operation(context, AttachDisk(number=disk.number, volume=volume.id), vm)
    expect = {volume.key: volume.meta.revision, vm.key: vm.meta.revision}
    puts = {volume.key: held.dump(), vm.key: changed.dump()}
    revision = await context.commit(expect, puts, operation=operation)
    return held.but(meta=held.meta.but(revision=revision)), operation


def unattachable(context: Context, volume: Volume, vm: Vm) -> list[VirtuaryError]:
    """Why this server can't have this disk."""
    if vm.meta.deleted:
        return [Conflict(f"{vm.name} lies in the trash", f"virtuary undelete {vm.name}")]
    if volume.meta.deleted:
        return [_trashed(volume)]
    if volume.status.state == "failed":
        why = f"{volume.name} could not be made: {volume.status.reason}"
        return [Conflict(why, f"virtuary disk delete {volume.name}")]
    if volume.spec.attached:
        sentence = f"{volume.name} is attached to {holder(context.store, volume)} already"
        return [Conflict(sentence, f"virtuary disk detach {volume.name}")]
    if volume.spec.owner != vm.spec.owner:
        return [Conflict(f"{volume.name} lies on another host than {vm.name}")]
    if vm.status.warm.template and vm.status.identity.given is None and vm.status.runtime:
        return [Conflict(f"{vm.name} is {vm.status.state}", "repeat when it runs")]
    return []


def _trashed(volume: Volume) -> Conflict:
    return Conflict(f"{volume.name} lies in the trash", f"virtuary disk undelete {volume.name}")


def hold(volume: Volume, vm_id: str) -> Volume:
    """The disk, held by a server."""
    mine = Attachment(server=vm_id, since=utcnow())
    return volume.but(spec=volume.spec.but(attached=(*volume.spec.attached, mine)))


def holder(store: Store, volume: Volume) -> str:
    """The name of the server that holds a disk."""
    vm = documents.get(store, Vm, volume.spec.attached[0].server)
    return vm.name if vm else "a server that is being removed"


def place(there: Sequence[Disk], volume: Volume, wish: AttachWish | DiskWish) -> Disk:
    """The disk's place beside others: the first free one. Raises Conflict."""
    taken = {disk.number for disk in there}
    number = next((number for number in range(1, MAX_DISKS + 1) if number not in taken), None)
    if number is None:
        raise Conflict(f"a server has at most {MAX_DISKS} disks besides its root disk")
    serial = wish.serial or volume.name[:LETTERS]
    if any(disk.serial == serial for disk in there):
        raise Conflict(
            f"the server has a disk with the serial {serial} already", "choose one with --serial"
        )
    return Disk(number=number, volume=volume.id, serial=serial, read_only=wish.read_only)


def in_order(disks: Sequence[Disk]) -> tuple[Disk, ...]:
    return tuple(sorted(disks, key=lambda disk: disk.number))


class Attached(NamedTuple):
    """A disk, the server that has it, and its place there."""

    volume: Volume
    vm: Vm
    disk: Disk


def detachable(context: Context, name: str) -> Attached:
    """The disk, if it can be taken from its server as far as documents tell. Raises as `detach`."""
    store = context.store
    volume = find(store, name)
    vm = next((vm for vm in all_vms(store) if volume.spec.holds(vm.id)), None)
    disk = next((disk for disk in vm.spec.disks if disk.volume == volume.id), None) if vm else None
    if vm is None or disk is None:
        raise Conflict(f"{volume.name} is attached to no server", "virtuary disk list shows them")
    if vm.status.runtime and vm.status.state == "paused":
        raise Conflict(
            f"{vm.name} is paused, and its guest can't let go of {volume.name}",
            f"virtuary resume {vm.name}, or stop it",
        )
    check_free(store, vm)
    return Attached(volume, vm, disk)


@decides
async def detach(context: Context, name: str) -> tuple[Volume, Operation]:
    """Take a disk from its server. While that runs its guest has to let go of it; until it has,
    nobody else can have the disk. Raises Conflict where no server has it, or its guest stands
    still; Busy while something else is under way there.
    """
    volume, vm, disk = detachable(context, name)
    others = tuple(item for item in vm.spec.disks if item.number != disk.number)
    changed = vm.but(spec=vm.spec.but(disks=others))
    deed = DetachDisk(number=disk.number, volume=volume.id, disk=disk)
    operation = new_operation(context, deed, vm)
    await context.commit({vm.key: vm.meta.revision}, {vm.key: changed.dump()}, operation=operation)
    return volume, operation


# ---- the trash


@decides
async def delete(
    context: Context, name: str, *, now: bool = False
) -> tuple[Volume, Operation | None]:
    """Move a disk to the trash, or with `now` remove it for good, which is an operation to follow.
    Raises Conflict while a server has it.
    """
    volume = deletable(context, name)
    ended = active(context.store, volume.key)
    since = volume.meta.deleted or utcnow()
    changed = volume.but(
        meta=volume.meta.but(deleted=since, purge=now or volume.status.state != "ready")
    )
    expect = {volume.key: volume.meta.revision, **{item.key: item.meta.revision for item in ended}}
    puts = {volume.key: changed.dump()}
    operation = new_operation(context, DeleteDisk(), volume) if changed.meta.purge else None
    # in the trash it has given its name back
    names = [] if volume.meta.deleted else [volume.named]
    revision = await context.commit(expect, puts, names, operation=operation)
    return changed.but(meta=changed.meta.but(revision=revision)), operation


def deletable(context: Context, name: str) -> Volume:
    """The disk, if it can be deleted. Raises as `delete`."""
    volume = find(context.store, name, suggest=False)
    if volume.spec.attached:
        raise Conflict(
            f"{volume.name} is attached to {holder(context.store, volume)}",
            f"virtuary disk detach {volume.name} first",
        )
    return volume


def find_trashed(store: Store, name: str) -> Volume:
    """The disk of this name or id in the trash. Raises NotFound; Conflict where several have the
    name, with their ids.
    """
    return trashed(store, Volume, name, "disk", "virtuary disk list --trash shows what does")


@decides
async def undelete(context: Context, name: str, new_name: str | None = None) -> Volume:
    """Take a disk back from the trash; under another name if its own is taken meanwhile."""
    volume = find_trashed(context.store, name)
    wanted = wanted_name(new_name) if new_name else volume.name
    if documents.named(context.store, Volume, wanted):
        raise Exists(
            f"a disk named {wanted} is there already",
            f"virtuary disk undelete {volume.name} --as ANOTHER-NAME",
        )
    changed = volume.but(meta=volume.meta.but(deleted=None, name=wanted))
    expect = {volume.key: volume.meta.revision, changed.named: 0}
    puts = {volume.key: changed.dump(), changed.named: volume.id.encode()}
    revision = await context.commit(expect, puts)
    return changed.but(meta=changed.meta.but(revision=revision))


@decides
async def purge(context: Context, name: str) -> Operation:
    """Remove a disk in the trash for good."""
    volume = find_trashed(context.store, name)
    changed = volume.but(meta=volume.meta.but(purge=True))
    operation = new_operation(context, DeleteDisk(), volume)
    await context.commit(
        {volume.key: volume.meta.revision}, {volume.key: changed.dump()}, operation=operation
    )
    return operation
