"""Copies of stopped servers: as an overlay, at once, or in full. And what every kind of copy
shares: waiting, ending badly, layers.

A copy is a document that waits for its source. The source's worker gives it what it is made of, in
one transaction that says so in both documents; whatever was made before that transaction and is not
named by it is nothing, and removed. So a crash at any point leaves the source as it was, or the
copy given, never anything between. Live copies are in `live.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import (
    Bug,
    Conflict,
    Failed,
    StoreAway,
    VirtuaryError,
    of_system,
)
from virtuary.base.files import remove, sync_dir, write_whole
from virtuary.base.log import say
from virtuary.base.paths import VmPaths
from virtuary.guest import identity
from virtuary.guest.hostkeys import alias, known_hosts
from virtuary.model.deeds import Copy
from virtuary.model.disk import ROOT
from virtuary.model.image import Image
from virtuary.model.operation import Operation
from virtuary.model.vm import Vm
from virtuary.node import operations
from virtuary.node.copies.facts import files_in, leftovers
from virtuary.node.copies.plan import (
    ConvertDisk,
    DropCopy,
    RefuseCopy,
    ShareDisk,
    StandOnLayer,
    TidyHome,
)
from virtuary.node.identity.plan import RenewCopy
from virtuary.node.machine.keys import public_key
from virtuary.node.machine.launch import clean_up
from virtuary.node.machine.resolve import layers_of, user_of
from virtuary.node.server import parts
from virtuary.node.server.notes import note_on, printable
from virtuary.node.server.process import Process
from virtuary.node.server.server import Server
from virtuary.node.server.step import capability, does, does_with
from virtuary.node.server.world import World
from virtuary.node.site import Site
from virtuary.node.warm.derive import make_host_key
from virtuary.storage import directory, full
from virtuary.storage.overlay import pieces
from virtuary.storage.own import check_disk
from virtuary.store import documents

logger = logging.getLogger("virtuary.copies")
MAX_LAYERS = 32
"""So many files may lie between an image and a disk: each is a descriptor, and a step for what is
read from the lowest.
"""
declare(
    "copy.before_link", "copy.after_link", "copy.after_overlay", "copy.before_record",
    "copy.after_record", "copy.after_unlink",
    "copy.after_stand", "copy.before_renew", "copy.after_renew", "copy.after_convert",
    "copy.after_give",
)  # fmt: skip


# ---- looking


# ---- ending badly


@contextlib.contextmanager
def holding(site: Site, copy: Vm) -> Iterator[None]:
    """While this lasts the copy's own worker keeps its hands off it."""
    site.held.add(copy.id)
    try:
        yield
    finally:
        site.held.discard(copy.id)


async def handing_over(server: Server, copy: Vm, give_parts: Callable[[], Awaitable[None]]) -> None:
    """Let the source give; whatever goes wrong is the end of the copy, never of the source."""
    site = server.site
    with holding(site, copy):
        try:
            await give_parts()
        except (Conflict, StoreAway):
            raise  # look again
        except VirtuaryError as error:
            await give_up(site, copy.key, error)
        except OSError as error:
            await give_up(site, copy.key, of_system(error))
        except Exception as error:
            logger.exception("copying %s to %s: a defect", server.identity, copy.name)
            await give_up(site, copy.key, Bug(f"copying met a defect: {error!r}"))


async def give_up(site: Site, key: str, error: VirtuaryError) -> None:
    """The copy is nothing, and has no process: its operation tells why, and everything of it is
    removed by its own worker.
    """
    while vm := documents.at(site.store, Vm, key):
        halts = parts.halts(vm, error.sentence, site.clock.wall())
        over = vm.but(meta=vm.meta.but(purge=True), status=vm.status.without_process().but(**halts))
        puts = {key: over.dump()}
        for item in operations.open_operations(site.store, key):
            copying = isinstance(item.spec.deed, Copy)
            puts[item.key] = operations.finished(
                item, error if copying else None, cancelled=copying and item.spec.cancel
            ).dump()
        say(logger, "no copy", logging.WARNING, vm=vm.name, why=error.sentence)
        with contextlib.suppress(Conflict):
            await site.store.txn({key: vm.meta.revision}, puts)
            return


def wanted(site: Site, copy: Vm, operation: str) -> bool:
    """Whether somebody still wants the copy that is being made."""
    found = documents.at(site.store, Operation, operation)
    if found is None or found.ended or found.spec.cancel:
        return False
    now = documents.at(site.store, Vm, copy.key)
    return now is not None and not now.meta.purge


async def drop_copy(server: Server, world: World, step: DropCopy) -> None:
    """A copy that can't become what it was to be."""
    await end_copy(server, world, Failed(step.why))


async def end_copy(server: Server, world: World, error: VirtuaryError) -> None:
    """A copy whose process is over, or never was, and which is nothing without it."""
    await server.drop_process()
    await clean_up(server.identity, server.paths.runtime, user_of(server.site, world.vm))
    source = world.vm.spec.origin.name if world.vm.spec.origin else "its source"
    sentence = f"{source} was not copied to {world.vm.name}: {error.sentence}"
    await give_up(server.site, server.key, type(error)(sentence, error.hint))


async def refuse_copy(server: Server, world: World, step: RefuseCopy) -> None:
    """Tell a copy that there is nothing to give it."""
    sentence = f"{world.vm.name} was not copied to {step.copy.name}: {step.why}"
    await give_up(server.site, step.copy.key, Failed(sentence))


# ---- an overlay


async def share_disk(server: Server, world: World, step: ShareDisk) -> None:
    """Make the disk of a stopped server a layer below both: below a new disk of its own, and below
    the copy's.
    """
    await handing_over(server, step.copy, lambda: _share(server, world, step.copy))


async def _share(server: Server, world: World, copy: Vm) -> None:
    site, vm = server.site, world.vm
    operation, deed = operation_of(site, copy)
    name = f"disk-{deed.layer}.qcow2"
    layer = f"layers/{deed.layer}.qcow2"
    give_variables(server, copy)
    old, source = server.paths.home / vm.status.disk.file, vm
    touched = not untouched(site, vm)
    texts = [f"making the disk of {vm.name} a layer below both"] if touched else []
    await operations.note(
        site.store, operation.key, *texts, who_renews(world.image, vm), stage="disk"
    )
    check_disk(old, layers_of(site, vm), vm.status.disk.size)
    if touched:
        if len(vm.status.disk.layers) >= MAX_LAYERS:
            raise Failed(
                f"{len(vm.status.disk.layers)} layers lie below the disk of {vm.name} already",
                "virtuary copy --full",
            )
        place = site.paths.state / layer
        crashpoint("copy.before_link")
        remove(place)
        os.link(old, place)
        sync_dir(place.parent)
        crashpoint("copy.after_link")
        await directory.ensure_overlay(
            server.paths.home / name, place, vm.status.disk.size or 0, None, server.site.kept
        )
        crashpoint("copy.after_overlay")
        layers = (*vm.status.disk.layers, layer)
        source = vm.seen(**parts.lies_on(ROOT, layers, file=name))
    given = copy.seen(
        **status_for_copy(source, f"it is a copy of {vm.name}", renew=by_agent(world.image))
    )
    crashpoint("copy.before_record")
    expect = {vm.key: vm.meta.revision, copy.key: copy.meta.revision}
    await site.store.txn(
        expect, {copy.key: given.dump(), **({vm.key: source.dump()} if source != vm else {})}
    )
    if source != vm:
        with contextlib.suppress(OSError):  # what is left to do is done by the next look as well
            crashpoint("copy.after_record")
            _tidy(site, server.paths, source)
            crashpoint("copy.after_unlink")


async def give(site: Site, copy: Vm, operation: str, **status: Any) -> None:
    """Write down that the copy has what it is made of, over whatever a user changed of it
    meanwhile.
    """

    def given(now: Vm) -> Vm | None:
        if not wanted(site, now, operation):
            raise Failed("the copy is not wanted any more")
        return now.seen(**status)

    if await documents.change(site.store, Vm, copy.key, given) is None:
        raise Failed("the copy is not wanted any more")


def who_renews(image: Image | None, vm: Vm) -> str:
    """Whose task it is to make the guest of a copied disk a machine of its own. Pure."""
    if image and image.status.agent:
        return "its guest becomes a machine of its own at the first start"
    if image and image.status.cloud_init:
        return (
            f"the image {vm.spec.image} has no guest agent: cloud-init makes its guest a "
            "machine of its own at the first start"
        )
    return (
        f"the image {vm.spec.image} has neither a guest agent nor cloud-init: its guest keeps "
        f"the identity of {vm.name}"
    )


def by_agent(image: Image | None) -> bool:
    """Whether the guest of a copied disk is made a machine of its own by its agent. Pure."""
    return bool(image and image.status.agent)


def status_for_copy(
    source: Vm, why_cold: str | None, *, renew: bool, **disk: object
) -> dict[str, Any]:
    """What a copy has in its status from its source; `disk`: what of its disk is otherwise.
    Pure.
    """
    return {
        "origin": {"copied": True},
        **parts.like(ROOT, source.status.disk, **disk),
        **parts.comes_as_another(renew=renew),
        **parts.boots(why_cold),
    }


def operation_of(site: Site, copy: Vm) -> tuple[Operation, Copy]:
    """The operation that makes this copy, and its deed; raises Conflict when it is over."""
    for operation in operations.open_operations(site.store, copy.key):
        if isinstance(operation.spec.deed, Copy):
            return operation, operation.spec.deed
    raise Conflict(f"nobody wants {copy.name} any more")


def untouched(site: Site, vm: Vm) -> bool:
    """Whether nothing was ever written to this server's own disk, so that what lies below it is all
    there is to share.
    """
    layers = layers_of(site, vm)
    if not layers or not vm.status.disk.size:
        return False
    disk = site.paths.vm(vm.id).home / vm.status.disk.file
    offset, content = pieces(os.path.relpath(layers[-1], disk.parent), vm.status.disk.size)[-1]
    # a cluster that is written, or only discarded, makes the file larger
    return disk.stat().st_size == offset + len(content)


def give_variables(server: Server, copy: Vm) -> None:
    """The copy's folder, with UEFI variables like the source's."""
    paths = server.site.paths.vm(copy.id)
    paths.home.mkdir(mode=0o700, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        write_whole(paths.firmware_vars, server.paths.firmware_vars.read_bytes())


async def tidy_home(server: Server, world: World, step: TidyHome) -> None:
    """Remove what is of no more use to the server: a crash may have left it."""
    _tidy(server.site, server.paths, world.vm)


def _tidy(site: Site, paths: VmPaths, vm: Vm) -> None:
    for layer in vm.status.layers:
        if layer.startswith("layers/"):
            os.chmod(site.paths.state / layer, 0o400)
    for path in leftovers(paths, vm, files_in(paths)):
        remove(path)
    sync_dir(paths.home)


async def stand_on_layer(server: Server, world: World, step: StandOnLayer) -> None:
    """The copy's own disk, empty, on what it shares with its source."""
    vm, site = world.vm, server.site
    disk = server.paths.home / vm.status.disk.file
    server.paths.home.mkdir(mode=0o700, exist_ok=True)
    remove(disk)
    size = await directory.ensure_overlay(
        disk, layers_of(site, vm)[-1], vm.status.disk.size or 0, None, site.kept
    )
    crashpoint("copy.after_stand")
    await server.write(**parts.lies_there(ROOT, size))


def drop_layers(site: Site) -> None:
    """Remove the layers that no server names, in the trash or not, and no copy that is under
    way.
    """
    found = list(site.paths.layers.iterdir())
    if not found:
        return
    named = {layer for vm in documents.every(site.store, Vm) for layer in vm.status.layers}
    deeds = (item.spec.deed for item in documents.open_operations(site.store))
    coming = {deed.layer for deed in deeds if isinstance(deed, Copy)}
    for path in found:
        if f"layers/{path.name}" not in named and path.stem not in coming:
            remove(path)


# ---- in full


async def convert_disk(server: Server, world: World, step: ConvertDisk) -> None:
    """Give the copy of a stopped server a disk that stands alone."""
    await handing_over(server, step.copy, lambda: _convert(server, world, step.copy))


async def _convert(server: Server, world: World, copy: Vm) -> None:
    site, vm, paths = server.site, world.vm, server.site.paths.vm(copy.id)
    operation = operation_of(site, copy)[0].key
    files, size = (
        (*layers_of(site, vm), server.paths.home / vm.status.disk.file),
        vm.status.disk.size or 0,
    )
    give_variables(server, copy)
    remove(paths.disk)
    await operations.note(site.store, operation, "copying the disk", stage="disk")
    task = asyncio.create_task(
        full.flatten(files, paths.disk, size, operations.reporter(site.store, operation), site.kept)
    )
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=0.25)
            current = server.load()
            if not wanted(site, copy, operation) or current is None or current.meta.purge:
                raise Failed("the copy is not wanted any more, or its source is gone")
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    crashpoint("copy.after_convert")
    await operations.note(
        site.store, operation, who_renews(world.image, vm), stage="disk", progress=None
    )
    given = status_for_copy(
        vm,
        f"it is a copy of {vm.name}",
        renew=by_agent(world.image),
        layers=(),
        base=False,
        ready=True,
    )
    await give(site, copy, operation, **given)
    crashpoint("copy.after_give")


# ---- its first start


async def renew_copy(server: Server, process: Process, world: World, step: RenewCopy) -> None:
    """Make the guest a machine of its own, which was its source when it went to sleep: name, keys,
    machine-id, SSH host keys.
    """
    vm = world.vm
    await note_on(server, world, "giving the guest an identity of its own", stage="agent")
    agent = process.agent
    key = await make_host_key(server.paths.runtime)
    authorized = (public_key(server.site), *vm.spec.login.ssh_keys)
    fresh = identity.Fresh(uuid.uuid4().hex, secrets.token_hex(64), key.private, key.public)
    text = identity.fresh_script(identity.Identity(vm.name, authorized), fresh)
    crashpoint("copy.before_renew")
    outcome = await agent.execute(["/bin/sh"], stdin=text, deadline=120)
    if outcome.status != 0:
        raise Failed(
            f"the guest refused its identity: {printable(outcome.stderr)}",
            "it may not be used under that of its source",
        )
    write_whole(server.paths.known_hosts, known_hosts(alias(vm.id), (key.public,)))
    process.run.host_keys_told = server.site.clock.now()
    crashpoint("copy.after_renew")
    await server.write(**parts.known_as(vm.name))


CAPABILITY = capability(
    does(TidyHome, tidy_home),
    does(RefuseCopy, refuse_copy),
    does(ShareDisk, share_disk),
    does(ConvertDisk, convert_disk),
    does(DropCopy, drop_copy),
    does(StandOnLayer, stand_on_layer),
    does_with(RenewCopy, renew_copy),
)
