"""P16, placement: 100,000 servers onto 10,000 hosts, one decision after the other. P30, the
consolidation planner: 2,000 servers with their loads in every hour of the week onto about 200
hosts.

The planner is measured as the daemon uses it: its own process, from JSON to JSON, with what happens
when each host fails. Beside it runs plain first fit decreasing on the same loads. It needs neither
QEMU nor a daemon:

    python benchmarks/planning.py [SERVERS]
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import Row

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/planning"))
from fleets import fleet, wish

from virtuary.planning import exact
from virtuary.planning.bounds import lower_bound
from virtuary.planning.greedy import first_fit, pack_greedily
from virtuary.planning.lanes import Bin, Frame, Item, make_items, make_scale
from virtuary.planning.placement import Need, Placement, Site, fewest

COMMAND = [sys.executable, "-I", "-m", "virtuary.planning", "consolidation"]


def p30(_: Any = None, count: int = 2000, rounds: int = 3) -> None:
    row = Row(
        "P30",
        f"consolidation plan: {count} servers, 168 hours x 4 resources, as a process of its own",
        targets=["<= 10 s"],
    )
    wanted = wish(fleet(count))
    text = wanted.model_dump_json(exclude_none=True).encode()
    plans: list[dict[str, Any]] = []

    def run_ours() -> float:
        began = time.monotonic()
        plans.append(
            json.loads(subprocess.run(COMMAND, input=text, capture_output=True, check=True).stdout)
        )
        return time.monotonic() - began

    scale = make_scale(wanted.host, wanted.headroom)
    frame = Frame.of(scale, scale.limits)
    bins: list[Bin] = []

    def run_first_fit() -> float:
        began = time.monotonic()
        items = [item for item in make_items(wanted, scale) if not frame.excess(item)]
        for item in items:
            item.seal(scale)
        bins[:] = first_fit(items, frame)
        return time.monotonic() - began

    row.interleave(
        {"ours, whole": run_ours, "first fit decreasing, in memory": run_first_fit}, rounds
    )
    plan = plans[-1]
    row.facts["hosts"] = (
        f"ours {plan['hosts_used']}, first fit decreasing {len(bins)}, proven bound "
        f"{plan['bound']['hosts']}"
    )
    row.facts["hosts / bound"] = (
        f"ours {plan['hosts_used'] / plan['bound']['hosts']:.3f}, first fit "
        f"{len(bins) / plan['bound']['hosts']:.3f}"
    )
    row.facts["the same plan every time"] = all(each == plan for each in plans)
    row.facts["request"] = f"{len(text) / 2**20:.1f} MiB of JSON"
    row.facts["small cases"] = small()
    row.finish()


def small(cases: int = 40, seconds: float = 5.0) -> str:
    """Fleets of 14 servers: how often the exact solver proves the fewest hosts, how long it takes,
    how often greedy had them.
    """
    proven = same = 0
    longest = 0.0
    for seed in range(cases):
        wanted = wish(fleet(14, size=6.0, seed=seed))
        items, frame = _ready(wanted)
        bound = lower_bound(items, frame.scale).hosts
        greedy = len(pack_greedily(items, frame, bound))
        began = time.monotonic()
        found = exact.search(items, frame, bound, greedy, seconds)
        longest = max(longest, time.monotonic() - began)
        best = len(found.bins) if found.bins else greedy
        proven += best == found.bound
        same += best == greedy
    return (
        f"of {cases} fleets of 14: proven optimal {proven}, greedy was as good in {same}, "
        f"longest search {longest:.2f} s"
    )


def _ready(wanted: Any) -> tuple[list[Item], Frame]:
    scale = make_scale(wanted.host, wanted.headroom)
    frame = Frame.of(scale, scale.limits)
    items = [item for item in make_items(wanted, scale) if not frame.excess(item)]
    for item in items:
        item.seal(scale)
    return items, frame


# ---- P16

SHAPES = ((32_000, 131_072, 2000, 20_000, 10_000, 0), (64_000, 262_144, 4000, 40_000, 25_000, 0))
"""Of hosts: thousandths of a CPU, MiB, GiB of disk, operations, Mbit/s, devices."""
FLAVOURS = {
    (500, 1024, 10): 6, (1000, 2048, 20): 12, (1000, 4096, 20): 12, (2000, 4096, 40): 15, (2000,
    8192, 40): 14,
    (4000, 8192, 80): 14, (4000, 16_384, 80): 10, (8000, 32_768, 160): 8, (8000, 16_384, 100): 6,
    (16_000, 65_536, 400): 3,
}  # fmt: skip
"""Servers' CPU, memory and disk, and how often they are wanted."""
HUGE, DEVICE = 1, 2


def trace(hosts: int, servers: int, seed: int = 1) -> tuple[list[Site], list[Need]]:
    """Hosts in ten zones, one in twenty with huge pages, one in twenty with devices; one server in
    forty needs each, one in five belongs to a group of three whose members stand in different
    zones.
    """
    chance = random.Random(seed)
    sites, needs = [], list[Need]()
    for number in range(hosts):
        capacity, features = SHAPES[number % 2], HUGE * (chance.random() < 0.05)
        if chance.random() < 0.05:
            capacity, features = (*capacity[:5], 8), features | DEVICE
        sites.append(Site(capacity, features, f"zone {number % 10}"))
    while len(needs) < servers:
        cpu, memory, disk = chance.choices(list(FLAVOURS), list(FLAVOURS.values()))[0]
        features = HUGE * (chance.random() < 0.025) + DEVICE * (chance.random() < 0.025)
        members = 3 if chance.random() < 0.08 else 1
        group = f"group {len(needs)}" if members > 1 else None
        for _ in range(members):
            rest = (
                int(disk * chance.uniform(0.5, 1.5)),
                int(cpu * chance.uniform(0.1, 0.5)),
                int(cpu * chance.uniform(0.05, 0.2)),
            )
            needs.append(Need((cpu, memory, *rest, features // DEVICE), features, group, "zone"))
    return sites, needs[:servers]


def valid(sites: Sequence[Site], needs: Sequence[Need], places: Sequence[int | None]) -> bool:
    """Whether nothing is given twice, no feature is missing, and no two of a group share a zone;
    looked at from nothing.
    """
    left = [list(site.capacity) for site in sites]
    zones: set[tuple[str, str]] = set()
    for need, place in zip(needs, places, strict=True):
        if place is None:
            continue
        left[place] = [
            free - amount for free, amount in zip(left[place], need.amounts, strict=True)
        ]
        key = (need.group or "", sites[place].zone)
        if (
            min(left[place]) < 0
            or need.features & ~sites[place].features
            or (need.group and key in zones)
        ):
            return False
        zones.add(key)
    return True


def plain_first_fit(
    sites: Sequence[Site], needs: Sequence[Need]
) -> tuple[list[int | None], list[float]]:
    """The yardstick: every server onto the first host that takes it."""
    left, zones, places, took = (
        [list(site.capacity) for site in sites],
        set[tuple[str, str]](),
        list[int | None](),
        list[float](),
    )
    for need in needs:
        began = time.perf_counter()
        place = None
        for number, free in enumerate(left):
            if need.features & ~sites[number].features or (
                need.group and (need.group, sites[number].zone) in zones
            ):
                continue
            if all(amount <= has for amount, has in zip(need.amounts, free, strict=True)):
                place = number
                left[number] = [
                    has - amount for has, amount in zip(free, need.amounts, strict=True)
                ]
                zones.add((need.group or "", sites[number].zone))
                break
        places.append(place)
        took.append(time.perf_counter() - began)
    return places, took


def p16(_: Any = None, hosts: int = 10_000, servers: int = 100_000) -> None:
    row = Row("P16",
    f"placement: {servers} servers onto {hosts} hosts, 6 resources, one after the other", targets=[
        ">= 5,000 decisions/s on one core, 99th % < 1 ms", "<= 1.05 of the bound",
    ])  # fmt: skip
    sites, needs = trace(hosts, servers)
    least = [min(column) for column in zip(*(need.amounts for need in needs), strict=True)]
    bound = fewest(sites, needs)
    some = servers // 20  # first fit looks at thousands of hosts for each
    few_sites, few_needs = trace(hosts // 20, some)
    told: dict[str, str] = {}

    def tell(
        name: str,
        sites: Sequence[Site],
        needs: Sequence[Need],
        places: list[int | None],
        took: list[float],
    ) -> float:
        assert valid(sites, needs, places), f"{name} broke a rule"
        used = len(set(places) - {None})
        told[name] = (
            f"{len(took) / sum(took):,.0f} decisions/s, 99th % "
            f"{1000 * sorted(took)[len(took) * 99 // 100]:.3f} ms, {used} hosts, "
            f"{used / fewest(sites, needs):.3f} of the bound, {places.count(None)} without a place"
        )
        return sum(took)

    def ours(name: str, sites: Sequence[Site], needs: list[Need], *, known: bool = False) -> float:
        placement, places, took = (
            Placement(sites, least=least, sparing=not known),
            list[int | None](),
            list[float](),
        )
        wanted = (
            sorted(needs, key=lambda need: (-need.features, need.group is None, -need.amounts[0]))
            if known
            else needs
        )
        for need in wanted:
            began = time.perf_counter()
            places.append(placement.place(need))
            took.append(time.perf_counter() - began)
        return tell(name, sites, wanted, places, took)

    few = f"{some} onto {hosts // 20}"
    row.interleave({
        "ours": lambda: ours("ours", sites, needs),
        "ours, all known before": lambda: ours("ours, all known before", sites, needs, known=True),
        f"ours, {few}": lambda: ours(f"ours, {few}", few_sites, few_needs),
        f"first fit, {few}": lambda: tell(f"first fit, {few}", few_sites, few_needs,
        *plain_first_fit(few_sites, few_needs)),
    }, 3)  # fmt: skip
    row.facts |= {**told, "bound": bound}
    row.finish()


ROWS: dict[str, Callable[[Any], None]] = {"P16": p16, "P30": p30}


if __name__ == "__main__":
    p30(count=int(sys.argv[1]) if sys.argv[1:] else 2000)
