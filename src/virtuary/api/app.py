"""The HTTP application: routes, who may come in, how errors look. The only way in for everybody."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterable, Set
from typing import Any, NamedTuple

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from virtuary import __version__
from virtuary.api import (
    answers,
    capacity,
    disks,
    document,
    firewalls,
    images,
    metrics,
    networks,
    operations,
    plans,
    pools,
    problems,
    sessions,
    vms,
)
from virtuary.api.deps import P, Parts, actor_of
from virtuary.api.routing import make_router
from virtuary.base.errors import Invalid, NotJson, VirtuaryError
from virtuary.base.jsontext import find_excess
from virtuary.base.log import say
from virtuary.node.touch.doctor import examine

logger = logging.getLogger("virtuary.api")
BODY_CAP = 1024 * 1024
"""Bytes of a body, but for routes that declare another `max_body_size`."""
HEAD_CAP = 32 * 1024
"""Bytes of a request's target and headers; the query is the target's, and may have half of them."""
ENDLESS = ("/v1/events",)
_JSON = re.compile(r"application/([a-z0-9.-]+\+)?json")
EXTENSIONS = [
    "disks",
    "dry-run",
    "events",
    "exec",
    "firewall",
    "idempotency",
    "networks",
    "operations",
    "serial-console",
    "usage",
]

about = make_router(tags=["host"])
"""Routes about the daemon itself."""


def make_app(parts: Parts) -> FastAPI:
    app = FastAPI(
        title="Virtuary",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        generate_unique_id_function=lambda route: route.name,  # what a generated client calls it
    )
    app.state.parts = parts
    problems.install(app)
    every = (
        vms, sessions, disks, pools, images, networks, firewalls, operations, metrics, plans,
        capacity,
    )  # fmt: skip
    routers = (*(room.router for room in every), images.templates, about)
    for router in routers:
        app.router.routes.extend(router.routes)  # as they are: to include a router builds each anew
    app.openapi = lambda: document.describe(app)  # type: ignore[method-assign]
    app.add_middleware(Door, large=_find_large(routers))
    return app


class Large(NamedTuple):
    """A route that takes more than others do, and reads it itself."""

    methods: Set[str]
    path: re.Pattern[str]
    cap: int


def _find_large(routers: Iterable[APIRouter]) -> list[Large]:
    routes = (route for router in routers for route in router.routes if isinstance(route, APIRoute))
    return [
        Large(route.methods or set(), route.path_regex, route.max_body_size)
        for route in routes
        if route.max_body_size is not None
    ]


class Door:
    """Authenticate, cap the size, then let it be parsed; one line of log for every change. Wraps
    every HTTP route.

    The body of all but `large` routes is read here, and held against what a parser can bear.
    """

    def __init__(self, app: ASGIApp, large: list[Large]) -> None:
        self._app, self._large = app, large

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        request = Request(scope, receive)
        if bare := request.method == "HEAD" and request.url.path not in ENDLESS:
            scope["method"] = "GET"  # what would be answered, without the body
        request.state.request_id = request.headers.get("x-request-id", "")[:64] or uuid.uuid4().hex
        try:
            request.state.actor = actor_of(request)
            receive = await self._admit(request)
        except VirtuaryError as error:
            await problems.problem(error, request)(scope, receive, send)
            return
        except ClientDisconnect:
            return

        async def answering(message: Message) -> None:
            if bare and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request.state.request_id
                if request.method not in ("GET", "HEAD"):
                    _log(request, message["status"], time.monotonic() - began)
            await send(message)

        await self._app(scope, receive, answering)

    async def _admit(self, request: Request) -> Receive:
        """Where the application is to read the body; raises Invalid for a request that is too
        much.
        """
        path, head = (
            request.scope["path"],
            sum(len(name) + len(value) for name, value in request.headers.raw),
        )
        if (
            len(request.url.query) > HEAD_CAP // 2
            or len(path) + len(request.url.query) + head > HEAD_CAP
        ):
            raise Invalid(
                f"a request's address and headers may hold at most {HEAD_CAP} bytes, its query "
                "half of them"
            )
        for large in self._large:
            if request.method in large.methods and large.path.match(path):
                _check_length(request, large.cap)
                return request.receive
        _check_length(request, BODY_CAP)
        body = await _read(request)
        if body and not _JSON.fullmatch(
            request.headers.get("content-type", "").partition(";")[0].strip().lower()
        ):
            raise NotJson(
                "the request body is of another type than JSON",
                "send it with Content-Type: application/json",
            )
        if excess := find_excess(body):
            raise Invalid(f"the request body holds {excess}")
        return _after(body, request.receive)


def _check_length(request: Request, cap: int) -> None:
    length = request.headers.get("content-length", "0")
    if (
        not length.isdecimal()
        or len(length) > 18
        or int(length) > cap
        or "transfer-encoding" in request.headers
    ):
        raise _too_long(cap)


def _too_long(cap: int) -> Invalid:
    return Invalid(f"a request body may hold at most {cap} bytes, and its length must be given")


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_CAP:
            raise _too_long(BODY_CAP)
    return bytes(body)


def _after(body: bytes, receive: Receive) -> Receive:
    """A body that was read, then whatever else comes."""
    read: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return read.pop() if read else await receive()

    return replayed


def _log(request: Request, status: int, seconds: float) -> None:
    route = f"{request.method} {request.url.path}"
    say(
        logger,
        "request",
        actor=request.state.actor,
        route=route,
        status=status,
        took=f"{seconds * 1000:.0f}ms",
    )


@about.get("/", response_model=answers.About)
async def root() -> dict[str, Any]:
    """Which versions of the API are spoken here, and what it can do."""
    return {
        "name": "virtuary",
        "version": __version__,
        "versions": ["v1"],
        "extensions": EXTENSIONS,
    }


@about.get("/healthz", response_model=answers.Health, response_model_exclude_none=True)
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@about.get("/readyz", response_model=answers.Health)
async def readyz(parts: P) -> dict[str, Any]:
    return {"status": "ok", "revision": parts.store.revision}


@about.get("/v1/doctor", response_model=answers.Checks)
async def doctor(parts: P) -> dict[str, Any]:
    """Everything a launch depends on, each with a remedy."""
    checks = await examine(parts.node.site)
    return {
        "healthy": all(check.state != "missing" for check in checks),
        "checks": [check.model_dump() for check in checks],
    }
