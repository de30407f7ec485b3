"""The effects behind the steps of `plan`: one idempotent function each, named like a sentence.

Each gets the worker (places, store, live run), the world it was planned for, and the step's value.
A function may be ended between any two lines by a crash; the next look finds out and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import shutil
from typing import Any

from virtuary.base.answers import read
from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Bug, Failed, PeerAway, VirtuaryError
from virtuary.base.files import remove, write_whole
from virtuary.base.log import say
from virtuary.guest import seed
from virtuary.guest.hostkeys import alias, known_hosts
from virtuary.host import oom
from virtuary.model.firewall import Firewall
from virtuary.model.operation import STARTS, Operation
from virtuary.model.template import Template
from virtuary.model.vm import Crash, Runtime, Vm
from virtuary.node import nics, operations, template_budget
from virtuary.node.birth import never_handed_out
from virtuary.node.describe import (
    forwards_of,
    free_uid,
    layers_of,
    machine_of,
    shape_of,
    ssh_forward,
    user_of,
)
from virtuary.node.effects import Effect, monitor_of, note_on
from virtuary.node.launch import QMP_READY, Wiring, clean_up, end_machine, launch, serve_network
from virtuary.node.plan import CRASH_WINDOW, End
from virtuary.node.run import open_run
from virtuary.node.server import Server
from virtuary.node.site import Site
from virtuary.node.templates import seed_keys
from virtuary.node.tuning import untuned
from virtuary.node.warm import GROUP, choose_template, make_host_key, reset_disk
from virtuary.node.world import Step, World
from virtuary.qemu import process
from virtuary.qemu.describe import Machine
from virtuary.qemu.platform import PLATFORMS
from virtuary.qemu.qmp import open_monitor
from virtuary.storage import directory
from virtuary.store.reading import every

logger = logging.getLogger("virtuary.steps")
LOG_CAP = 256 * 1024
declare(
    "start.after_record", "start.before_release", "start.after_release", "stop.after_mark",
    "stop.after_kill", "collect.before_clean",
    "collect.after_clean", "forget.before_files", "forget.after_files", "seed.after_write",
)  # fmt: skip


def has_space(site: Site) -> bool:
    """Whether a machine that was paused for lack of space may go on."""
    usage = shutil.disk_usage(site.paths.vms)
    return usage.free > 64 * 1024 * 1024


async def follow_image(worker: Server, world: World, _: None) -> None:
    """While the image is being made, show its progress as ours; then sleep until something
    changes.
    """
    assert world.operation
    source = world.image_operation.status if world.image_operation else None
    text = source.stage if source and source.stage else "waiting for the image"
    fraction = source.progress if source else None
    if (text, fraction) != (
        world.operation.status.log[-1].text if world.operation.status.log else "",
        world.operation.status.progress,
    ):
        await operations.note(
            worker.site.store, world.operation.key, text, stage="image", progress=fraction
        )
    await worker.sleep(1)


async def make_disk(worker: Server, world: World, _: None) -> None:
    """The root disk: an overlay on a warm template's where one fits, else on the image. What a
    broken start left is not kept.
    """
    image, site = world.image, worker.site
    assert image
    if world.vm.status.cold or world.vm.spec.power == "stopped":
        template, why = None, world.vm.status.cold
    else:
        template, why = await choose_template(site, world.vm, image)
    await note_on(worker, world, "making the disk", stage="disk", progress=None)
    worker.paths.home.mkdir(mode=0o700, exist_ok=True)
    disk = worker.paths.home / world.vm.status.disk_file
    remove(disk)
    if template is None:
        base = site.paths.image(image.id) / "disk.qcow2"
        size = await directory.ensure_overlay(
            disk, base, image.status.virtual_size, world.vm.spec.disk, site.kept
        )
        await worker.write(
            world.vm, disk_ready=True, disk_size=size, layers=(), template=None, cold=why
        )
        return
    base = site.paths.state / template.layer
    size = await directory.ensure_overlay(disk, base, template.status.disk_size, None, site.kept)
    changes = {
        "disk_ready": True,
        "disk_size": size,
        "layers": (template.layer,),
        "template": template.id,
        "cold": None,
    }
    await worker.write(world.vm, {template.key: template.meta.revision}, **changes)


async def grow_disk(worker: Server, world: World, size: int) -> None:
    await note_on(worker, world, "growing the disk", stage="disk")
    await directory.grow(
        worker.paths.home / world.vm.status.disk_file,
        layers_of(worker.site, world.vm),
        size,
        worker.site.kept,
    )
    await worker.write(world.vm, disk_size=size)


async def make_seed(worker: Server, world: World, _: None) -> None:
    """The cloud-init seed, from the user data that is kept apart, and for a first boot a host key
    that is known from then on.
    """
    record = worker.site.store.get(f"secret/{world.vm.id}")
    text = record.value.decode() if record else ""
    # cloud-init writes host keys once, and a copy had its own before it had a seed
    first = world.vm.status.identity is None
    key = await make_host_key(worker.paths.home) if first and not seed.has_host_keys(text) else None
    files = seed.seed_files(
        world.vm.id, world.vm.name, seed_keys(worker.site, world.vm, world.image), text, key
    )
    if key:  # before the seed: where that is, this step is over
        write_whole(worker.paths.known_hosts, known_hosts(alias(world.vm.id), (key.public,)))
    await asyncio.to_thread(seed.write_seed, worker.paths.seed, files)
    crashpoint("seed.after_write")


async def start(worker: Server, world: World, _: None) -> None:
    """Boot: start QEMU, paused; its record is durable before any virtual CPU runs."""
    assert world.image
    choice = await worker.site.accel(PLATFORMS[world.vm.spec.arch], world.vm.spec.accel)
    await note_on(
        worker, world, choice.why, STAGE_TEXT["firmware"], stage="firmware", progress=None
    )
    vm = await pin_machine(worker, world.vm)
    machine = await machine_of(worker.site, vm, world.image, choice.accel)
    if machine.vars_file and not machine.vars_file.exists():
        assert machine.firmware.vars_template
        write_whole(machine.vars_file, machine.firmware.vars_template.read_bytes())
    await start_machine(worker, vm, machine)


async def start_machine(
    worker: Server,
    vm: Vm,
    machine: Machine,
    template: Template | None = None,
    *,
    live: bool = False,
) -> None:
    """Start QEMU for this server. `template` or `live`: it waits for a state, and is nobody until
    it was given an identity.
    """
    site = worker.site
    uid = free_uid(site, vm.id)
    way = nics.way_in(site, vm)
    worker.last_words = ""
    worker.explained = -math.inf
    worker.tuned = untuned(machine.cpus)
    worker.refused.clear()
    groups = (GROUP,) if template else ()
    launched = await launch(
        site, machine, uid, nics.behind(site, vm, way), groups=groups, mute=live
    )
    started, helper = launched.started, launched.network
    try:
        runtime = Runtime(
            generation=vm.meta.generation, restarts=vm.spec.restarts, boot_id=site.boot,
            pid=started.identity.pid,
            start=started.identity.start, uid=uid, command=launched.command, accel=machine.accel,
            level=launched.jail.level, gaps=launched.gaps,
            network=nics.kind_of(site, vm), network_pid=helper.pid if helper else None,
            network_start=helper.start if helper else None,
            ssh_host=way[0], ssh_port=way[1], started=site.clock.wall(),
            template=template.id if template else None, live=live, shape=shape_of(machine),
            nics=vm.spec.nics[:1],
        )  # fmt: skip
        worker.run = open_run(
            worker.paths,
            runtime,
            site,
            worker.wake,
            started.errors,
            bool(template) or live,
            wakes=bool(template),
        )
        if worker.run is None:
            words = process.read_errors(started.errors)
            raise Failed(f"QEMU ended at once: {words or 'it said nothing'}")
        worker.run.console.mark(site.clock.wall())
        if vm.awaits_user_data:
            worker.run.follow_cloud_init()
        await worker.write(
            vm,
            runtime=runtime,
            state="starting",
            reason=None,
            stages={},
            addresses=(),
            applied=vm.meta.generation,
            cold=vm.status.cold
            if vm.status.identity is None and "ssh" not in vm.status.stages
            else None,  # of the first start alone
            since=site.clock.wall(),
        )
    except Exception:
        # a daemon that is stopped here leaves what the next one finds by its record, or ends as a
        # stray
        if worker.run:
            await worker.run.close()
            worker.run = None
        else:
            os.close(started.errors)
        # it could not be recorded, so it must not stay: it has not executed the guest
        await end_machine(vm.id, worker.paths.runtime, uid)
        raise
    crashpoint("start.after_record")
    oom.set_score(started.identity.pid, oom.score_of(vm.spec.priority))
    await _answer(worker)


async def pin_machine(worker: Server, vm: Vm) -> Vm:
    """The hardware a server first starts on stays its own through every upgrade of QEMU."""
    if vm.spec.machine:
        return vm
    binary = await worker.site.binary(PLATFORMS[vm.spec.arch])
    changed = vm.but(spec=vm.spec.but(machine=binary.machine))
    revision = await worker.site.store.txn(
        {worker.key: vm.meta.revision}, {worker.key: changed.dump()}
    )
    return changed.but(meta=changed.meta.but(revision=revision))


async def _answer(worker: Server) -> None:
    """Wait until QEMU's monitor answers; a QEMU that dislikes its arguments says so here."""
    run = worker.run
    until = worker.site.clock.now() + QMP_READY
    while run and not run.ended and run.monitor is None:
        if worker.site.clock.now() > until:
            run.kill()
            raise Failed(f"QEMU did not answer its monitor within {QMP_READY:.0f} s")
        await asyncio.sleep(0.003)


async def start_network(worker: Server, world: World, _: None) -> None:
    """Connect somebody new to the machine's NIC: whoever served its network has died, or nobody has
    yet. A guest that runs is not stopped for this.
    """
    runtime, run = world.vm.status.runtime, worker.run
    assert runtime and run and runtime.ssh_port
    binary = await worker.site.binary(PLATFORMS[world.vm.spec.arch])
    forwards = (*forwards_of(world.vm), ssh_forward(runtime.ssh_port))
    try:
        wiring = Wiring(
            runtime.network,
            binary.program,
            world.vm.id,
            runtime.uid,
            worker.paths.runtime,
            forwards,
        )
        identity = await serve_network(worker.site, wiring)
    except Failed as error:
        raise PeerAway(error.sentence) from error  # again, with backoff
    run.watch_network(identity)
    await worker.write(
        world.vm, runtime=runtime.but(network_pid=identity.pid, network_start=identity.start)
    )


async def resume(worker: Server, world: World, _: None) -> None:
    """Let the virtual CPUs run. Only ever for a machine whose record is durable and names this host
    as owner.
    """
    crashpoint("start.before_release")
    await monitor_of(worker).run("cont")
    crashpoint("start.after_release")
    assert worker.run
    await worker.run.refresh()


async def pause(worker: Server, world: World, _: None) -> None:
    await monitor_of(worker).run("stop")
    assert worker.run
    await worker.run.refresh()


async def let_go(worker: Server, world: World, _: None) -> None:
    """Its owner decides about a server that was paused because the host ran out of memory: it is so
    no more.
    """
    await worker.write(world.vm, held_for_memory=None)


async def ask_shutdown(worker: Server, world: World, why: str) -> None:
    """Ask the guest to shut down: by its agent where one listens, else by the power button."""
    run = worker.run
    assert run
    now = worker.site.clock.now()
    first = worker.asked_to_stop is None
    worker.asked_to_stop, worker.asked_last = worker.asked_to_stop or now, now
    await note_on(worker, world, "asking the guest to shut down", stage="stopping")
    if world.qemu in ("paused", "prelaunch") and run.monitor:
        await run.monitor.run("cont")
    if run.agent and first:
        with contextlib.suppress(VirtuaryError):
            await run.agent.run("guest-shutdown", deadline=1, mode="powerdown")
            return
    if run.monitor:
        await run.monitor.run("system_powerdown")


async def kill(worker: Server, world: World, why: str) -> None:
    """End the process: the reason is durable first, so that nobody takes it for a crash."""
    runtime, run = world.vm.status.runtime, worker.run
    assert run
    if runtime and runtime.end is None:
        await worker.write(world.vm, runtime=runtime.but(end=why))
        crashpoint("stop.after_mark")
    if why in ("shutdown", "stop", "restart") and run.monitor:
        with contextlib.suppress(VirtuaryError):
            await run.monitor.run("quit", deadline=2)
        await run.wait_ended(2)
    run.kill()
    crashpoint("stop.after_kill")
    await run.wait_ended(30)


async def clean_up_all(worker: Server, vm: Vm) -> None:
    """Nothing of a server's machine is left: no process, no socket, no tap."""
    await clean_up(worker.vm_id, worker.paths.runtime, user_of(worker.site, vm))
    await worker.site.networks.close_taps(vm)


async def end_stray(worker: Server, world: World, _: None) -> None:
    """End a QEMU that was started and never recorded; it has not executed the guest."""
    socket = worker.paths.socket("qmp")
    with contextlib.suppress(VirtuaryError):
        monitor = await open_monitor(socket, deadline=2)
        try:
            if read(await monitor.run("query-uuid")).text("UUID") == world.vm.id:
                await monitor.run("quit")
                say(logger, "ended a stray QEMU", vm=world.vm.name)
                await monitor.gone()
        finally:
            await monitor.close()
    await clean_up_all(worker, world.vm)


async def collect(worker: Server, world: World, end: End) -> None:
    """The process is over: keep its last words, clean up, and write down what became of the
    server.
    """
    crashpoint("collect.before_clean")
    if worker.run:
        await worker.run.close()
        worker.run = None
    worker.asked_to_stop = None
    if worker.last_words:
        with contextlib.suppress(OSError):
            write_whole(worker.paths.errors, worker.last_words.encode()[-LOG_CAP:])
    await drop_key(worker)
    await clean_up_all(worker, world.vm)
    crashpoint("collect.after_clean")
    current = worker.load()
    if current is None:
        return
    crashes = tuple(
        crash for crash in current.status.crashes if world.wall - crash.at < CRASH_WINDOW
    )
    if end.crashed:
        crashes += (Crash(at=world.wall, why=end.reason or ""),)
    unused = (
        reset_disk(current.status.cold or "its copy ended before it was a machine of its own")
        if never_handed_out(current)
        else {}
    )
    status = current.status.but(
        **unused,
        runtime=None,
        state=end.state,
        reason=end.reason,
        cpus=None,
        memory=None,
        gaps=(),
        reclaimed=False,
        held_for_memory=None,
        crashes=crashes,
        since=world.wall,
        addresses=(),
        stages=current.status.stages,
    )
    power = current.spec.power if end.again else "stopped"
    changed = current.but(status=status, spec=current.spec.but(power=power))
    await worker.site.store.txn({worker.key: current.meta.revision}, {worker.key: changed.dump()})
    say(
        logger, "ended", vm=current.name, state=end.state, reason=end.reason or "-", again=end.again
    )
    if (
        not end.again
        and world.operation
        and world.operation.spec.kind in (*STARTS, "resume", "pause")
    ):
        reason = end.reason or "it was stopped meanwhile"
        hint = f"virtuary logs {current.name} shows the console"
        await operations.finish(
            worker.site.store,
            world.operation.key,
            Failed(f"{current.name} did not stay up: {reason}", hint),
        )


async def report(worker: Server, world: World, seen: dict[str, Any]) -> None:
    """Write what was seen."""
    if seen["state"] != world.vm.status.state:
        seen = {**seen, "since": world.wall}
        say(
            logger,
            "state",
            vm=world.vm.name,
            was=world.vm.status.state,
            now=seen["state"],
            why=seen["reason"] or "-",
        )
    await worker.write(world.vm, **seen)


async def note(worker: Server, world: World, stage: str) -> None:
    assert world.operation
    await operations.note(
        worker.site.store, world.operation.key, STAGE_TEXT.get(stage, stage), stage=stage
    )


STAGE_TEXT = {
    "firmware": "firmware and kernel are starting",
    "kernel": "the guest's system is starting",
    "agent": "the guest agent is up",
    "network": "waiting for the guest's network",
    "ssh": "waiting for the guest's SSH",
}


async def finish(worker: Server, world: World, operation: Operation) -> None:
    await operations.finish(worker.site.store, operation.key)
    if operation.spec.kind in STARTS:
        worker.site.usual.learn(world.vm)
    runtime = world.vm.status.runtime
    if operation.spec.kind == "launch" and runtime and runtime.template is None and world.image:
        await template_budget.consider(worker.site, world.vm, world.image)


async def fail(worker: Server, world: World, sentence: str) -> None:
    kind = "network" if sentence.startswith("the network") else "image"
    await give_up(
        worker, world, Step("fail"), Failed(sentence, f"virtuary {kind} list shows the {kind}s")
    )


async def give_up(worker: Server, world: World, _: Step, error: VirtuaryError) -> None:
    """A step failed for good: the operation ends with the reason. What never had a disk is removed,
    nothing half-made stays.
    """
    current = worker.load()
    if current is None:
        return
    if world.operation:
        await operations.finish(worker.site.store, world.operation.key, error)
    if isinstance(error, Bug) and world.process == "alive":
        return
    never_was = not current.status.disk_ready and world.process == "absent"
    state = (
        "stopped"
        if current.status.state == "starting" and current.status.runtime is None
        else current.status.state
    )
    changed = current.but(
        spec=current.spec.but(power="stopped"),
        status=current.status.but(state=state, reason=error.sentence, since=world.wall),
        meta=current.meta.but(purge=current.meta.purge or never_was),
    )
    await worker.site.store.txn({worker.key: current.meta.revision}, {worker.key: changed.dump()})


async def cancel_operation(worker: Server, world: World, operation: Operation) -> None:
    """Undo a start: stop the server; a launch that was cancelled leaves nothing."""
    current = worker.load()
    if current is None:
        return
    undo = operation.spec.kind in ("launch", "create", "copy")
    if world.process == "alive" and operation.spec.kind in (*STARTS, "create"):
        await kill(worker, world, "cancel")
    changed = current
    if operation.spec.kind in (*STARTS, "create"):
        latest = worker.load() or current
        changed = latest.but(
            spec=latest.spec.but(power="stopped"),
            meta=latest.meta.but(purge=latest.meta.purge or undo),
        )
        done = operations.finished(operation, cancelled=True)
        await worker.site.store.txn(
            {worker.key: latest.meta.revision, operation.key: operation.meta.revision},
            {worker.key: changed.dump(), operation.key: done.dump()},
        )
        return
    await operations.finish(worker.site.store, operation.key, cancelled=True)


async def drop_key(worker: Server) -> None:
    """Nobody needs the host key that is being made for a copy: whoever makes it writes into a
    folder that is to go.
    """
    making, worker.host_key = worker.host_key, None
    if making:
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)


async def forget(worker: Server, world: World, _: None) -> None:
    """Remove every trace of a server; its document last. Rules that name it keep its name."""
    if worker.run:
        await worker.run.close()
        worker.run = None
    await drop_key(worker)
    await clean_up_all(worker, world.vm)
    crashpoint("forget.before_files")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(worker.paths.home)
    crashpoint("forget.after_files")
    store, vm = worker.site.store, world.vm
    record = store.get(f"vm-name/{vm.name}")
    names = [f"vm-name/{vm.name}"] if record and record.value.decode() == vm.id else []
    puts = {
        item.key: operations.finished(item).dump()
        for item in operations.open_operations(store, worker.key)
    }
    naming = [group for group in every(store, Firewall) if vm.id in group.servers()]
    await store.txn(
        {worker.key: vm.meta.revision, **{group.key: group.meta.revision for group in naming}},
        {**puts, **{group.key: group.without(vm.id, vm.name).dump() for group in naming}},
        [worker.key, f"secret/{vm.id}", *names],
    )


STEPS: dict[str, Effect] = {
    effect.__name__: effect
    for effect in (
        follow_image, make_disk, grow_disk, make_seed, start, start_network, resume, pause, let_go,
        ask_shutdown, kill, end_stray, collect,
        report, note, finish, fail, cancel_operation, forget,
    )
}  # fmt: skip
