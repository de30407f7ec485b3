"""How the networks are that a server's NICs are on."""

from __future__ import annotations

from virtuary.model.vm import Vm
from virtuary.node.server.server import Server
from virtuary.node.server.world import NetworkFacts


def look(server: Server, vm: Vm) -> NetworkFacts:
    site, run = server.site, server.run
    state, why = site.networks.readiness(vm, site.boot)
    since = site.networks.failing_since(vm) if state == "failed" else None
    return NetworkFacts(
        state=state,
        why=why,
        failing=site.clock.now() - since if since is not None else 0.0,
        served=bool(run and run.network_alive),
    )
