"""Wishes about power: start, stop, restart, pause, resume."""

from __future__ import annotations

from typing import Literal

from virtuary.actions import account, networks, ports
from virtuary.actions.context import (
    Context,
    active,
    check_not_read,
    decides,
    find_vm,
    new_operation,
    raise_all,
    turn,
)
from virtuary.actions.vms import room
from virtuary.base.errors import Busy, Conflict
from virtuary.model.deeds import (
    Deed,
    Pause,
    Restart,
    Resume,
    Start,
    Stop,
)
from virtuary.model.image import Image
from virtuary.model.meta import utcnow
from virtuary.model.operation import Operation
from virtuary.model.vm import Vm
from virtuary.store import documents

Power = Start | Stop | Restart | Pause | Resume


WISHED: dict[type[Power], Literal["running", "stopped", "paused"]] = {
    Start: "running",
    Stop: "stopped",
    Restart: "running",
    Pause: "paused",
    Resume: "running",
}


async def power(context: Context, name: str, deed: Power) -> tuple[Vm, Operation]:
    """A wish about power, and the operation that tells when it is true."""
    if isinstance(deed, Start):
        await ports.settle(context, find_vm(context.store, name))
    return await _power(context, name, deed)


@decides
async def _power(context: Context, name: str, deed: Power) -> tuple[Vm, Operation]:
    starts = isinstance(deed, Start)
    waits, takes = turn(context) if starts else ({}, {})
    vm = find_vm(context.store, name)
    _check_deed(vm, deed)
    if starts:
        check_not_read(context.store, vm)
    ended = superseded(context, vm, deed)
    restarts = vm.spec.restarts + isinstance(deed, Restart)
    anew = starts or (vm.wanted == "stopped" and not isinstance(deed, Stop))
    spec = vm.spec.but(power=WISHED[type(deed)], asked=vm.spec.asked + anew, restarts=restarts)
    changed = vm.but(spec=spec)
    if starts:
        shared = networks.absent(context) if any(nic.network_id for nic in vm.spec.nics) else []
        raise_all(
            [
                *shared,
                *room(context, changed, vm),
                *ports.taken(context, vm.spec.publish, vm, starting=True),
            ]
        )
    image = documents.get(context.store, Image, vm.spec.image_id if deed.starts else None)
    why = account.too_little(vm.spec.memory.size, image)
    operation = new_operation(context, deed, vm, why=why)
    expect = {vm.key: vm.meta.revision, **{item.key: item.meta.revision for item in ended}, **waits}
    puts = {
        vm.key: changed.dump(),
        **{item.key: cancelled(item, deed.kind).dump() for item in ended},
        **takes,
    }
    await context.commit(expect, puts, operation=operation)
    return changed, operation


def _check_deed(vm: Vm, deed: Power) -> None:
    idle = vm.status.runtime is None
    if vm.meta.deleted:
        raise Conflict(f"{vm.name} lies in the trash", f"virtuary undelete {vm.name}")
    if isinstance(deed, Start) and not idle and vm.wanted == "running":
        raise Conflict(f"{vm.name} runs already")
    if isinstance(deed, Start) and not idle and vm.wanted == "paused":
        raise Conflict(f"{vm.name} is paused", f"virtuary resume {vm.name}")
    if isinstance(deed, (Pause, Resume, Restart)) and idle:
        raise Conflict(f"{vm.name} is {vm.status.state}, not running", f"virtuary start {vm.name}")
    if isinstance(deed, Stop) and idle and vm.wanted == "stopped":
        raise Conflict(f"{vm.name} is stopped already")
    if isinstance(deed, Pause) and vm.wanted == "paused":
        raise Conflict(f"{vm.name} is paused already")


def superseded(context: Context, vm: Vm, deed: Deed) -> list[Operation]:
    """Operations that this deed makes pointless; any other one under way refuses it."""
    under_way = active(context.store, vm.key)
    if deed.overrides:
        return under_way
    for operation in under_way:
        if not (deed.goes_beside(operation.spec.deed) and vm.status.runtime):
            raise Busy(
                f"{vm.name} is busy: {operation.spec.deed.kind} is under way",
                f"virtuary operation wait {operation.id[:8]}, or cancel it",
                operation=operation.id,
            )
    return []


def cancelled(operation: Operation, by: str) -> Operation:
    status = operation.status.but(
        phase="cancelled", ended=utcnow(), progress=None, stage=f"superseded by {by}"
    )
    return operation.but(status=status)
