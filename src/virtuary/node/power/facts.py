"""What is seen of a server's process, and whose turn it is on its host."""

from __future__ import annotations

from virtuary.model.vm import Vm
from virtuary.node.machine.run import Phase, open_run
from virtuary.node.server.pre_identity import never_handed_out
from virtuary.node.server.process import Process
from virtuary.node.server.server import Server
from virtuary.node.server.world import ProcessFacts, TurnFacts


def find_process(server: Server, vm: Vm) -> Process | None:
    """The process that the document tells of, if it still is that process: one that a daemon before
    this one has started.
    """
    runtime = vm.status.runtime
    if runtime is None:
        return None
    phase = Phase.BECOMING if never_handed_out(vm) else Phase.OWN
    run = open_run(server.paths, runtime, server.site, server.wake, phase=phase)
    if run is None:
        return None
    if vm.awaits_user_data:
        run.follow_cloud_init()
    return Process(run)


def look(server: Server, vm: Vm) -> ProcessFacts:
    process = server.process
    if vm.status.runtime is None:
        stray = process is None and server.paths.socket("qmp").exists()
        return ProcessFacts("stray" if stray else "absent")
    if process is None:
        return ProcessFacts()
    run = process.run
    return ProcessFacts(
        state="absent" if run.ended else "alive",
        connected=run.monitor is not None,
        qemu=None if run.ended else run.qemu_status,
        silent=run.silent,
        exit_status=run.exit_status,
        last_words=run.last_words,
        age=run.age,
        asked_to_stop=process.asked_to_stop,
        asked_last=process.asked_last,
    )


def look_at_turn(server: Server, vm: Vm) -> TurnFacts:
    turns = server.site.turns
    return TurnFacts(vm.id in turns.leaving, turns.why_not(vm.id))
