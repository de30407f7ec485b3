"""Routes about firewall groups."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import Header, Query
from starlette.responses import Response

from virtuary.actions import firewalls, peers
from virtuary.api import answers
from virtuary.api.deps import MAX_PAGE, PAGE, Ctx, P, answer, page, replay, wanted_revision
from virtuary.api.routing import make_router
from virtuary.model.firewall import Firewall, FirewallChange, FirewallWish
from virtuary.store import documents
from virtuary.store.api import Page, Record

router = make_router("/v1", tags=["firewalls"])


@router.get("/firewalls", response_model=answers.Firewalls)
async def list_firewalls(
    parts: P, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE, cursor: str = ""
) -> Response:
    def shown(record: Record) -> Record:
        group = Firewall.load(record.value, record.revision)
        return record._replace(value=peers.show_kept(parts.store, group).dump())

    found = documents.page(parts.store, Firewall, cursor, limit + 1)
    return page(Page([shown(record) for record in found.records], found.revision), limit)


@router.post("/firewalls", status_code=201, response_model=Firewall)
async def create_firewall(ctx: Ctx, wish: FirewallWish) -> Response:
    """Create a firewall group; servers are attached by their NICs' `groups`. Rules name servers by
    name or id, and mean the same one when it is called otherwise.
    """
    made = (
        firewalls.find(ctx.store, wish.name) if replay(ctx) else await firewalls.create(ctx, wish)
    )
    return answer(peers.show(ctx.store, made), 201)


@router.get("/firewalls/{name}", response_model=Firewall)
async def show_firewall(parts: P, name: str) -> Response:
    """A firewall group. Its rules name a server by its name; one in the trash or gone by its id, of
    which the status tells the last name.
    """
    return answer(peers.show(parts.store, firewalls.find(parts.store, name)))


@router.patch("/firewalls/{name}", response_model=Firewall)
async def change_firewall(
    ctx: Ctx, name: str, wish: FirewallChange, if_match: Annotated[str | None, Header()] = None
) -> Response:
    """Change fields (merge-patch; rules are replaced as a whole) while servers are attached. Open
    connections stay.
    """
    if replay(ctx):
        group = firewalls.find(ctx.store, name)
    else:
        group = await firewalls.change(ctx, name, wish, wanted_revision(if_match))
    return answer(peers.show(ctx.store, group))


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
