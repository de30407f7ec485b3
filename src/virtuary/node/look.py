"""The world of one server as it is now: what each capability sees of it. Reads, and never waits for
QEMU or a guest.
"""

from __future__ import annotations

from virtuary.model.image import Image
from virtuary.node import operations
from virtuary.node.copies import facts as copies
from virtuary.node.disks import facts as disks
from virtuary.node.identity import facts as guest
from virtuary.node.nics import facts as nics
from virtuary.node.power import facts as power
from virtuary.node.server.server import Server
from virtuary.node.server.world import World
from virtuary.node.slow import facts as slow
from virtuary.node.tuning import facts as tuning
from virtuary.node.volumes import facts as volumes
from virtuary.store import documents


def look(server: Server) -> World | None:
    """The world as it is now; None when the document is gone."""
    vm = server.load()
    if vm is None:
        return None
    site = server.site
    active, copying = operations.open_about(site.store, server.key)
    image = documents.get(site.store, Image, vm.spec.image_id)
    making = operations.open_operations(site.store, image.key) if active and image else []
    return World(
        vm=vm,
        wall=site.clock.wall(),
        now=site.clock.now(),
        mine=vm.spec.owner == site.host_id,
        image=image,
        operation=active[0] if active else None,
        image_operation=making[0] if making else None,
        process=power.look(server, vm),
        guest=guest.look(server, vm),
        network=nics.look(server, vm),
        disks=disks.look(server, vm),
        volumes=volumes.look(server, vm),
        copies=copies.look(server, vm, copying),
        tuning=tuning.look(server, vm),
        turn=power.look_at_turn(server, vm),
        slow=slow.look(server, vm, waited_for=bool(active)),
    )
