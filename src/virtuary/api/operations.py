"""Routes about operations, and the stream of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Header, Query
from starlette.responses import Response, StreamingResponse

from virtuary.actions import operations, peers
from virtuary.actions.context import find_operation
from virtuary.api import answers
from virtuary.api.deps import MAX_PAGE, PAGE, Ctx, P, Parts, answer, page
from virtuary.api.routing import make_router
from virtuary.base.errors import Invalid
from virtuary.model.firewall import Firewall
from virtuary.model.image import Image
from virtuary.model.keys import kind_of
from virtuary.model.operation import Operation
from virtuary.model.vm import Vm
from virtuary.model.volume import Volume
from virtuary.store import documents
from virtuary.store.api import Change, Compacted, Record, Store

router = make_router("/v1", tags=["operations"])
KINDS = tuple(kind.prefix for kind in (Vm, Image, Operation, Firewall, Volume))
HEARTBEAT = 15.0


@router.get("/operations", response_model=answers.Operations)
async def list_operations(
    parts: P, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE, cursor: str = ""
) -> Response:
    return page(documents.page(parts.store, Operation, cursor, limit + 1), limit)


@router.get("/operations/{identity}", response_model=Operation)
async def show_operation(parts: P, identity: str) -> Response:
    return answer(find_operation(parts.store, identity))


@router.get("/operations/{identity}/wait", response_model=Operation)
async def wait_operation(
    parts: P, identity: str, timeout: Annotated[float, Query(ge=0, le=300)] = 30
) -> Response:
    """Answer when the operation has ended, or as it is when `timeout` seconds are over."""
    since = parts.store.revision
    operation = find_operation(parts.store, identity)
    if operation.ended:
        return answer(operation)
    try:
        async with asyncio.timeout(timeout):
            async for _ in parts.store.watch(operation.key, since):
                operation = find_operation(parts.store, operation.id)
                if operation.ended:
                    break
    except TimeoutError:
        pass
    return answer(find_operation(parts.store, operation.id))


@router.post("/operations/{identity}/actions/cancel", response_model=Operation)
async def cancel_operation(ctx: Ctx, identity: str) -> Response:
    return answer(await operations.cancel(ctx, identity))


@router.get(
    "/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "Events, without end",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def events(
    parts: P,
    since: Annotated[int | None, Query(ge=0, lt=10**18)] = None,
    target: str = "",
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Every change as server-sent events: `id` is the revision, the data the document. Resumes from
    Last-Event-ID or `since`.

    `target`: only this document (`vm/ID`) and operations on it. 410 when the revision is not
    remembered, or was never given.
    """
    if last_event_id is not None:
        if not last_event_id.isdecimal() or len(last_event_id) > 18:
            raise Invalid("Last-Event-ID must be a revision given here")
        since = int(last_event_id)
    if since is not None and since > parts.store.revision:
        raise Compacted(
            "no such revision was ever given here: the store is another one",
            "list again, then watch from there",
        )
    stream = _stream(parts, parts.store.revision if since is None else since, target)
    first = await anext(stream)
    return StreamingResponse(
        _after(first, stream), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _after(first: bytes, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in stream:
        yield chunk


async def _stream(parts: Parts, since: int, target: str) -> AsyncIterator[bytes]:
    """A comment at once (errors in the position surface before it), then changes, with a comment
    when nothing happens.
    """
    changes, told = aiter(parts.store.watch("", since)), _Told()
    pending = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    if pending.done() and (error := pending.exception()):
        raise error
    yield b": connected\n\n"
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=HEARTBEAT)
            if not done:
                yield b": still here\n\n"
                continue
            change = _as_shown(parts.store, pending.result())
            pending = asyncio.ensure_future(anext(changes))
            if told.first(change) and (text := _event(change, target)):
                yield text
    except StopAsyncIteration:
        return
    finally:
        pending.cancel()


class _Told:
    """Which documents the events of one revision were about: both parts of one may change at
    once.
    """

    def __init__(self) -> None:
        self._revision = -1
        self._keys: set[str] = set()

    def first(self, change: Change) -> bool:
        if change.revision != self._revision:
            self._revision, self._keys = change.revision, set()
        new = change.key not in self._keys
        self._keys.add(change.key)
        return new


def _as_shown(store: Store, change: Change) -> Change:
    """A change with its document as the API answers with it elsewhere."""
    if kind_of(change.key) == Firewall.prefix:
        group = documents.read(Firewall, change)
        return change._replace(value=peers.show_kept(store, group).dump()) if group else change
    key = documents.home(store, change.key)
    if kind_of(key) != Image.prefix:
        return change
    image = documents.at(store, Image, key)
    return Change(change.revision, key, image.dump() if image else None)


def _is_about(change: Change, target: str) -> bool:
    """Whether a change is one of this document, or of an operation on it."""
    if change.key == target or kind_of(change.key) != Operation.prefix:
        return change.key == target
    operation = documents.read(Operation, change)
    return operation is not None and operation.spec.target == target


def _event(change: Change, target: str) -> bytes | None:
    kind = kind_of(change.key)
    if kind not in KINDS or (target and not _is_about(change, target)):
        return None
    if change.value is None:
        data, name = json.dumps({"key": change.key}).encode(), f"{kind}.deleted"
    else:
        data, name = (
            documents.shown(Record(change.key, change.value, change.revision)),
            f"{kind}.changed",
        )
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (change.revision, name.encode(), data)
