"""What the API asks of disks: how much they occupy, and whether a guest uses one just now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from virtuary.base.errors import Conflict, GuestSilent, Invalid, VirtuaryError
from virtuary.guest.disks import uses_of
from virtuary.model.image import Image
from virtuary.model.pool import Pool, PoolSpace
from virtuary.model.vm import Vm
from virtuary.model.volume import Volume
from virtuary.node import pools
from virtuary.node.node import Node
from virtuary.node.site import Site
from virtuary.storage import pools as directories
from virtuary.store import documents


def used_by(site: Site, volume: Volume) -> int | None:
    """Bytes that the file of a disk occupies; None where it is not there."""
    try:
        return pools.file_of(site, volume).stat().st_blocks * 512
    except (OSError, VirtuaryError):
        return None


def allocated(site: Site, volumes: Iterable[Volume]) -> int:
    """Bytes of the default pool that these disks take now, of those that lie in it."""
    return sum(used_by(site, volume) or 0 for volume in volumes if not volume.spec.pool)


def space_of(pool: Pool) -> PoolSpace:
    """The space of a pool as it is now. Raises PeerAway where it is not there."""
    path = Path(pool.spec.path)
    directories.check_there(path, pool.id, pool.name)
    return PoolSpace(*directories.space_of(path, pool.spec.reserve))


def state_of(site: Site, pool: Pool) -> dict[str, Any]:
    """How a pool is now, as the API tells it."""
    mine = [item for item in documents.every(site.store, Volume) if item.spec.pool == pool.id]
    promised = sum(item.promised for item in mine)
    found: dict[str, Any] = {"promised": promised, "disks": len(mine), "reason": None}
    try:
        space = space_of(pool)
    except VirtuaryError as error:
        nothing = dict.fromkeys(("size", "free", "kept"))
        return found | nothing | {"state": "away", "reason": error.sentence}
    return (
        found | {"state": "ready"} | {key: getattr(space, key) for key in ("size", "free", "kept")}
    )


@contextmanager
def marking(site: Site, pool: Pool) -> Iterator[None]:
    """Mark a directory as this pool while that is written down; it is none where that fails.
    Raises Invalid where it can't be one.
    """
    path = Path(pool.spec.path)
    own = site.paths.state.resolve()
    if own in (path.resolve(), *path.resolve().parents):
        raise Invalid(f"{path} lies in the state folder", "choose another directory")
    directories.mark(path, pool.id)
    try:
        yield
    except BaseException:
        directories.unmark(path, pool.id)
        raise


def unmark(site: Site, pool: Pool) -> None:
    """A directory is no pool any more, if it is there."""
    with suppress(VirtuaryError):
        directories.unmark(Path(pool.spec.path), pool.id)


async def check_unused(node: Node, volume: Volume) -> None:
    """Raise Conflict where a guest says that it uses the disk, or should be able to say and does
    not: taken out then, what it has not written would be lost.
    """
    for held in volume.spec.attached:
        vm = documents.get(node.site.store, Vm, held.server)
        disk = _plugged(vm, volume) if vm else None
        if vm is None or disk is None:
            continue
        anyhow = f"virtuary disk detach {volume.name} --force"
        try:
            uses = await _uses_of(node, vm, disk)
        except VirtuaryError as error:
            why = f"{vm.name} can't be asked whether it uses {volume.name}: {error.sentence}"
            raise Conflict(why, f"repeat when its guest answers, or {anyhow}") from error
        if uses:
            why = f"{vm.name} uses {volume.name}: {', '.join(uses)}"
            raise Conflict(why, f"end that inside (umount), or {anyhow}")


async def _uses_of(node: Node, vm: Vm, serial: str) -> list[str]:
    """For what the guest uses a disk; nothing is known of one whose image has no agent. Raises
    GuestSilent.
    """
    run = node.worker(vm.id).run
    image = documents.get(node.site.store, Image, vm.spec.image_id)
    if run is None or run.ended or not (run.agent or (image and image.status.agent)):
        return []
    if run.agent is None:
        raise GuestSilent("its guest agent is not there yet")
    return await uses_of(run.agent, serial)


def _plugged(vm: Vm, volume: Volume) -> str | None:
    """The serial by which the guest of a machine that runs knows the disk."""
    runtime = vm.status.runtime
    there = runtime.disks if runtime else ()
    return next((disk.serial for disk in there if disk.volume == volume.id), None)
