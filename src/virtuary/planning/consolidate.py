"""From a wish to a plan: who fits at all, how few hosts could do, the best placement found, and
what a failure would do.
"""

from __future__ import annotations

from collections.abc import Sequence

from virtuary.base.errors import Invalid
from virtuary.base.loads import HOURS, TOO_LARGE
from virtuary.model.consolidation import (
    Bound,
    ConsolidationPlan,
    ConsolidationWish,
    Peak,
    PlannedHost,
    Resource,
    Stranded,
)
from virtuary.planning import exact, greedy
from virtuary.planning.bounds import lower_bound
from virtuary.planning.failure import fail, lacks, strand, used
from virtuary.planning.lanes import Bin, Frame, Item, Scale, flat, make_items, make_scale


def consolidate(wish: ConsolidationWish) -> ConsolidationPlan:
    """The plan. The same wish gives the same plan, in whatever order its servers stand, unless the
    exact solver ran out of time.
    """
    scale = make_scale(wish.host, wish.headroom)
    if not all(scale.limits):
        raise Invalid("with this headroom a host holds nothing", "less headroom, or a larger host")
    if wish.hosts is not None and wish.hosts <= wish.spare:
        raise Invalid(
            f"of {wish.hosts} hosts {wish.spare} are to be spare",
            "fewer spare hosts, or more hosts",
        )
    return _Planner(wish, scale).plan()


class _Planner:
    def __init__(self, wish: ConsolidationWish, scale: Scale) -> None:
        self.wish, self.scale = wish, scale
        self.frame = Frame.of(scale, scale.limits)
        self.whole = Frame.of(scale, scale.capacities)
        items = make_items(wish, scale)
        self.too_large = [item for item in items if self.frame.excess(item)]
        self.items = [item for item in items if not self.frame.excess(item)]
        for item in self.items:
            item.seal(scale)
        self.searched = self.found = False

    def plan(self) -> ConsolidationPlan:
        bins, bound = self._pack()
        left: list[Item] = []
        spare, wanted = self.wish.spare, len(bins)
        if self.wish.hosts is not None and len(bins) > self.wish.hosts:
            bins, left = self._within(bins, self.wish.hosts)
        report = self._report(bins, [])
        if spare == 1 and report[0]:
            spare = 0  # the hosts in use have room enough for any one of them
        if spare and self.wish.hosts is not None and len(bins) > self.wish.hosts - spare:
            bins, more = self._within(bins, self.wish.hosts - spare)
            left += more
        if spare:
            report = self._report(bins, [Bin(self.frame) for _ in range(spare)])
        if left:
            bound = self._bound(flat(bins))
        without = [
            strand(item, bins, report[2], self.frame)
            for item in sorted(left, key=lambda item: item.name)
        ]
        return self._answer(report, bound, without, spare, len(bins), wanted)

    def _bound(self, items: Sequence[Item]) -> Bound:
        names = {item.name for item in items}
        return lower_bound(
            items, self.scale, [len(names.intersection(group)) for group in self.wish.apart]
        )

    def _pack(self) -> tuple[list[Bin], Bound]:
        bound = self._bound(self.items)
        bins = greedy.pack_greedily(self.items, self.frame, bound.hosts)
        few = len(self.items) <= exact.MOST and self.wish.solver_seconds > 0
        if few and len(bins) > bound.hosts:
            self.searched = True
            found = exact.search(
                self.items, self.frame, bound.hosts, len(bins), self.wish.solver_seconds
            )
            if found.bins is not None:
                self.found, bins = True, found.bins
            if found.bound > bound.hosts:
                bound = Bound(hosts=found.bound, kind="search")
        return _fullest_first(bins), bound

    def _within(self, bins: list[Bin], most: int) -> tuple[list[Bin], list[Item]]:
        """At most so many hosts, those with the most servers; and the servers that stay without
        one.
        """
        ordered = sorted(bins, key=lambda bin: (-len(bin.items), -bin.size))
        kept, left = ordered[:most], []
        for item in sorted(flat(ordered[most:]), key=lambda item: (item.size, item.index)):
            if place := next((bin for bin in kept if bin.fits(item)), None):
                place.add(item)
            else:
                left.append(item)
        return _fullest_first(kept), left

    def _report(
        self, bins: list[Bin], spare: list[Bin]
    ) -> tuple[bool, tuple[PlannedHost, ...], dict[int, str]]:
        """Whether any one host may fail; the hosts; their names by `id`."""
        width = len(str(len(bins) + len(spare)))
        names = {
            id(bin): f"host-{number:0{width}}" for number, bin in enumerate([*bins, *spare], 1)
        }
        hosts = tuple(
            self._host(bin, [other for other in [*bins, *spare] if other is not bin], names)
            for bin in bins
        )
        return all(host.failure.verdict == "placed" for host in hosts), hosts, names

    def _host(self, bin: Bin, others: list[Bin], names: dict[int, str]) -> PlannedHost:
        servers = tuple(sorted(item.name for item in bin.items))
        return PlannedHost(
            name=names[id(bin)],
            servers=servers,
            peaks=self._peaks(bin),
            failure=fail(bin, others, self.whole, names),
        )

    def _peaks(self, bin: Bin) -> dict[Resource, Peak]:
        """The highest hour of each resource."""
        taken, peaks = used(bin), {}
        for number, resource in enumerate(self.scale.resources):
            week = taken[number * HOURS : (number + 1) * HOURS]
            value, unit, capacity = (
                max(week),
                self.scale.units[number],
                self.scale.capacities[number],
            )
            peaks[resource] = Peak(
                value=value / unit,
                capacity=capacity / unit,
                headroom=round(1 - value / capacity, 4),
                hour=week.index(value),
            )
        return peaks  # type: ignore[return-value]

    def _answer(
        self,
        report: tuple[bool, tuple[PlannedHost, ...], dict[int, str]],
        bound: Bound,
        left: list[Stranded],
        spare: int,
        count: int,
        wanted: int,
    ) -> ConsolidationPlan:
        survives, hosts, _ = report
        return ConsolidationPlan(
            hosts_needed=count + spare,
            hosts_for_all=(wanted if left else count) + spare,
            hosts_used=count,
            hosts_spare=spare,
            bound=bound,
            gap=round((count - bound.hosts) / bound.hosts, 4) if bound.hosts else 0.0,
            optimal=count == bound.hosts,
            method="search" if self.found else "greedy",
            searched=self.searched,
            survives_failure=survives,
            considered=self.scale.resources,
            hosts=hosts,
            unplaced=(*map(self._too_large, self.too_large), *left),
        )

    def _too_large(self, item: Item) -> Stranded:
        nothing = [0] * self.scale.lanes
        return Stranded(
            server=item.name,
            reason=TOO_LARGE,
            lacks=lacks(item, nothing, self.frame),
        )


def _fullest_first(bins: list[Bin]) -> list[Bin]:
    return sorted(bins, key=lambda bin: (-bin.size, min(item.index for item in bin.items)))
