"""Deleting a server: into the trash, back out of it, and for good."""

from __future__ import annotations

from virtuary.actions import nics, served
from virtuary.actions.context import (
    Context,
    check_free,
    decides,
    find_vm,
    new_operation,
    raise_all,
    trashed,
    turn,
    wanted_name,
)
from virtuary.actions.power import cancelled, superseded
from virtuary.base.errors import Conflict, Exists
from virtuary.model.deeds import (
    Delete,
    Purge,
)
from virtuary.model.meta import utcnow
from virtuary.model.operation import Operation
from virtuary.model.vm import Vm
from virtuary.store.api import Store


@decides
async def delete(
    context: Context, name: str, *, now: bool = False, force: bool = False
) -> Operation:
    """Move a server to the trash, or with `now` remove it for good. One that runs needs `force`."""
    vm = deletable(context, name, force=force)
    ended = superseded(context, vm, Delete())
    changed = vm.but(
        spec=vm.spec.but(power="stopped"),
        meta=vm.meta.but(
            deleted=vm.meta.deleted or utcnow(), purge=now or not vm.status.disk.ready
        ),
    )
    operation = new_operation(context, Delete(), vm)
    expect = {vm.key: vm.meta.revision, **{item.key: item.meta.revision for item in ended}}
    puts = {
        vm.key: changed.dump(),
        **{item.key: cancelled(item, "delete").dump() for item in ended},
    }
    # in the trash it has given its name back
    names = [] if vm.meta.deleted else [vm.named]
    await context.commit(expect, puts, names, operation=operation)
    return operation


def deletable(context: Context, name: str, *, force: bool = False) -> Vm:
    """The server, if it can be deleted. Raises as `delete`."""
    vm = find_vm(context.store, name, suggest=False)
    if vm.spec.policy.protect:
        raise Conflict(f"{vm.name} is protected", f"virtuary set {vm.name} --no-protect")
    if (vm.status.runtime or vm.status.state == "starting") and not force:
        raise Conflict(
            f"{vm.name} is {vm.status.state}",
            f"virtuary stop {vm.name} first, or delete it with --force",
        )
    return vm


def find_trashed(store: Store, name: str) -> Vm:
    """The server of this name or id in the trash. Raises NotFound; Conflict where several have the
    name, with their ids.
    """
    return trashed(store, Vm, name, "server", "virtuary list --trash shows what does")


@decides
async def undelete(context: Context, name: str, new_name: str | None = None) -> Vm:
    """Take a server back from the trash, stopped; under another name if its own is taken meanwhile.
    Raises NoRoom where the bandwidth that it was promised is others' now.
    """
    waits, takes = turn(context)
    vm = find_trashed(context.store, name)
    wanted = wanted_name(new_name) if new_name else vm.name
    if context.store.get(Vm.name_key(wanted)):
        raise Exists(
            f"a server named {wanted} is there already",
            f"virtuary undelete {vm.name} --as ANOTHER-NAME",
        )
    check_free(context.store, vm)
    raise_all([*nics.unpromised(context, vm), *served.unfit(context, vm.id, wanted, vm.spec.nics)])
    changed = vm.but(meta=vm.meta.but(deleted=None, name=wanted))
    expect = {vm.key: vm.meta.revision, Vm.name_key(wanted): 0, **waits}
    puts = {vm.key: changed.dump(), Vm.name_key(wanted): vm.id.encode(), **takes}
    revision = await context.commit(expect, puts)
    return changed.but(meta=changed.meta.but(revision=revision))


@decides
async def purge(context: Context, name: str) -> Operation:
    """Remove a server in the trash for good."""
    vm = find_trashed(context.store, name)
    changed = vm.but(meta=vm.meta.but(purge=True))
    operation = new_operation(context, Purge(), vm)
    await context.commit({vm.key: vm.meta.revision}, {vm.key: changed.dump()}, operation=operation)
    return operation
