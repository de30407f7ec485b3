"""Letting a server run, stopping it, and clearing away what is over.

Effects are idempotent: one that was cut off between any two lines is found out by the next look.
"""

from __future__ import annotations

import contextlib
import logging
import shutil

from virtuary.base.answers import read
from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed, VirtuaryError
from virtuary.base.files import write_whole
from virtuary.base.log import say
from virtuary.model.disk import ROOT
from virtuary.model.firewall import Firewall
from virtuary.model.status import Crash, VmStatus
from virtuary.model.vm import Vm
from virtuary.node import operations
from virtuary.node.machine.launch import clean_up
from virtuary.node.machine.resolve import user_of
from virtuary.node.power.ends import CRASH_WINDOW, End
from virtuary.node.power.plan import (
    AskShutdown,
    CancelOperation,
    Collect,
    EndStray,
    Forget,
    Kill,
    LeaveToOwner,
    LetGo,
    Pause,
    Resume,
    Start,
    StartNetwork,
)
from virtuary.node.power.start import start, start_network
from virtuary.node.server import parts
from virtuary.node.server.notes import note_on
from virtuary.node.server.pre_identity import never_handed_out
from virtuary.node.server.process import Process
from virtuary.node.server.server import Server
from virtuary.node.server.step import capability, does, does_with, process_of
from virtuary.node.server.world import World
from virtuary.qemu.qmp import open_monitor
from virtuary.store import documents, userdata
from virtuary.store.api import Store
from virtuary.store.limits import in_parts

logger = logging.getLogger("virtuary.steps")
LOG_CAP = 256 * 1024
STOPPED, CANCELLED = "it was stopped", "its start was cancelled"
"""Why a server halts, where its end has no other reason."""
declare(
    "start.before_release", "start.after_release", "stop.after_mark", "stop.after_kill",
    "collect.before_clean", "collect.after_clean", "forget.before_files", "forget.after_files",
    "forget.after_rules",
)  # fmt: skip


async def resume(server: Server, process: Process, world: World, step: Resume) -> None:
    """Let the virtual CPUs run. Only ever for a machine whose record is durable and names this host
    as owner.
    """
    crashpoint("start.before_release")
    await process.monitor.run("cont")
    crashpoint("start.after_release")
    await process.run.refresh()


async def pause(server: Server, process: Process, world: World, step: Pause) -> None:
    await process.monitor.run("stop")
    await process.run.refresh()


async def let_go(server: Server, world: World, step: LetGo) -> None:
    """The server's owner decides about it: it is not held any more for want of memory."""
    await server.write(**parts.let_go())


async def ask_shutdown(server: Server, process: Process, world: World, step: AskShutdown) -> None:
    """Ask the guest to shut down: by its agent where one listens, else by the power button."""
    run, now = process.run, server.site.clock.now()
    first = process.asked_to_stop is None
    process.asked_to_stop, process.asked_last = process.asked_to_stop or now, now
    await note_on(server, world, "asking the guest to shut down", stage="stopping")
    if world.process.qemu in ("paused", "prelaunch") and run.monitor:
        await run.monitor.run("cont")
    if run.agent and first:
        with contextlib.suppress(VirtuaryError):
            await run.agent.run("guest-shutdown", deadline=1, mode="powerdown")
            return
    if run.monitor:
        await run.monitor.run("system_powerdown")


async def kill(server: Server, world: World, step: Kill) -> None:
    await end_process(server, world.vm, step.why)


async def end_process(server: Server, vm: Vm, why: str) -> None:
    """End the process: the reason is durable first, so that nobody takes it for a crash.

    Raises GuestSilent where there is no process that is known.
    """
    runtime, run = vm.status.runtime, process_of(server).run
    if runtime and runtime.end is None:
        await server.write(runtime=runtime.but(end=why))
        crashpoint("stop.after_mark")
    if why in ("shutdown", "stop", "restart") and run.monitor:
        with contextlib.suppress(VirtuaryError):
            await run.monitor.run("quit", deadline=2)
        await run.wait_ended(2)
    run.kill()
    crashpoint("stop.after_kill")
    await run.wait_ended(30)


async def leave_to_owner(server: Server, process: Process, world: World, _: LeaveToOwner) -> None:
    """Another host lets the server run: the process here ends, and the document is not touched."""
    process.run.kill()
    await process.run.wait_ended(30)
    await server.drop_process()
    await clean_up_all(server, world.vm)


async def clean_up_all(server: Server, vm: Vm) -> None:
    """Nothing of a server's machine is left: no process, no socket, no tap."""
    await clean_up(server.identity, server.paths.runtime, user_of(server.site, vm))
    await server.site.networks.close_taps(vm)


async def end_stray(server: Server, world: World, step: EndStray) -> None:
    """End a QEMU that was started and never recorded; it has not executed the guest."""
    socket = server.paths.socket("qmp")
    with contextlib.suppress(VirtuaryError):
        monitor = await open_monitor(socket, deadline=2)
        try:
            if read(await monitor.run("query-uuid")).text("UUID") == world.vm.id:
                await monitor.run("quit")
                say(logger, "ended a stray QEMU", vm=world.vm.name)
                await monitor.gone()
        finally:
            await monitor.close()
    await clean_up_all(server, world.vm)


async def collect(server: Server, world: World, step: Collect) -> None:
    """The process is over: keep its last words, clean up, and write down what became of the
    server.
    """
    end = step.end
    crashpoint("collect.before_clean")
    await server.drop_process()
    if world.process.last_words:
        with contextlib.suppress(OSError):
            write_whole(server.paths.errors, world.process.last_words.encode()[-LOG_CAP:])
    await clean_up_all(server, world.vm)
    crashpoint("collect.after_clean")
    current = server.load()
    if current is None:
        return
    changed = current.but(status=status_after(world, current, end))
    await server.site.store.txn({server.key: current.meta.revision}, {server.key: changed.dump()})
    say(
        logger, "ended", vm=current.name, state=end.state, reason=end.reason or "-", again=end.again
    )
    waits = world.operation and world.operation.spec.deed.runs
    if world.operation and waits and not end.again:
        reason = end.reason or "it was stopped meanwhile"
        failed = Failed(
            f"{current.name} did not stay up: {reason}",
            f"virtuary logs {current.name} shows the console",
        )
        await operations.finish(server.site.store, world.operation.key, failed)


def status_after(world: World, vm: Vm, end: End) -> VmStatus:
    """The status of a server whose process is over. Pure."""
    before = vm.status.power.crashes
    recent = tuple(crash for crash in before if world.wall - crash.at < CRASH_WINDOW)
    crash = (Crash(at=world.wall, why=end.reason or ""),) if end.crashed else ()
    why = vm.status.warm.cold or "its copy ended before it was a machine of its own"
    anew = parts.unused(ROOT, why) if never_handed_out(vm) else {}
    over = vm.status.without_process(
        **anew,
        state=end.state,
        reason=end.reason,
        power={"crashes": recent + crash},
        since=world.wall,
    )
    stays = {} if end.again else parts.halts(world.vm, end.reason or STOPPED, world.wall)
    return over.but(**stays)


async def cancel_operation(server: Server, world: World, step: CancelOperation) -> None:
    """Undo a start: stop the server; a launch that was cancelled leaves nothing."""
    operation, undo = step.operation, step.operation.spec.deed.undo
    if not undo:
        await operations.finish(server.site.store, operation.key, cancelled=True)
        return
    if world.alive:
        await end_process(server, world.vm, "cancel")
    current = server.load()
    if current is None:
        return
    purge = current.meta.purge or undo == "remove"
    halts = parts.halts(world.vm, CANCELLED, world.wall)
    changed = current.but(meta=current.meta.but(purge=purge)).seen(**halts)
    done = operations.finished(operation, cancelled=True)
    await server.site.store.txn(
        {server.key: current.meta.revision, operation.key: operation.meta.revision},
        {server.key: changed.dump(), operation.key: done.dump()},
    )


async def forget(server: Server, world: World, step: Forget) -> None:
    """Remove every trace of a server; its document last. Rules that name it keep its name."""
    await server.drop_process()
    await clean_up_all(server, world.vm)
    crashpoint("forget.before_files")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(server.paths.home)
    crashpoint("forget.after_files")
    store, vm = server.site.store, world.vm
    await _leave_name(store, vm)
    crashpoint("forget.after_rules")
    puts = {
        item.key: operations.finished(item).dump()
        for item in operations.open_operations(store, server.key)
    }
    await store.txn(
        {server.key: vm.meta.revision},
        puts,
        [server.key, userdata.key_of(vm.id), *documents.own_name(store, vm)],
    )


async def _leave_name(store: Store, vm: Vm) -> None:
    """Have the groups whose rules name a server keep its name, which nobody else knows soon. Raises
    Conflict when one changed meanwhile.
    """
    naming = {
        group.key: group
        for group in documents.every(store, Firewall)
        if vm.id in group.servers() and vm.id not in group.status.purged
    }
    kept = {key: group.without(vm.id, vm.name).dump() for key, group in naming.items()}
    for part in in_parts(kept):
        await store.txn({key: naming[key].meta.revision for key in part}, part)


CAPABILITY = capability(
    does(CancelOperation, cancel_operation),
    does_with(LeaveToOwner, leave_to_owner),
    does(Forget, forget),
    does(EndStray, end_stray),
    does(Collect, collect),
    does_with(AskShutdown, ask_shutdown),
    does(Kill, kill),
    does(Start, start),
    does_with(StartNetwork, start_network),
    does(LetGo, let_go),
    does_with(Resume, resume),
    does_with(Pause, pause),
)
