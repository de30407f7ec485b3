"""What both clients share: requests as data, answers as models."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from typing import Any, NamedTuple

from virtuary.base.errors import Failed, from_problem
from virtuary.client.wire import path_part
from virtuary.model.consolidation import ConsolidationWish, HostShape, ServerLoad
from virtuary.model.operation import Operation
from virtuary.model.placement import HostRoom, PlacementWish, ServerNeed
from virtuary.model.usage import Point
from virtuary.model.vm import VmChange, VmCopy, VmWish


class Outcome(NamedTuple):
    """How a command in a guest ended."""

    status: int
    stdout: bytes
    stderr: bytes


def outcome(answer: dict[str, Any]) -> Outcome:
    return Outcome(
        answer["status"], base64.b64decode(answer["stdout"]), base64.b64decode(answer["stderr"])
    )


def idempotency() -> dict[str, str]:
    return {"Idempotency-Key": secrets.token_hex(16)}


def vm_wish(image: str, name: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    """The body of a creation; fields are those of `VmWish`, checked before anything is sent."""
    return VmWish(image=image, name=name, **fields).model_dump(
        mode="json", exclude_none=True, exclude_defaults=True
    ) | {"image": image}


def vm_change(fields: dict[str, Any]) -> dict[str, Any]:
    return VmChange(**fields).model_dump(mode="json", exclude_unset=True)


def vm_copy(name: str | None, fields: dict[str, Any]) -> dict[str, Any]:
    return VmCopy(name=name, **fields).model_dump(mode="json", exclude_unset=True)


def placement_wish(servers: Iterable[ServerNeed], hosts: Iterable[HostRoom]) -> dict[str, Any]:
    """The body of a request; raises Invalid as pydantic does where it makes no sense."""
    return PlacementWish(servers=tuple(servers), hosts=tuple(hosts)).model_dump(
        mode="json", exclude_none=True
    )


def consolidation_wish(
    servers: Iterable[ServerLoad], host: HostShape, fields: dict[str, Any]
) -> dict[str, Any]:
    return ConsolidationWish(servers=tuple(servers), host=host, **fields).model_dump(
        mode="json", exclude_none=True
    )


def exec_body(command: list[str], stdin: bytes, timeout: float) -> dict[str, Any]:
    return {"command": command, "stdin": base64.b64encode(stdin).decode(), "timeout": timeout}


def history_path(name: str | None) -> str:
    return "/v1/host/history" if name is None else f"/v1/vms/{path_part(name)}/history"


def points(answer: dict[str, Any]) -> list[Point]:
    return [Point(**point) for point in answer["points"]]


def judged(operation: Operation) -> Operation:
    """An ended operation; raises what it failed with."""
    if operation.status.phase == "failed":
        raise from_problem(operation.status.error or {})
    if operation.status.phase == "cancelled":
        raise Failed("the operation was cancelled", operation=operation.id)
    return operation
