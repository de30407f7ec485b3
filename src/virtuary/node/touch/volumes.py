"""What the API asks of disks: how much they occupy, and whether a guest uses one just now."""

from __future__ import annotations

from virtuary.base.errors import Conflict, VirtuaryError
from virtuary.guest.disks import uses_of
from virtuary.model.vm import Vm
from virtuary.model.volume import Volume
from virtuary.node.node import Node
from virtuary.node.site import Site
from virtuary.store import documents


def used_by(site: Site, volume: Volume) -> int | None:
    """Bytes that the file of a disk occupies; None where it is not there."""
    try:
        return site.paths.volume(volume.id).stat().st_blocks * 512
    except OSError:
        return None


async def check_unused(node: Node, volume: Volume) -> None:
    """Raise Conflict where a guest says that it uses the disk: taken out then, what it has not
    written would be lost.
    """
    for held in volume.spec.attached:
        vm = documents.get(node.site.store, Vm, held.server)
        disk = _plugged(vm, volume) if vm else None
        if vm is None or disk is None:
            continue
        try:
            run = node.worker(vm.id).run
        except VirtuaryError:
            continue
        uses = await uses_of(run.agent, disk) if run and run.agent else []
        if uses:
            raise Conflict(
                f"{vm.name} uses {volume.name}: {', '.join(uses)}",
                f"end that inside (umount), or virtuary disk detach {volume.name} --force",
            )


def _plugged(vm: Vm, volume: Volume) -> str | None:
    """The serial by which the guest of a machine that runs knows the disk."""
    runtime = vm.status.runtime
    there = runtime.disks if runtime else ()
    return next((disk.serial for disk in there if disk.volume == volume.id), None)
