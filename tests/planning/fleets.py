"""Servers to plan with, made up the same way every time."""

from __future__ import annotations

import math
import random
from typing import Any

from virtuary.base.loads import HOURS
from virtuary.model.consolidation import ConsolidationPlan, ConsolidationWish, HostShape, ServerLoad

GIB = 2**30
SHAPE = HostShape(cpu=16, memory=64 * GIB, disk=500 * 2**20, network=125_000_000)
KINDS = ("day", "night", "flat", "weekend", "batch")


def activity(kind: str, hour: int) -> float:
    """How busy a server of this kind is in an hour of the week, 0 to 1."""
    day, of_day = divmod(hour, 24)
    light = 0.25 + 0.75 * math.sin((of_day - 6) / 14 * math.pi) if 6 <= of_day <= 20 else 0.25
    table = {
        "day": light if day < 5 else 0.2,
        "night": 1.2 - light,
        "flat": 0.7,
        "weekend": light if day >= 5 else 0.25,
        "batch": 1.0 if of_day in (1, 2, 3) else 0.1,
    }
    return table[kind]


def fleet(count: int, size: float = 1.4, seed: int = 1) -> list[ServerLoad]:
    """Servers of five habits, with needs as uneven as in real halls."""
    chance = random.Random(seed)
    servers = []
    for number in range(count):
        kind = chance.choice(KINDS)
        cpu = chance.lognormvariate(0.0, 0.7) * size
        memory = chance.choice([1, 2, 4, 4, 8, 8, 16]) * GIB * chance.uniform(0.4, 0.95) * size
        disk, network = (
            chance.lognormvariate(2.5, 1.0) * 2**20 * size,
            chance.lognormvariate(1.0, 1.0) * 2**20 * size,
        )
        busy = [activity(kind, hour) * chance.uniform(0.85, 1.0) for hour in range(HOURS)]
        needs = {
            "cpu": [round(cpu * share, 4) for share in busy],
            "memory": [float(round(memory * (0.8 + 0.2 * share))) for share in busy],
        }
        needs |= {
            name: [float(round(most * share)) for share in busy]
            for name, most in (("disk", disk), ("network", network))
        }
        servers.append(ServerLoad.model_validate({"name": f"server-{number:04}", **needs}))
    return servers


def wish(servers: list[ServerLoad], host: HostShape = SHAPE, **fields: Any) -> ConsolidationWish:
    return ConsolidationWish(servers=tuple(servers), host=host, **fields)


def week(value: Any) -> list[float]:
    return list(value) if isinstance(value, tuple) else [value] * HOURS


def check(wanted: ConsolidationWish, plan: ConsolidationPlan) -> None:
    """What must be true of every plan, held against the wish alone, in plain floating point."""
    loads = {server.name: server for server in wanted.servers}
    placed = [name for host in plan.hosts for name in host.servers]
    assert sorted([*placed, *(item.server for item in plan.unplaced)]) == sorted(loads), (
        "each server stands once"
    )
    assert len(plan.hosts) == plan.hosts_used >= plan.bound.hosts
    assert plan.hosts_needed == plan.hosts_used + plan.hosts_spare <= (wanted.hosts or 10**9)
    for host in plan.hosts:
        assert host.servers
        check_limits(wanted, [loads[name] for name in host.servers], wanted.headroom)
        for group in wanted.apart:
            assert len(set(group) & set(host.servers)) <= 1
    for host in plan.hosts:
        check_failure(wanted, plan, host.name)


def check_limits(wanted: ConsolidationWish, servers: list[ServerLoad], headroom: float) -> None:
    for resource in (name for name, limit in wanted.host if limit is not None):
        limit = getattr(wanted.host, resource) * (1 - headroom)
        sums = [
            sum(values)
            for values in zip(*(week(getattr(server, resource)) for server in servers), strict=True)
        ]
        assert max(sums) * (1 + wanted.growth) <= limit * (1 + 1e-9) + 1e-6, resource


def check_failure(wanted: ConsolidationWish, plan: ConsolidationPlan, lost: str) -> None:
    """Where the servers of a failed host go, they have room; with the headroom kept, or used where
    it is said.
    """
    loads = {server.name: server for server in wanted.servers}
    host = next(host for host in plan.hosts if host.name == lost)
    moved = {move.server for move in host.failure.moves}
    assert sorted([*moved, *(item.server for item in host.failure.stranded)]) == sorted(
        host.servers
    )
    for name in {move.host for move in host.failure.moves}:
        assert name != lost
        there = [server for other in plan.hosts if other.name == name for server in other.servers]
        there += [move.server for move in host.failure.moves if move.host == name]
        check_limits(
            wanted,
            [loads[server] for server in there],
            wanted.headroom if host.failure.verdict == "placed" else 0,
        )
        for group in wanted.apart:
            assert len(set(group) & set(there)) <= 1
