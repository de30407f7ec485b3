"""How long the stages of a start usually take."""

from __future__ import annotations

from virtuary.model.vm import Vm
from virtuary.node.server.server import Server
from virtuary.node.server.world import SlowFacts


def look(server: Server, vm: Vm, *, waited_for: bool) -> SlowFacts:
    """`waited_for`: whether somebody waits for an operation on the server."""
    process = server.process
    if process is None:
        return SlowFacts()
    return SlowFacts(server.site.usual.of(vm) if waited_for else {}, process.explained)
