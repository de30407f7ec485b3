"""A command in a guest as a WebSocket at /v1/vms/NAME/exec.

The first message is text: `{"command": [...], "terminal": "xterm", "rows": 24, "columns": 80}`,
where a terminal is wanted. Then binary messages are the command's input, at most 1 MiB more than
was taken; text is `{"eof": true}`, `{"signal": 2}` or `{"rows": R, "columns": C}`. Answers: binary
messages are output, the first byte 1, or errors, the first byte 2; text is `{"started": true}`,
`{"taken": BYTES}`, `{"note": SENTENCE}`, and at last `{"status": N, "unread": BYTES}` or `{"error":
PROBLEM}`. Whoever closes ends the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, TypeVar

from fastapi import WebSocket
from pydantic import Field, ValidationError
from starlette.websockets import WebSocketDisconnect, WebSocketState

from virtuary.actions.context import find_vm
from virtuary.api import auth
from virtuary.api.deps import Parts
from virtuary.api.routing import make_router
from virtuary.base.errors import Invalid, VirtuaryError
from virtuary.base.jsontext import find_excess
from virtuary.model.meta import Model, invalid
from virtuary.node.touch import touch

router = make_router("/v1/vms", tags=["vms"])
TEXT_CAP = 256 * 1024
"""Bytes of a text message; the first one holds the command."""


Wanted = TypeVar("Wanted", bound=Model)


class SessionWish(Model):
    command: list[str] = Field(min_length=1, max_length=10000)
    terminal: str = Field(default="", pattern=r"^[A-Za-z0-9._+-]{0,64}$")
    rows: int = Field(default=24, ge=1, le=65535)
    columns: int = Field(default=80, ge=1, le=65535)


class SessionWord(Model):
    """A text message after the first one."""

    eof: bool = False
    signal: int = Field(default=0, ge=0, le=64)
    rows: int = Field(default=0, ge=0, le=65535)
    columns: int = Field(default=0, ge=0, le=65535)


@router.websocket("/{name}/exec")
async def run_session(socket: WebSocket, name: str) -> None:
    """Run a command in the guest; see this module."""
    parts: Parts = socket.app.state.parts
    await socket.accept(subprotocol="binary")
    try:
        auth.actor(socket.scope.get("extensions", {}).get(auth.EXTENSION))
        try:
            wish = _read(SessionWish, await socket.receive_text())
        except KeyError:
            raise Invalid("the first message must be text: it tells the command") from None
        await _run(socket, parts, name, wish)
    except VirtuaryError as error:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await socket.send_text(json.dumps({"error": error.problem()}))
    except WebSocketDisconnect:
        return
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.close()


def _read(kind: type[Wanted], text: str) -> Wanted:
    if len(text) > TEXT_CAP:
        raise Invalid(f"a message may hold at most {TEXT_CAP} characters")
    if excess := find_excess(text.encode()):
        raise Invalid(f"the message holds {excess}")
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise invalid(error) from error


async def _run(socket: WebSocket, parts: Parts, name: str, wish: SessionWish) -> None:
    inbox = touch.Inbox()
    said = 0

    async def say(what: Any) -> None:
        nonlocal said
        if isinstance(what, touch.Piece):
            await socket.send_bytes(bytes([what.stream]) + what.data)
        elif isinstance(what, str):
            await socket.send_text(json.dumps({"note": what}))
        else:
            said += what
            await socket.send_text(json.dumps({"taken": said}))

    async def begun() -> None:
        await socket.send_text('{"started": true}')

    listening = asyncio.create_task(_listen(socket, inbox))
    try:
        size = (wish.rows, wish.columns)
        command = touch.Command(tuple(wish.command), wish.terminal, size)
        end = await touch.open_session(
            parts.node, find_vm(parts.store, name), inbox, say
        ).carry_out(command, begun)
        if end and socket.client_state is WebSocketState.CONNECTED:
            await socket.send_text(json.dumps({"status": end.status, "unread": end.unread}))
    finally:
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError, VirtuaryError):
            await listening


async def _listen(socket: WebSocket, inbox: touch.Inbox) -> None:
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if message.get("bytes") is not None:
                inbox.feed(message["bytes"])
                continue
            word = _read(SessionWord, message.get("text") or "")
            if word.signal:
                inbox.do("signal", word.signal)
            if word.rows and word.columns:
                inbox.do("size", word.rows, word.columns)
            if word.eof:
                inbox.end()
    finally:
        inbox.end(gone=True)
