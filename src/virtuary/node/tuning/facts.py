"""What a machine has of what it can be given while it runs."""

from __future__ import annotations

from virtuary.model.vm import Vm
from virtuary.node.server.server import Server
from virtuary.node.server.world import TuningFacts


def look(server: Server, vm: Vm) -> TuningFacts:
    process, now = server.process, server.site.clock.now()
    if process is None:
        return TuningFacts()
    size = process.run.size
    return TuningFacts(
        tuned=process.tuned,
        cpus=size.cpus if size else None,
        memory=size.memory if size else None,
        refused={name: wish for name, (wish, until) in process.refused.items() if now < until},
    )
