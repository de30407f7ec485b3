"""What of a server lies on disk, and whether there is room for more."""

from __future__ import annotations

import shutil

from virtuary.model.vm import Vm
from virtuary.node.copies.facts import files_in, leftovers
from virtuary.node.server.server import Server
from virtuary.node.server.world import DiskFacts

ROOM = 64 * 1024 * 1024
"""Bytes that are free again when a machine that was paused for lack of space may go on."""


def look(server: Server, vm: Vm) -> DiskFacts:
    paths = server.paths
    names = files_in(paths)
    places = {
        "disk": vm.status.disk.file,
        "seed": paths.seed.name,
        "firmware-vars": paths.firmware_vars.name,
        "state": paths.state.name,
    }
    found = {what for what, name in places.items() if name in names}
    left = {"leftover"} if leftovers(paths, vm, names) else set[str]()
    return DiskFacts(frozenset(found | left), shutil.disk_usage(server.site.paths.vms).free > ROOM)
