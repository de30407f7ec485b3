"""The HTTP application: routes, who may come in, how errors look. The only way in for everybody."""

from __future__ import annotations

import logging
import time
import uuid
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from virtuary import __version__
from virtuary.api import capacity, firewalls, images, metrics, networks, operations, plans, problems, vms
from virtuary.api.deps import P, Parts, actor_of
from virtuary.base.errors import Invalid, VirtuaryError
from virtuary.base.log import say
from virtuary.node.doctor import examine

logger = logging.getLogger("virtuary.api")
BODY_CAP = 1024 * 1024
EXTENSIONS = ["dry-run", "events", "firewall", "idempotency", "networks", "operations", "serial-console", "usage"]


def make_app(parts: Parts) -> FastAPI:
    app = FastAPI(title="Virtuary", version=__version__, docs_url=None, redoc_url=None, separate_input_output_schemas=False)
    app.state.parts = parts
    problems.install(app)
    every = (vms, images, networks, firewalls, operations, metrics, plans, capacity)
    for router in (*(room.router for room in every), images.templates):
        app.include_router(router)
    _add_host_routes(app)

    app.add_middleware(Door)
    return app


class Door:
    """Authenticate, cap the size, then let it be parsed; one line of log for every change. Wraps every HTTP route."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        request = Request(scope)
        request.state.request_id = request.headers.get("x-request-id", "")[:64] or uuid.uuid4().hex
        try:
            request.state.actor = actor_of(request)
            _check_size(request)
        except VirtuaryError as error:
            await problems.problem(error, request)(scope, receive, send)
            return

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request.state.request_id
                if request.method not in ("GET", "HEAD"):
                    _log(request, message["status"], time.monotonic() - began)
            await send(message)

        await self._app(scope, receive, answering)


def _log(request: Request, status: int, seconds: float) -> None:
    route = f"{request.method} {request.url.path}"
    say(logger, "request", actor=request.state.actor, route=route, status=status, took=f"{seconds * 1000:.0f}ms")


def _check_size(request: Request) -> None:
    if request.url.path.endswith("/content"):
        return
    length = request.headers.get("content-length", "0")
    cap = plans.body_cap(request.url.path, BODY_CAP)
    if not length.isdecimal() or int(length) > cap or "transfer-encoding" in request.headers:
        raise Invalid(f"a request body may hold at most {cap} bytes, and its length must be given")


def _add_host_routes(app: FastAPI) -> None:
    @app.get("/", tags=["host"])
    async def root() -> dict[str, Any]:
        """Which versions of the API are spoken here, and what it can do."""
        return {"name": "virtuary", "version": __version__, "versions": ["v1"], "extensions": EXTENSIONS}

    @app.get("/healthz", tags=["host"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", tags=["host"])
    async def readyz(parts: P) -> dict[str, Any]:
        return {"status": "ok", "revision": parts.store.revision}

    @app.get("/v1/doctor", tags=["host"])
    async def doctor(parts: P) -> dict[str, Any]:
        """Everything a launch depends on, each with a remedy."""
        checks = await examine(parts.node.site)
        return {"healthy": all(check.state != "missing" for check in checks), "checks": [check.model_dump() for check in checks]}
