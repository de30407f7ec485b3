"""Both clients make the same calls: the same methods, with the same words, that ask a daemon the
same and understand its answers alike.
"""

from __future__ import annotations

import inspect
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel

from virtuary.base.errors import Invalid, NotFound, VirtuaryError
from virtuary.client import AsyncClient, Client
from virtuary.model.advice import Advice
from virtuary.model.consolidation import HostShape, ServerLoad
from virtuary.model.deeds import Start
from virtuary.model.firewall import Firewall, FirewallSpec, Rule
from virtuary.model.image import Image, ImageSource, ImageSpec
from virtuary.model.meta import Document, Meta
from virtuary.model.network import Network, NetworkSpec
from virtuary.model.operation import Operation, OperationSpec, OperationStatus
from virtuary.model.placement import HostRoom, PlacementPlan, ServerNeed
from virtuary.model.pool import Pool, PoolSpec
from virtuary.model.template import Template, TemplateSpec
from virtuary.model.usage import HostUsage, Overview, Point, Usage
from virtuary.model.vm import Vm, VmSpec
from virtuary.model.volume import Volume, VolumeSpec

Golden = Callable[[str, str], None]
VM = Vm(meta=Meta(id="vm-1", name="web1"), spec=VmSpec(image="tiny"))
SOURCE = ImageSource(kind="build", recipe="tiny")
IMAGE = Image(meta=Meta(id="image-1", name="tiny"), spec=ImageSpec(source=SOURCE))
TEMPLATES = [
    Template(
        meta=Meta(id=name, name=name),
        spec=TemplateSpec(
            image="tiny", image_id="image-1", memory=1 << 28, accel="tcg", firmware="bios"
        ),
    )
    for name in ("template-1", "template-2")
]
NETWORK = Network(meta=Meta(id="network-1", name="back"), spec=NetworkSpec(kind="isolated"))
RULE = Rule(direction="in", action="deny", protocol="tcp", ports=((7, 7),))
GROUP = Firewall(meta=Meta(id="group-1", name="closed"), spec=FirewallSpec(rules=(RULE,)))
LOAD = ServerLoad(name="old1", cpu=1.0, memory=1 << 30)
SHAPE = HostShape(cpu=4, memory=8 << 30)
NEED = ServerNeed(name="new1", cpu=1.0, memory=1 << 30)
ROOM = HostRoom(name="host1", cpu=4, memory=8 << 30)


def operation(name: str, phase: Any = "done", error: Any = None) -> Operation:
    return Operation(
        meta=Meta(id=name, name=name),
        spec=OperationSpec(deed=Start(), target="vm/vm-1", target_name="web1"),
        status=OperationStatus(phase=phase, error=error),
    )


DONE = operation("operation-1")
LOST = NotFound("there is no disk").problem()
VOLUME = Volume(meta=Meta(id="disk-1", name="data"), spec=VolumeSpec(size=1 << 30))
POOL = Pool(meta=Meta(id="pool-1", name="fast"), spec=PoolSpec(path="/srv/fast"))
SHOWN = VOLUME.body() | {"used": 4096}
BEGUN = {
    "operation": DONE, "vm": VM, "image": IMAGE, "template": TEMPLATES[1], "disk": VOLUME,
}  # fmt: skip
USAGE = Usage(id="vm-1", name="web1", state="running", cpus=1, memory=2**30, cpu=0.5, age=0.1)


class Page(NamedTuple):
    items: list[Document]
    next: str | None = None


DEEDS = ("start", "stop", "restart", "pause", "resume", "copy")
ANSWERS: dict[str, Any] = {
    "POST /v1/vms": BEGUN,
    "GET /v1/vms/web1": VM,
    "GET /v1/vms/vm-1": VM,
    "GET /v1/vms": Page([VM], "more"),
    "GET /v1/vms more": Page([VM]),
    "PATCH /v1/vms/web1": BEGUN,
    "PATCH /v1/vms/web2": VM,
    "DELETE /v1/vms/web1": BEGUN,
    **{f"POST /v1/vms/web1/actions/{deed}": BEGUN for deed in DEEDS},
    "POST /v1/vms/web1/actions/trim": {"freed": 4096},
    "POST /v1/vms/web1/actions/undelete": VM,
    "GET /v1/vms/web1/ssh": {"host": "10.0.0.1", "port": 22},
    "POST /v1/vms/web1/exec": {"status": 3, "stdout": "b3V0", "stderr": "ZXJy"},
    "GET /v1/pools": Page([POOL]),
    "POST /v1/pools": POOL,
    "DELETE /v1/pools/fast": POOL,
    "GET /v1/disks": Page([VOLUME]),
    "POST /v1/disks": BEGUN,
    "GET /v1/disks/data": SHOWN,
    "GET /v1/disks/disk-1": SHOWN,
    "PATCH /v1/disks/data": BEGUN,
    "POST /v1/disks/data/actions/attach": BEGUN,
    "POST /v1/disks/data/actions/detach": BEGUN,
    "DELETE /v1/disks/data": VOLUME,
    "DELETE /v1/disks/old": BEGUN,
    "POST /v1/disks/data/actions/undelete": VOLUME,
    "GET /v1/networks": Page([NETWORK]),
    "POST /v1/networks": NETWORK,
    "DELETE /v1/networks/back": None,
    "GET /v1/firewalls": Page([GROUP]),
    "POST /v1/firewalls": GROUP,
    "PATCH /v1/firewalls/closed": GROUP,
    "DELETE /v1/firewalls/closed": None,
    "GET /v1/images": Page([IMAGE]),
    "POST /v1/images": BEGUN,
    "GET /v1/images/tiny": IMAGE,
    "DELETE /v1/images/tiny:1": BEGUN,
    "POST /v1/images/tiny/actions/warm": BEGUN,
    "POST /v1/images/tiny/actions/cool": {"removed": []},
    "GET /v1/templates": Page([TEMPLATES[0]], "more"),
    "GET /v1/templates more": Page([TEMPLATES[1]]),
    "GET /v1/operations/operation-1": DONE,
    "GET /v1/operations/operation-1/wait": DONE,
    "GET /v1/operations/failed/wait": operation("failed", "failed", LOST),
    "GET /v1/operations/cancelled/wait": operation("cancelled", "cancelled"),
    "GET /v1/operations/open/wait": operation("open", "running"),
    "POST /v1/operations/operation-1/actions/cancel": DONE,
    "GET /v1/vms/web1/usage": USAGE,
    "GET /v1/usage": Overview(host=HostUsage(cpus=2, memory=5), vms=(USAGE,)),
    "GET /v1/vms/web1/history": {"points": [Point(60, 30, {"cpu": 0.5}, {"cpu": 0.9}).body()]},
    "GET /v1/host/history": {"points": []},
    "GET /v1/vms/web1/advice": Advice(
        id="vm-1", name="web1", revision=3, state="running", watched=60
    ),
    "GET /v1/host": {"name": "host1"},
    "POST /v1/plans/consolidation": Invalid("no host is that large"),
    "POST /v1/plans/placement": PlacementPlan(placed=0, hosts_used=0, bound=1, hosts=()),
}
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("launch", ("tiny",), {}),
    ("launch", ("tiny", "web1"), {"memory": 1 << 29, "cpu": 2, "timeout": 0}),
    ("create", ("tiny", "web1"), {"policy": {"protect": True}}),
    ("vm", ("web1",), {}),
    ("vms", (), {}),
    ("vms", (), {"trash": True}),
    ("change", ("web1",), {"cpu": 2, "memory": {"max": None}}),
    ("change", ("web2",), {"revision": 7, "policy": {"protect": True}}),
    ("start", ("web1",), {}),
    ("start", ("web1",), {"wait": "running", "timeout": 0}),
    ("stop", ("web1",), {}),
    ("stop", ("web1",), {"grace": 5, "force": True, "timeout": 0}),
    ("restart", ("web1",), {}),
    ("restart", ("web1",), {"grace": 5, "force": True, "timeout": 0}),
    ("pause", ("web1",), {}),
    ("resume", ("web1",), {}),
    ("copy", ("web1",), {}),
    ("copy", ("web1", "web2"), {"mode": "live", "timeout": 0}),
    ("trim", ("web1",), {}),
    ("delete", ("web1",), {}),
    ("delete", ("web1",), {"now": True, "force": True}),
    ("undelete", ("web1",), {}),
    ("undelete", ("web1", "web2"), {}),
    ("way_in", ("web1",), {}),
    ("execute", ("web1", ["cat"]), {"stdin": b"in", "timeout": 0}),
    ("execute", ("web1", ["true"]), {}),
    ("disks", (), {}),
    ("disks", (), {"trash": True}),
    ("disk", ("data",), {}),
    ("create_disk", ("data", 1 << 30), {"role": "db"}),
    ("create_disk", ("data", 1 << 30), {"pool": "fast"}),
    ("pools", (), {}),
    ("create_pool", ("fast", "/srv/fast"), {"ratio": 2}),
    ("delete_pool", ("fast",), {}),
    ("resize_disk", ("data", 1 << 31), {}),
    ("attach_disk", ("data", "web1"), {"read_only": True}),
    ("detach_disk", ("data",), {}),
    ("detach_disk", ("data",), {"force": True}),
    ("delete_disk", ("data",), {}),
    ("delete_disk", ("old",), {"now": True}),
    ("undelete_disk", ("data",), {}),
    ("undelete_disk", ("data", "other"), {}),
    ("networks", (), {}),
    ("create_network", ("back",), {"kind": "isolated"}),
    ("delete_network", ("back",), {}),
    ("firewalls", (), {}),
    ("create_firewall", ("closed", [RULE]), {}),
    ("change_firewall", ("closed", []), {}),
    ("delete_firewall", ("closed",), {}),
    ("images", (), {}),
    ("make_image", ("tiny", SOURCE), {"timeout": 0}),
    ("delete_image", ("tiny:1",), {}),
    ("warm_image", ("tiny",), {}),
    ("warm_image", ("tiny", 1 << 28), {"timeout": 0}),
    ("cool_image", ("tiny",), {}),
    ("templates", (), {}),
    ("operation", ("operation-1",), {}),
    ("wait", ("operation-1",), {}),
    ("wait", ("failed",), {}),
    ("wait", ("cancelled",), {}),
    ("wait", ("open", 0), {}),
    ("cancel", ("operation-1",), {}),
    ("usage", ("web1",), {}),
    ("overview", (), {}),
    ("history", ("web1", "hour", 5), {}),
    ("history", (None,), {}),
    ("advice", ("web1",), {}),
    ("advice", ("web1",), {"enough": 60}),
    ("host", (), {}),
    ("plan_consolidation", ([LOAD], SHAPE), {"headroom": 0}),
    ("plan_placement", ([NEED], [ROOM]), {}),
]


class Daemon:
    """Answers from the table, and notes what it was asked."""

    def __init__(self, place: Path) -> None:
        self.asked: list[str] = []
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(place))
        self._sock.listen(8)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._sock.accept()
            except OSError:
                return
            with caller:
                caller.sendall(self._answer(*_request(caller)))

    def _answer(self, line: str, headers: dict[str, str], body: bytes) -> bytes:
        method, target, _ = line.split(" ")
        words = [method, target, *([body.decode()] if body else [])]
        words += [f"if-match={headers['if-match']}"] if "if-match" in headers else []
        words += ["once"] if len(headers.get("idempotency-key", "")) == 32 else []
        self.asked.append(" ".join(words))
        path, _, query = target.partition("?")
        more = " more" if query.endswith("cursor=more") else ""
        asked = f"{method} {path}{more}"
        answer = ANSWERS.get(asked, NotFound(f"no answer to {asked}"))
        status = b"422 Unprocessable" if isinstance(answer, VirtuaryError) else b"200 OK"
        content = b"" if answer is None else json.dumps(_plain(answer)).encode()
        head = b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        return head % (status, len(content)) + content

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join()


def _request(caller: socket.socket) -> tuple[str, dict[str, str], bytes]:
    with caller.makefile("rb") as file:
        line = file.readline().decode().strip()
        headers = {}
        while text := file.readline().decode().strip():
            name, _, value = text.partition(": ")
            headers[name.lower()] = value
        body = file.read(int(headers.get("content-length", "0")))
    return line, headers, json.dumps(json.loads(body)).encode() if body else b""


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, VirtuaryError):
        return value.problem()
    if isinstance(value, Page):
        return {"items": _plain(value.items), "next": value.next}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value


@pytest.fixture
def place(short: Path) -> Path:
    return short / "s"


@pytest.fixture
def daemon(place: Path) -> Iterator[Daemon]:
    daemon = Daemon(place)
    yield daemon
    daemon.close()


def told(value: Any) -> str:
    """A word, or what a caller got, in short."""
    if isinstance(value, list):
        return f"[{', '.join(map(told, value))}]"
    if isinstance(value, BaseModel):
        return f"{type(value).__name__} {getattr(value, 'id', '')}".strip()
    return repr(value)


def noted(name: str, words: tuple[Any, ...], named: dict[str, Any], asked: list[str]) -> str:
    given = [*map(told, words), *(f"{key}={told(value)}" for key, value in named.items())]
    return "\n  ".join([f"{name}({', '.join(given)})", *asked])


def synchronous(place: Path, daemon: Daemon) -> Iterator[str]:
    client = Client(str(place))
    for name, words, named in CALLS:
        daemon.asked = []
        try:
            found = getattr(client, name)(*words, **named)
            result = told(list(found) if isinstance(found, Iterator) else found)
        except VirtuaryError as error:
            result = f"raises {type(error).__name__}: {error.sentence}"
        yield noted(name, words, named, [*daemon.asked, result])


def test_every_call_asks_what_is_written_down(place: Path, daemon: Daemon, golden: Golden) -> None:
    golden("client-calls.txt", "\n".join(synchronous(place, daemon)) + "\n")


async def test_the_asynchronous_client_asks_the_same(
    place: Path, daemon: Daemon, golden: Golden
) -> None:
    lines = []
    async with AsyncClient(str(place)) as client:
        for name, words, named in CALLS:
            daemon.asked = []
            try:
                result = told(await getattr(client, name)(*words, **named))
            except VirtuaryError as error:
                result = f"raises {type(error).__name__}: {error.sentence}"
            lines.append(noted(name, words, named, [*daemon.asked, result]))
    golden("client-calls.txt", "\n".join(lines) + "\n")


def methods(client: type) -> dict[str, Callable[..., Any]]:
    found = inspect.getmembers(client, inspect.isfunction)
    return {name: function for name, function in found if not name.startswith("_")}


SYNCHRONOUS, ASYNCHRONOUS = methods(Client), methods(AsyncClient)


def test_both_clients_have_the_same_calls_and_each_is_tried() -> None:
    assert set(SYNCHRONOUS) == set(ASYNCHRONOUS) == {name for name, _, _ in CALLS} | {"events"}


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_both_clients_give_a_call_the_same_parameters_and_promise(name: str) -> None:
    here, there = inspect.signature(SYNCHRONOUS[name]), inspect.signature(ASYNCHRONOUS[name])
    assert here.parameters == there.parameters
    kinds = ("Iterator", "AsyncIterator") if name == "events" else ("Iterator[", "list[")
    assert here.return_annotation.replace(*kinds) == there.return_annotation
    if name != "vms":  # page by page one of them, at once the other
        assert SYNCHRONOUS[name].__doc__ == ASYNCHRONOUS[name].__doc__
