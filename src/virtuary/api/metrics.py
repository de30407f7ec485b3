"""Routes about what is used: newest figures, history, advice, and the page Prometheus reads. None
waits for a machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query
from starlette.responses import PlainTextResponse, Response

from virtuary import __version__
from virtuary.actions import account
from virtuary.actions.advise import Limits, advise
from virtuary.actions.context import find_host, find_vm
from virtuary.api import answers
from virtuary.api.deps import P, Parts
from virtuary.api.exposition import MEDIA, page
from virtuary.api.routing import make_router
from virtuary.model.advice import Advice
from virtuary.model.meta import Model
from virtuary.model.usage import STEPS, Overview, Point, Resolution, Usage
from virtuary.model.vm import Vm
from virtuary.store import documents

router = make_router(tags=["usage"])
Since = Annotated[
    int, Query(ge=0, le=2**40, description="only points from this second on, since 1970")
]
Enough = Annotated[
    float,
    Query(ge=60, le=90 * 86400, description="seconds of history it takes to call a server too big"),
]


def _overview(parts: Parts) -> Overview:
    vms = documents.every(parts.store, Vm)
    present = [vm for vm in vms if vm.meta.deleted is None and not vm.meta.purge]
    metrics = parts.node.metrics
    metrics.watch()
    return Overview(host=metrics.host_usage(), vms=tuple(map(metrics.usage, present)))


@router.get("/v1/usage", response_model=Overview)
async def usage_of_all(parts: P) -> Response:
    """What the host and each of its servers use, as last seen; asking makes the host look more
    closely for a while.
    """
    return _answer(_overview(parts))


@router.get("/v1/vms/{name}/usage", response_model=Usage)
async def usage(parts: P, name: str) -> Response:
    """What a server uses, as last seen; figures that nobody could tell are null."""
    vm = find_vm(parts.store, name)
    parts.node.metrics.watch()
    found = parts.node.metrics.usage(vm)
    host = find_host(parts.store, parts.node.site.host_id).status
    promised = account.claim_of(vm, host).memory if host else 0
    return _answer(found.but(promised=promised or None))


@router.get("/v1/vms/{name}/history", response_model=answers.History)
async def history(
    parts: P, name: str, resolution: Resolution = "minute", since: Since = 0
) -> Response:
    """What a server used: ten minutes by the second, a day by the minute, ninety days by the hour;
    oldest first.
    """
    return _points(
        resolution,
        await parts.node.metrics.history(find_vm(parts.store, name).id, resolution, since),
    )


@router.get("/v1/host/history", response_model=answers.History)
async def host_history(parts: P, resolution: Resolution = "minute", since: Since = 0) -> Response:
    """What the host used."""
    return _points(resolution, await parts.node.metrics.history(None, resolution, since))


@router.get("/metrics", response_class=PlainTextResponse)
async def prometheus(parts: P) -> Response:
    """The figures in Prometheus' text format."""
    return Response(page(_overview(parts), __version__), media_type=MEDIA)


@router.get("/v1/advice", response_model=answers.Advices)
async def advice_on_all(parts: P, enough: Enough = Limits.enough) -> Response:
    """Which servers are too big or too small, judged by their history; a server on which there is
    nothing to say says so.
    """
    vms = [vm for vm in documents.every(parts.store, Vm) if not vm.meta.deleted]
    found = [await _advice(parts, vm, enough) for vm in vms]
    return Response(
        json.dumps({"items": [item.model_dump(mode="json") for item in found]}),
        media_type="application/json",
    )


@router.get("/v1/vms/{name}/advice", response_model=Advice)
async def advice(parts: P, name: str, enough: Enough = Limits.enough) -> Response:
    """Whether a server is too big or too small, why, and the change that mends it."""
    return _answer(await _advice(parts, find_vm(parts.store, name), enough))


async def _advice(parts: Parts, vm: Vm, enough: float) -> Advice:
    metrics = parts.node.metrics
    minutes, hours = await metrics.history(vm.id, "minute"), await metrics.history(vm.id, "hour")
    host = metrics.host_usage()
    memory = host.memory - parts.node.site.settings.resources.memory_kept(host.memory)
    return advise(vm, minutes, hours, Limits(cpus=host.cpus, memory=memory, enough=enough))


def _points(resolution: str, points: Sequence[Point]) -> Response:
    body: dict[str, Any] = {
        "resolution": resolution,
        "step": STEPS[resolution],
        "points": [point.body() for point in points],
    }
    return Response(json.dumps(body), media_type="application/json")


def _answer(model: Model) -> Response:
    return Response(model.model_dump_json(), media_type="application/json")
