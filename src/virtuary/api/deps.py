"""What every route needs: the daemon's parts, the caller, the context of an action, pages and
entity tags.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request
from starlette.responses import Response

from virtuary.actions.context import Context, find_operation
from virtuary.api import auth
from virtuary.base.errors import Invalid
from virtuary.model.meta import Document
from virtuary.model.operation import Operation
from virtuary.node.node import Node
from virtuary.node.touch import touch, volumes
from virtuary.store import documents, marks
from virtuary.store.api import Page, Store

PAGE = 100
MAX_PAGE = 1000


@dataclass(frozen=True)
class Parts:
    """What the daemon lends to the API."""

    node: Node
    store: Store


async def parts(request: Request) -> Parts:
    """On the loop: what is no coroutine the framework would call in a thread."""
    found: Parts = request.app.state.parts
    return found


IdempotencyKey = Annotated[str | None, Header(max_length=200)]


async def context(request: Request, idempotency_key: IdempotencyKey = None) -> Context:
    """The context of an action; with an Idempotency-Key the mark that lets a repetition be
    recognised.
    """
    return _context(request, idempotency_key, await request.body() if idempotency_key else b"")


async def upload_context(request: Request, idempotency_key: IdempotencyKey = None) -> Context:
    """The same where the body is streamed: a repetition is known by its address and its length, and
    the body is not read for it.
    """
    return _context(request, idempotency_key, request.headers.get("content-length", "").encode())


def _context(request: Request, idempotency_key: str | None, body: bytes) -> Context:
    found: Parts = request.app.state.parts
    mark = None
    if idempotency_key:
        digest = hashlib.sha256(body + str(request.url.query).encode()).hexdigest()
        scope = f"{request.state.actor} {request.method} {request.url.path} {idempotency_key}"
        mark = (marks.key_of(scope), digest)
    site = found.node.site
    free = shutil.disk_usage(site.paths.vms).free
    return Context(
        found.store,
        request.state.actor,
        site.host_id,
        touch,
        mark,
        disk_free=free,
        pool_space=volumes.space_of,
        routed=touch.routed,
        own_addresses=touch.own_addresses,
        leased=site.networks.leased,
        held=site.networks.held,
        network_fault=lambda: site.networks_fault,
        interface_fault=touch.interface_fault,
    )


def replay(context: Context) -> Operation | bool | None:
    """What a repeated request did the first time: its operation, True when it had none; None when
    it is new. Raises Invalid.
    """
    mark = marks.read(context.store, context.mark[0]) if context.mark else None
    if mark is None or context.mark is None:
        return None
    if mark.digest != context.mark[1]:
        raise Invalid("this Idempotency-Key was used for another request", "use a new key")
    return find_operation(context.store, mark.operation) if mark.operation else True


Ctx = Annotated[Context, Depends(context)]
UploadCtx = Annotated[Context, Depends(upload_context)]
P = Annotated[Parts, Depends(parts)]
DryRun = Annotated[bool, Query(description="tell the plan and all blockers, change nothing")]


def accepted(
    operation: Operation, body: dict[str, Any] | None = None, replayed: bool = False
) -> Response:
    """202 with the operation to follow."""
    content = {"operation": body_of(operation), **(body or {})}
    headers = {"Location": f"/v1/operations/{operation.id}"}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(json.dumps(content), 202, headers, "application/json")


def body_of(document: Document) -> dict[str, Any]:
    return document.body()


def answer(document: Document, status: int = 200) -> Response:
    """A document with its entity tag."""
    content = json.dumps(body_of(document), ensure_ascii=False)
    return Response(content, status, {"ETag": f'"{document.meta.revision}"'}, "application/json")


def wanted_revision(if_match: str | None) -> int | None:
    """The revision an If-Match header names; raises Invalid."""
    if if_match is None or if_match.strip() == "*":
        return None
    text = if_match.strip().strip('"')
    if not text.isdecimal() or len(text) > 18:
        raise Invalid("If-Match must hold an ETag that was given here")
    return int(text)


def page(found: Page, limit: int) -> Response:
    """A page of documents; the cursor is the last key. `found` holds one more than `limit` when
    there is a next page.
    """
    more = len(found.records) > limit
    shown = found.records[:limit]
    next_cursor = json.dumps(shown[-1].key if more else None).encode()
    body = b'{"items":[%s],"next":%s,"revision":%d}' % (
        b",".join(map(documents.shown, shown)),
        next_cursor,
        found.revision,
    )
    headers = {"Link": f'<?cursor={shown[-1].key}&limit={limit}>; rel="next"'} if more else {}
    return Response(body, 200, headers, "application/json")


def actor_of(request: Request) -> str:
    return auth.actor(request.scope.get("extensions", {}).get(auth.EXTENSION))
