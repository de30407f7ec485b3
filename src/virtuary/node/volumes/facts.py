"""The volumes that a server has, is to have, or has not let go of."""

from __future__ import annotations

from virtuary.model.vm import Vm
from virtuary.model.volume import Volume
from virtuary.node.server.server import Server
from virtuary.node.server.world import VolumeFacts
from virtuary.store import documents, volumes


def look(server: Server, vm: Vm) -> VolumeFacts:
    store = server.site.store
    wished = {disk.number: disk.volume for disk in vm.spec.disks if disk.volume}
    there = {number: documents.get(store, Volume, volume) for number, volume in wished.items()}
    held = tuple(volumes.held_by(store, vm.id))
    return VolumeFacts(
        there,
        held,
        frozenset(volume.id for volume in held if server.site.paths.volume(volume.id).exists()),
    )
