"""A placement wish to its plan: the most demanding servers first, all hosts open to all. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from virtuary.base.errors import NoRoom
from virtuary.model.placement import (
    PARTS,
    Featured,
    FilledHost,
    Part,
    Parts,
    PlacementPlan,
    PlacementWish,
    Unplaced,
    WhyNot,
)
from virtuary.planning.placement import Need, Placement, Reason, Site, fewest

UNITS: dict[Part, int] = {"cpu": 1000, "memory": 1, "disk": 1, "iops": 1, "network": 1}
"""How finely each is counted: whole numbers of this part of its unit."""
SCARCE = 4.0
"""How much more a scarce resource counts than one that is plenty."""
EXPLAINED = 100
"""Different needs whose servers' reasons are looked for: that looks at every host each time."""


def arrange(wish: PlacementWish) -> PlacementPlan:
    """Raises NoRoom where servers that are there already do not fit."""
    items: tuple[Featured, ...] = (*wish.hosts, *wish.servers)
    features = sorted({feature for item in items for feature in item.features})
    bits = {feature: 1 << place for place, feature in enumerate(features)}
    sites = [
        Site(_amounts(host), sum(bits[name] for name in set(host.features)), host.zone)
        for host in wish.hosts
    ]
    needs = [
        Need(
            _amounts(server),
            sum(bits[name] for name in set(server.features)),
            server.group,
            server.apart,
        )
        for server in wish.servers
    ]
    placement = Placement(
        sites, _weights(sites, needs), [min(column) for column in _columns(needs)], sparing=False
    )
    numbers = {host.name: number for number, host in enumerate(wish.hosts)}
    there: list[list[int]] = [[] for _ in sites]
    for index, server in enumerate(wish.servers):
        if server.host is not None:
            number = numbers[server.host]
            if any(
                amount > free
                for amount, free in zip(needs[index].amounts, placement.free[number], strict=True)
            ):
                raise NoRoom(
                    f"{server.host} has no room for {server.name}, which is said to be there",
                    "state what the host has",
                )
            placement.put(needs[index], number)
            there[number].append(index)
    before = [len(indices) for indices in there]
    waiting = [index for index, server in enumerate(wish.servers) if server.host is None]
    unplaced: list[int] = []
    largest = [max(1, *column) for column in zip(*(site.capacity for site in sites), strict=True)]
    for index in sorted(waiting, key=lambda index: _rank(needs[index], largest, index)):
        place = placement.place(needs[index])
        (unplaced if place is None else there[place]).append(index)
    hosts = tuple(
        FilledHost(
            name=host.name, zone=host.zone,
            servers=tuple(wish.servers[index].name for index in there[number]),
            new=len(there[number]) - before[number], free=_free(placement.free[number]),
        )
        for number, host in enumerate(wish.hosts) if there[number]
    )  # fmt: skip
    return PlacementPlan(
        placed=len(waiting) - len(unplaced), hosts_used=placement.used, bound=fewest(sites, needs),
        hosts=hosts,
        unplaced=_explain(wish, placement, needs, sorted(unplaced), features),
    )  # fmt: skip


def _amounts(parts: Parts) -> tuple[int, ...]:
    return tuple(round(getattr(parts, part) * UNITS[part]) for part in PARTS)


def _free(amounts: Sequence[int]) -> dict[Part, float]:
    return {part: amount / UNITS[part] for part, amount in zip(PARTS, amounts, strict=True)}


def _columns(needs: Sequence[Need]) -> list[tuple[int, ...]]:
    return list(zip(*(need.amounts for need in needs), strict=True))


def _weights(sites: Sequence[Site], needs: Sequence[Need]) -> list[float]:
    """How much each resource counts: by the share of all there is that is asked for."""
    had = [max(1, sum(column)) for column in zip(*(site.capacity for site in sites), strict=True)]
    shares = [sum(column) / total for column, total in zip(_columns(needs), had, strict=True)]
    most = max(shares) or 1.0
    return [max((share / most) ** SCARCE, 1e-6) for share in shares]


def _rank(need: Need, largest: Sequence[int], index: int) -> tuple[int, bool, float, int]:
    """Those that few hosts take come first, then the large ones."""
    return (
        -need.features.bit_count(),
        need.group is None,
        -max(a / b for a, b in zip(need.amounts, largest, strict=True)),
        index,
    )


def _explain(
    wish: PlacementWish,
    placement: Placement,
    needs: Sequence[Need],
    unplaced: Sequence[int],
    features: Sequence[str],
) -> tuple[Unplaced, ...]:
    known: dict[Need, tuple[WhyNot, ...]] = {}
    found = []
    for index in unplaced:
        need = needs[index]
        if need not in known and len(known) < EXPLAINED:
            known[need] = tuple(_why(reason, need, features) for reason in placement.why(need))
        found.append(Unplaced(server=wish.servers[index].name, why=known.get(need, ())))
    return tuple(found)


def _why(reason: Reason, need: Need, features: Sequence[str]) -> WhyNot:
    if reason.kind == "feature":
        return WhyNot(
            kind="feature", what=features[reason.which.bit_length() - 1], hosts=reason.hosts
        )
    if reason.kind == "apart":
        return WhyNot(kind="apart", what=need.group or "", hosts=reason.hosts)
    part = PARTS[reason.which]
    needed, free = need.amounts[reason.which] / UNITS[part], reason.free / UNITS[part]
    return WhyNot(kind="resource", what=part, hosts=reason.hosts, needed=needed, free=free)
