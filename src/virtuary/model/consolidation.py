"""A consolidation plan: what many servers need, what a host has, and which server goes where. Never
stored.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, FailFast, Field, model_validator

from virtuary.base.loads import HOURS, LIMITS, check_server
from virtuary.model.meta import Model

MAX_SERVERS = 5000
MAX_HOSTS = 5000
# fail fast: of a million values the first wrong one is told; telling all would take more memory
# than the plan
Resource = Literal["cpu", "memory", "disk", "iops", "network"]
ServerName = Annotated[str, AfterValidator(check_server)]
Amount = Annotated[float, Field(ge=0, le=2.0**60, allow_inf_nan=False)]
Week = (
    Amount
    | Annotated[
        tuple[Amount, ...],
        Field(
            min_length=HOURS,
            max_length=HOURS,
            fail_fast=True,
            description="168 values, one for each hour from Monday 00:00",
        ),
    ]
)
"""168 values from Monday 00:00, or one that holds all week."""
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _capacity(resource: str) -> object:
    return Field(gt=0, le=LIMITS[resource], allow_inf_nan=False)


class ServerLoad(Model):
    """What one server needs: CPUs used, bytes of memory, bytes a second, operations a second."""

    name: ServerName
    cpu: Week | None = None
    memory: Week | None = None
    disk: Week | None = None
    iops: Week | None = None
    network: Week | None = None


class HostShape(Model):
    """What each host has. A resource without a limit is not considered."""

    cpu: Annotated[float, _capacity("cpu")]
    memory: Annotated[float, _capacity("memory")]
    disk: Annotated[float | None, Field(gt=0, le=LIMITS["disk"], allow_inf_nan=False)] = None
    iops: Annotated[float | None, Field(gt=0, le=LIMITS["iops"], allow_inf_nan=False)] = None
    network: Annotated[float | None, Field(gt=0, le=LIMITS["network"], allow_inf_nan=False)] = None


class ConsolidationWish(Model):
    servers: Annotated[tuple[ServerLoad, ...], FailFast()] = Field(
        min_length=1, max_length=MAX_SERVERS
    )
    host: HostShape
    hosts: int | None = Field(default=None, ge=1, le=MAX_HOSTS)
    """How many hosts there are at most."""
    headroom: Share = Field(default=0.1, lt=1)
    """Share of each host's capacity that stays free at every hour."""
    growth: Share = Field(default=0.0, le=10)
    """By how much every load will have grown: 0.2 is a fifth more."""
    spare: int = Field(default=0, ge=0, le=16)
    """How many hosts may fail at once while every server still has a place."""
    apart: Annotated[
        tuple[
            Annotated[
                tuple[ServerName, ...], Field(min_length=2, max_length=MAX_SERVERS, fail_fast=True)
            ],
            ...,
        ],
        FailFast(),
    ] = Field(default=(), max_length=1000)
    """Groups of servers of which no two may share a host."""
    solver_seconds: float = Field(default=5, ge=0, le=30, allow_inf_nan=False)
    """How long the exact solver may try with few servers; 0 leaves it out."""

    @model_validator(mode="after")
    def _fits_together(self) -> ConsolidationWish:
        names = {server.name for server in self.servers}
        if len(names) < len(self.servers):
            twice = Counter(server.name for server in self.servers).most_common(1)[0][0]
            raise ValueError(f"the server {twice!r} is given twice")
        for group in self.apart:
            if missing := [name for name in group if name not in names]:
                raise ValueError(f"apart names {missing[0]!r}, which is not among the servers")
            if len(set(group)) < len(group):
                raise ValueError(f"apart names a server twice in the group {', '.join(group)[:80]}")
        for resource in (name for name, limit in self.host if limit is not None):
            if missing := [
                server.name for server in self.servers if getattr(server, resource) is None
            ]:
                raise ValueError(
                    f"{resource} of {missing[0]!r} was not measured ({len(missing)} such "
                    f"servers): measure it, or give the host no {resource}"
                )
        return self


class Peak(Model):
    """The highest hour of one resource on one host."""

    value: float
    capacity: float
    headroom: float
    """Share of the capacity that is free in that hour."""
    hour: int
    """Counted from Monday 00:00."""


class Lack(Model):
    """What keeps a server from a host."""

    resource: Resource
    needed: float
    free: float
    missing: float
    hour: int


class Move(Model):
    server: str
    host: str


class Stranded(Model):
    """A server without a place. `lacks` tells of the host where least is missing; empty where only
    `apart` forbids.
    """

    server: str
    reason: str
    host: str | None = None
    lacks: tuple[Lack, ...] = ()


class Failure(Model):
    """What happens if this host fails."""

    verdict: Literal["placed", "headroom", "stranded"]
    """All its servers find a place; only if the others use their headroom; or some find none."""
    moves: tuple[Move, ...] = ()
    stranded: tuple[Stranded, ...] = ()


class PlannedHost(Model):
    name: str
    servers: tuple[str, ...]
    peaks: dict[Resource, Peak]
    failure: Failure


class Bound(Model):
    """No plan for the placed servers needs fewer hosts than this."""

    hosts: int
    kind: Literal["volume", "large", "apart", "search", "none"]
    """What it follows from: the summed load of an hour, loads that can't share a host in an hour,
    `apart`, or an exhaustive search.
    """
    resource: Resource | None = None
    hour: int | None = None


class ConsolidationPlan(Model):
    hosts_needed: int
    """With spare ones."""
    hosts_for_all: int
    """With no limit on their number, for every server that fits on an empty one."""
    hosts_used: int
    hosts_spare: int
    """Hosts that stay empty, so that others may fail."""
    bound: Bound
    gap: float
    """How many hosts more than the bound are used, as a share of the bound."""
    optimal: bool
    """Fewer hosts are proven not to suffice."""
    method: Literal["greedy", "search"]
    searched: bool = False
    """The exact solver was tried."""
    survives_failure: bool
    """Any one host may fail, and every server placed finds a place with the headroom kept."""
    considered: tuple[Resource, ...]
    hosts: tuple[PlannedHost, ...]
    unplaced: tuple[Stranded, ...] = ()
