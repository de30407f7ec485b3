"""Routes about firewall groups."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

from virtuary.actions import firewalls
from virtuary.api import answers
from virtuary.api.deps import MAX_PAGE, PAGE, Ctx, P, answer, page, replay, wanted_revision
from virtuary.model.firewall import Firewall, FirewallChange, FirewallWish

router = APIRouter(prefix="/v1", tags=["firewalls"])


@router.get("/firewalls", response_model=answers.Firewalls)
async def list_firewalls(
    parts: P, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE, cursor: str = ""
) -> Response:
    found = parts.store.list("firewall/", after=cursor, limit=limit + 1)
    return page(found.records, limit, found.revision)


@router.post("/firewalls", status_code=201, response_model=Firewall)
async def create_firewall(ctx: Ctx, wish: FirewallWish) -> Response:
    """Create a firewall group; servers are attached by their NICs' `groups`."""
    return answer(
        firewalls.find(ctx.store, wish.name) if replay(ctx) else await firewalls.create(ctx, wish),
        201,
    )


@router.get("/firewalls/{name}", response_model=Firewall)
async def show_firewall(parts: P, name: str) -> Response:
    return answer(firewalls.find(parts.store, name))


@router.patch("/firewalls/{name}", response_model=Firewall)
async def change_firewall(
    ctx: Ctx, name: str, wish: FirewallChange, if_match: Annotated[str | None, Header()] = None
) -> Response:
    """Change fields (merge-patch; rules are replaced as a whole) while servers are attached. Open
    connections stay.
    """
    if replay(ctx):
        return answer(firewalls.find(ctx.store, name))
    return answer(await firewalls.change(ctx, name, wish, wanted_revision(if_match)))


@router.delete("/firewalls/{name}", status_code=204)
async def delete_firewall(ctx: Ctx, name: str) -> Response:
    """Remove a firewall group that no server is attached to and no rule of another one names."""
    if not replay(ctx):
        await firewalls.delete(ctx, name)
    return Response(status_code=204)


@router.get("/firewall-test", response_model=answers.FirewallVerdict)
async def test_firewall(
    ctx: Ctx,
    source: Annotated[str, Query(max_length=200, description="a server, or an address")],
    destination: Annotated[str, Query(max_length=200, description="a server, or an address")],
    protocol: Literal["tcp", "udp", "icmp"] = "tcp",
    port: Annotated[int | None, Query(ge=1, le=65535)] = None,
) -> Response:
    """What would become of a new connection, and which rule decides. Nothing is sent."""
    verdict = firewalls.test(ctx, source, destination, protocol, port)
    body = {"allowed": verdict.action == "allow", "sentence": verdict.sentence, **verdict._asdict()}
    return Response(json.dumps(body), 200, media_type="application/json")
