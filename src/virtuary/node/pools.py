"""Where the file of a disk lies on this host, and whether its pool is there."""

from __future__ import annotations

from pathlib import Path

from virtuary.base.errors import Failed
from virtuary.model.pool import Pool
from virtuary.model.volume import Volume
from virtuary.node.site import Site
from virtuary.storage import pools
from virtuary.store import documents


def file_of(site: Site, volume: Volume) -> Path:
    """The file of a disk; its pool may be away. Raises Failed where the pool is gone for good."""
    if not volume.spec.pool:
        return site.paths.volume(volume.id)
    pool = documents.get(site.store, Pool, volume.spec.pool)
    if pool is None:
        raise Failed(f"the pool of the disk {volume.name} is gone", "virtuary pool list shows them")
    return Path(pool.spec.path) / volume.id / "disk.qcow2"


def check(site: Site, volume: Volume) -> None:
    """Raise PeerAway where the pool of a disk is not there now; an unmounted directory is not taken
    for it.
    """
    if pool := documents.get(site.store, Pool, volume.spec.pool):
        pools.check_there(Path(pool.spec.path), pool.id, pool.name)


def kept_in(site: Site, volume: Volume) -> int | None:
    """Bytes that stay free in the pool of a disk; None: by rule."""
    pool = documents.get(site.store, Pool, volume.spec.pool)
    return pool.spec.reserve if pool else site.kept
