"""What answers become that are no documents: how a command ended, points of a history, the failure
of an operation.
"""

from __future__ import annotations

import base64
from typing import Any, NamedTuple

from virtuary.base.errors import Failed, from_problem
from virtuary.model.operation import Operation
from virtuary.model.usage import Point


class Outcome(NamedTuple):
    """How a command in a guest ended."""

    status: int
    stdout: bytes
    stderr: bytes


def outcome(answer: dict[str, Any]) -> Outcome:
    return Outcome(
        answer["status"], base64.b64decode(answer["stdout"]), base64.b64decode(answer["stderr"])
    )


def points(answer: dict[str, Any]) -> list[Point]:
    return [Point(**point) for point in answer["points"]]


def judged(operation: Operation) -> Operation:
    """An ended operation; raises what it failed with."""
    if operation.status.phase == "failed":
        raise from_problem(operation.status.error or {})
    if operation.status.phase == "cancelled":
        raise Failed("the operation was cancelled", operation=operation.id)
    return operation
