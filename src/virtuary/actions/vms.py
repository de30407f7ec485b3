"""What a user may ask of servers. Each function checks everything first, tells all blockers, and
makes one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

from virtuary.actions import account, images, nics, ports, served, volumes
from virtuary.actions.context import (
    Context,
    active,
    check_free,
    decides,
    find_host,
    find_vm,
    new_operation,
    own_vms,
    own_volumes,
    raise_all,
    turn,
    wanted_name,
)
from virtuary.actions.names import made_up
from virtuary.base.errors import Conflict, Exists, Invalid, NotFound, Stale, VirtuaryError
from virtuary.base.units import format_size
from virtuary.model.applies import Applies, differing
from virtuary.model.deeds import (
    Change,
    Create,
    Launch,
)
from virtuary.model.disk import ROOT, Disk, DiskWish
from virtuary.model.image import Image
from virtuary.model.memory import default_memory
from virtuary.model.meta import Meta, invalid
from virtuary.model.network import USER, Nic
from virtuary.model.operation import Operation
from virtuary.model.vm import NO_CLOUD_INIT, Sized, Vm, VmChange, VmSpec, VmWish
from virtuary.store import documents, userdata
from virtuary.store.api import Store

ALIKE = ("power", "publish", "policy", "arch", "accel", "firmware", "cold")
"""Fields that a wish and a spec have alike."""


@dataclass(frozen=True)
class Draft:
    """A server as it would be created: its documents and everything that stands against it."""

    vm: Vm
    image: Image
    operation: Operation
    image_operation: Operation | None
    joined: nics.Joined
    own: volumes.Made
    blockers: list[VirtuaryError]
    notes: tuple[str, ...] = ()
    """What does not stand against it, and is not as its user may think."""


def draft(context: Context, wish: VmWish, notes: Sequence[str] = ()) -> Draft:
    """Work out a server without writing anything; the same for a dry run and for the real thing.
    `notes`: what is known already of what is not as its user may think.
    """
    store, blockers = context.store, list[VirtuaryError]()
    name = new_name(store, wish.name, blockers)
    image, image_operation = _image(context, wish.image, blockers)
    meta = Meta(name=name, labels=wish.labels)
    joined = nics.join(context, meta.id, wish.nics)
    blockers += [*joined.blockers, *nics.unpublishable(context, joined.nics, wish.publish)]
    blockers += served.unfit(context, meta.id, meta.name, joined.nics, joined.networks.values())
    own = volumes.made(context, meta.id, Disk(), wish.disks[1:])
    blockers += own.blockers
    spec = checked(lambda: _spec(wish, image, context.host_id, joined.nics, own.disks))
    vm = Vm(meta=meta, spec=spec)
    size = spec.root.size or image.status.virtual_size
    blockers += room(context, vm.seen(disks={ROOT: {"size": size}}))
    blockers += ports.taken(context, spec.publish, None)
    if (
        image.status.state == "ready"
        and spec.root.size is not None
        and spec.root.size < image.status.virtual_size
    ):
        needed = format_size(image.status.virtual_size)
        blockers.append(
            Invalid(
                f"the image {image.name} needs a disk of {needed} and "
                f"{format_size(spec.root.size)} were asked for",
                f"--disk {needed}",
            )
        )
    if wish.login.user_data is not None and _lacks_cloud_init(image):
        blockers.append(
            Invalid(
                NO_CLOUD_INIT.format(image=image.name), "leave out --user-data, or choose debian"
            )
        )
    deed = Launch() if wish.power != "stopped" else Create()
    little = account.too_little(spec.memory.size, image)
    operation = new_operation(context, deed, vm, notes=notes, why=little)
    told = (*notes, *([little] if little else []))
    return Draft(vm, image, operation, image_operation, joined, own, blockers, told)


def _lacks_cloud_init(image: Image) -> bool:
    """Whether it is known that user data would be read by nobody; an image that is not made yet may
    turn out so later.
    """
    source = image.spec.source
    if image.status.state == "ready":
        return not image.status.cloud_init
    return source.recipe == "tiny" or (source.kind in ("url", "file") and not source.cloud_init)


def new_name(store: Store, wanted: str | None, blockers: list[VirtuaryError]) -> str:
    """The name of a new server: the one that is wanted, or one that is made up."""
    taken = set(documents.names(store, Vm))
    name = made_up(taken)
    if wanted is not None:
        try:
            name = wanted_name(wanted)
        except Invalid as error:
            blockers.append(error)
    if name in taken:
        blockers.append(
            Exists(
                f"a server named {name} is there already",
                f"choose another name, or virtuary delete {name}",
            )
        )
    return name


def _image(
    context: Context, name: str, blockers: list[VirtuaryError]
) -> tuple[Image, Operation | None]:
    try:
        found = images.resolve(context, name)
    except NotFound as error:
        blockers.append(error)
        return Image(meta=Meta(name=name), spec={"source": {"kind": "build"}}), None
    if isinstance(found, Image):
        if found.meta.purge:
            blockers.append(
                Conflict(f"the image {found.name} is being removed", "repeat in a moment")
            )
        elif found.status.state == "failed":
            again = found.seen(state="absent", reason=None)
            return again, new_operation(context, images.making(found.spec.source), again)
        return found, None
    return images.prepare(context, context.catalogue.canonical(name), found)


def checked(make: Callable[[], VmSpec]) -> VmSpec:
    """A spec whose parts are right each but may not fit together; raises Invalid."""
    try:
        return make()
    except ValidationError as error:
        raise invalid(error) from None


def _spec(
    wish: VmWish, image: Image, host_id: str, joined: tuple[Nic, ...], others: tuple[Disk, ...]
) -> VmSpec:
    root = wish.disks[0] if wish.disks else DiskWish()
    given: dict[str, Any] = {
        **{field: getattr(wish, field) for field in ALIKE},
        "image": image.name,
        "image_id": image.id,
        "owner": host_id,
        "cpu": {**dict(wish.cpu), "count": wish.cpu.count or wish.cpu.sockets * wish.cpu.threads},
        "memory": {**dict(wish.memory), "size": wish.memory.size or default_memory(image.name)},
        "disks": (Disk(size=root.size, io=root.io), *others),
        "nics": joined,
        "login": {"ssh_keys": wish.login.ssh_keys, "user_data": wish.login.user_data is not None},
    }
    return VmSpec.model_validate(given)


@decides
async def create(context: Context, wish: VmWish, notes: Sequence[str] = ()) -> tuple[Vm, Operation]:
    """Create a server, and start it unless it is wished stopped; its image is made first where it
    is missing. Whoever follows that is told the notes.
    """
    waits, takes = turn(context)
    plan = draft(context, wish, notes)
    raise_all(plan.blockers)
    vm = plan.vm
    expect = {vm.named: 0, **waits}
    puts = {vm.key: vm.dump(), vm.named: vm.id.encode(), **takes}
    joins, makes = nics.made(context.store, plan.joined)
    expect, puts = expect | joins | plan.own.expects, puts | makes | plan.own.puts
    if wish.login.user_data is not None:
        puts[userdata.key_of(vm.id)] = wish.login.user_data.encode()
    expect[plan.image.key] = plan.image.meta.revision
    if plan.image_operation or not documents.is_here(context.store, plan.image):
        if not plan.image.meta.revision:
            expect[plan.image.named] = 0
        puts |= images.keys_of(context.store, plan.image)
    if plan.image_operation:
        puts[plan.image_operation.key] = plan.image_operation.dump()
    revision = await context.commit(expect, puts, operation=plan.operation)
    return vm.but(meta=vm.meta.but(revision=revision)), plan.operation


def room(context: Context, vm: Vm, own: Vm | None = None) -> list[VirtuaryError]:
    """What the host has not enough of for this server, with the number that is missing; `own`: the
    same one as it is now.
    """
    host = find_host(context.store, context.host_id).status
    if host is None:
        return []
    blockers = account.alone(vm.spec, host)
    never = {error.details.get("resource") for error in blockers}
    held = account.claim_of(own, host) if own else account.Claim()
    wanted = account.claim_of(vm, host)
    balances = account.balances(host, own_vms(context), own_volumes(context))
    short = account.shortage(wanted, balances, held)
    blockers += [error for error in short if error.details["resource"] not in never]
    if (
        wanted.disk > held.disk
        and context.disk_free is not None
        and context.disk_free < host.reserve_disk
    ):
        blockers.append(account.full(host, wanted.disk - held.disk, context.disk_free))
    return blockers


# ---- change, rename, delete


class Changed(NamedTuple):
    vm: Vm
    blockers: list[VirtuaryError]
    joined: nics.Joined


def draft_change(context: Context, vm: Vm, wish: VmChange) -> Changed:
    """A server as it would be after a change, and everything that stands against it; nothing is
    written.
    """
    joined = (
        nics.join(context, vm.id, wish.nics, vm)
        if wish.nics is not None
        else nics.Joined(vm.spec.nics)
    )
    spec = checked(lambda: vm.spec.overlaid(wish, {"labels"}, nics=joined.nics))
    blockers = joined.blockers + nics.unpublishable(context, spec.nics, spec.publish)
    blockers += _shrunk(vm, spec)
    blockers += ports.taken(context, spec.publish, vm)
    blockers += (
        served.unfit(context, vm.id, vm.name, spec.nics, joined.networks.values())
        if wish.nics is not None
        else []
    )
    meta = vm.meta.but(labels=vm.meta.labels if wish.labels is None else wish.labels)
    if waits_for_start(vm, spec):
        meta = meta.but(generation=vm.meta.generation + 1)
    changed = vm.but(spec=spec, meta=meta)
    return Changed(changed, [*room(context, changed, vm), *blockers], joined)


def _shrunk(vm: Vm, spec: VmSpec) -> list[VirtuaryError]:
    has, wished = vm.status.disk.size, spec.root.size
    if not has or wished is None or wished >= has or wished == vm.spec.root.size:
        return []
    return [
        Invalid(
            f"the disk of {vm.name} is {format_size(has)}: disks only grow",
            "copy what is needed to a smaller server",
        )
    ]


@decides
async def change(
    context: Context, name: str, wish: VmChange, revision: int | None = None
) -> tuple[Vm, Operation | None]:
    """Change fields of a server. What a running one can be given at once is an operation to follow,
    unless another one is under way; what it can't takes effect at its next start. Raises Stale when
    `revision` is not current.
    """
    waits, takes = turn(context)
    vm = find_vm(context.store, name)
    if revision is not None and revision != vm.meta.revision:
        raise Stale(f"{vm.name} changed meanwhile", "look again and repeat")
    changed, blockers, joined = draft_change(context, vm, wish)
    raise_all(blockers)
    if changed == vm:
        return vm, None
    operation = None
    if resized := [path for path in _resized(vm, changed.spec) if lives(vm, changed.spec, path)]:
        check_free(context.store, vm)
    if resized or (tunes(vm, changed.spec) and not active(context.store, vm.key)):
        before = {RESIZES[path]: vm.spec.sizes[RESIZES[path]] for path in resized}
        operation = new_operation(context, Change.model_validate(before), vm)
    joins, makes = nics.made(context.store, joined)
    expect, puts = (
        {vm.key: vm.meta.revision, **waits, **joins},
        {vm.key: changed.dump(), **takes, **makes},
    )
    written = await context.commit(expect, puts, operation=operation)
    return changed.but(meta=changed.meta.but(revision=written)), operation


RESIZES: dict[str, Sized] = {
    "cpu.count": "cpus",
    "memory.size": "memory",
    "disks.0.size": "disk",
}
"""What a guest has to take or give: an operation tells when it has."""


def _resized(vm: Vm, spec: VmSpec) -> list[str]:
    return differing(vm.spec, spec, Applies.BY_GUEST)


def waits_for_start(vm: Vm, spec: VmSpec) -> list[str]:
    """The fields whose change takes effect at the next start only, as `memory.pages`. Pure."""
    old = vm.spec
    waiting = differing(old, spec, Applies.AT_START)
    if old.publish != spec.publish and vm.nics[0].network == USER:
        waiting.append("publish")  # whoever serves such a network listens from its start on
    if old.nics[0].wiring != spec.nics[0].wiring:
        waiting.append("nics")  # the first can't be plugged
    return waiting + [path for path in _resized(vm, spec) if not lives(vm, spec, path)]


def lives(vm: Vm, spec: VmSpec, path: str) -> bool:
    """Whether a server that runs can follow the change of one of `RESIZES` at once. Pure."""
    runtime = vm.status.runtime
    shape = runtime.shape if runtime else None
    if shape is None or vm.status.identity.given is None or vm.wanted != "running":
        return False
    match path:
        case "cpu.count":
            return shape.allows(cpus=spec.cpu.count)
        case "memory.size":
            return shape.allows(memory=spec.memory.size)
    return vm.status.disk.size is not None


def tunes(vm: Vm, spec: VmSpec) -> bool:
    """Whether the host is to give a server that runs other limits or shares. Pure."""
    runtime = vm.status.runtime
    if runtime is None or runtime.shape is None or vm.wanted == "stopped":
        return False
    return bool(differing(vm.spec, spec, Applies.AT_ONCE))


@decides
async def rename(context: Context, name: str, new_name: str) -> Vm:
    """Give a server another name; its id, disks and addresses stay, and so do firewall rules, which
    name it by its id. The guest takes its new hostname at the next start.
    """
    waits, takes = turn(context)
    vm = find_vm(context.store, name)
    if vm.meta.deleted:
        raise Conflict(
            f"{vm.name} lies in the trash", f"virtuary undelete {vm.name} --as ANOTHER-NAME"
        )
    wanted = wanted_name(new_name)
    if context.store.get(Vm.name_key(wanted)):
        raise Exists(f"a server named {wanted} is there already", "choose another name")
    raise_all(served.unfit(context, vm.id, wanted, (*vm.spec.nics, *vm.nics)))
    changed = vm.but(meta=vm.meta.but(name=wanted))
    expect = {vm.key: vm.meta.revision, Vm.name_key(wanted): 0, **waits}
    puts = {vm.key: changed.dump(), Vm.name_key(wanted): vm.id.encode(), **takes}
    revision = await context.commit(expect, puts, [vm.named])
    return changed.but(meta=changed.meta.but(revision=revision))
