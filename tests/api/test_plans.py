"""Consolidation plans as callers meet them: computed by another process, refused with a sentence,
one at a time.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from virtuary.api import plans
from virtuary.api.app import BODY_CAP
from virtuary.base.paths import Paths
from virtuary.base.proc import Result
from virtuary.model.consolidation import ConsolidationPlan

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; these share files
sys.path.insert(0, str(Path(__file__).parents[1] / "planning"))
from fleets import check, fleet, wish
from service import Service, make_parts

ROUTE = "/v1/plans/consolidation"
TWO: dict[str, Any] = {
    "servers": [
        {"name": "a", "cpu": 1, "memory": 1000},
        {"name": "b", "cpu": [2] * 168, "memory": 1000},
    ],
    "host": {"cpu": 2.5, "memory": 4000},
}


@pytest.fixture
def api(paths: Paths) -> Service:
    return Service(make_parts(paths))


async def test_a_plan_is_answered(api: Service) -> None:
    answer = await api.call("POST", ROUTE, TWO)
    assert answer.status == 200, answer.json
    plan = ConsolidationPlan.model_validate(answer.json)
    assert (
        plan.hosts_used == 2
        and plan.optimal
        and [host.servers for host in plan.hosts] == [("b",), ("a",)]
    )


@pytest.mark.slow
async def test_long_requests_are_taken_and_the_daemon_answers_meanwhile(api: Service) -> None:
    wanted = wish(fleet(300), spare=1)
    body = wanted.model_dump_json(exclude_none=True).encode()
    assert len(body) > BODY_CAP
    planning = asyncio.create_task(api.call("POST", ROUTE, body))
    slowest = 0.0
    while not planning.done():
        began = time.monotonic()
        await asyncio.sleep(0.01)
        assert (await api.call("GET", "/healthz")).status == 200
        slowest = max(slowest, time.monotonic() - began)
    answer = await planning
    assert answer.status == 200, answer.json
    check(wanted, ConsolidationPlan.model_validate(answer.json))
    assert slowest < 2, "the event loop stood still"


REFUSED: dict[str, tuple[Any, str]] = {
    "no body": (None, "the body must hold"),
    "no JSON": (b"{", "no JSON text"),
    "no object": (b"[]", "object"),
    "a deep one": (b"[" * 100_000, "JSON"),
    "not UTF-8": (b'{"servers": "\xff"}', "JSON"),
    "unknown field": ({**TWO, "colour": 1}, "colour: is not known here"),
    "NaN": (json.dumps({**TWO, "growth": float("nan")}).encode(), "growth"),
    "a negative load": ({**TWO, "servers": [{"name": "a", "cpu": -1, "memory": 1}]},
    "servers.0.cpu"),
    "a bad name": ({**TWO, "servers": [{"name": "a,b", "cpu": 1, "memory": 1}]}, "server's name"),
    "apart from a stranger": ({**TWO, "apart": [["a", "z"]]},
    "'z', which is not among the servers"),
    "half a character": (json.dumps({**TWO, "servers": [{"name": "\ud800", "cpu": 1,
    "memory": 1}]}).encode(), "JSON"),
    "a million wrong values": ({**TWO, "servers": [{"name": f"s{n}", "cpu": [-1] * 168,
    "memory": 1} for n in range(100)]}, "servers.0.cpu"),
    "millions of wrong names": ({**TWO, "apart": [["a", *[""] * 4000]] * 900}, "apart.0.1"),
    "more spare hosts than hosts": ({**TWO, "hosts": 1, "spare": 1}, "spare"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_what_makes_no_sense_is_refused_with_a_sentence(api: Service, case: str) -> None:
    body, words = REFUSED[case]
    answer = await api.call("POST", ROUTE, body)
    assert answer.status == 422, answer.body
    assert words in answer.json["detail"] and len(answer.body) < 10_000


async def test_only_plans_may_be_long(api: Service) -> None:
    long = b" " * (BODY_CAP + 1)
    assert (await api.call("POST", "/v1/vms", long)).status == 422
    assert "no JSON text" in (await api.call("POST", ROUTE, long)).json["detail"]
    too_long = await api.call("POST", ROUTE, b"{}", content_length=str(plans.BODY_CAP + 1))
    assert too_long.status == 422 and "at most" in too_long.json["detail"]


@pytest.mark.slow
async def test_one_plan_is_computed_at_a_time(api: Service) -> None:
    body = wish(fleet(100)).model_dump_json(exclude_none=True).encode()
    answers = await asyncio.gather(api.call("POST", ROUTE, body), api.call("POST", ROUTE, body))
    assert sorted(answer.status for answer in answers) == [200, 409]
    assert (await api.call("POST", ROUTE, TWO)).status == 200


async def test_strangers_get_no_plan(paths: Paths) -> None:
    stranger = Service(make_parts(paths), uid=None)
    assert (await stranger.call("POST", ROUTE, TWO)).status == 403


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (Result(-24, b"", b""), "more time or memory"),
        (Result(1, b"", b"Traceback\nMemoryError\n"), "more time or memory"),
        (Result(1, b"", b"Traceback\nKeyError\n"), "without an answer"),
    ],
)
def test_a_planning_process_that_was_ended_is_told(result: Result, words: str) -> None:
    with pytest.raises((plans.Failed, plans.NoRoom), match=words):
        plans._judged(result)


async def test_the_planning_process_is_gone_when_the_caller_is(
    api: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "DEADLINE", 0.2)
    body = wish(fleet(300)).model_dump_json(exclude_none=True).encode()
    answer = await api.call("POST", ROUTE, body)
    assert answer.status == 500 and "not ready within" in answer.json["detail"]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not any(
        b"virtuary.planning" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children
    )
    assert not plans.desk.taken
