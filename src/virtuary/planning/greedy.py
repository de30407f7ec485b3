"""Good plans quickly: hosts are filled one after the other with the servers that suit what is left
on them.

*First fit decreasing* puts every server on the first host that takes it; it is the yardstick.
*Filling* takes, for the open host, the fitting server whose needs lie where most is free: the
largest product of the two, over blocks of hours of each resource (bin-centric dot product,
Panigrahy and others 2011). The products of all servers are computed at once: a block's loads of all
servers are the lanes of one big integer, and multiplying it by what the host has free multiplies
every lane. *Improving* empties some hosts and fills them anew, again and again. Effort is counted
in steps, never in seconds, so the same input gives the same plan everywhere.
"""

from __future__ import annotations

import random
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from operator import add

from virtuary.base.loads import HOURS
from virtuary.planning.lanes import Bin, Frame, Item

BLOCK = 6
FINE = 255
VARIANTS = ((1.0, True), (4.0, False))
"""How much scarce resources count, and whether a server's own size counts against it. Tried on all
servers at once.
"""
MANY = 1000
POWERS = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Tried on a few hosts at a time."""
EFFORT = 12_000
"""Servers placed while improving; about two seconds."""


def first_fit(items: Sequence[Item], frame: Frame, bins: list[Bin] | None = None) -> list[Bin]:
    """First fit decreasing by the loads summed over the week."""
    bins = bins if bins is not None else []
    for item in decreasing(items):
        for bin in bins:
            if bin.fits(item):
                bin.add(item)
                break
        else:
            bins.append(Bin(frame, [item]))
    return bins


def decreasing(items: Sequence[Item]) -> list[Item]:
    return sorted(items, key=lambda item: (-item.size, item.index))


def coarse(values: Sequence[int], limits: Sequence[int]) -> list[int]:
    """The highest of each block of hours, in 255ths of the limit."""
    return [
        max(values[at : at + BLOCK]) * FINE // limits[at // HOURS]
        for at in range(0, len(values), BLOCK)
    ]


@dataclass
class Shelf:
    """Servers that wait for a host, and their loads turned on their side."""

    items: list[Item]
    rows: dict[int, list[int]]
    """Coarse loads by the item's index."""
    weights: list[int]
    lean: bool
    columns: list[int]
    own: int = 0
    """What each server's own size counts against it, as lanes."""

    @staticmethod
    def of(items: list[Item], rows: dict[int, list[int]], weights: list[int], lean: bool) -> Shelf:
        chosen = [rows[item.index] for item in items]
        columns = [_lanes(column) for column in zip(*chosen, strict=True)]
        shelf = Shelf(items, rows, weights, lean, columns)
        if lean:
            sizes = [
                sum(weight * value * value for weight, value in zip(weights, row, strict=True))
                for row in chosen
            ]
            highest = max(sizes)
            shelf.own = _lanes([highest - size for size in sizes])
        return shelf

    def scores(self, free: Sequence[int]) -> array[int]:
        """How well each server suits what is free, in the order of `items`."""
        found, factor = self.own, 2 if self.lean else 1
        for column, weight, left in zip(self.columns, self.weights, free, strict=True):
            if left > 0:
                found += column * (weight * left * factor)
        scores = array("I")
        scores.frombytes(found.to_bytes(4 * len(self.items), sys.byteorder))
        return scores


def _lanes(values: Sequence[int]) -> int:
    return int.from_bytes(array("I", values).tobytes(), sys.byteorder)


def make_rows(items: Sequence[Item], frame: Frame) -> dict[int, list[int]]:
    return {item.index: coarse(item.values, frame.limits) for item in items}


def make_weights(rows: Sequence[Sequence[int]], power: float) -> list[int]:
    """1 to 16 for each block: what is wanted most counts most."""
    sums = [sum(column) for column in zip(*rows, strict=True)]
    highest = max(sums) or 1
    return [max(1, round(16 * (wanted / highest) ** power)) for wanted in sums]


def fill(
    items: Sequence[Item],
    frame: Frame,
    rows: dict[int, list[int]],
    power: float,
    lean: bool,
    most: int | None = None,
) -> list[Bin]:
    """Hosts filled one after the other, at most `most`; who has no place then is left out."""
    waiting = decreasing(items)
    bins: list[Bin] = []
    if not waiting:
        return bins
    shelf = Shelf.of(
        waiting, rows, make_weights([rows[item.index] for item in waiting], power), lean
    )
    left = set(range(len(shelf.items)))
    while left and (most is None or len(bins) < most):
        if 4 * len(left) < 3 * len(shelf.items):
            shelf = Shelf.of([shelf.items[at] for at in sorted(left)], rows, shelf.weights, lean)
            left = set(range(len(shelf.items)))
        bins.append(_fill_one(Bin(frame), shelf, left))
    return bins


def _fill_one(bin: Bin, shelf: Shelf, left: set[int]) -> Bin:
    """Put servers onto one host until no other fits; takes them out of `left`."""
    limits = bin.frame.limits
    used = [0] * bin.frame.scale.lanes
    candidates = sorted(left)
    while candidates:
        scores = shelf.scores([FINE - taken for taken in coarse(used, limits)])
        candidates.sort(key=scores.__getitem__, reverse=True)
        number = next(
            (number for number, at in enumerate(candidates) if bin.fits(shelf.items[at])), None
        )
        if number is None:
            break
        at = candidates[number]
        bin.add(shelf.items[at])
        left.discard(at)
        used = list(map(add, used, shelf.items[at].values))
        candidates = candidates[number + 1 :]  # who did not fit will not: the host only gets fuller
    return bin


def improve(
    bins: list[Bin], frame: Frame, rows: dict[int, list[int]], goal: int, effort: int
) -> list[Bin]:
    """Empty some hosts, fill them anew, keep what is not worse; until `goal` hosts or no effort
    (servers placed) is left.
    """
    chance = random.Random(1)
    while len(bins) > goal and effort > 0:
        bins = sorted(bins, key=lambda bin: (bin.size, bin.items[0].index))
        count = min(len(bins), chance.randint(3, 12))
        chosen = {0, *chance.sample(range(len(bins)), count - 1)}
        loose = [item for at in sorted(chosen) for item in bins[at].items]
        kept = [bin for at, bin in enumerate(bins) if at not in chosen]
        effort -= len(loose) + 20
        anew = fill(loose, frame, rows, chance.choice(POWERS), lean=chance.random() < 0.6)
        if _better(anew, [bins[at] for at in sorted(chosen)]):
            bins = kept + _spill(anew, kept)
    return bins


def _spill(bins: list[Bin], others: list[Bin]) -> list[Bin]:
    """Put what is on the smallest of `bins` onto other hosts, as far as it fits; hosts without
    servers are gone.
    """
    smallest = min(bins, key=lambda bin: bin.size)
    for item in decreasing(smallest.items):
        if place := next(
            (bin for bin in [*bins, *others] if bin is not smallest and bin.fits(item)), None
        ):
            smallest.remove(item)
            place.add(item)
    return [bin for bin in bins if bin.items]


def _better(new: list[Bin], old: list[Bin]) -> bool:
    """Fewer hosts, or fuller and emptier ones: one of them may be empty soon."""
    return len(new) < len(old) or (
        len(new) == len(old) and sum(bin.size**2 for bin in new) >= sum(bin.size**2 for bin in old)
    )


def pack_greedily(
    items: Sequence[Item], frame: Frame, goal: int, effort: int = EFFORT
) -> list[Bin]:
    """The best of first fit, every variant of filling, and improving; stops as soon as `goal` hosts
    suffice.
    """
    best = first_fit(items, frame)
    if len(best) <= goal:
        return best
    rows = make_rows(items, frame)
    for power, lean in _promising(items, frame, rows):
        best = min(best, fill(items, frame, rows, power, lean), key=len)
        if len(best) <= goal:
            return best
    return improve(best, frame, rows, goal, effort)


def _promising(
    items: Sequence[Item], frame: Frame, rows: dict[int, list[int]]
) -> Sequence[tuple[float, bool]]:
    """The variants worth trying on all servers: each, or of very many servers the one that does
    best with every fifth.
    """
    if len(items) <= MANY:
        return VARIANTS
    some = decreasing(items)[::5]
    return [min(VARIANTS, key=lambda variant: len(fill(some, frame, rows, *variant)))]
