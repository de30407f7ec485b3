"""How much of a request is read, and when: each route has its cap, whoever asks for whatever else
has the usual one.
"""

from __future__ import annotations

import asyncio
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import uvicorn

from virtuary.api import plans
from virtuary.api.app import BODY_CAP, HEAD_CAP, make_app
from virtuary.api.auth import listening_socket
from virtuary.api.protocols import PeerProtocol
from virtuary.base.paths import Paths
from virtuary.base.units import MIB

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; these share a file
from service import Service, make_parts, settle


@pytest.fixture
async def api(paths: Paths) -> Service:
    parts = make_parts(paths)
    await settle(parts)
    return Service(parts)


UPLOAD = "/v1/images/picture/content"
ELSEWHERE = [
    ("PATCH", "/v1/vms/content"),
    ("POST", "/v1/vms/content/actions/stop"),
    ("PATCH", UPLOAD),
    ("POST", UPLOAD),
    ("HEAD", UPLOAD),
    ("GET", UPLOAD),
    ("PUT", UPLOAD + "/"),
    ("PUT", UPLOAD + "/content"),
    ("PUT", "/v1/images/a/b/content"),
    ("PUT", "//v1/images/picture/content"),
    ("PUT", "/nowhere/content"),
    ("DELETE", "/content"),
    ("BREW", "/v1/images/picture/content"),
    ("GET", plans.router.prefix + "/consolidation"),
    ("POST", plans.router.prefix + "/nothing"),
]


@pytest.mark.parametrize(("method", "target"), ELSEWHERE)
async def test_what_is_not_the_upload_has_the_usual_cap(
    api: Service, method: str, target: str
) -> None:
    announced = await api.call(method, target, b"{}", content_length=str(20 * MIB))
    assert announced.status == 422 and f"at most {BODY_CAP} bytes" in announced.json["detail"]


async def test_bytes_are_counted_whatever_was_announced(api: Service) -> None:
    tracemalloc.start()
    answer = await api.call("PATCH", "/v1/vms/content", b" " * (BODY_CAP + 1), content_length="2")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (
        answer.status == 422
        and f"at most {BODY_CAP} bytes" in answer.json["detail"]
        and peak < 8 * MIB
    )


async def test_an_upload_is_longer_than_other_bodies_and_kept_as_it_came(api: Service) -> None:
    content = bytes(2 * BODY_CAP)
    answer = await api.call(
        "PUT", UPLOAD, content, content_type="application/octet-stream", idempotency_key="one"
    )
    assert answer.status == 202, answer.body
    upload = api.parts.node.site.paths.downloads / answer.json["image"]["spec"]["source"]["path"]
    assert upload.read_bytes() == content
    again = await api.call(
        "PUT", UPLOAD, content, content_type="application/octet-stream", idempotency_key="one"
    )
    assert again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize(
    "headers",
    [
        {"content_length": "0"},
        {"content_length": "9" * 5000},
        {"content_length": "-1"},
        {"transfer_encoding": "chunked"},
    ],
    ids=str,
)
async def test_an_upload_says_its_length(api: Service, headers: dict[str, str]) -> None:
    answer = await api.call("PUT", UPLOAD, b"x", content_type="application/octet-stream", **headers)
    assert answer.status == 422 and "length" in answer.json["detail"]


async def test_a_long_address_or_long_headers_are_refused(api: Service) -> None:
    assert (await api.call("GET", "/v1/vms?label=" + "x" * HEAD_CAP)).status == 422
    assert (await api.call("GET", "/v1/vms", X_More="x" * HEAD_CAP)).status == 422
    assert (await api.call("GET", "/v1/vms/" + "x" * HEAD_CAP)).status == 422
    assert (await api.call("GET", "/v1/vms?label=a=" + "x" * 8000)).status == 200


DEEP = {
    "brackets": b"[" * BODY_CAP,
    "lists": b"[" * (BODY_CAP // 2) + b"]" * (BODY_CAP // 2),
    "objects": b'{"a":' * (BODY_CAP // 5),
    "in a field": b'{"image": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "many": b"[" + b"[]," * (BODY_CAP // 3 - 1) + b"1]",
}


@pytest.mark.parametrize("target", ["/v1/vms", "/v1/firewalls", "/v1/nowhere"])
@pytest.mark.parametrize("case", DEEP)
async def test_a_body_that_would_take_long_to_parse_is_refused_at_once(
    api: Service, case: str, target: str
) -> None:
    began = time.thread_time()
    answer = await api.call("POST", target, DEEP[case])
    assert answer.status == 422 and "the request body holds" in answer.json["detail"]
    assert time.thread_time() - began < 0.1, "measured exactly in tests/base/test_jsontext.py"


async def test_of_ten_thousand_mistakes_a_hundred_are_told(api: Service) -> None:
    answer = await api.call(
        "POST", "/v1/vms", {"image": "tiny", "labels": {str(number): 1 for number in range(5000)}}
    )
    assert answer.status == 422 and len(answer.json["details"]["errors"]) == 100


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (
            b"PATCH /v1/vms/nobody HTTP/1.1\r\nHost: x\r\nContent-Type: "
            b"application/json\r\nContent-Length: 2\r\n\r\n{}" + b" " * MIB,
            b"404",
        ),
        (
            b"PATCH /v1/vms/content HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n{}",
            b"422",
        ),
        (
            b"PATCH /v1/vms/content HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: "
            b"3\r\n\r\n{}",
            b"400",
        ),
        (
            b"PATCH /v1/vms/content HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
            b"chunked\r\n\r\nfffff\r\n",
            b"422",
        ),
        (b"GET /v1/vms HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 300_000, b"4"),
    ],
    ids=["more than announced", "announced", "announced twice", "chunked", "endless header"],
)
async def test_over_the_socket_no_more_is_read_than_was_announced(
    api: Service, tmp_path: Path, words: bytes, status: bytes
) -> None:
    place = str(tmp_path / "socket")
    config = uvicorn.Config(
        make_app(api.parts),
        http=PeerProtocol,
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening_socket(place, False)]))
    try:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_unix_connection(place)
            writer.write(words)
            assert (await reader.readline()).split()[1].startswith(status)
            writer.close()
    finally:
        server.should_exit = True
        await serving
