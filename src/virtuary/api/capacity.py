"""Routes about the host's account: what there is, what is promised, what still fits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Query

from virtuary.actions import account
from virtuary.actions.networks import all_networks, find
from virtuary.actions.vms import checked
from virtuary.api import answers
from virtuary.api.deps import P, Parts
from virtuary.api.routing import make_router
from virtuary.base.errors import NoRoom
from virtuary.model.bandwidth import Direction
from virtuary.model.cpu import Cpu
from virtuary.model.disk import Disk
from virtuary.model.host import Balance, HostStatus, PoolUsage
from virtuary.model.memory import Memory
from virtuary.model.network import DEFAULT
from virtuary.model.vm import Vm, VmSpec
from virtuary.node.site import allocated, host_status
from virtuary.node.touch import volumes as touched
from virtuary.store import servers, volumes

router = make_router("/v1", tags=["host"])


async def described(parts: Parts) -> HostStatus:
    """The host with its account."""
    status = await host_status(parts.node.site)
    vms = servers.of_host(parts.store, parts.node.site.host_id)
    disks = volumes.of_host(parts.store, parts.node.site.host_id)
    balances = account.balances(status, vms, disks)
    metrics = parts.node.metrics
    week = await metrics.history(None, "hour", int(time.time()) - 7 * 86400)
    used = [(point.at, point.mean["pool_used"]) for point in week if "pool_used" in point.mean]
    pool = PoolUsage(
        name="default", size=status.disk, free=status.disk_free, promised=balances["disk"].promised,
        allocated=allocated(parts.node.site, vms) + touched.allocated(parts.node.site, disks),
        full_in=account.forecast(used,
        status.disk_free - status.reserve_disk),
    )  # fmt: skip
    bandwidth = account.bandwidths(all_networks(parts.store), status.links, vms)
    return status.but(account=balances, pools=(pool,), bandwidth=bandwidth)


@router.get("/host", response_model=answers.HostAnswer)
async def host(parts: P) -> dict[str, Any]:
    """What this host has, promises and uses."""
    status = await described(parts)
    kept = {"reserve_memory": status.reserve_memory, "reserve_disk": status.reserve_disk}
    return {"id": parts.node.site.host_id, **status.model_dump(mode="json"), **kept}


@router.get("/capacity", response_model=answers.Capacity)
async def capacity(
    parts: P,
    cpus: Annotated[int, Query(ge=1, le=255)] = 1,
    memory: Annotated[int, Query(ge=64 << 20)] = 1 << 30,
    disk: Annotated[int, Query(ge=1 << 20)] = 4 << 30,
    cpu_reserve: Annotated[int, Query(ge=0)] = 0,
    bandwidth: Annotated[int, Query(ge=0)] = 0,
    network: str = DEFAULT,
    count: Annotated[int | None, Query(ge=1)] = None,
) -> dict[str, Any]:
    """How many more servers of this shape there is room for, and what runs out first; with `count`
    whether so many fit.

    `bandwidth`: bits a second that each is sure of, both ways, on the network.
    """
    status = await host_status(parts.node.site)
    vms = servers.of_host(parts.store, parts.node.site.host_id)
    link = _link(parts, network, status, vms) if bandwidth else {}
    spec = checked(
        lambda: VmSpec(
            image="any",
            cpu=Cpu(count=cpus, reserve=cpu_reserve),
            memory=Memory(size=memory),
            disks=(Disk(size=disk),),
        )
    )
    disks = volumes.of_host(parts.store, parts.node.site.host_id)
    fit = account.fit(spec, status, vms, bandwidth, link, disks)
    enough = None if count is None else fit.servers >= count
    missing = None
    if count is not None and not enough:
        needed = account.Claim(*(amount * count for amount in fit.each))
        found = account.alone(spec, status) + account.shortage(
            needed, account.balances(status, vms, disks)
        )
        found += (
            [account.full(status, needed.disk, status.disk_free)]
            if status.disk_free < status.reserve_disk
            else []
        )
        found += account.bandwidth_shortage(bandwidth * count, link) if bandwidth else []
        missing = "; ".join(error.sentence for error in found)
    return {
        "servers": fit.servers, "limit": fit.limit, "each": {**fit.each._asdict(),
        "bandwidth": bandwidth}, "by": fit.by,
        "wanted": count, "fits": enough, "missing": missing,
    }  # fmt: skip


def _link(
    parts: Parts, name: str, status: HostStatus, vms: list[Vm]
) -> Mapping[Direction, Balance]:
    """What of a network's link is promised; raises NotFound, or NoRoom where nobody knows its
    speed.
    """
    network = find(parts.store, name)
    link = account.bandwidths([network], status.links, vms).get(network.name)
    if link is None:
        remedy = f"virtuary network set {network.name} --speed 1Gbit"
        raise NoRoom(
            f"nothing of the link of {network.name} is promised: its speed is not known", remedy
        )
    return link
