"""The client's few lines of HTTP, against a daemon that behaves and against ones that do not."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pwd
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virtuary.api.app import make_app
from virtuary.api.auth import listening_socket
from virtuary.api.protocols import PeerProtocol
from virtuary.base.errors import Exists, Invalid, NotFound, PeerAway, VirtuaryError
from virtuary.base.paths import Paths
from virtuary.client.wire import Wire, environment_socket, path_part

# test folders are no packages; the service lives with the API's
sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from service import make_parts, settle

Script = Callable[[socket.socket], None]


@contextmanager
def daemon(folder: Path, script: Script) -> Iterator[Wire]:
    """A server that takes one request and then does what the script says."""
    place = folder / "sock"
    place.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(place))
        listening.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                sock, _ = listening.accept()
                with sock:
                    sock.settimeout(5)
                    request = b""
                    while b"\r\n\r\n" not in request:
                        request += sock.recv(65536)
                    script(sock)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield Wire(str(place), timeout=2)
        finally:
            listening.close()
            thread.join(5)


def says(*pieces: bytes | float) -> Script:
    """Send the pieces one after the other; a number is a pause in seconds."""

    def script(sock: socket.socket) -> None:
        for piece in pieces:
            if isinstance(piece, bytes):
                sock.sendall(piece)
            else:
                time.sleep(piece)

    return script


OK = b"HTTP/1.1 200 OK\r\n"
ANSWERS: dict[str, tuple[Script, Any]] = {
    "by length": (says(OK + b"Content-Length: 7\r\n\r\n" + b'{"a":1}'), {"a": 1}),
    "by length, in pieces": (says(OK[:5], OK[5:] + b"content-length: 7\r", b"\n\r\n{", b'"a":',
    b"1}"), {"a": 1}),
    "in chunks": (says(OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4;x=y\r\n\":1}\r\n0\r\n\r\n"), {"a": 1}),
    "in chunks, byte by byte": (
        says(*(bytes([byte]) for byte in OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n")), {"a": 1},
    ),
    "to the end": (says(OK + b"\r\n{\"a\":", b"1}"), {"a": 1}),
    "nothing": (says(b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"), None),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_is_read_whole(short: Path, case: str) -> None:
    script, wanted = ANSWERS[case]
    with daemon(short, script) as wire:
        assert wire.call("GET", "/v1/x") == wanted


PROBLEM = json.dumps(
    Exists("web1 is there already", "choose another name", asked=1).problem()
).encode()
AWAY: dict[str, Script] = {
    "hangs up at once": says(),
    "hangs up in the head": says(OK),
    "hangs up before the body": says(OK + b"Content-Length: 100\r\n\r\n"),
    "hangs up in the body": says(OK + b"Content-Length: 100\r\n\r\n{}"),
    "hangs up in a chunk": says(OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab"),
    "hangs up between chunks": says(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"),
    "says no HTTP": says(b"hello\r\n\r\n"),
    "says no JSON": says(OK + b"Content-Length: 5\r\n\r\nhello"),
    "a problem that is no JSON": says(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nhtml"),
}


@pytest.mark.parametrize("case", AWAY)
def test_an_answer_that_is_none_is_told_not_guessed(short: Path, case: str) -> None:
    with daemon(short, AWAY[case]) as wire, pytest.raises(PeerAway):
        wire.call("GET", "/v1/x")


def test_a_daemon_that_stays_silent_is_told(short: Path) -> None:
    with daemon(short, says(0.5)) as wire, pytest.raises(PeerAway, match="did not answer in time"):
        wire.timeout = 0.1
        wire.call("GET", "/v1/x")


def test_a_daemon_that_is_not_there_is_told_with_what_to_do(short: Path) -> None:
    with pytest.raises(PeerAway) as caught:
        Wire(str(short / "nothing")).call("GET", "/")
    assert caught.value.hint == "virtuary daemon starts one in the foreground"


def test_a_problem_becomes_the_error_it_stands_for(short: Path) -> None:
    with (
        daemon(
            short,
            says(b"HTTP/1.1 409 Conflict\r\nContent-Length: %d\r\n\r\n" % len(PROBLEM) + PROBLEM),
        ) as wire,
        pytest.raises(Exists) as caught,
    ):
        wire.call("POST", "/v1/vms", {})
    assert (caught.value.sentence, caught.value.hint, caught.value.details) == (
        "web1 is there already",
        "choose another name",
        {"asked": 1},
    )


def test_an_upload_that_is_refused_is_told_with_the_reason(short: Path) -> None:
    body = json.dumps(Invalid("too large").problem()).encode()
    answer = b"HTTP/1.1 422 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with (
        daemon(short, says(answer)) as wire,
        pytest.raises(VirtuaryError),
        (short / "file").open("wb+") as file,
    ):
        file.write(bytes(1000))
        file.seek(0)
        wire.upload("/v1/images/x/content", {}, file, 1000)


# ---- events


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(number: int, **data: Any) -> bytes:
    return b"id: %d\nevent: vm.changed\ndata: %s\n\n" % (number, json.dumps(data).encode())


STREAM = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WANTED = [
    {"id": 1, "event": "vm.changed", "data": {"a": 1}},
    {"id": 2, "event": "vm.changed", "data": {"b": 2}},
]
END = b"0\r\n\r\n"
STREAMS: dict[str, Script] = {
    "one a chunk": says(STREAM + chunk(b": connected\n\n") + chunk(event(1, a=1)) + chunk(event(2,
    b=2)) + END),
    "two in a chunk": says(STREAM + chunk(event(1, a=1) + event(2, b=2)) + END),
    "one over two chunks": says(STREAM + chunk(event(1, a=1)[:10]), chunk(event(1,
    a=1)[10:]) + chunk(event(2, b=2)) + END),
    "ticks between events": says(STREAM + chunk(event(1, a=1)), 0.15, chunk(event(2, b=2)) + END),
    "a tick within the size": says(STREAM + b"1", 0.15,
    chunk(b"x" * 16)[1:] + chunk(b"\n\n" + event(1, a=1)) + chunk(event(2, b=2)) + END),
    "a tick within a chunk": says(STREAM + chunk(event(1, a=1))[:12], 0.15, chunk(event(1,
    a=1))[12:], 0.15, chunk(event(2, b=2)) + END),
    "comments and heartbeats": says(STREAM + chunk(b": still here\n\n") + chunk(event(1,
    a=1)) + chunk(b": still here\n\n" + event(2, b=2)) + END),
}  # fmt: skip


@pytest.mark.parametrize("case", STREAMS)
def test_events_come_whole_with_ticks_between(short: Path, case: str) -> None:
    with daemon(short, STREAMS[case]) as wire:
        found = list(wire.events(tick=0.05))
    assert [item for item in found if item] == WANTED
    assert (None in found) == ("tick" in case)


def test_a_stream_that_breaks_off_is_told_after_what_was_whole(short: Path) -> None:
    with daemon(short, says(STREAM + chunk(event(1, a=1)) + b"20\r\nid: 2")) as wire:
        stream = wire.events(tick=1)
        assert next(stream) == WANTED[0]
        with pytest.raises(PeerAway):
            next(stream)


@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
    derandomize=True,
)
@given(cuts=st.lists(st.integers(1, 400), max_size=8, unique=True))
def test_events_do_not_depend_on_how_the_bytes_arrive(short: Path, cuts: list[int]) -> None:
    whole = STREAM + chunk(b": connected\n\n") + chunk(event(1, a=1)) + chunk(event(2, b=2)) + END
    places = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    pieces = [whole[start:end] for start, end in pairwise(places)]
    with daemon(short, says(*pieces)) as wire:
        assert [item for item in wire.events(tick=1) if item] == WANTED


# ---- against the real daemon's server


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def served(paths: Paths) -> AsyncIterator[Wire]:
    """The application as daemon.py serves it, on its Unix socket, without workers."""
    parts = make_parts(paths)
    await settle(parts)
    config = uvicorn.Config(
        make_app(parts),
        http=PeerProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    task = asyncio.create_task(
        server.serve(sockets=[listening_socket(str(paths.socket), system=False)])
    )
    while not server.started:
        await asyncio.sleep(0.005)
    yield Wire(str(paths.socket), timeout=5)
    server.should_exit = True
    await task
    await parts.store.close()


async def test_the_daemon_is_understood(paths: Paths) -> None:
    async with served(paths) as wire:
        assert paths.socket.stat().st_mode & 0o777 == 0o600
        root = await asyncio.to_thread(wire.call, "GET", "/")
        assert root["name"] == "virtuary" and root["versions"] == ["v1"]
        made = await asyncio.to_thread(
            wire.call,
            "POST",
            "/v1/vms",
            {"image": "tiny", "name": "web1"},
            None,
            {"Idempotency-Key": "k"},
        )
        assert made["operation"]["spec"]["actor"] == pwd.getpwuid(os.getuid()).pw_name
        page = await asyncio.to_thread(
            wire.call, "GET", "/v1/vms", None, {"limit": 1, "cursor": "", "label": None}
        )
        assert [item["meta"]["name"] for item in page["items"]] == ["web1"]
        with pytest.raises(NotFound, match="nobody"):
            await asyncio.to_thread(wire.call, "GET", f"/v1/vms/{path_part('nobody')}")


@pytest.mark.parametrize(
    "name", ["a b", "ü", "a?b=c", "a#b", "%41", "../vms", "\n", "a\0b", "x" * 5000, "❤️&=+"]
)
async def test_any_name_is_one_segment_and_answered(paths: Paths, name: str) -> None:
    async with served(paths) as wire:
        with pytest.raises(NotFound) as caught:
            await asyncio.to_thread(wire.call, "GET", f"/v1/vms/{path_part(name)}")
        assert (
            name[:80] in caught.value.sentence
            or repr(name[:80]) in caught.value.sentence
            or "/" in name
        )


async def test_events_of_the_daemon_are_understood(paths: Paths) -> None:
    async with served(paths) as wire:

        def follow() -> list[Any]:
            found = []
            for item in wire.events(since=0, tick=0.05):
                found.append(item)
                if item is None:
                    return found
            return found

        await asyncio.to_thread(wire.call, "POST", "/v1/vms", {"image": "tiny", "name": "web1"})
        found = await asyncio.to_thread(follow)
    assert [item["event"] for item in found[:-1]] == [
        "image.changed",
        "vm.changed",
        "operation.changed",
    ]


async def test_a_request_that_is_too_large_is_refused_in_words(paths: Paths) -> None:
    async with served(paths) as wire:
        with pytest.raises(Invalid, match="at most"):
            await asyncio.to_thread(wire.call, "POST", "/v1/vms", {"image": "x" * 1_200_000})


@pytest.mark.parametrize(("value", "wanted"), [("", None), ("unix:///run/x", "/run/x")])
def test_the_socket_may_be_named_by_the_environment(
    value: str, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRTUARY_HOST", value)
    assert environment_socket() == wanted


def test_another_kind_of_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIRTUARY_HOST", "tcp://somewhere")
    with pytest.raises(Invalid):
        environment_socket()


def test_nothing_is_sent_for_an_empty_file(short: Path) -> None:
    with daemon(short, says(OK + b"Content-Length: 2\r\n\r\n{}")) as wire:
        assert wire.upload("/x", {"a": "b c"}, io.BytesIO(b""), 0) == {}
