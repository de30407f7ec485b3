"""Live copies: a server that runs is saved with its memory and disk at one instant, and a copy goes
on from there.

The source's worker saves (`save_live`), and writes down that it did; the copy's worker starts QEMU
as the machine the source's process is, reads the memory into it, lets it run, and makes the guest a
machine of its own before anybody may use it. A copy that fails on this way is ended and removed;
there is nothing it could boot as. The source runs on whatever happens.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import secrets
import uuid
from dataclasses import replace
from typing import Any

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed, VirtuaryError, of_system
from virtuary.base.files import remove, sync_dir, sync_file, write_whole
from virtuary.base.log import say
from virtuary.base.paths import VmPaths
from virtuary.base.units import MIB
from virtuary.guest import identity, seed
from virtuary.guest.hostkeys import alias, known_hosts
from virtuary.model.image import Image
from virtuary.model.network import own_mac
from virtuary.model.runtime import Shape
from virtuary.model.template import Template
from virtuary.model.vm import Vm
from virtuary.node import operations
from virtuary.node.copies import steps
from virtuary.node.copies.plan import EndSave, LoadLive, SaveLive, StartLive
from virtuary.node.identity.plan import RenewLive
from virtuary.node.machine import keys
from virtuary.node.machine.resolve import (
    find_qemu,
    layers_of,
    machine_of,
    place_of,
    shape_of,
    shaped,
)
from virtuary.node.power.start import start_machine
from virtuary.node.power.steps import end_process
from virtuary.node.server import parts
from virtuary.node.server.notes import note_on, printable
from virtuary.node.server.process import Process
from virtuary.node.server.server import Server
from virtuary.node.server.step import capability, does, does_with
from virtuary.node.server.world import World
from virtuary.node.site import Site
from virtuary.node.warm.derive import copy_of, generation_of, make_host_key
from virtuary.qemu import live as engine
from virtuary.qemu import rtc, warm
from virtuary.qemu.argv import command, digest
from virtuary.qemu.describe import describe
from virtuary.qemu.devices.generation import Generation
from virtuary.qemu.devices.state import State
from virtuary.qemu.machine import Machine
from virtuary.qemu.probe import Binary
from virtuary.storage import directory, full, sparse
from virtuary.store import documents, userdata

logger = logging.getLogger("virtuary.live")
RENEWAL_LIMIT = 60.0
"""Seconds a copy is given to become a machine of its own."""
SLOWEST = 32 * MIB
"""Bytes of memory a second on the slowest disk we still wait for."""
declare(
    "live.before_save", "live.after_save", "live.before_record", "live.after_record",
    "live.after_load", "live.before_renew",
    "live.after_renew", "live.after_identity",
)  # fmt: skip


# ---- which machine it is


async def process_machine(site: Site, vm: Vm, image: Image) -> Machine:
    """The machine that the server's process is, as it was started; raises Failed when it can't be
    told any more.
    """
    runtime = vm.status.runtime
    assert runtime
    if runtime.shape is None:
        raise Failed(f"{vm.name} was started by another Virtuary", f"virtuary restart {vm.name}")
    qemu = await find_qemu(site, vm)
    if runtime.live:
        machine = live_machine(site, vm, image, runtime.accel, runtime.shape, qemu)
    elif runtime.template:
        template = documents.get(site.store, Template, runtime.template)
        if template is None:
            raise Failed("its warm template is gone")
        machine = copy_of(site, vm, image, template, qemu)
    else:
        machine = shaped(machine_of(site, vm, image, runtime.accel, qemu), runtime.shape)
    words = command(qemu.program, describe(machine))
    if runtime.command != digest(words):
        why = "it was changed since, or started by another Virtuary or QEMU"
        raise Failed(
            f"{vm.name} does not run as it would be started now: {why}",
            f"virtuary restart {vm.name}",
        )
    return machine


def live_machine(
    site: Site, vm: Vm, image: Image, accel: str, shape: Shape, qemu: Binary
) -> Machine:
    """The machine that goes on with the memory of another one of this shape."""
    own = machine_of(site, vm, image, accel, qemu)
    return replace(
        shaped(own, shape),
        seed=None,
        generation=Generation(generation_of(vm)),
        state=State(site.paths.vm(vm.id).state, arrives=True),
    )


# ---- the source


async def save_live(server: Server, process: Process, world: World, step: SaveLive) -> None:
    """Save the memory and the disk of a server that runs into the folder of its copy."""
    await steps.handing_over(server, step.copy, lambda: _save(server, process, world, step.copy))


async def _save(server: Server, process: Process, world: World, copy: Vm) -> None:
    site, vm, run, image = server.site, world.vm, process.run, world.image
    operation = steps.operation_of(site, copy)[0].key
    if run.monitor is None or run.agent is None or image is None:
        raise Failed(f"{vm.name} can't be asked just now", "repeat in a moment")
    machine = await process_machine(site, vm, image)
    # an emulating QEMU dies of it: it mistakes where the grown part lies
    if vm.spec.memory.size > machine.memory.size:
        raise Failed(
            f"{vm.name} was given memory while it ran, which can't be saved",
            f"virtuary restart {vm.name}",
        )
    paths = site.paths.vm(copy.id)
    # its disk is written twice, see sparse.detach
    own = 2 * (server.paths.home / vm.status.disk.file).stat().st_blocks * 512
    directory.check_space(
        site.paths.vms, vm.spec.memory.size + own + 64 * MIB, "a live copy", site.kept
    )
    await operations.note(site.store, operation, f"saving {vm.name} while it runs", stage="memory")
    dmi = await run.agent.execute(["cat", "/sys/firmware/dmi/tables/DMI"], deadline=30)
    await _prepare(server, vm, image, copy, paths)
    key = await make_host_key(server.paths.runtime)
    crashpoint("live.before_save")
    still, lag = await asyncio.gather(
        _save_into(server, process, machine, paths, copy, operation), rtc.lag(run.monitor)
    )
    crashpoint("live.after_save")
    facts = {
        "uuid": vm.id, "mac": own_mac(vm.id, vm.nics[0]),
        "dmi": base64.b64encode(dmi.stdout if dmi.status == 0 else b"").decode(),
        "boot": site.boot, "accel": machine.accel, "lag": lag, "mapped": still.mapped,
        "shape": shape_of(machine).model_dump(),
        "host_key": key.private, "host_key_public": key.public,
    }  # fmt: skip
    # its source's QEMU may keep what it wrote to open
    await asyncio.to_thread(sparse.detach, paths.disk)
    # the memory need not outlive a power cut: nothing of the copy does
    await asyncio.to_thread(sync_file, paths.disk)
    write_whole(paths.origin, json.dumps(facts).encode())
    sync_dir(site.paths.vms)
    await operations.note(
        site.store, operation, stood_still(vm.name, still), stage="firmware", progress=None
    )
    say(
        logger,
        "saved live",
        vm=vm.name,
        copy=copy.name,
        still=f"{still.seconds * 1000:.0f}ms",
        forced=still.forced,
    )
    crashpoint("live.before_record")
    await steps.give(
        site,
        copy,
        operation,
        **steps.status_for_copy(vm, None, renew=False, ready=True),
    )
    crashpoint("live.after_record")


def stood_still(name: str, still: engine.Still) -> str:
    """What people are told. Pure."""
    took = f"{still.seconds * 1000:.0f} ms" if still.seconds < 1 else f"{still.seconds:.1f} s"
    why = ": it wrote to its memory faster than that could be saved" if still.forced else ""
    return f"{name} stood still for {took}{why}"


async def _prepare(server: Server, vm: Vm, image: Image, copy: Vm, paths: VmPaths) -> None:
    """The copy's folder with an empty disk on the source's layers, and what of the source's small
    files is part of its machine.
    """
    site = server.site
    steps.give_variables(server, copy)
    for path in (paths.disk, paths.state, paths.origin):
        remove(path)
    layers = layers_of(site, vm)
    if layers:
        await directory.ensure_overlay(
            paths.disk, layers[-1], vm.status.disk.size or 0, None, site.kept
        )
    else:
        full.make_empty(paths.disk, vm.status.disk.size or 0)
    # cloud-init is to take it for the server it knows, and not to begin again
    if vm.spec.login.user_data and image.status.cloud_init:
        files = seed.seed_files(
            vm.id,
            vm.name,
            keys.seed_keys(site, vm, image),
            userdata.read(site.store, vm.id) or "",
        )
        await asyncio.to_thread(seed.write_seed, paths.seed, files)
        if server.paths.seed.exists():
            write_whole(paths.seed, server.paths.seed.read_bytes())


async def _save_into(
    server: Server, process: Process, machine: Machine, paths: VmPaths, copy: Vm, operation: str
) -> engine.Still:
    site, run, monitor = server.site, process.run, process.monitor
    opened: list[int] = []

    def check() -> None:
        now = server.load()
        if (
            run.ended
            or now is None
            or now.meta.purge
            or now.wanted != "running"
            or now.spec.restarts != run.runtime.restarts
        ):
            raise Failed(f"{now.name if now else 'the server'} did not go on running")
        if not steps.wanted(site, copy, operation):
            raise Failed("the copy is not wanted any more")

    try:
        for path, flags in (
            (paths.state, os.O_WRONLY | os.O_CREAT | os.O_EXCL), (paths.disk, os.O_RDWR),
            (machine.root.file, os.O_RDONLY),
        ):  # fmt: skip
            opened.append(
                os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
            )
        state, disk, _ = opened
        report = operations.reporter(site.store, operation)
        return await engine.save(
            monitor, state, disk, machine.root.below, opened[1:], report, check
        )
    finally:
        for handle in opened:
            os.close(handle)


async def end_save(server: Server, process: Process, world: World, step: EndSave) -> None:
    """Let a server go on that a daemon before this one left standing still, and put away what that
    left.
    """
    await engine.end_save(process.monitor)
    await process.run.refresh()


# ---- the copy


async def start_live(server: Server, world: World, step: StartLive) -> None:
    """Start QEMU, waiting for the memory that was saved."""
    try:
        facts = _facts(server.paths)
        if facts["boot"] != server.site.boot:
            raise Failed("the host was restarted before it was a machine of its own")
        if world.image is None:
            raise Failed("its image is gone")
        shape = Shape.model_validate(facts["shape"])
        qemu = await find_qemu(server.site, world.vm)
        machine = live_machine(server.site, world.vm, world.image, facts["accel"], shape, qemu)
        await note_on(server, world, "resuming the copy", stage="firmware", progress=None)
        await start_machine(server, world.vm, machine, live=True)
    except (VirtuaryError, OSError) as error:
        await _fail(server, world, error)


async def load_live(server: Server, process: Process, world: World, step: LoadLive) -> None:
    """Read the memory; the machine is paused then."""
    vm, run = world.vm, process.run
    try:
        facts = _facts(server.paths)
        shape, monitor = run.runtime.shape, process.monitor
        if world.image is None or shape is None:
            raise Failed("its image is gone")
        # memory that was plugged is told by the state itself
        await warm.plug(monitor, vm.spec.cpu.count, 0)
        qemu = await find_qemu(server.site, vm)
        machine = live_machine(server.site, vm, world.image, facts["accel"], shape, qemu)
        limit = 60 + vm.spec.memory.size / SLOWEST
        await engine.load(monitor, warm.state_address(describe(machine)), facts["mapped"], limit)
        crashpoint("live.after_load")
    except (VirtuaryError, OSError) as error:
        await _fail(server, world, error)
        return
    await run.refresh()


async def renew_live(server: Server, process: Process, world: World, step: RenewLive) -> None:
    """Make the guest, which believes to be its source, a machine of its own, before anybody may use
    it.
    """
    run, vm, site = process.run, world.vm, server.site
    try:
        facts = _facts(server.paths)
        who = identity.Identity(vm.name, (keys.public_key(site), *vm.spec.login.ssh_keys))
        text = identity.live_script(who, _renewal(site, vm, facts))
        crashpoint("live.before_renew")
        outcome = await process.agent.execute(
            ["/bin/sh"], stdin=text, deadline=RENEWAL_LIMIT, slowest=0.05
        )
        if outcome.status != 0:
            raise Failed(
                "its identity was refused: "
                f"{printable(identity.complaints(outcome.stdout + outcome.stderr))}"
            )
        write_whole(
            server.paths.known_hosts, known_hosts(alias(vm.id), (facts["host_key_public"],))
        )
    except (VirtuaryError, OSError) as error:
        await _fail(server, world, error)
        return
    crashpoint("live.after_renew")
    run.host_keys_told = site.clock.now()
    await server.write(**parts.known_as(vm.name))
    crashpoint("live.after_identity")
    drop_memory(server.paths)
    await run.speak(outcome.stdout.endswith(identity.LISTENS))


def _renewal(site: Site, vm: Vm, facts: dict[str, Any]) -> identity.Renewal:
    return identity.Renewal(
        uuid=vm.id,
        old_mac=facts["mac"],
        mac=own_mac(vm.id, vm.spec.nics[0]),
        place=place_of(site.store, vm),
        machine_id=uuid.uuid4().hex,
        boot_id=str(uuid.uuid4()),
        host_key=facts["host_key"],
        host_key_public=facts["host_key_public"],
        entropy=secrets.token_hex(128),
        now=site.clock.wall().timestamp(),
        lag=facts["lag"],
        dmi=identity.renewed_dmi(base64.b64decode(facts["dmi"]), facts["uuid"], vm.id),
        cpus=vm.spec.cpu.count,
    )


def drop_memory(paths: VmPaths) -> None:
    """Remove what a live copy came from; it is a machine of its own, and a secret the memory of
    another one.
    """
    for path in (paths.state, paths.origin):
        remove(path)


def _facts(paths: VmPaths) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(paths.origin.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Failed("what it is a copy of can't be read any more") from error
    return facts


async def _fail(server: Server, world: World, error: VirtuaryError | OSError) -> None:
    """A live copy that can't become a machine of its own is ended and removed."""
    current = server.load()
    if current and current.status.runtime and server.process:
        await end_process(server, current, "failed")
    await steps.end_copy(
        server, world, error if isinstance(error, VirtuaryError) else of_system(error)
    )


CAPABILITY = capability(
    does_with(SaveLive, save_live),
    does_with(EndSave, end_save),
    does(StartLive, start_live),
    does_with(LoadLive, load_live),
    does_with(RenewLive, renew_live),
)
