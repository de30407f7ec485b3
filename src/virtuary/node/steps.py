"""The effects behind the steps of `plan`: one idempotent function each, named like a sentence.

Each gets the worker (places, store, live run), the world it was planned for, and the step's value. A function may be ended
between any two lines by a crash; the next look finds out and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Bug, Failed, GuestSilent, PeerAway, VirtuaryError
from virtuary.base.files import write_whole
from virtuary.base.log import say
from virtuary.base.proc import Identity, adopt, find_marked, identify, reap, wait_end
from virtuary.base.proc import end as end_process
from virtuary.guest import identity, seed
from virtuary.host.cgroups import ensure_group, remove_group
from virtuary.model.operation import Operation
from virtuary.model.vm import Crash, Runtime, Vm
from virtuary.network import passt
from virtuary.node import operations
from virtuary.node.describe import forwards_of, free_uid, machine_of, ssh_forward
from virtuary.node.plan import CRASH_WINDOW, End
from virtuary.node.run import open_run
from virtuary.node.site import Site
from virtuary.node.world import World
from virtuary.qemu import process, usernet
from virtuary.qemu.argv import command
from virtuary.qemu.describe import describe
from virtuary.qemu.platform import PLATFORMS
from virtuary.qemu.qmp import open_monitor
from virtuary.storage import directory

if TYPE_CHECKING:
    from virtuary.node.worker import Worker

logger = logging.getLogger("virtuary.steps")
QMP_READY = 10.0
"""Seconds QEMU is given to answer its monitor after the start."""
LOG_CAP = 256 * 1024
HELPER = ("-machine\0none\0",)
"""What sets the command line of a network's helper apart from its machine's."""
declare(
    "start.before_spawn", "start.after_spawn", "start.after_record", "start.before_release", "start.after_release",
    "network.after_start", "identity.before", "identity.after", "stop.after_mark", "stop.after_kill", "collect.before_clean",
    "collect.after_clean", "forget.before_files", "forget.after_files", "seed.after_write",
)  # fmt: skip


def has_space(site: Site) -> bool:
    """Whether a machine that was paused for lack of space may go on."""
    usage = shutil.disk_usage(site.paths.vms)
    return usage.free > 64 * 1024 * 1024


async def follow_image(worker: Worker, world: World, _: None) -> None:
    """While the image is being made, show its progress as ours; then sleep until something changes."""
    assert world.operation
    source = world.image_operation.status if world.image_operation else None
    text = source.stage if source and source.stage else "waiting for the image"
    fraction = source.progress if source else None
    if (text, fraction) != (
        world.operation.status.log[-1].text if world.operation.status.log else "",
        world.operation.status.progress,
    ):
        await operations.note(worker.site.store, world.operation.key, text, stage="image", progress=fraction)
    await worker.sleep(1)


async def make_disk(worker: Worker, world: World, _: None) -> None:
    """The root disk, an overlay on the image."""
    assert world.image
    await _note(worker, world, "making the disk", stage="disk", progress=None)
    worker.paths.home.mkdir(mode=0o700, exist_ok=True)
    base = worker.site.paths.image(world.image.id) / "disk.qcow2"
    size = await directory.ensure_overlay(worker.paths.disk, base, world.image.status.virtual_size, world.vm.spec.disk)
    await worker.write(world.vm, disk_ready=True, disk_size=size)


async def grow_disk(worker: Worker, world: World, size: int) -> None:
    await _note(worker, world, "growing the disk", stage="disk")
    await directory.grow(worker.paths.disk, size)
    await worker.write(world.vm, disk_size=size)


async def make_seed(worker: Worker, world: World, _: None) -> None:
    """The cloud-init seed, from the user data that is kept apart."""
    record = worker.site.store.get(f"secret/{world.vm.id}")
    text = record.value.decode() if record else ""
    keys = (_public_key(worker.site), *world.vm.spec.ssh_keys)
    files = seed.seed_files(world.vm.id, world.vm.name, keys, text)
    await asyncio.to_thread(seed.write_seed, worker.paths.seed, files)
    crashpoint("seed.after_write")


async def start(worker: Worker, world: World, _: None) -> None:
    """Start QEMU, paused; its record is durable before any virtual CPU runs."""
    vm, image, site = world.vm, world.image, worker.site
    assert image
    platform = PLATFORMS[vm.spec.arch]
    choice = await site.accel(platform, vm.spec.accel)
    await _note(worker, world, choice.why, STAGE_TEXT["firmware"], stage="firmware", progress=None)
    binary = await site.binary(platform)
    if not vm.spec.machine:
        vm = await _pin_machine(worker, vm, binary.machine)
    uid = free_uid(site, vm.id)
    jail = process.choose_jail(site.capabilities, uid)
    ssh = passt.free_port()
    worker.paths.runtime.mkdir(mode=0o711, parents=True, exist_ok=True)
    machine = await machine_of(site, vm, image, choice.accel)
    if machine.vars_file and not machine.vars_file.exists():
        assert machine.firmware.vars_template
        write_whole(machine.vars_file, machine.firmware.vars_template.read_bytes())
    parts = describe(machine)
    groups, gap = ensure_group(vm.id)
    launch = process.Launch(command(binary.program, parts), parts.grants, parts.readable, jail, worker.paths.runtime, groups)
    worker.last_words = ""
    forwards = (*forwards_of(vm), ssh_forward(ssh))
    async with site.starts:
        crashpoint("start.before_spawn")
        serving = asyncio.create_task(_serve_network(worker, vm, site.network, uid, forwards))
        try:
            started = await process.start(launch)
        except BaseException:
            await _stop_serving(worker, serving)
            raise
    try:
        crashpoint("start.after_spawn")
        network = await serving
        crashpoint("network.after_start")
        gaps = (*jail.gaps, *dict.fromkeys((*started.gaps, *((gap,) if gap else ()))))
        if site.network == "qemu-user":
            gaps += ("the guest can reach services on the host's loopback addresses (QEMU's user network)",)
        runtime = Runtime(
            generation=vm.meta.generation, restarts=vm.spec.restarts, boot_id=site.boot,
            pid=started.identity.pid, start=started.identity.start, uid=uid, accel=choice.accel, level=jail.level, gaps=gaps,
            network=site.network, network_pid=network.pid, network_start=network.start, ssh_port=ssh, started=site.clock.wall(),
        )  # fmt: skip
        worker.run = open_run(worker.paths, runtime, vm.id, site, worker.wake, started.errors)
        if worker.run is None:
            words = process.read_errors(started.errors)
            raise Failed(f"QEMU ended at once: {words or 'it said nothing'}")
        await worker.write(
            vm,
            runtime=runtime,
            state="starting",
            reason=None,
            stages={},
            addresses=(),
            applied=vm.meta.generation,
            since=site.clock.wall(),
        )
    except Exception:  # a daemon that is stopped here leaves what the next one finds by its record, or ends as a stray
        await _undo_spawn(worker, started)
        await _stop_serving(worker, serving)
        raise
    crashpoint("start.after_record")
    await _answer(worker)


async def _undo_spawn(worker: Worker, started: process.Started) -> None:
    """A QEMU that could not be recorded must not stay: it has not executed the guest."""
    if worker.run:
        await worker.run.close()
        worker.run = None
    else:
        os.close(started.errors)
    await _end_marked(worker)


async def _pin_machine(worker: Worker, vm: Vm, machine: str) -> Vm:
    """The hardware a server first starts on stays its own through every upgrade of QEMU."""
    changed = vm.but(spec=vm.spec.but(machine=machine))
    revision = await worker.site.store.txn({worker.key: vm.meta.revision}, {worker.key: changed.dump()})
    return changed.but(meta=changed.meta.but(revision=revision))


async def _answer(worker: Worker) -> None:
    """Wait until QEMU's monitor answers; a QEMU that dislikes its arguments says so here."""
    run = worker.run
    until = worker.site.clock.now() + QMP_READY
    while run and not run.ended and run.monitor is None:
        if worker.site.clock.now() > until:
            run.kill()
            raise Failed(f"QEMU did not answer its monitor within {QMP_READY:.0f} s")
        await asyncio.sleep(0.003)


async def start_network(worker: Worker, world: World, _: None) -> None:
    """Connect somebody new to the machine's NIC: whoever served its network has died. A guest that runs is not stopped for this."""
    runtime, run = world.vm.status.runtime, worker.run
    assert runtime and run and runtime.ssh_port
    try:
        identity = await _serve_network(
            worker, world.vm, runtime.network, runtime.uid, (*forwards_of(world.vm), ssh_forward(runtime.ssh_port))
        )
    except Failed as error:
        raise PeerAway(error.sentence) from error  # again, with backoff
    crashpoint("network.after_start")
    run.watch_network(identity, world.vm.id if runtime.network == "qemu-user" else "passt")
    await worker.write(world.vm, runtime=runtime.but(network_pid=identity.pid, network_start=identity.start))


async def _serve_network(worker: Worker, vm: Vm, kind: str, uid: int, forwards: tuple[passt.Forward, ...]) -> Identity:
    """Start whoever serves the network, as soon as the machine's socket is there; QEMU itself may still be starting."""
    await _end_marked(worker, *HELPER)  # one that was started and never recorded would hold the ports
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as link:
        await _connect(link, worker.paths.socket("network"))
        if kind == "passt":
            return await passt.start(link, forwards)
        return await _start_usernet(worker, vm, uid, link, forwards)


async def _connect(link: socket.socket, path: Path, limit: float = QMP_READY) -> None:
    until = asyncio.get_running_loop().time() + limit
    while True:
        try:
            link.connect(str(path))
            return
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if asyncio.get_running_loop().time() > until:
                raise Failed("QEMU offers no socket for its network") from error
            await asyncio.sleep(0.002)


async def _stop_serving(worker: Worker, serving: asyncio.Task[Identity]) -> None:
    """Undo a network that was begun for a machine that did not start; what listens on the socket's end goes by itself."""
    await asyncio.wait({serving}, timeout=2)  # a launch cut off half way would leave a child that nobody knows
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await _end_marked(worker, *HELPER)


async def _start_usernet(worker: Worker, vm: Vm, uid: int, link: socket.socket, forwards: tuple[passt.Forward, ...]) -> Identity:
    if any(":" in forward.address for forward in forwards):
        raise Failed("QEMU's user network publishes no IPv6 address", "publish on an IPv4 address, or install a passt that works")
    binary = await worker.site.binary(PLATFORMS[vm.spec.arch])
    folder = worker.paths.runtime / "usernet"
    folder.mkdir(mode=0o711, exist_ok=True)
    jail = process.choose_jail(worker.site.capabilities, uid, host_network=True)
    groups, _ = ensure_group(worker.vm_id)
    argv = usernet.command(binary.program, worker.vm_id, forwards)
    launch = process.Launch(argv, [], [], jail, folder, groups, links=((link.fileno(), usernet.LINK),))
    started = await process.start(launch)
    try:
        if not await _listens(started.identity, forwards[-1].host):
            raise Failed(
                f"the guest's network can't be served: {process.read_errors(started.errors) or 'its helper ended at once'}"
            )
    finally:
        os.close(started.errors)
    return started.identity


async def _listens(identity: Identity, port: int, limit: float = 2.0) -> bool:
    """Wait until the helper listens on its last port, which says that it got all of them; False when it ended instead."""
    wanted = f"0100007F:{port:04X} 00000000:0000 0A "
    until = asyncio.get_running_loop().time() + limit
    while asyncio.get_running_loop().time() < until:
        with open("/proc/net/tcp", encoding="ascii") as table:
            if wanted in table.read():
                return True
        if identify(identity.pid) != identity:
            return False
        await asyncio.sleep(0.01)
    return True


async def resume(worker: Worker, world: World, _: None) -> None:
    """Let the virtual CPUs run. Only ever for a machine whose record is durable and names this host as owner."""
    crashpoint("start.before_release")
    await _monitor(worker).run("cont")
    crashpoint("start.after_release")
    assert worker.run
    await worker.run.refresh()


async def pause(worker: Worker, world: World, _: None) -> None:
    await _monitor(worker).run("stop")
    assert worker.run
    await worker.run.refresh()


async def give_identity(worker: Worker, world: World, _: None) -> None:
    """Make the guest a machine of its own: hostname, hosts, keys; one round trip through the agent."""
    run = worker.run
    assert run
    await _note(worker, world, "giving the guest its identity", stage="agent")
    if run.agent is None:
        raise GuestSilent("the guest agent is gone")
    keys = (_public_key(worker.site), *world.vm.spec.ssh_keys)
    text = identity.script(identity.Identity(world.vm.name, keys))
    crashpoint("identity.before")
    outcome = await run.agent.execute(["/bin/sh"], stdin=text, deadline=60)
    if outcome.status != 0:
        raise GuestSilent(f"the guest refused its identity: {outcome.stderr.decode(errors='replace')[-300:]}")
    crashpoint("identity.after")
    await worker.write(world.vm, identity=world.vm.name)


async def ask_shutdown(worker: Worker, world: World, why: str) -> None:
    """Ask the guest to shut down: by its agent where one listens, else by the power button."""
    run = worker.run
    assert run
    now = worker.site.clock.now()
    first = worker.asked_to_stop is None
    worker.asked_to_stop, worker.asked_last = worker.asked_to_stop or now, now
    await _note(worker, world, "asking the guest to shut down", stage="stopping")
    if world.qemu in ("paused", "prelaunch") and run.monitor:
        await run.monitor.run("cont")
    if run.agent and first:
        with contextlib.suppress(VirtuaryError):
            await run.agent.run("guest-shutdown", deadline=1, mode="powerdown")
            return
    if run.monitor:
        await run.monitor.run("system_powerdown")


async def kill(worker: Worker, world: World, why: str) -> None:
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


async def end_stray(worker: Worker, world: World, _: None) -> None:
    """End a QEMU that was started and never recorded; it has not executed the guest."""
    socket = worker.paths.socket("qmp")
    with contextlib.suppress(VirtuaryError):
        monitor = await open_monitor(socket, deadline=2)
        try:
            answer = await monitor.run("query-uuid")
            if answer["UUID"] == world.vm.id:
                await monitor.run("quit")
                say(logger, "ended a stray QEMU", vm=world.vm.name)
                await monitor.gone()
        finally:
            await monitor.close()
    await _clean_runtime(worker)


async def collect(worker: Worker, world: World, end: End) -> None:
    """The process is over: keep its last words, clean up, and write down what became of the server."""
    crashpoint("collect.before_clean")
    if worker.run:
        await worker.run.close()
        worker.run = None
    worker.asked_to_stop = None
    if worker.last_words:
        with contextlib.suppress(OSError):
            write_whole(worker.paths.errors, worker.last_words.encode()[-LOG_CAP:])
    await _clean_runtime(worker)
    crashpoint("collect.after_clean")
    current = worker.load()
    if current is None:
        return
    crashes = tuple(crash for crash in current.status.crashes if world.wall - crash.at < CRASH_WINDOW)
    if end.crashed:
        crashes += (Crash(at=world.wall, why=end.reason or ""),)
    status = current.status.but(
        runtime=None,
        state=end.state,
        reason=end.reason,
        crashes=crashes,
        since=world.wall,
        addresses=(),
        stages=current.status.stages,
    )
    power = current.spec.power if end.again else "stopped"
    changed = current.but(status=status, spec=current.spec.but(power=power))
    await worker.site.store.txn({worker.key: current.meta.revision}, {worker.key: changed.dump()})
    say(logger, "ended", vm=current.name, state=end.state, reason=end.reason or "-", again=end.again)
    if not end.again and world.operation and world.operation.spec.kind in ("launch", "start", "restart", "resume", "pause"):
        reason = end.reason or "it was stopped meanwhile"
        hint = f"virtuary logs {current.name} shows the console"
        await operations.finish(worker.site.store, world.operation.key, Failed(f"{current.name} did not stay up: {reason}", hint))


async def report(worker: Worker, world: World, seen: dict[str, Any]) -> None:
    """Write what was seen."""
    if seen["state"] != world.vm.status.state:
        seen = {**seen, "since": world.wall}
        say(logger, "state", vm=world.vm.name, was=world.vm.status.state, now=seen["state"], why=seen["reason"] or "-")
    await worker.write(world.vm, **seen)


async def note(worker: Worker, world: World, stage: str) -> None:
    assert world.operation
    await operations.note(worker.site.store, world.operation.key, STAGE_TEXT.get(stage, stage), stage=stage)


STAGE_TEXT = {
    "firmware": "firmware and kernel are starting",
    "kernel": "the guest's system is starting",
    "agent": "the guest agent is up",
    "network": "waiting for the guest's network",
    "ssh": "waiting for the guest's SSH",
}


async def finish(worker: Worker, world: World, operation: Operation) -> None:
    await operations.finish(worker.site.store, operation.key)


async def fail(worker: Worker, world: World, sentence: str) -> None:
    await give_up(worker, world, Failed(sentence, "virtuary image list shows the images"))


async def give_up(worker: Worker, world: World, error: VirtuaryError) -> None:
    """A step failed for good: the operation ends with the reason. What never had a disk is removed, nothing half-made stays."""
    current = worker.load()
    if current is None:
        return
    if world.operation:
        await operations.finish(worker.site.store, world.operation.key, error)
    if isinstance(error, Bug) and world.process == "alive":
        return
    never_was = not current.status.disk_ready and world.process == "absent"
    changed = current.but(
        spec=current.spec.but(power="stopped"),
        status=current.status.but(reason=error.sentence, since=world.wall),
        meta=current.meta.but(purge=current.meta.purge or never_was),
    )
    await worker.site.store.txn({worker.key: current.meta.revision}, {worker.key: changed.dump()})


async def cancel_operation(worker: Worker, world: World, operation: Operation) -> None:
    """Undo a start: stop the server; a launch that was cancelled leaves nothing."""
    current = worker.load()
    if current is None:
        return
    undo = operation.spec.kind in ("launch", "create")
    if world.process == "alive" and operation.spec.kind in ("launch", "create", "start", "restart"):
        await kill(worker, world, "cancel")
    changed = current
    if operation.spec.kind in ("launch", "create", "start", "restart"):
        latest = worker.load() or current
        changed = latest.but(spec=latest.spec.but(power="stopped"), meta=latest.meta.but(purge=latest.meta.purge or undo))
        done = operations.finished(operation, cancelled=True)
        await worker.site.store.txn(
            {worker.key: latest.meta.revision, operation.key: operation.meta.revision},
            {worker.key: changed.dump(), operation.key: done.dump()},
        )
        return
    await operations.finish(worker.site.store, operation.key, cancelled=True)


async def forget(worker: Worker, world: World, _: None) -> None:
    """Remove every trace of a server; its document last."""
    if worker.run:
        await worker.run.close()
        worker.run = None
    await _clean_runtime(worker)
    crashpoint("forget.before_files")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(worker.paths.home)
    crashpoint("forget.after_files")
    store, vm = worker.site.store, world.vm
    record = store.get(f"vm-name/{vm.name}")
    names = [f"vm-name/{vm.name}"] if record and record.value.decode() == vm.id else []
    puts = {item.key: operations.finished(item).dump() for item in operations.open_operations(store, worker.key)}
    await store.txn({worker.key: vm.meta.revision}, puts, [worker.key, f"secret/{vm.id}", *names])


async def _clean_runtime(worker: Worker) -> None:
    """Nothing of a machine that is over stays: not its network's helper, not its sockets, not its group."""
    await _end_marked(worker)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(worker.paths.runtime)
    remove_group(worker.vm_id)


async def _end_marked(worker: Worker, *marks: str) -> None:
    """End every process that carries this server's id, and these marks, and wait until it is gone."""
    for marked in find_marked(f"-uuid\0{worker.vm_id}\0", *marks):
        handle = adopt(marked, worker.vm_id)
        if handle is None:
            continue
        try:
            end_process(handle)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await wait_end(handle)
            reap(handle)
        finally:
            os.close(handle)


def _monitor(worker: Worker) -> Any:
    if worker.run is None or worker.run.monitor is None:
        raise GuestSilent("QEMU's monitor is not connected")
    return worker.run.monitor


def _public_key(site: Site) -> str:
    return site.paths.key.with_suffix(".pub").read_text(encoding="utf-8").strip()


async def _note(worker: Worker, world: World, *texts: str, **changes: Any) -> None:
    if world.operation:
        await operations.note(worker.site.store, world.operation.key, *texts, **changes)


Effect = Callable[["Worker", World, Any], Awaitable[None]]
STEPS: dict[str, Effect] = {
    effect.__name__: effect
    for effect in (
        follow_image, make_disk, grow_disk, make_seed, start, start_network, resume, pause, give_identity, ask_shutdown, kill,
        end_stray, collect, report, note, finish, fail, cancel_operation, forget,
    )
}  # fmt: skip
