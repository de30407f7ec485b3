"""The volumes that a server has, is to have, or has not let go of."""

from __future__ import annotations

from virtuary.base.errors import VirtuaryError
from virtuary.model.vm import Vm
from virtuary.model.volume import Volume
from virtuary.node import pools
from virtuary.node.server.server import Server
from virtuary.node.server.world import VolumeFacts
from virtuary.store import documents, volumes


def look(server: Server, vm: Vm) -> VolumeFacts:
    store = server.site.store
    wished = {disk.number: disk.volume for disk in vm.spec.disks if disk.volume}
    there = {number: documents.get(store, Volume, volume) for number, volume in wished.items()}
    held = tuple(volumes.held_by(store, vm.id))
    away = {volume.id: why for volume in held if (why := _why_away(server, volume))}
    run = server.run
    seen = run is not None and run.devices is not None
    return VolumeFacts(there, held, away, _lost(server, vm), seen)


def _lost(server: Server, vm: Vm) -> frozenset[int]:
    run, runtime = server.run, vm.status.runtime
    if run is None or run.devices is None or runtime is None:
        return frozenset()
    numbers = (disk.number for disk in runtime.disks)
    return frozenset(number for number in numbers if f"disk{number}-device" not in run.devices)


def _why_away(server: Server, volume: Volume) -> str | None:
    """Why the file of a volume can't be had now; None where it is there."""
    try:
        pools.check(server.site, volume)
        there = pools.file_of(server.site, volume).exists()
    except VirtuaryError as error:
        return error.sentence
    return None if there else "its file is gone"
