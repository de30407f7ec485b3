"""Clients that public generators make from the document can be used: lists, a creation, wrong
input, a deletion, each with its types.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import uvicorn

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; these share a file
from service import Service, make_parts, settle

from virtuary.base.paths import find_paths

TOURS = Path(__file__).with_name("tours")
BIN = Path(sys.executable).parent
GENERATORS = {
    "openapi-python-client": ["openapi-python-client", "generate", "--path", "{document}",
    "--output-path", "{place}/made", "--meta", "none"],
    "openapi-generator": ["openapi-generator-cli", "generate", "-i", "{document}", "-g", "python",
    "-o", "{place}", "--package-name", "made"],
}  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real application, on loopback, over a store in memory."""
    paths = find_paths({"VIRTUARY_ROOT": str(tmp_path_factory.mktemp("root"))})
    paths.ensure()
    service = Service(make_parts(paths))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(service.app, log_level="warning", lifespan="off"))

    async def serve() -> None:
        await settle(service.parts)
        await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.qemu
@pytest.mark.parametrize("generator", GENERATORS)
def test_a_generated_client_can_be_used(generator: str, address: str, tmp_path: Path) -> None:
    document = tmp_path / "openapi.json"
    document.write_bytes(httpx2.get(f"{address}/openapi.json").content)
    words = [word.format(document=document, place=tmp_path) for word in GENERATORS[generator]]
    path = f"{BIN}:{os.environ['PATH']}"
    made = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PATH": path},
        timeout=120,
    )
    assert made.returncode == 0, made.stderr + made.stdout
    assert (
        "WARNING" not in made.stdout + made.stderr and "Unable" not in made.stdout + made.stderr
    ), made.stdout + made.stderr
    tour = TOURS / f"{generator.replace('-', '_')}.py"
    done = subprocess.run(
        [sys.executable, str(tour), address],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (
        0,
        ["lists", "created", "refused", "missing", "deleted"],
    ), done.stderr
