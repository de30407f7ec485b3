"""Where could a server run, and why not there: one decision after the other, onto hosts that are
partly full. Pure.

*Best fit*: of the hosts that take a server the fullest has it, by what is free of all resources
together, so that few hosts are used and large servers find room later. Hosts lie in order of that,
those that have the same features on a shelf of their own; a search begins where enough is free at
all and mostly ends after a few. Hosts too full for anybody are put away, and empty ones stand
aside, alike ones together, so that neither is looked at in vain. A server that does not need them
takes a host with rare features last.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Sequence
from operator import le, sub
from typing import Literal, NamedTuple

NARROW = 1e-9
"""What sums of fractions may differ by."""
LOOKED_AT = 6
"""Hosts that take a server, among which the one is chosen whose rest is of most use."""


class Site(NamedTuple):
    """A host: what it has of each resource, whole numbers; what it can, as bits; and what fails
    together with it.
    """

    capacity: tuple[int, ...]
    features: int = 0
    zone: str = ""


class Need(NamedTuple):
    """What a server needs of each resource, and whom it must not meet."""

    amounts: tuple[int, ...]
    features: int = 0
    group: str | None = None
    apart: Literal["host", "zone"] = "host"
    """Servers of its group are on other hosts, or in other zones."""


class Reason(NamedTuple):
    """Why hosts don't take a server; one host may have several."""

    kind: Literal["resource", "feature", "apart"]
    which: int
    """Number of the resource, or bit of the feature."""
    hosts: int
    free: int
    """The most of the resource that is free on any host."""


class Placement:
    """Hosts and what is on them."""

    def __init__(
        self, sites: Sequence[Site], weights: Sequence[float] = (), least: Sequence[int] = (), *,
        sparing: bool = True
    ) -> None:  # fmt: skip
        """`weights`: how much each resource counts, by how scarce it will be. `least`: the smallest
        need of each that will come. `sparing`: hosts with features are kept for servers that need
        them, which may come yet, while others have room.
        """
        self.sites = list(sites)
        resources = len(sites[0].capacity) if sites else 0
        largest = [
            max(1, *(site.capacity[number] for site in sites)) if sites else 1
            for number in range(resources)
        ]
        self._scale = [
            weight / most
            for weight, most in zip(weights or [1.0] * resources, largest, strict=True)
        ]
        self._sparing = sparing
        self._least = list(least or [0] * resources)
        self.free = [list(site.capacity) for site in sites]
        self.servers = [0] * len(sites)
        self._shelves: dict[int, list[tuple[float, int]]] = {site.features: [] for site in sites}
        self._empty: dict[int, dict[tuple[tuple[int, ...], str], list[int]]] = {
            site.features: defaultdict(list) for site in sites
        }
        """Those without a server, alike ones together, by features."""
        self._suits: dict[int, list[int]] = {}
        self._met: dict[str, tuple[Counter[int], Counter[str]]] = {}
        """How many of a group are on a host, and in a zone."""
        for number in range(len(sites) - 1, -1, -1):
            self._alike(number).append(number)

    @property
    def used(self) -> int:
        """Hosts with a server on them."""
        return sum(1 for servers in self.servers if servers)

    def place(self, need: Need) -> int | None:
        """Choose a host for a server and put it there; None when there is none, see `why`."""
        if any(amount < least for amount, least in zip(need.amounts, self._least, strict=True)):
            self._reopen(need)
        number = self._choose(need)
        if number is not None:
            self.put(need, number)
        return number

    def put(self, need: Need, number: int) -> None:
        """Put a server onto this host, which has room for it."""
        self._leave_shelf(number)
        self.free[number] = list(map(sub, self.free[number], need.amounts))
        self.servers[number] += 1
        self._enter_shelf(number)
        self._count(need, number, 1)

    def remove(self, need: Need, number: int) -> None:
        """Take a server away from its host."""
        self._leave_shelf(number)
        self.free[number] = [
            free + amount for free, amount in zip(self.free[number], need.amounts, strict=True)
        ]
        self.servers[number] -= 1
        self._enter_shelf(number)
        self._count(need, number, -1)

    def why(self, need: Need) -> list[Reason]:
        """What stands between a server and the hosts, the most frequent first; looks at all of
        them.
        """
        hosts, most = [0] * len(need.amounts), [0] * len(need.amounts)
        features: dict[int, int] = defaultdict(int)
        apart = 0
        for number, free in enumerate(self.free):
            for resource, (amount, left) in enumerate(zip(need.amounts, free, strict=True)):
                most[resource] = max(most[resource], left)
                hosts[resource] += amount > left
            lacking = need.features & ~self.sites[number].features
            while lacking:
                features[lacking & -lacking] += 1
                lacking &= lacking - 1
            apart += self._meets(need, number)
        found = [
            Reason("resource", number, count, most[number])
            for number, count in enumerate(hosts)
            if count
        ]
        found += [Reason("feature", bit, count, 0) for bit, count in features.items()]
        found += [Reason("apart", 0, apart, 0)] if apart else []
        return sorted(found, key=lambda reason: -reason.hosts)

    # ---- choosing

    def _choose(self, need: Need) -> int | None:
        size = (
            sum(amount * scale for amount, scale in zip(need.amounts, self._scale, strict=True))
            - NARROW
        )
        suiting = self._suiting(need.features)
        for group in [[features] for features in suiting] if self._sparing else [suiting]:
            for features in group:
                if (number := self._on_shelf(self._shelves[features], need, size)) is not None:
                    return number
            for features in group:
                if (number := self._open_one(features, need)) is not None:
                    return number
        return None

    def _suiting(self, features: int) -> list[int]:
        """The shelves whose hosts have at least these features, those with the fewest others
        first.
        """
        if features not in self._suits:
            suiting = [shelf for shelf in self._shelves if shelf & features == features]
            self._suits[features] = sorted(suiting, key=lambda shelf: (shelf.bit_count(), shelf))
        return self._suits[features]

    def _on_shelf(self, shelf: list[tuple[float, int]], need: Need, size: float) -> int | None:
        best, chosen, seen, amounts = 0.0, None, 0, need.amounts
        for place in range(bisect_left(shelf, (size, -1)), len(shelf)):
            number = shelf[place][1]
            free = self.free[number]
            if not all(map(le, amounts, free)) or (
                need.group is not None and self._meets(need, number)
            ):
                continue
            rest = self._rest(free, amounts)
            if chosen is None or rest < best:
                best, chosen = rest, number
            seen += 1
            if seen == LOOKED_AT:
                break
        return chosen

    def _rest(self, free: Sequence[int], amounts: Sequence[int]) -> float:
        """How little use what is left would be: all of it, and once more what is left beyond the
        scarcest.
        """
        parts = [
            (left - amount) * scale
            for left, amount, scale in zip(free, amounts, self._scale, strict=True)
        ]
        return 2 * sum(parts) - len(parts) * min(parts)

    def _open_one(self, features: int, need: Need) -> int | None:
        """An empty host with just these features: large, and in the zone where the fewest are in
        use.
        """
        best: tuple[float, int] | None = None
        chosen = None
        for (capacity, _), waiting in self._empty[features].items():
            if not waiting or not all(map(le, need.amounts, capacity)):
                continue
            if need.group is not None and self._meets(need, waiting[-1]):
                continue
            size = sum(amount * scale for amount, scale in zip(capacity, self._scale, strict=True))
            rank = -size, -len(waiting)
            if best is None or rank < best:
                best, chosen = rank, waiting[-1]
        return chosen

    def _meets(self, need: Need, number: int) -> bool:
        """Whether somebody of its group is there already."""
        if need.group is None or need.group not in self._met:
            return False
        hosts, zones = self._met[need.group]
        return self.sites[number].zone in zones if need.apart == "zone" else number in hosts

    def _count(self, need: Need, number: int, by: int) -> None:
        if need.group is None:
            return
        hosts, zones = self._met.setdefault(need.group, (Counter(), Counter()))
        hosts[number] += by
        zones[self.sites[number].zone] += by
        if by < 0:
            self._met[need.group] = +hosts, +zones

    # ---- shelves

    def _alike(self, number: int) -> list[int]:
        """The empty hosts like this one."""
        site = self.sites[number]
        return self._empty[site.features][site.capacity, site.zone]

    def _key(self, number: int) -> tuple[float, int]:
        return sum(
            free * scale for free, scale in zip(self.free[number], self._scale, strict=True)
        ), number

    def _is_open(self, number: int) -> bool:
        return all(map(le, self._least, self.free[number]))

    def _leave_shelf(self, number: int) -> None:
        if not self.servers[number]:
            self._alike(number).remove(number)
        elif self._is_open(number):
            shelf = self._shelves[self.sites[number].features]
            del shelf[bisect_left(shelf, self._key(number))]

    def _enter_shelf(self, number: int) -> None:
        if not self.servers[number]:
            self._alike(number).append(number)
        elif self._is_open(number):
            insort(self._shelves[self.sites[number].features], self._key(number))

    def _reopen(self, need: Need) -> None:
        """Somebody smaller than all before: hosts that were too full for those may take it."""
        self._least = list(map(min, self._least, need.amounts))
        self._shelves = {features: [] for features in self._shelves}
        for number, servers in enumerate(self.servers):
            if servers and self._is_open(number):
                self._shelves[self.sites[number].features].append(self._key(number))
        for shelf in self._shelves.values():
            shelf.sort()


def fewest(sites: Sequence[Site], needs: Sequence[Need]) -> int:
    """No placement of all these servers uses fewer hosts: of some resource the largest hosts
    together would not have enough.
    """
    best = 1 if needs else 0
    for number in range(len(sites[0].capacity) if sites else 0):
        wanted, hosts = sum(need.amounts[number] for need in needs), 0
        for capacity in sorted((site.capacity[number] for site in sites), reverse=True):
            if wanted <= 0:
                break
            wanted, hosts = wanted - capacity, hosts + 1
        best = max(best, hosts)
    return best
