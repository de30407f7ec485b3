"""The API as callers meet it: the real application over a store in memory, with a host on which no
worker runs.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from virtuary.api.app import make_app
from virtuary.api.auth import EXTENSION
from virtuary.api.deps import Parts
from virtuary.base.paths import Paths
from virtuary.base.units import GIB
from virtuary.model.host import Host, HostStatus
from virtuary.model.image import Image, ImageSource, ImageSpec, ImageStatus
from virtuary.model.meta import Meta
from virtuary.node.node import Node
from virtuary.node.site import Site
from virtuary.qemu.accel import Verdict, cache_key
from virtuary.qemu.platforms.table import USUAL
from virtuary.store import documents
from virtuary.store.api import Store
from virtuary.store.memory import MemoryStore

HOST_ID = "00000000-0000-4000-8000-00000000c0de"


def make_parts(paths: Paths, store: Store | None = None) -> Parts:
    """The daemon's parts without its workers; the verdict on KVM is remembered from an earlier
    day.
    """
    program = Path("/usr/bin/qemu-system-x86_64")
    if program.exists():
        verdict = Verdict(False, "kvm", USUAL.kvm_cpu, "a test guest hung at real mode")
        (paths.probes / f"accel-{cache_key(program, 'kvm', USUAL.kvm_cpu)}.json").write_text(
            json.dumps(asdict(verdict))
        )
    store = store or MemoryStore()
    return Parts(
        Node(Site(paths, store, HOST_ID, network_fault="passt is not installed", nat_fault=None)),
        store,
    )


async def settle(parts: Parts) -> None:
    """A host with 8 GiB that knows itself, and an image that is ready."""
    status = HostStatus(
        mode="user",
        version="0",
        cpus=2,
        memory=8 * GIB,
        memory_available=4 * GIB,
        disk=100 * GIB,
        disk_free=50 * GIB,
    )
    host = Host(meta=Meta(id=HOST_ID, name="host"), status=status)
    spec = ImageSpec(source=ImageSource(kind="build", recipe="tiny"))
    image = Image(
        meta=Meta(name="tiny"),
        spec=spec,
        status=ImageStatus(state="ready", virtual_size=GIB, agent=True, cloud_init=True),
    )
    puts = {
        host.key: host.dump(),
        **documents.written(parts.store, image),
        f"image-name/{image.name}": image.id.encode(),
    }
    await parts.store.txn({}, puts)


class AsUser:
    """Wraps the application as the socket does: it says who calls."""

    def __init__(self, app: Any, uid: int | None) -> None:
        self.app, self.uid = app, uid

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.uid is not None:
            scope = {
                **scope,
                "extensions": {**(scope.get("extensions") or {}), EXTENSION: self.uid},
            }
        await self.app(scope, receive, send)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Service:
    """A caller in the same process."""

    parts: Parts
    uid: int | None = field(default_factory=os.getuid)

    def __post_init__(self) -> None:
        self.app = AsUser(make_app(self.parts), self.uid)

    def _scope(self, method: str, target: str, headers: dict[str, str]) -> dict[str, Any]:
        path, _, query = target.partition("?")
        return {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
            "scheme": "http", "root_path": "",
            "path": path, "raw_path": quote(path).encode(), "query_string": query.encode(),
            "client": None, "server": ("virtuary", None),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name,
            value in headers.items()], "state": {},
        }  # fmt: skip

    async def call(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        """One request; header names are written with underscores. `body` is bytes, or becomes
        JSON.
        """
        content = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        words = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = {
            "content-length": str(len(content)),
            **({"content-type": "application/json"} if content else {}),
            **words,
        }
        queue: list[dict[str, Any]] = [
            {"type": "http.request", "body": content, "more_body": False}
        ]
        got: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return queue.pop() if queue else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            got.append(message)

        try:
            await self.app(self._scope(method, target, sent), receive, send)
        except Exception:
            if not got:  # the last handler answers a defect and lets it go on to the server's log
                raise
        found = {
            name.decode().lower(): value.decode("latin-1") for name, value in got[0]["headers"]
        }
        return Answer(
            got[0]["status"], found, b"".join(message.get("body", b"") for message in got[1:])
        )

    @asynccontextmanager
    async def stream(self, target: str, **headers: str) -> AsyncIterator[asyncio.Queue[bytes]]:
        """An answer that has no end: its chunks as they come. The caller hangs up when the block
        ends.
        """
        chunks: asyncio.Queue[bytes] = asyncio.Queue()
        leave = asyncio.Event()
        first = True

        async def receive() -> dict[str, Any]:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": b"", "more_body": False}
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                chunks.put_nowait(str(message["status"]).encode())
            elif message.get("body"):
                chunks.put_nowait(message["body"])

        words = {name.replace("_", "-"): value for name, value in headers.items()}
        task = asyncio.create_task(self.app(self._scope("GET", target, words), receive, send))
        try:
            yield chunks
        finally:
            leave.set()
            async with asyncio.timeout(5):
                await task
