"""Routes that compute and change nothing: plans of consolidation and of placement.

A long body is never parsed here: a niced process of its own reads it, checks it and computes, so
that neither a long plan nor a long request holds up the daemon. One plan at a time.
"""

from __future__ import annotations

import json
import logging
import signal
import sys

from fastapi import Request
from pydantic import BaseModel
from starlette.responses import Response

from virtuary.api.routing import make_router
from virtuary.base.errors import Busy, Failed, Invalid, NoRoom, from_problem
from virtuary.base.log import say
from virtuary.base.proc import Result, last_line, run
from virtuary.model.consolidation import ConsolidationPlan, ConsolidationWish
from virtuary.model.placement import PlacementPlan, PlacementWish
from virtuary.planning import PROBLEM

logger = logging.getLogger("virtuary.api")
router = make_router("/v1/plans", tags=["plans"])
BODY_CAP = 96 * 1024 * 1024
"""Loads of thousands of servers are long."""
SMALL = 64 * 1024
DEADLINE = 300.0
_COMMAND = (sys.executable, "-I", "-m", "virtuary.planning")


class _Desk:
    """Lets one plan be computed at a time."""

    def __init__(self) -> None:
        self.taken = False

    def __enter__(self) -> None:
        if self.taken:
            raise Busy("another plan is being computed", "repeat in a moment")
        self.taken = True

    def __exit__(self, *_: object) -> None:
        self.taken = False


desk = _Desk()


@router.post(
    "/consolidation",
    max_body_size=BODY_CAP,
    responses={200: {"model": ConsolidationPlan}},
)
async def plan_consolidation(request: Request) -> Response:
    """Which of many servers, by their loads in every hour of the week, go onto how many hosts."""
    return await _plan(
        "consolidation",
        ConsolidationWish,
        request,
        "the body must hold the servers' loads and the host's shape",
    )


@router.post(
    "/placement",
    max_body_size=BODY_CAP,
    responses={200: {"model": PlacementPlan}},
)
async def plan_placement(request: Request) -> Response:
    """Where servers could go on hosts that are partly full, and why not where they can't."""
    return await _plan("placement", PlacementWish, request, "the body must hold hosts and servers")


async def _plan(kind: str, wish: type[BaseModel], request: Request, empty: str) -> Response:
    with desk:
        body = await request.body()
        if not body:
            raise Invalid(empty)
        if len(body) <= SMALL:
            # what is wrong with a short one is told without a process
            wish.model_validate_json(body)
        return Response(_judged(await _compute(kind, body)), media_type="application/json")


async def _compute(kind: str, body: bytes) -> Result:
    try:
        return await run(*_COMMAND, kind, stdin=body, deadline=DEADLINE, check=False)
    except Failed as error:
        raise Failed(
            f"the plan was not ready within {DEADLINE:.0f} s", "fewer servers at once"
        ) from error


def _judged(result: Result) -> bytes:
    """The plan; raises the problem the process told, NoRoom when it was ended for what it took,
    Failed for a defect.
    """
    if result.status == 0:
        return result.stdout
    if result.status == PROBLEM:
        raise from_problem(json.loads(result.stdout))
    if (
        result.status in (-signal.SIGXCPU, -signal.SIGKILL, -signal.SIGABRT)
        or b"MemoryError" in result.stderr
    ):
        raise NoRoom("the plan needs more time or memory than it may take", "fewer servers at once")
    say(logger, "planning failed", status=result.status, said=last_line(result.stderr))
    raise Failed(
        "the planning process ended without an answer",
        "the daemon's log may tell more",
        status=result.status,
    )
