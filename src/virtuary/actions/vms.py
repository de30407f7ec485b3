"""What a user may ask of servers. Each function checks everything first, tells all blockers, and makes one transaction."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Any

from virtuary.actions import images
from virtuary.actions.context import (
    Context,
    active,
    check_free,
    check_not_read,
    find_host,
    find_vm,
    new_operation,
    raise_all,
)
from virtuary.actions.names import made_up
from virtuary.base.errors import Busy, Conflict, Exists, Invalid, NoRoom, NotFound, Stale, VirtuaryError
from virtuary.base.units import MIB, format_size
from virtuary.model.host import HostStatus
from virtuary.model.image import Image
from virtuary.model.meta import Meta, check_name, utcnow
from virtuary.model.operation import Operation
from virtuary.model.vm import Publish, Vm, VmChange, VmSpec, VmWish, default_memory
from virtuary.store.api import Store

HOST_RESERVE = 512 * MIB
START_KINDS = ("launch", "start", "restart")


@dataclass(frozen=True)
class Draft:
    """A server as it would be created: its documents and everything that stands against it."""

    vm: Vm
    image: Image
    operation: Operation
    image_operation: Operation | None
    blockers: list[VirtuaryError]


def draft(context: Context, wish: VmWish) -> Draft:
    """Work out a server without writing anything; the same for a dry run and for the real thing."""
    store, blockers = context.store, list[VirtuaryError]()
    name = new_name(store, wish.name, blockers)
    image, image_operation = _image(context, wish.image, blockers)
    host = find_host(store, context.host_id).status
    spec = _spec(wish, image, context.host_id)
    if host:
        blockers += room(spec, host)
    blockers += ports(store, spec.publish, None)
    if image.status.state == "ready" and spec.disk is not None and spec.disk < image.status.virtual_size:
        needed = format_size(image.status.virtual_size)
        blockers.append(
            Invalid(
                f"the image {image.name} needs a disk of {needed} and {format_size(spec.disk)} were asked for", f"--disk {needed}"
            )
        )
    vm = Vm(meta=Meta(name=name, labels=wish.labels), spec=spec)
    kind = "launch" if wish.power != "stopped" else "create"
    return Draft(vm, image, new_operation(context, kind, vm), image_operation, blockers)


def new_name(store: Store, wanted: str | None, blockers: list[VirtuaryError]) -> str:
    """The name of a new server: the one that is wanted, or one that is made up."""
    taken = {record.key.removeprefix("vm-name/") for record in store.list("vm-name/").records}
    name = made_up(taken)
    if wanted is not None:
        try:
            name = check_name(wanted)
        except ValueError as error:
            blockers.append(Invalid(str(error)))
    if name in taken:
        blockers.append(Exists(f"a server named {name} is there already", f"choose another name, or virtuary delete {name}"))
    return name


def _image(context: Context, name: str, blockers: list[VirtuaryError]) -> tuple[Image, Operation | None]:
    try:
        found = images.resolve(context, name)
    except NotFound as error:
        blockers.append(error)
        return Image(meta=Meta(name=name), spec={"source": {"kind": "build"}}), None
    if isinstance(found, Image):
        if found.meta.purge:
            blockers.append(Conflict(f"the image {found.name} is being removed", "repeat in a moment"))
        elif found.status.state == "failed":
            again = found.but(status=found.status.but(state="absent", reason=None))
            return again, new_operation(context, f"image-{found.spec.source.kind}", again)
        return found, None
    return images.prepare(context, context.catalogue.canonical(name), found)


def _spec(wish: VmWish, image: Image, host_id: str) -> VmSpec:
    return VmSpec(
        image=image.name,
        image_id=image.id,
        owner=host_id,
        power=wish.power,
        cpus=wish.cpus or 1,
        memory=wish.memory or default_memory(image.name),
        disk=wish.disk,
        publish=wish.publish,
        ssh_keys=wish.ssh_keys,
        user_data=wish.user_data is not None,
        arch=wish.arch,
        accel=wish.accel,
        firmware=wish.firmware,
        autostart=wish.autostart,
        restart_policy=wish.restart_policy,
        protect=wish.protect,
        cold=wish.cold,
    )


async def create(context: Context, wish: VmWish) -> tuple[Vm, Operation]:
    """Create a server, and start it unless it is wished stopped; its image is made first where it is missing."""
    plan = draft(context, wish)
    raise_all(plan.blockers)
    vm = plan.vm
    expect = {f"vm-name/{vm.name}": 0}
    puts = {vm.key: vm.dump(), f"vm-name/{vm.name}": vm.id.encode()}
    if wish.user_data is not None:
        puts[f"secret/{vm.id}"] = wish.user_data.encode()
    expect[plan.image.key] = plan.image.meta.revision
    if plan.image_operation:
        if not plan.image.meta.revision:
            expect[f"image-name/{plan.image.name}"] = 0
        puts |= images.keys_of(plan.image)
        puts[plan.image_operation.key] = plan.image_operation.dump()
    try:
        revision = await context.commit(expect, puts, operation=plan.operation)
    except Conflict:
        if context.store.get(f"vm-name/{vm.name}") and wish.name:
            raise Exists(f"a server named {vm.name} is there already", "choose another name") from None
        raise
    return vm.but(meta=vm.meta.but(revision=revision)), plan.operation


def room(spec: VmSpec, host: HostStatus) -> list[VirtuaryError]:
    """What of this host's capacity a server asks too much of, with the number that is missing. Pure."""
    blockers: list[VirtuaryError] = []
    usable = host.memory - HOST_RESERVE
    if spec.memory > usable:
        blockers.append(
            NoRoom(
                f"{format_size(spec.memory)} of memory were asked for and this host can give {format_size(usable)}: "
                f"{format_size(spec.memory - usable)} are missing",
                f"ask for at most --memory {usable // MIB}MiB",
                asked=spec.memory,
                free=usable,
                missing=spec.memory - usable,
            )
        )
    if spec.cpus > 4 * host.cpus:
        blockers.append(
            NoRoom(
                f"{spec.cpus} virtual CPUs were asked for and this host has {host.cpus} CPUs, which allow {4 * host.cpus}",
                f"ask for at most --cpus {4 * host.cpus}",
                asked=spec.cpus,
                free=4 * host.cpus,
                missing=spec.cpus - 4 * host.cpus,
            )
        )
    if spec.disk is not None and spec.disk > host.disk:
        blockers.append(
            NoRoom(
                f"a disk of {format_size(spec.disk)} was asked for and the pool has {format_size(host.disk)} in all: "
                f"{format_size(spec.disk - host.disk)} are missing",
                asked=spec.disk,
                free=host.disk,
                missing=spec.disk - host.disk,
            )
        )
    return blockers


def ports(store: Store, publish: tuple[Publish, ...], own: Vm | None) -> list[VirtuaryError]:
    """Published ports that another server or another program holds; what `own` publishes already is its own."""
    blockers: list[VirtuaryError] = []
    held: dict[tuple[int, str], str] = {}
    for record in store.list("vm/").records:
        vm = Vm.load(record.value, record.revision)
        if not (own and vm.id == own.id) and not vm.meta.deleted:
            held |= {(port.host, port.protocol): vm.name for port in vm.spec.publish}
    for port in publish:
        name = f"port {port.host}/{port.protocol}"
        if holder := held.get((port.host, port.protocol)):
            blockers.append(Conflict(f"{name} is published by {holder} already", "choose another port"))
        elif not (own and port in own.spec.publish) and _in_use(port):
            blockers.append(Conflict(f"{name} is in use on this host by another program", "choose another port"))
    return blockers


def _in_use(port: Publish) -> bool:
    family = socket.AF_INET6 if ipaddress.ip_address(port.address).version == 6 else socket.AF_INET
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((port.address, port.host))
        except OSError:
            return True
    return False


# ---- power


async def power(context: Context, name: str, deed: str, **params: Any) -> tuple[Vm, Operation]:
    """start, stop, restart, pause or resume: a wish about power, and the operation that tells when it is true."""
    vm = find_vm(context.store, name)
    _check_deed(vm, deed)
    if deed == "start":
        check_not_read(context.store, vm)
    ended = _superseded(context, vm, deed)
    wanted = {"start": "running", "stop": "stopped", "restart": "running", "pause": "paused", "resume": "running"}[deed]
    restarts = vm.spec.restarts + 1 if deed == "restart" else vm.spec.restarts
    status = vm.status.but(crashes=()) if deed == "start" else vm.status
    changed = vm.but(spec=vm.spec.but(power=wanted, restarts=restarts), status=status)
    operation = new_operation(context, deed, vm, **params)
    expect = {vm.key: vm.meta.revision, **{item.key: item.meta.revision for item in ended}}
    puts = {vm.key: changed.dump(), **{item.key: _cancelled(item, deed).dump() for item in ended}}
    await context.commit(expect, puts, operation=operation)
    return changed, operation


def _check_deed(vm: Vm, deed: str) -> None:
    idle = vm.status.runtime is None
    if vm.meta.deleted:
        raise Conflict(f"{vm.name} lies in the trash", f"virtuary undelete {vm.name}")
    if deed == "start" and not idle and vm.spec.power == "running":
        raise Conflict(f"{vm.name} runs already")
    if deed == "start" and not idle and vm.spec.power == "paused":
        raise Conflict(f"{vm.name} is paused", f"virtuary resume {vm.name}")
    if deed in ("pause", "resume", "restart") and idle:
        raise Conflict(f"{vm.name} is {vm.status.state}, not running", f"virtuary start {vm.name}")
    if deed == "stop" and idle and vm.spec.power == "stopped":
        raise Conflict(f"{vm.name} is stopped already")
    if deed == "pause" and vm.spec.power == "paused":
        raise Conflict(f"{vm.name} is paused already")


def _superseded(context: Context, vm: Vm, deed: str) -> list[Operation]:
    """Operations that this deed makes pointless; any other one under way refuses it."""
    under_way = active(context.store, vm.key)
    if deed in ("stop", "delete"):
        return under_way
    for operation in under_way:
        if not (operation.spec.kind in START_KINDS and deed in ("pause", "resume") and vm.status.runtime):
            raise Busy(
                f"{vm.name} is busy: {operation.spec.kind} is under way",
                f"virtuary operation wait {operation.id[:8]}, or cancel it",
                operation=operation.id,
            )
    return []


def _cancelled(operation: Operation, by: str) -> Operation:
    status = operation.status.but(phase="cancelled", ended=utcnow(), progress=None, stage=f"superseded by {by}")
    return operation.but(status=status)


# ---- change, rename, delete


def draft_change(context: Context, vm: Vm, wish: VmChange) -> tuple[Vm, list[VirtuaryError]]:
    """A server as it would be after a change, and everything that stands against it; nothing is written."""
    given = wish.model_dump(exclude_unset=True, exclude_none=True)
    labels = given.pop("labels", None)
    spec = VmSpec.model_validate({**vm.spec.model_dump(), **given})
    blockers: list[VirtuaryError] = []
    host = find_host(context.store, context.host_id).status
    if host:
        blockers += room(spec, host)
    size = vm.status.disk_size
    if wish.disk is not None and size and wish.disk < size:
        blockers.append(
            Invalid(f"the disk of {vm.name} is {format_size(size)}: disks only grow", "copy what is needed to a smaller server")
        )
    blockers += ports(context.store, spec.publish, vm)
    meta = vm.meta.but(labels=vm.meta.labels if labels is None else labels)
    if _needs_restart(vm.spec, spec):
        meta = meta.but(generation=vm.meta.generation + 1)
    return vm.but(spec=spec, meta=meta), blockers


async def change(context: Context, name: str, wish: VmChange, revision: int | None = None) -> Vm:
    """Change fields of a server; what needs it takes effect at its next start. Raises Stale when `revision` is not current."""
    vm = find_vm(context.store, name)
    if revision is not None and revision != vm.meta.revision:
        raise Stale(f"{vm.name} changed meanwhile", "look again and repeat")
    changed, blockers = draft_change(context, vm, wish)
    raise_all(blockers)
    if changed == vm:
        return vm
    written = await context.commit({vm.key: vm.meta.revision}, {vm.key: changed.dump()})
    return changed.but(meta=changed.meta.but(revision=written))


def _needs_restart(old: VmSpec, new: VmSpec) -> bool:
    fields = ("cpus", "memory", "disk", "publish", "accel")
    return any(getattr(old, field) != getattr(new, field) for field in fields)


async def rename(context: Context, name: str, new_name: str) -> Vm:
    """Give a server another name; its id, disks and addresses stay. The guest takes its new hostname at the next start."""
    vm = find_vm(context.store, name)
    if vm.meta.deleted:
        raise Conflict(f"{vm.name} lies in the trash", f"virtuary undelete {vm.name} --as ANOTHER-NAME")
    try:
        wanted = check_name(new_name)
    except ValueError as error:
        raise Invalid(str(error)) from None
    if context.store.get(f"vm-name/{wanted}"):
        raise Exists(f"a server named {wanted} is there already", "choose another name")
    changed = vm.but(meta=vm.meta.but(name=wanted))
    expect = {vm.key: vm.meta.revision, f"vm-name/{wanted}": 0}
    puts = {vm.key: changed.dump(), f"vm-name/{wanted}": vm.id.encode()}
    revision = await context.commit(expect, puts, [f"vm-name/{vm.name}"])
    return changed.but(meta=changed.meta.but(revision=revision))


async def delete(context: Context, name: str, *, now: bool = False, force: bool = False) -> Operation:
    """Move a server to the trash, or with `now` remove it for good. One that runs needs `force`."""
    vm = find_vm(context.store, name)
    if vm.spec.protect:
        raise Conflict(f"{vm.name} is protected", f"virtuary set {vm.name} --no-protect")
    if (vm.status.runtime or vm.status.state == "starting") and not force:
        raise Conflict(f"{vm.name} is {vm.status.state}", f"virtuary stop {vm.name} first, or delete it with --force")
    ended = _superseded(context, vm, "delete")
    changed = vm.but(
        spec=vm.spec.but(power="stopped"),
        meta=vm.meta.but(deleted=vm.meta.deleted or utcnow(), purge=now or not vm.status.disk_ready),
    )
    operation = new_operation(context, "delete", vm, force=True)
    expect = {vm.key: vm.meta.revision, **{item.key: item.meta.revision for item in ended}}
    puts = {vm.key: changed.dump(), **{item.key: _cancelled(item, "delete").dump() for item in ended}}
    names = [] if vm.meta.deleted else [f"vm-name/{vm.name}"]  # in the trash it has given its name back
    await context.commit(expect, puts, names, operation=operation)
    return operation


def find_trashed(store: Store, name: str) -> Vm:
    """The server of this name or id that was deleted last; raises NotFound."""
    vms = [Vm.load(record.value, record.revision) for record in store.list("vm/").records]
    found = [vm for vm in vms if vm.meta.deleted and not vm.meta.purge and name.lower() in (vm.name, vm.id)]
    if not found:
        raise NotFound(f"no server named {name[:80]!r} lies in the trash", "virtuary list --trash shows what does")
    return max(found, key=lambda vm: vm.meta.deleted or utcnow())


async def undelete(context: Context, name: str, new_name: str | None = None) -> Vm:
    """Take a server back from the trash, stopped; under another name if its own is taken meanwhile."""
    vm = find_trashed(context.store, name)
    wanted = check_name(new_name) if new_name else vm.name
    if context.store.get(f"vm-name/{wanted}"):
        raise Exists(f"a server named {wanted} is there already", f"virtuary undelete {vm.name} --as ANOTHER-NAME")
    check_free(context.store, vm)
    changed = vm.but(meta=vm.meta.but(deleted=None, name=wanted))
    expect = {vm.key: vm.meta.revision, f"vm-name/{wanted}": 0}
    revision = await context.commit(expect, {vm.key: changed.dump(), f"vm-name/{wanted}": vm.id.encode()})
    return changed.but(meta=changed.meta.but(revision=revision))


async def purge(context: Context, name: str) -> Operation:
    """Remove a server in the trash for good."""
    vm = find_trashed(context.store, name)
    changed = vm.but(meta=vm.meta.but(purge=True))
    operation = new_operation(context, "purge", vm)
    await context.commit({vm.key: vm.meta.revision}, {vm.key: changed.dump()}, operation=operation)
    return operation
