"""What was heard from the guest."""

from __future__ import annotations

from virtuary.model.vm import Vm
from virtuary.node.machine.run import Phase
from virtuary.node.server.server import Server
from virtuary.node.server.world import GuestFacts


def look(server: Server, vm: Vm) -> GuestFacts:
    run = server.run
    if run is None:
        return GuestFacts()
    served = server.site.networks.addresses.of(vm)
    return GuestFacts(
        signals=dict(run.signals),
        addresses=tuple(dict.fromkeys((*served, *run.addresses))),
        wakes=run.phase is Phase.AWAITS_WORD,
        behind=run.behind,
        clock_fault=run.clock_fault,
        cloud_init=run.cloud_init,
    )
