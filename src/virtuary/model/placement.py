"""Where servers could go on hosts that are partly full: what is asked, and what comes out. Never
stored.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import AfterValidator, FailFast, Field, model_validator

from virtuary.base.loads import check_server
from virtuary.model.meta import Model

MAX_HOSTS, MAX_SERVERS, MAX_FEATURES = 20_000, 200_000, 64
Amount = Annotated[float, Field(ge=0, le=2.0**60, allow_inf_nan=False)]
Named = Annotated[str, AfterValidator(check_server)]
Part = Literal["cpu", "memory", "disk", "iops", "network"]
PARTS: tuple[Part, ...] = ("cpu", "memory", "disk", "iops", "network")


class Parts(Model):
    """CPUs, bytes of memory, bytes of disk, operations a second, bits a second; what is not named
    is none of it.
    """

    cpu: Amount = 0
    memory: Amount = 0
    disk: Amount = 0
    iops: Amount = 0
    network: Amount = 0


class Featured(Parts):
    """Amounts, and what goes with them."""

    features: tuple[Named, ...] = ()
    """What not every host can, and some server needs: `huge`, `gpu`, anything."""


class HostRoom(Featured):
    """What a host has."""

    name: Named
    zone: Annotated[str, Field(max_length=100)] = ""
    """What fails together: a rack, a room. Hosts without one are a zone together."""


class ServerNeed(Featured):
    """What a server is promised."""

    name: Named
    host: Named | None = None
    """Where it is already; it stays there."""
    group: Named | None = None
    apart: Literal["host", "zone"] = "host"
    """Servers of a group are on different hosts, or in different zones."""


class PlacementWish(Model):
    hosts: Annotated[tuple[HostRoom, ...], FailFast()] = Field(min_length=1, max_length=MAX_HOSTS)
    servers: Annotated[tuple[ServerNeed, ...], FailFast()] = Field(
        min_length=1, max_length=MAX_SERVERS
    )

    @model_validator(mode="after")
    def _fits_together(self) -> PlacementWish:
        for what, names in (
            ("host", [host.name for host in self.hosts]),
            ("server", [server.name for server in self.servers]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(
                    f"the {what} {Counter(names).most_common(1)[0][0]!r} is given twice"
                )
        hosts = {host.name for host in self.hosts}
        if lost := next(
            (
                server
                for server in self.servers
                if server.host is not None and server.host not in hosts
            ),
            None,
        ):
            raise ValueError(f"{lost.name!r} is on {lost.host!r}, which is not among the hosts")
        items: tuple[Featured, ...] = (*self.hosts, *self.servers)
        features = {feature for item in items for feature in item.features}
        if len(features) > MAX_FEATURES:
            raise ValueError(f"there are {len(features)} features; {MAX_FEATURES} are the most")
        return self


class WhyNot(Model):
    """What stands between a server and hosts; one host may have several reasons."""

    kind: Literal["resource", "feature", "apart"]
    what: str
    """The resource, the feature, or the group."""
    hosts: int
    """How many hosts it keeps the server from."""
    needed: float | None = None
    free: float | None = None
    """The most that is free of the resource on any host."""


class Unplaced(Model):
    server: str
    why: tuple[WhyNot, ...] = ()


class FilledHost(Model):
    name: str
    zone: str
    servers: tuple[str, ...]
    """All that are there then."""
    new: int
    """How many of them were placed now: the last ones."""
    free: dict[Part, float]


class PlacementPlan(Model):
    placed: int
    hosts_used: int
    bound: int
    """No placement of all these servers uses fewer hosts."""
    hosts: tuple[FilledHost, ...]
    """Those with a server, in the order they were given."""
    unplaced: tuple[Unplaced, ...] = ()
