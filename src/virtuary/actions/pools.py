"""What a user may ask of pools. Each function checks everything first, and makes one transaction.

That the directory can be one, and is marked as one, is seen to by the caller, who can look.
"""

from __future__ import annotations

from pathlib import Path

from virtuary.actions.context import Context, decides, meant, own_volumes, wanted_name
from virtuary.base.errors import Conflict, Exists, NoRoom, NotFound, Stale, VirtuaryError
from virtuary.base.units import format_size
from virtuary.model.meta import Meta
from virtuary.model.pool import DEFAULT_POOL, Pool, PoolChange, PoolSpec, PoolWish
from virtuary.store import documents
from virtuary.store.api import Store

SHOWS = "virtuary pool list shows them"


def find(store: Store, name: str, suggest: bool = True) -> Pool:
    """The pool of this name or id; raises NotFound. The default one is none."""
    found = documents.find(store, Pool, name)
    if found is None:
        hint = meant(store, Pool, name) if suggest else None
        raise NotFound(f"there is no pool named {name[:80]!r}", hint or SHOWS)
    return found


def draft(context: Context, wish: PoolWish) -> Pool:
    """A pool as it would be. Raises Invalid, Exists, or Conflict where its directory lies in
    another one's, or the other way round.
    """
    name = wanted_name(wish.name)
    if name == DEFAULT_POOL or documents.named(context.store, Pool, name):
        raise Exists(f"a pool named {name} is there already", "choose another name")
    path = Path(wish.path)
    for other in documents.every(context.store, Pool):
        there = Path(other.spec.path)
        if other.spec.owner == context.host_id and (
            path == there or path in there.parents or there in path.parents
        ):
            raise Conflict(f"{path} and the pool {other.name} ({there}) lie in each other")
    spec = PoolSpec(path=str(path), owner=context.host_id, reserve=wish.reserve, ratio=wish.ratio)
    return Pool(meta=Meta(name=name), spec=spec)


@decides
async def create(context: Context, pool: Pool) -> Pool:
    """Write down a pool that was drafted, and whose directory is marked."""
    if documents.named(context.store, Pool, pool.name):
        raise Exists(f"a pool named {pool.name} is there already", "choose another name")
    expect = {pool.named: 0}
    puts = {pool.key: pool.dump(), pool.named: pool.id.encode()}
    revision = await context.commit(expect, puts)
    return pool.but(meta=pool.meta.but(revision=revision))


@decides
async def change(
    context: Context, name: str, wish: PoolChange, revision: int | None = None
) -> Pool:
    """Change what stays free of a pool, and how far it may be promised. Raises Stale when
    `revision` is not current.
    """
    pool = find(context.store, name)
    if revision is not None and revision != pool.meta.revision:
        raise Stale(f"{pool.name} changed meanwhile", "look again and repeat")
    given = wish.model_dump(exclude_unset=True)
    if given.get("ratio", 1) is None:
        del given["ratio"]
    changed = pool.but(spec=pool.spec.but(**given))
    if changed == pool:
        return pool
    written = await context.commit({pool.key: pool.meta.revision}, {pool.key: changed.dump()})
    return changed.but(meta=changed.meta.but(revision=written))


@decides
async def delete(context: Context, name: str) -> Pool:
    """Forget a pool that no disk lies in. Raises Conflict while one does, those in the trash
    too.
    """
    pool = find(context.store, name, suggest=False)
    inside = [volume.name for volume in own_volumes(context) if volume.spec.pool == pool.id]
    if inside:
        more = f" and {len(inside) - 3} more" if len(inside) > 3 else ""
        raise Conflict(
            f"disks lie in {pool.name}: {', '.join(inside[:3])}{more}",
            "virtuary disk delete them, and purge those in the trash",
        )
    await context.commit({pool.key: pool.meta.revision}, {}, [pool.key, pool.named])
    return pool


def room(context: Context, pool: Pool, more: int) -> list[VirtuaryError]:
    """Why so many bytes more can't be promised to disks in a pool."""
    try:
        space = context.pool_space(pool)
    except VirtuaryError as error:
        return [Conflict(error.sentence, error.hint)]
    if space is None or more <= 0:
        return []
    mine = [volume for volume in own_volumes(context) if volume.spec.pool == pool.id]
    promised = sum(volume.promised for volume in mine)
    left = max(int(space.usable * pool.spec.ratio) - promised, 0)
    if more > left:
        return [
            NoRoom(
                f"{format_size(more)} were asked for and the pool {pool.name} has "
                f"{format_size(left)} left: {format_size(more - left)} are missing",
                "delete and purge disks in it, or raise its --ratio",
                resource="disk",
                asked=more,
                free=left,
                missing=more - left,
            )
        ]
    if space.free < space.kept:
        return [
            NoRoom(
                f"the pool {pool.name} has {format_size(space.free)} free, and "
                f"{format_size(space.kept)} are kept: no disk is made or grown in it",
                "free space in it, or lower its --reserve",
                resource="disk",
                asked=more,
                free=0,
                missing=space.kept - space.free,
            )
        ]
    return []
