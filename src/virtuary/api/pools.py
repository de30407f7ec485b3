"""Routes about pools."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import Header
from starlette.responses import Response

from virtuary.actions import pools
from virtuary.api import answers
from virtuary.api.deps import Ctx, P, Parts, answer, replay, wanted_revision
from virtuary.api.routing import make_router
from virtuary.model.pool import Pool, PoolChange, PoolWish
from virtuary.node.touch import volumes as touched
from virtuary.store import documents

router = make_router("/v1/pools", tags=["disks"])


@router.get("", response_model=answers.Pools)
async def list_pools(parts: P) -> Response:
    """All pools but the default one, with their space as it is now; of that `GET /v1/host`
    tells.
    """
    found = sorted(documents.every(parts.store, Pool), key=lambda pool: pool.name)
    body = {"items": [_shown(parts, pool) for pool in found], "next": None}
    return Response(json.dumps(body), 200, media_type="application/json")


def _shown(parts: Parts, pool: Pool) -> dict[str, object]:
    return pool.body() | touched.state_of(parts.node.site, pool)


@router.post("", status_code=201, response_model=Pool)
async def create_pool(ctx: Ctx, parts: P, wish: PoolWish) -> Response:
    """Make a directory of this host a pool: one that is there and empty."""
    if replay(ctx):
        return answer(pools.find(ctx.store, wish.name), 201)
    pool = pools.draft(ctx, wish)
    with touched.marking(parts.node.site, pool):
        made = await pools.create(ctx, pool)
    return answer(made, 201)


@router.get("/{name}", response_model=answers.ShownPool)
async def show_pool(parts: P, name: str) -> Response:
    pool = pools.find(parts.store, name)
    headers = {"ETag": f'"{pool.meta.revision}"'}
    return Response(json.dumps(_shown(parts, pool)), 200, headers, "application/json")


@router.patch("/{name}", response_model=Pool)
async def change_pool(
    ctx: Ctx, name: str, wish: PoolChange, if_match: Annotated[str | None, Header()] = None
) -> Response:
    """Change what stays free of it, and how far it may be promised (merge-patch)."""
    if replay(ctx):
        return answer(pools.find(ctx.store, name))
    return answer(await pools.change(ctx, name, wish, wanted_revision(if_match)))


@router.delete("/{name}", response_model=Pool | answers.Nothing)
async def delete_pool(ctx: Ctx, parts: P, name: str) -> Response:
    """Forget a pool that no disk lies in; its directory stays."""
    if replay(ctx):
        return Response("{}", 200, media_type="application/json")
    pool = await pools.delete(ctx, name)
    touched.unmark(parts.node.site, pool)
    return answer(pool)
