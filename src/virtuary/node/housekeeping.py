"""What of a host's documents is over after a while: the trash, old operations, and the marks of
requests that may be repeated. Each part of it is a transaction that may be the last one.
"""

from __future__ import annotations

from datetime import timedelta

from virtuary.model.image import Image
from virtuary.model.keys import kind_of
from virtuary.model.operation import Operation
from virtuary.model.template import Template
from virtuary.model.vm import Vm
from virtuary.model.volume import Volume
from virtuary.node.site import Site
from virtuary.store import documents, marks, servers, volumes
from virtuary.store.limits import keys_in_parts

TRASH_LIFE = timedelta(days=7)
MARK_LIFE = timedelta(hours=24)
KEPT_OPERATIONS = 500
OWNED: tuple[type[Vm | Volume], ...] = (Vm, Volume)
SHARED: tuple[type[Image | Template], ...] = (Image, Template)


async def tidy(site: Site) -> None:
    """Empty the trash after seven days; forget old operations, and marks after a day."""
    await empty_trash(site)
    await forget_operations(site)
    await forget_marks(site)


async def empty_trash(site: Site) -> None:
    """Have what has lain in the trash too long removed for good, each server and disk of this
    host.
    """
    mine: list[Vm | Volume] = [
        *servers.of_host(site.store, site.host_id),
        *volumes.of_host(site.store, site.host_id),
    ]
    for item in mine:
        deleted, now = item.meta.deleted, site.clock.wall()
        if deleted and not item.meta.purge and now - deleted > TRASH_LIFE:
            changed = item.but(meta=item.meta.but(purge=True))
            await site.store.txn({item.key: item.meta.revision}, {item.key: changed.dump()})


async def forget_operations(site: Site) -> None:
    """Keep the last `KEPT_OPERATIONS` of those that have ended and are this host's: about what it
    has, or about what is gone.
    """
    every = documents.every(site.store, Operation)
    ended = [item for item in every if item.ended and not _is_anothers(site, item)]
    over = sorted(ended, key=lambda item: item.meta.created)[:-KEPT_OPERATIONS]
    for keys in keys_in_parts(item.key for item in over):
        await site.store.txn({}, {}, keys)


def _is_anothers(site: Site, operation: Operation) -> bool:
    """Whether what an operation was about is there, and another host has it."""
    key = operation.spec.target
    owned = next((kind for kind in OWNED if kind.prefix == kind_of(key)), None)
    mine = documents.at(site.store, owned, key) if owned else None
    if mine:
        return mine.spec.owner != site.host_id
    shared = next((kind for kind in SHARED if kind.prefix == kind_of(key)), None)
    found = documents.at(site.store, shared, key) if shared else None
    return found is not None and not documents.is_here(site.store, found)


async def forget_marks(site: Site) -> None:
    """A request that is repeated after that is another one."""
    for keys in keys_in_parts(marks.older(site.store, site.clock.wall() - MARK_LIFE)):
        await site.store.txn({}, {}, keys)
