"""Starting QEMU for a server, and having its network served. Nothing executes the guest before the
record of the process is durable.
"""

from __future__ import annotations

import asyncio
import os

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed, PeerAway
from virtuary.base.files import write_whole
from virtuary.host import oom
from virtuary.model import deeds
from virtuary.model.runtime import Runtime
from virtuary.model.template import Template
from virtuary.model.vm import Vm
from virtuary.node import operations
from virtuary.node.machine import wiring
from virtuary.node.machine.launch import (
    GROUP,
    QMP_READY,
    Wiring,
    end_machine,
    launch,
    serve_network,
)
from virtuary.node.machine.resolve import (
    find_qemu,
    forwards_of,
    free_uid,
    machine_of,
    shape_of,
    ssh_forward,
)
from virtuary.node.machine.run import Phase, Run, open_run
from virtuary.node.power.plan import Start, StartNetwork
from virtuary.node.server import parts
from virtuary.node.server.notes import STAGE_TEXT, note_on
from virtuary.node.server.process import Process
from virtuary.node.server.server import Server
from virtuary.node.server.world import World
from virtuary.node.site import Site
from virtuary.node.tuning.plan import untuned
from virtuary.qemu.machine import Machine
from virtuary.qemu.platforms.table import PLATFORMS
from virtuary.qemu.process import read_errors

declare("start.after_record")


async def start(server: Server, world: World, step: Start) -> None:
    """Boot: start QEMU, paused; its record is durable before any virtual CPU runs."""
    choice = await server.site.accel(PLATFORMS[world.vm.spec.arch], world.vm.spec.accel)
    await note_on(
        server, world, choice.why, STAGE_TEXT["firmware"], stage="firmware", progress=None
    )
    vm = await pin_machine(server, world.vm)
    qemu = await find_qemu(server.site, vm)
    machine = machine_of(server.site, vm, step.image, choice.accel, qemu)
    flash = machine.firmware
    if flash and not flash.variables.exists():
        write_whole(flash.variables, flash.template.read_bytes())
    await start_machine(server, vm, machine)


async def start_machine(
    server: Server,
    vm: Vm,
    machine: Machine,
    template: Template | None = None,
    *,
    live: bool = False,
) -> Process:
    """Start QEMU for this server. `template` or `live`: it waits for a state, and is nobody until
    it was given an identity.
    """
    site = server.site
    uid = free_uid(site, vm.id)
    way = wiring.way_in(site, vm)
    groups = (GROUP,) if template else ()
    launched = await launch(
        site, machine, uid, wiring.behind(site, vm, way), groups=groups, mute=live
    )
    started, helper = launched.started, launched.network
    try:
        runtime = Runtime(
            generation=vm.meta.generation, restarts=vm.spec.restarts, boot_id=site.boot,
            pid=started.identity.pid,
            start=started.identity.start, uid=uid, command=launched.command, accel=machine.accel,
            level=launched.jail.level, gaps=launched.gaps,
            network=wiring.kind_of(site, vm), network_pid=helper.pid if helper else None,
            network_start=helper.start if helper else None,
            ssh_host=way[0], ssh_port=way[1], started=site.clock.wall(),
            template=template.id if template else None, live=live, shape=shape_of(machine),
            nics=vm.spec.nics[:1],
        )  # fmt: skip
        run = open_run(
            server.paths,
            runtime,
            site,
            server.wake,
            started.errors,
            Phase.AWAITS_WORD if template else Phase.BECOMING if live else Phase.OWN,
        )
        if run is None:
            words = read_errors(started.errors)
            raise Failed(f"QEMU ended at once: {words or 'it said nothing'}")
        server.process = Process(run, untuned(machine.cpus.count))
        run.console.mark(site.clock.wall())
        if vm.awaits_user_data:
            run.follow_cloud_init()
        first = vm.status.identity.given is None and "ssh" not in vm.status.stages
        await server.write(
            runtime=runtime,
            state="starting",
            reason=None,
            stages={},
            addresses=(),
            power=_begun(site, vm),
            since=site.clock.wall(),
            **({} if first else parts.began_before()),
        )
    except Exception:
        # a daemon that is stopped here leaves what the next one finds by its record, or ends as a
        # stray
        if server.process:
            await server.drop_process()
        else:
            os.close(started.errors)
        # it could not be recorded, so it must not stay: it has not executed the guest
        await end_machine(vm.id, server.paths.runtime, uid)
        raise
    crashpoint("start.after_record")
    oom.set_score(started.identity.pid, oom.score_of(vm.spec.memory.priority))
    await _answer(server, run)
    return server.process


def _begun(site: Site, vm: Vm) -> dict[str, object]:
    """What a process that was started means for the crashes before it, and for what made it halt:
    those count no more when it is started by hand.
    """
    anew = vm.spec.asked > vm.status.power.asked and any(
        isinstance(item.spec.deed, deeds.Start)
        for item in operations.open_operations(site.store, vm.key)
    )
    begun = {"applied": vm.meta.generation, "asked": vm.spec.asked, "halted": None}
    return begun | ({"crashes": ()} if anew else {})


async def pin_machine(server: Server, vm: Vm) -> Vm:
    """The hardware a server first starts on stays its own through every upgrade of QEMU."""
    if vm.spec.machine:
        return vm
    binary = await find_qemu(server.site, vm)
    changed = vm.but(spec=vm.spec.but(machine=binary.machine))
    revision = await server.site.store.txn(
        {server.key: vm.meta.revision}, {server.key: changed.dump()}
    )
    return changed.but(meta=changed.meta.but(revision=revision))


async def _answer(server: Server, run: Run) -> None:
    """Wait until QEMU's monitor answers; a QEMU that dislikes its arguments says so here."""
    until = server.site.clock.now() + QMP_READY
    while not run.ended and run.monitor is None:
        if server.site.clock.now() > until:
            run.kill()
            raise Failed(f"QEMU did not answer its monitor within {QMP_READY:.0f} s")
        await asyncio.sleep(0.003)


async def start_network(server: Server, process: Process, world: World, step: StartNetwork) -> None:
    """Connect somebody new to the machine's NIC: whoever served its network has died, or nobody has
    yet. A guest that runs is not stopped for this.
    """
    runtime = process.run.runtime
    binary = await find_qemu(server.site, world.vm)
    forwards = (*forwards_of(world.vm), ssh_forward(runtime.ssh_port or 0))
    try:
        wiring = Wiring(
            runtime.network,
            binary.program,
            world.vm.id,
            runtime.uid,
            server.paths.runtime,
            forwards,
        )
        identity = await serve_network(server.site, wiring)
    except Failed as error:
        raise PeerAway(error.sentence) from error  # again, with backoff
    process.run.watch_network(identity)
    await server.write(
        runtime=step.runtime.but(network_pid=identity.pid, network_start=identity.start)
    )
