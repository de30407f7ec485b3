"""Copying a server: what stands against it, and the two documents it begins with: the copy, which
waits, and its operation.
"""

from __future__ import annotations

from dataclasses import dataclass

from virtuary.actions import nics, ports, served
from virtuary.actions.context import (
    Context,
    check_free,
    decides,
    find_vm,
    new_operation,
    raise_all,
    turn,
)
from virtuary.actions.vms import checked, new_name, room
from virtuary.base.errors import Busy, Conflict, Invalid, VirtuaryError
from virtuary.base.units import format_size
from virtuary.model.deeds import Copy
from virtuary.model.disk import ROOT
from virtuary.model.image import Image
from virtuary.model.meta import Meta, new_id
from virtuary.model.operation import Operation
from virtuary.model.status import DiskStatus, VmStatus
from virtuary.model.template import Template
from virtuary.model.vm import Origin, Vm, VmCopy
from virtuary.store import documents, userdata, volumes

FIXED = {"cpu": "cpus", "memory": "memory", "disks": "disk", "accel": "accel"}
"""What memory that is taken over decides, and the options that ask for it."""
OWN = {"name", "mode", "start", "labels"}
"""What a copy is asked besides what is other than its source's."""


@dataclass(frozen=True)
class Draft:
    """A copy as it would be made, and everything that stands against it."""

    source: Vm
    vm: Vm
    operation: Operation
    joined: nics.Joined
    blockers: list[VirtuaryError]


def draft(context: Context, name: str, wish: VmCopy) -> Draft:
    """Work out a copy without writing anything; the same for a dry run and for the real thing."""
    store = context.store
    source = find_vm(store, name)
    blockers = unfit(context, source, wish)
    naming: list[VirtuaryError] = []
    meta = Meta(
        name=new_name(store, wish.name, naming),
        labels=source.meta.labels if wish.labels is None else wish.labels,
    )
    joined = nics.join(
        context, meta.id, nics.like(source.spec.nics) if wish.nics is None else wish.nics
    )
    blockers += [*joined.blockers, *nics.unpublishable(context, joined.nics, wish.publish)]
    naming += served.unfit(context, meta.id, meta.name, joined.nics, joined.networks.values())
    policy = source.spec.policy.but(protect=False, autostart=False)
    like = source.spec.but(policy=policy, disks=source.spec.disks[:1])
    own = {
        "publish": wish.publish,
        "nics": joined.nics,
        "restarts": 0,
        "asked": 0,
        "owner": context.host_id,
        "power": "running" if wish.start or wish.mode == "live" else "stopped",
        "origin": Origin(id=source.id, name=source.name, mode=wish.mode),
    }
    spec = checked(lambda: like.overlaid(wish, OWN, **own))
    disk = VmStatus(disks={ROOT: DiskStatus(size=spec.root.size or source.status.disk.size)})
    blockers += [
        *room(context, Vm(meta=source.meta, spec=spec, status=disk)),
        *ports.taken(context, spec.publish, None),
    ]
    blockers += naming
    vm = Vm(meta=meta, spec=spec)
    deed = Copy(source=source.id, mode=wish.mode, layer=new_id())
    left = [volume.name for volume in volumes.held_by(store, source.id)]
    notes = [f"{', '.join(left)} stay with {source.name}, and are not copied"] if left else []
    operation = new_operation(context, deed, vm, notes=notes)
    return Draft(source, vm, operation, joined, blockers)


def unfit(context: Context, source: Vm, wish: VmCopy) -> list[VirtuaryError]:
    """Why this server can't be copied so."""
    name, status = source.name, source.status
    if source.meta.deleted:
        return [Conflict(f"{name} lies in the trash", f"virtuary undelete {name}")]
    blockers: list[VirtuaryError] = []
    try:
        check_free(context.store, source)
    except Busy as error:
        blockers.append(error)
    if not status.disk.ready:
        return [
            *blockers,
            Conflict(
                f"{name} is {status.state}: there is nothing to copy yet", "repeat when it is there"
            ),
        ]
    asked = next((disk.size for disk in wish.disks if disk.number == ROOT), None)
    if asked is not None and status.disk.size and asked < status.disk.size:
        size = format_size(status.disk.size)
        blockers.append(
            Invalid(
                f"the disk of {name} is {size} and {format_size(asked)} were asked for",
                f"--disk {size}",
            )
        )
    return [
        *blockers,
        *(_unfit_live(context, source, wish) if wish.mode == "live" else _unfit_stopped(source)),
    ]


def _unfit_stopped(source: Vm) -> list[VirtuaryError]:
    if source.status.runtime is None and source.wanted == "stopped":
        return []
    hint = f"--live copies it as it runs; or virtuary stop {source.name} first"
    return [
        Conflict(
            f"{source.name} is {source.status.state}: a disk is copied while nobody writes to it",
            hint,
        )
    ]


def _unfit_live(context: Context, source: Vm, wish: VmCopy) -> list[VirtuaryError]:
    name, status = source.name, source.status
    if status.state != "running" or status.runtime is None or source.wanted != "running":
        hint = (
            f"virtuary resume {name}"
            if status.state == "paused"
            else f"leave out --live, or virtuary start {name}"
        )
        return [
            Conflict(f"{name} is {status.state}: a live copy is made of a server that runs", hint)
        ]
    blockers: list[VirtuaryError] = []
    image = documents.get(context.store, Image, source.spec.image_id)
    if image is None or not image.status.agent:
        what = (
            f"the image {source.spec.image} has no guest agent, by which a live copy becomes "
            "a machine of its own"
        )
        blockers.append(Conflict(what, f"virtuary stop {name}, and copy it without --live"))
    elif len(source.spec.disks) > 1 or status.runtime.disks:
        what = f"{name} has disks besides its root disk, which can't be saved with it"
        remedy = "detach them (virtuary disk list), or stop it and copy it without --live"
        blockers.append(Conflict(what, remedy))
    elif status.identity.given != name:
        blockers.append(
            Conflict(f"{name} has not taken its name yet", "repeat when its guest agent answers")
        )
    if status.power.applied != source.meta.generation:
        blockers.append(
            Conflict(f"{name} was changed and not restarted since", f"virtuary restart {name}")
        )
    if _grown(context, source):
        what = f"{name} was given memory while it ran, which can't be saved with it"
        blockers.append(
            Conflict(what, f"virtuary restart {name}, then it has begun with all of it")
        )
    given = wish.model_dump(exclude_unset=True)
    if fixed := [option for field, option in FIXED.items() if given.get(field)]:
        what = f"a live copy has its source's {', '.join(fixed)}"
        blockers.append(Invalid(what, f"leave out --{fixed[0]}, and change the copy afterwards"))
    return blockers


def _grown(context: Context, source: Vm) -> bool:
    """Whether memory was plugged into its process, besides what that began with."""
    runtime = source.status.runtime
    if runtime and runtime.shape:
        return source.spec.memory.size > runtime.shape.memory
    template = documents.get(context.store, Template, runtime.template if runtime else None)
    return template is not None and source.spec.memory.size > template.spec.memory


@decides
async def copy(context: Context, name: str, wish: VmCopy) -> tuple[Vm, Operation]:
    """Have a copy of a server made, of one that is stopped or, live, of one that runs. The source
    is not changed by this.
    """
    waits, takes = turn(context)
    plan = draft(context, name, wish)
    raise_all(plan.blockers)
    vm, source = plan.vm, plan.source
    puts = {vm.key: vm.dump(), vm.named: vm.id.encode(), **takes}
    if text := userdata.read(context.store, source.id):
        puts[userdata.key_of(vm.id)] = text.encode()
    joins, makes = nics.made(context.store, plan.joined)
    puts |= makes
    expect = {source.key: source.meta.revision, vm.named: 0, **waits, **joins}
    revision = await context.commit(expect, puts, operation=plan.operation)
    return vm.but(meta=vm.meta.but(revision=revision)), plan.operation
