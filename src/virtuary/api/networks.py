"""Routes about networks."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import Header, Query
from starlette.responses import Response

from virtuary.actions import networks
from virtuary.api import answers
from virtuary.api.deps import MAX_PAGE, PAGE, Ctx, P, answer, body_of, page, replay, wanted_revision
from virtuary.api.routing import make_router
from virtuary.model.network import Network, NetworkChange, NetworkWish
from virtuary.model.operation import Operation
from virtuary.store import documents

router = make_router("/v1/networks", tags=["networks"])


@router.get("", response_model=answers.Networks)
async def list_networks(
    parts: P, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE, cursor: str = ""
) -> Response:
    return page(documents.page(parts.store, Network, cursor, limit + 1), limit)


@router.post("", status_code=201, response_model=Network)
async def create_network(ctx: Ctx, wish: NetworkWish) -> Response:
    """Have a network made; it is there a moment later: see its state."""
    network = (
        networks.find(ctx.store, wish.name) if _done(ctx) else await networks.create(ctx, wish)
    )
    return _body(network, 201)


@router.get("/{name}", response_model=Network)
async def show_network(parts: P, name: str) -> Response:
    return answer(networks.find(parts.store, name))


@router.get("/{name}/leases", response_model=answers.Leases)
async def list_leases(parts: P, name: str) -> Response:
    """The addresses that are kept for servers, and which of them were asked for."""
    found = parts.node.site.networks.leases(networks.find(parts.store, name))
    return Response(
        json.dumps({"items": [lease.model_dump() for lease in found]}),
        200,
        media_type="application/json",
    )


@router.patch("/{name}", response_model=Network)
async def change_network(
    ctx: Ctx, name: str, wish: NetworkChange, if_match: Annotated[str | None, Header()] = None
) -> Response:
    """Change fields (merge-patch) while servers are on it."""
    if _done(ctx):
        return answer(networks.find(ctx.store, name))
    return answer(await networks.change(ctx, name, wish, wanted_revision(if_match)))


@router.delete("/{name}", status_code=202, response_model=Network | answers.Nothing)
async def delete_network(ctx: Ctx, name: str) -> Response:
    """Remove a network that no server is on; it is gone a moment later."""
    if _done(ctx):
        return Response("{}", 202, media_type="application/json")
    return _body(await networks.delete(ctx, name), 202)


def _done(ctx: Ctx) -> bool | Operation | None:
    return replay(ctx)


def _body(network: Network, status: int) -> Response:
    return Response(json.dumps(body_of(network)), status, media_type="application/json")
