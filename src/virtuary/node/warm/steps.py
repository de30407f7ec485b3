"""How a guest becomes a machine of its own: one that booted is told who it is, a copy of a warm
template is given a new identity.

A copy that can't be made so is nothing: it is ended, and the server boots from its image.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed, VirtuaryError
from virtuary.base.files import write_whole
from virtuary.base.log import say
from virtuary.guest import identity
from virtuary.guest.agent import Outcome
from virtuary.guest.seed import HostKey
from virtuary.guest.wake import open_port
from virtuary.model.disk import ROOT
from virtuary.node.identity.plan import RenewIdentity
from virtuary.node.machine.keys import keys_of, seed_keys
from virtuary.node.machine.resolve import find_qemu
from virtuary.node.power.start import pin_machine, start_machine
from virtuary.node.power.steps import end_process
from virtuary.node.server import parts
from virtuary.node.server.notes import note_on, printable
from virtuary.node.server.process import Process
from virtuary.node.server.server import Server
from virtuary.node.server.step import capability, does, does_with
from virtuary.node.server.world import World
from virtuary.node.warm import budget, templates
from virtuary.node.warm.derive import copy_of, make_host_key, more_memory, renewal_of
from virtuary.node.warm.plan import LoadState, StartWarm
from virtuary.node.warm.templates import TemplateDamaged, find_template
from virtuary.qemu import warm as engine
from virtuary.qemu.describe import describe

logger = logging.getLogger("virtuary.identity")
RENEWAL_LIMIT = 180.0
"""Seconds a copy is given to become a machine of its own, where many of them share an emulated
processor.
"""
declare("warm.after_load", "renew.before", "renew.after")


async def start_warm(server: Server, world: World, step: StartWarm) -> None:
    """Start QEMU, waiting for the state of the warm template this server is to be a copy of; or
    give that up for a boot.
    """
    site = server.site
    try:
        template = find_template(site, world.vm)
        await note_on(
            server, world, "resuming a copy of the warm template", stage="firmware", progress=None
        )
        await templates.verify(site, template)
        vm = await pin_machine(server, world.vm)
        machine = copy_of(site, vm, world.image, template, await find_qemu(site, vm))
        if machine.firmware:
            write_whole(
                machine.firmware.variables,
                (site.paths.template(template.id) / "firmware-vars.fd").read_bytes(),
            )
        process = await start_machine(server, vm, machine, template)
        process.host_key = asyncio.create_task(make_host_key(server.paths.runtime))
        budget.touch(site, template)
    except VirtuaryError as error:
        if error.retry:
            raise
        await go_cold(server, world, error)


async def load_state(server: Server, process: Process, world: World, step: LoadState) -> None:
    """Give a copy the template's state, and plug what it has more than the template; it is paused
    then.
    """
    monitor, run, vm, site = process.monitor, process.run, world.vm, server.site
    try:
        template = find_template(site, vm)
        qemu = await find_qemu(site, vm)
        parts = describe(copy_of(site, vm, world.image, template, qemu))
        run.wake_port = await open_port(server.paths.socket("wake"))
        await engine.load(monitor, engine.state_address(parts))
        crashpoint("warm.after_load")
        await engine.plug(monitor, vm.spec.cpu.count, more_memory(vm.spec, template))
    except VirtuaryError as error:
        await go_cold(server, world, error)
        return
    await run.refresh()


async def renew_identity(
    server: Server, process: Process, world: World, step: RenewIdentity
) -> None:
    """Make a resumed copy a machine of its own, before anybody may use it; one that can't be made
    so is ended and booted cold.
    """
    async with server.site.renewals:
        await _renew(server, process, world)


async def _renew(server: Server, process: Process, world: World) -> None:
    run, monitor, vm = process.run, process.monitor, world.vm
    try:
        template = find_template(server.site, vm)
        renewal, addresses, known = await renewal_of(
            server.site,
            vm,
            template,
            seed_keys(server.site, vm, world.image),
            await _host_key(server, process),
        )
        crashpoint("renew.before")
        # only once it runs may its disk be touched
        if vm.spec.root.size and vm.spec.root.size > (vm.status.disk.size or 0):
            await engine.resize_disk(monitor, vm.spec.root.size)
            await server.write(**parts.grown(ROOT, vm.spec.root.size))
        outcome = await _awaken(
            process,
            identity.copy_lines(identity.Identity(vm.name, keys_of(server.site, vm)), renewal),
        )
        if outcome.status != 0:
            raise Failed(
                f"its identity was refused: {printable(identity.complaints(outcome.stdout))}"
            )
        if memory := more_memory(vm.spec, template):
            await engine.wait_plugged(monitor, memory, RENEWAL_LIMIT)
        write_whole(server.paths.known_hosts, known)
    except VirtuaryError as error:
        await go_cold(server, world, error)
        return
    crashpoint("renew.after")
    await server.write(**parts.known_as(vm.name))
    run.host_keys_told = server.site.clock.now()
    await run.speak(outcome.stdout.endswith(identity.LISTENS), addresses)


async def _awaken(process: Process, lines: bytes) -> Outcome:
    """Have the program that waits in the guest do these lines; where a daemon before this one may
    have told it some, another one of it.
    """
    if process.run.wake_port:
        return await process.run.wake_port.wake(lines, RENEWAL_LIMIT)
    return await process.agent.execute([f"{identity.FOLDER}/awaken"], lines, RENEWAL_LIMIT)


async def _host_key(server: Server, process: Process) -> HostKey:
    """The key that was begun with the start, or another one, when a daemon before this one began
    it.
    """
    making, process.host_key = process.host_key, None
    return await (making or make_host_key(server.paths.runtime))


async def go_cold(server: Server, world: World, error: VirtuaryError) -> None:
    """A copy that could not be made a machine of its own is nothing: it is ended, and the server
    boots from the image.
    """
    why = f"the warm start failed: {error.sentence}"
    say(logger, "warm start given up", logging.WARNING, vm=world.vm.name, why=error.sentence)
    await note_on(server, world, f"{why}: booting instead")
    if isinstance(error, TemplateDamaged):
        with contextlib.suppress(VirtuaryError):
            await budget.damaged(server.site, find_template(server.site, world.vm), error.sentence)
    current = server.load()
    if current and current.status.runtime:
        await server.write(warm={"cold": why})
        await end_process(server, world.vm, "cold")
    else:
        await server.write(**parts.unused(ROOT, why))


CAPABILITY = capability(
    does(StartWarm, start_warm),
    does_with(LoadState, load_state),
    does_with(RenewIdentity, renew_identity),
)
