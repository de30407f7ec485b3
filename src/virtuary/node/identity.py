"""How a guest becomes a machine of its own: one that booted is told who it is, a copy of a warm
template is given a new identity.

A copy that can't be made so is nothing: it is ended, and the server boots from its image.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed, GuestSilent, VirtuaryError
from virtuary.base.files import write_whole
from virtuary.base.log import say
from virtuary.guest import identity
from virtuary.guest.agent import Outcome
from virtuary.guest.seed import HostKey
from virtuary.guest.wake import open_port
from virtuary.node import template_budget, templates
from virtuary.node.effects import Effect, monitor_of, note_on, printable
from virtuary.node.server import Server
from virtuary.node.steps import kill, pin_machine, start_machine
from virtuary.node.templates import find_template, keys_of, seed_keys
from virtuary.node.warm import copy_of, make_host_key, more_memory, renewal_of, reset_disk
from virtuary.node.world import World
from virtuary.qemu import warm as engine
from virtuary.qemu.describe import describe

logger = logging.getLogger("virtuary.identity")
RENEWAL_LIMIT = 180.0
"""Seconds a copy is given to become a machine of its own, where many of them share an emulated
processor.
"""
declare("warm.after_load", "renew.before", "renew.after", "identity.before", "identity.after")


async def start_warm(worker: Server, world: World, _: None) -> None:
    """Start QEMU, waiting for the state of the warm template this server is to be a copy of; or
    give that up for a boot.
    """
    site = worker.site
    try:
        template = find_template(site, world.vm)
        await note_on(
            worker, world, "resuming a copy of the warm template", stage="firmware", progress=None
        )
        await templates.verify(site, template)
        vm = await pin_machine(worker, world.vm)
        machine = await copy_of(site, vm, world.image, template)
        if machine.vars_file:
            write_whole(
                machine.vars_file,
                (site.paths.template(template.id) / "firmware-vars.fd").read_bytes(),
            )
        await start_machine(worker, vm, machine, template)
        worker.host_key = asyncio.create_task(make_host_key(worker.paths.runtime))
        template_budget.touch(site, template)
    except VirtuaryError as error:
        if error.retry:
            raise
        await _go_cold(worker, world, error)


async def load_state(worker: Server, world: World, _: None) -> None:
    """Give a copy the template's state, and plug what it has more than the template; it is paused
    then.
    """
    monitor, vm, site = monitor_of(worker), world.vm, worker.site
    assert worker.run
    try:
        template = find_template(site, vm)
        parts = describe(await copy_of(site, vm, world.image, template))
        worker.run.wake_port = await open_port(worker.paths.socket("wake"))
        await engine.load(monitor, engine.state_address(parts))
        crashpoint("warm.after_load")
        await engine.plug(monitor, vm.spec.cpus, more_memory(vm.spec, template))
    except VirtuaryError as error:
        await _go_cold(worker, world, error)
        return
    await worker.run.refresh()


async def give_identity(worker: Server, world: World, _: None) -> None:
    """Make the guest a machine of its own: hostname, hosts, keys; one round trip through the
    agent.
    """
    run = worker.run
    assert run
    await note_on(worker, world, "giving the guest its identity", stage="agent")
    if run.agent is None:
        raise GuestSilent("the guest agent is gone")
    text = identity.script(identity.Identity(world.vm.name, keys_of(worker.site, world.vm)))
    crashpoint("identity.before")
    outcome = await run.agent.execute(["/bin/sh"], stdin=text, deadline=60)
    if outcome.status != 0:
        return await _refused(worker, world, printable(outcome.stderr))
    crashpoint("identity.after")
    await worker.write(world.vm, identity=world.vm.name, identity_refused=None)


async def _refused(worker: Server, world: World, why: str) -> None:
    """It goes on as who it is: whoever waits is told, and the guest is asked again after a while,
    or at its next start.
    """
    say(logger, "identity refused", logging.WARNING, vm=world.vm.name, why=why)
    await note_on(worker, world, f"the guest did not take its name and keys: {why}")
    worker.refuse("identity", world.vm.name)
    await worker.write(world.vm, identity_refused=why)


async def renew_identity(worker: Server, world: World, _: None) -> None:
    """Make a resumed copy a machine of its own, before anybody may use it; one that can't be made
    so is ended and booted cold.
    """
    async with worker.site.renewals:
        await _renew(worker, world)


async def _renew(worker: Server, world: World) -> None:
    run, vm = worker.run, world.vm
    assert run and run.monitor
    try:
        template = find_template(worker.site, vm)
        renewal, addresses, known = await renewal_of(
            worker.site,
            vm,
            template,
            seed_keys(worker.site, vm, world.image),
            await _host_key(worker),
        )
        crashpoint("renew.before")
        # only once it runs may its disk be touched
        if vm.spec.disk and vm.spec.disk > (vm.status.disk_size or 0):
            await engine.resize_disk(run.monitor, vm.spec.disk)
            await worker.write(vm, disk_size=vm.spec.disk)
        outcome = await _awaken(
            worker,
            identity.copy_lines(identity.Identity(vm.name, keys_of(worker.site, vm)), renewal),
        )
        if outcome.status != 0:
            raise Failed(
                f"its identity was refused: {printable(identity.complaints(outcome.stdout))}"
            )
        if memory := more_memory(vm.spec, template):
            await engine.wait_plugged(run.monitor, memory, RENEWAL_LIMIT)
        write_whole(worker.paths.known_hosts, known)
    except VirtuaryError as error:
        await _go_cold(worker, world, error)
        return
    crashpoint("renew.after")
    await worker.write(vm, identity=vm.name)
    run.host_keys_told = worker.site.clock.now()
    await run.speak(outcome.stdout.endswith(identity.LISTENS), addresses)


async def _awaken(worker: Server, lines: bytes) -> Outcome:
    """Have the program that waits in the guest do these lines; where a daemon before this one may
    have told it some, another one of it.
    """
    run = worker.run
    assert run
    if run.wake_port:
        return await run.wake_port.wake(lines, RENEWAL_LIMIT)
    if run.agent is None:
        raise GuestSilent("the guest agent is gone")
    return await run.agent.execute([f"{identity.FOLDER}/awaken"], lines, RENEWAL_LIMIT)


async def _host_key(worker: Server) -> HostKey:
    """The key that was begun with the start, or another one, when a daemon before this one began
    it.
    """
    making, worker.host_key = worker.host_key, None
    return await (making or make_host_key(worker.paths.runtime))


async def _go_cold(worker: Server, world: World, error: VirtuaryError) -> None:
    """A copy that could not be made a machine of its own is nothing: it is ended, and the server
    boots from the image.
    """
    why = f"the warm start failed: {error.sentence}"
    say(logger, "warm start given up", logging.WARNING, vm=world.vm.name, why=error.sentence)
    await note_on(worker, world, f"{why}: booting instead")
    if isinstance(error, Failed) and "damaged" in error.sentence:
        with contextlib.suppress(VirtuaryError):
            await template_budget.damaged(
                worker.site, find_template(worker.site, world.vm), error.sentence
            )
    current = worker.load()
    if current and current.status.runtime:
        await worker.write(world.vm, cold=why)
        await kill(worker, world, "cold")
    else:
        await worker.write(world.vm, **reset_disk(why))


STEPS: dict[str, Effect] = {
    effect.__name__: effect for effect in (start_warm, load_state, give_identity, renew_identity)
}
