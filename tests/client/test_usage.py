"""Both clients ask for what is used and get it as models."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from virtuary.client import AsyncClient, Client
from virtuary.model.advice import Advice
from virtuary.model.usage import HostUsage, Overview, Point, Usage

USAGE = Usage(id="i", name="web1", state="running", cpus=1, memory=2**30, cpu=0.5, age=0.1)
ADVICE = Advice(id="i", name="web1", revision=3, state="running", watched=60)
POINT = Point(60, 30, {"cpu": 0.5}, {"cpu": 0.9})
ANSWERS: dict[str, Any] = {
    "/v1/vms/web1/usage": USAGE.model_dump(mode="json"),
    "/v1/usage": Overview(host=HostUsage(cpus=2, memory=5), vms=(USAGE,)).model_dump(mode="json"),
    "/v1/vms/web1/history": {"resolution": "hour", "step": 3600, "points": [POINT.body()]},
    "/v1/host/history": {"resolution": "minute", "step": 60, "points": []},
    "/v1/vms/web1/advice": ADVICE.model_dump(mode="json"),
}


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def place(short: Path, asked: list[str]) -> Iterator[str]:
    """The socket of a daemon that answers from a table and notes what it was asked."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(short / "s"))
        sock.listen(8)

        def serve() -> None:
            while True:
                try:
                    caller, _ = sock.accept()
                except OSError:
                    return
                with caller:
                    target = caller.recv(65536).split(b" ")[1].decode()
                    asked.append(target)
                    body = json.dumps(ANSWERS[target.partition("?")[0]]).encode()
                    caller.sendall(
                        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                        % len(body)
                        + body
                    )

        thread = threading.Thread(target=serve)
        thread.start()
        yield str(short / "s")
        sock.shutdown(socket.SHUT_RDWR)
        thread.join()


WANTED = [
    "/v1/vms/web1/usage", "/v1/usage", "/v1/vms/web1/history?resolution=hour&since=5",
    "/v1/host/history?resolution=minute&since=0",
    "/v1/vms/web1/advice?enough=60",
]  # fmt: skip


def test_the_synchronous_client(place: str, asked: list[str]) -> None:
    with Client(place) as client:
        assert client.usage("web1") == USAGE and client.overview().vms == (USAGE,)
        assert client.history("web1", "hour", 5) == [POINT] and client.history(None) == []
        assert client.advice("web1", enough=60) == ADVICE
    assert asked == WANTED


async def test_the_asynchronous_client(place: str, asked: list[str]) -> None:
    async with AsyncClient(place) as client:
        assert await client.usage("web1") == USAGE and (await client.overview()).vms == (USAGE,)
        assert (
            await client.history("web1", "hour", 5) == [POINT] and await client.history(None) == []
        )
        assert await client.advice("web1", enough=60) == ADVICE
    assert asked == WANTED
