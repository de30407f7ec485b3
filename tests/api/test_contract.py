"""Every route against its own contract: whatever is sent, the daemon answers, and never with a
defect.

Requests are made up from the OpenAPI document (and against it). Left out are the two answers that
have no end: the stream of events, and a wait.
"""

from __future__ import annotations

import asyncio
import atexit
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from virtuary.base.paths import find_paths

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; these share a file
from service import Service, make_parts, settle


def loaded() -> Any:
    folder = tempfile.mkdtemp(prefix="vt-contract-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    paths = find_paths({"VIRTUARY_ROOT": folder})
    paths.ensure()
    service = Service(make_parts(paths))

    async def fill() -> None:
        await settle(service.parts)
        for name in ("web1", "web2"):
            await service.call("POST", "/v1/vms", {"image": "tiny", "name": name})

    asyncio.run(fill())
    return schemathesis.openapi.from_asgi("/openapi.json", service.app)


CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
"""A defect answers with 500, which is declared: none may."""
schema = loaded().exclude(path_regex="events|wait|doctor|/v1/host$")


@pytest.mark.qemu
@schema.parametrize()
@settings(
    max_examples=12, derandomize=True, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
def test_no_request_meets_a_defect(case: Any) -> None:
    response = case.call()
    case.validate_response(response, checks=CHECKS)
    if response.status_code >= 400:
        assert response.json()["code"] != "bug"
        assert (
            response.headers["content-type"] == ["application/problem+json"]
            and response.json()["detail"]
        )
