"""What the daemon does to its own process."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

from virtuary.base import startup

CODE = """
import resource
from virtuary.daemon import _open_many
resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
_open_many()
_open_many()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_daemon_may_open_as_many_files_as_hundreds_of_servers_need() -> None:
    said = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=30, check=True
    ).stdout.split()
    assert int(said[0]) == min(int(said[1]), 65_536)


STARTED = """
import json, sys
from virtuary.base import startup
import gc
startup.begin()
begun = gc.isenabled()
import virtuary.daemon
from fastapi.openapi.models import OpenAPI
from virtuary.api.app import about, images, vms
from virtuary.model.vm import Vm
from virtuary.api.answers import Vms
from virtuary.model.consolidation import ConsolidationWish
from virtuary.model.placement import PlacementWish
models = (OpenAPI, Vm, Vms, ConsolidationWish, PlacementWish)
routes = [route for router in (about, images.router, vms.router) for route in router.routes]
startup.settle()
print(json.dumps({
    "modules": sorted(sys.modules),
    "models": [kind.__name__ for kind in models if kind.__pydantic_complete__],
    "routes": [route.name for route in routes if getattr(route, "built", False)],
    "collector": [begun, gc.isenabled(), gc.get_freeze_count() > 0],
}))
"""
LATER = {
    "yaml",
    "virtuary.images.build",
    "virtuary.images.convert",
    "cryptography",
    "websockets",
    "httpx",
    "rich",
    "multipart",
}
"""What some requests need, and no daemon that starts."""


def test_a_start_loads_and_builds_only_what_the_first_answer_needs() -> None:
    said = subprocess.run(
        [sys.executable, "-c", STARTED], capture_output=True, text=True, timeout=30, check=True
    ).stdout
    found = json.loads(said)
    assert LATER & set(found["modules"]) == set()
    assert (found["models"], found["routes"]) == ([], [])
    assert found["collector"] == [False, True, True]


def test_a_process_that_has_not_begun_as_a_daemon_keeps_its_collector_as_it_is() -> None:
    before = gc.get_freeze_count()
    startup.settle()
    assert gc.isenabled() and gc.get_freeze_count() == before
