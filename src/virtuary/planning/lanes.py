"""A whole week of every resource as one big integer.

Each hour of each resource is a lane of 40 bits. One addition of two integers adds all lanes; a
host's integer begins so that the top bit of a lane gets set exactly when its limit is exceeded, so
one mask tells whether a server fits at every hour: about a microsecond for 672 lanes, where a loop
would take fifty.

Loads are counted in whole bytes (operations; millionths of a CPU), rounded up; limits are rounded
down. On hosts beyond 256 GiB the unit is the power of two that keeps a limit below 38 bits.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import add

from virtuary.base.loads import HOURS, RESOURCES
from virtuary.model.consolidation import ConsolidationWish, HostShape, ServerLoad

LANE = 5  # bytes
GUARD = 1 << (8 * LANE - 1)
TOP = 1 << 38
WEEK = 48  # bits of a lane that holds a sum over the week


def pack(values: Sequence[int]) -> int:
    """The integer with `values` as lanes, the first one lowest."""
    return int.from_bytes(b"".join([value.to_bytes(LANE, "little") for value in values]), "little")


@dataclass(frozen=True)
class Scale:
    """The units loads are counted in, and what a host holds in them."""

    resources: tuple[str, ...]
    units: tuple[float, ...]
    """How many units one of a resource's own (a byte, a CPU) makes."""
    capacities: tuple[int, ...]
    limits: tuple[int, ...]
    """Capacities less the headroom."""

    @property
    def lanes(self) -> int:
        return HOURS * len(self.resources)

    def limit_of(self, lane: int) -> int:
        return self.limits[lane // HOURS]

    def spread(self, per_resource: Sequence[int]) -> list[int]:
        """A value for each resource as a value for each lane."""
        return [value for value in per_resource for _ in range(HOURS)]


def make_scale(host: HostShape, headroom: float) -> Scale:
    resources = tuple(name for name in RESOURCES if getattr(host, name) is not None)
    units, capacities, limits = [], [], []
    for name in resources:
        capacity = float(getattr(host, name))
        unit = 1e6 if name == "cpu" else 1.0
        while capacity * unit >= TOP:
            unit /= 2
        units.append(unit)
        capacities.append(math.floor(capacity * unit + 1e-3))
        limits.append(math.floor(capacity * (1 - headroom) * unit + 1e-3))
    return Scale(resources, tuple(units), tuple(capacities), tuple(limits))


@dataclass(eq=False)
class Item:
    """One server, ready to be placed."""

    name: str
    index: int
    values: array[int]
    """Its lanes."""
    packed: int = 0
    weeks: int = 0
    """The sum of each resource over the week, in lanes of 48 bits: a quick way to see that it does
    not fit.
    """
    size: int = 0
    conflicts: int = 0
    """Bits of the servers it must not meet."""

    def seal(self, scale: Scale) -> None:
        """Make the integers; only for values no larger than the limits."""
        self.packed = pack(self.values)
        sums = [sum(self.values[at : at + HOURS]) for at in range(0, scale.lanes, HOURS)]
        self.weeks = sum(total << (WEEK * number) for number, total in enumerate(sums))
        self.size = sum(
            (total << 20) // (limit * HOURS)
            for total, limit in zip(sums, scale.limits, strict=True)
        )


def make_item(server: ServerLoad, index: int, scale: Scale, growth: float) -> Item:
    """The lanes of one server, grown and rounded up; clipped far above any limit."""
    lanes: list[int] = []
    for resource, unit in zip(scale.resources, scale.units, strict=True):
        factor = unit * (1 + growth)
        week = getattr(server, resource)
        values = week if isinstance(week, tuple) else (week,) * HOURS
        lanes += [
            min(GUARD - 1, math.ceil(value * factor - 1e-3)) if value else 0 for value in values
        ]
    return Item(server.name, index, array("q", lanes))


def make_items(wish: ConsolidationWish, scale: Scale) -> list[Item]:
    """All servers in the order of their names, so that a plan does not depend on the order they
    came in.
    """
    ordered = sorted(wish.servers, key=lambda server: server.name)
    items = [make_item(server, index, scale, wish.growth) for index, server in enumerate(ordered)]
    by_name = {item.name: item for item in items}
    for group in wish.apart:
        mask = sum(1 << by_name[name].index for name in group)
        for name in group:
            by_name[name].conflicts |= mask & ~(1 << by_name[name].index)
    return items


@dataclass(frozen=True)
class Frame:
    """What an empty host looks like, for one kind of limit."""

    scale: Scale
    limits: tuple[int, ...]
    empty: int = 0
    mask: int = 0
    empty_weeks: int = 0
    mask_weeks: int = 0

    @staticmethod
    def of(scale: Scale, limits: tuple[int, ...]) -> Frame:
        top = 1 << (WEEK - 1)
        return Frame(
            scale,
            limits,
            pack(scale.spread([GUARD - 1 - limit for limit in limits])),
            pack([GUARD] * scale.lanes),
            sum(
                (top - 1 - limit * HOURS) << (WEEK * number) for number, limit in enumerate(limits)
            ),
            sum(top << (WEEK * number) for number in range(len(limits))),
        )

    def excess(self, item: Item) -> bool:
        """Whether the server is too large even for an empty host."""
        return any(
            max(item.values[at : at + HOURS]) > limit
            for at, limit in zip(range(0, self.scale.lanes, HOURS), self.limits, strict=True)
        )


@dataclass(eq=False)
class Bin:
    """One host and the servers on it. `add` and `remove` are exact opposites."""

    frame: Frame
    items: list[Item] = field(default_factory=list)
    state: int = 0
    weeks: int = 0
    present: int = 0
    """Bits of the servers on it."""

    def __post_init__(self) -> None:
        self.state, self.weeks = self.frame.empty, self.frame.empty_weeks
        given, self.items = self.items, []
        for item in given:
            self.add(item)

    def fits(self, item: Item) -> bool:
        """Whether the server has room here at every hour, and may meet who is here."""
        frame = self.frame
        return not (
            (self.weeks + item.weeks) & frame.mask_weeks
            or self.present & item.conflicts
            or (self.state + item.packed) & frame.mask
        )

    def add(self, item: Item) -> None:
        self.items.append(item)
        self.state += item.packed
        self.weeks += item.weeks
        self.present |= 1 << item.index

    def remove(self, item: Item) -> None:
        self.items.remove(item)
        self.state -= item.packed
        self.weeks -= item.weeks
        self.present &= ~(1 << item.index)

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)


def total(items: Sequence[Item], lanes: int) -> list[int]:
    """The load of some servers together, lane by lane."""
    found = [0] * lanes
    for item in items:
        found = list(map(add, found, item.values))
    return found


def flat(bins: Sequence[Bin]) -> list[Item]:
    return list(chain.from_iterable(bin.items for bin in bins))
