"""What happens if a host fails: where its servers go, or what is missing.

First with every other host's headroom kept, then with it used. A server that found no place is told
with the host where least is missing. The search is greedy: "placed" is certain, "stranded" means
that no way was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import add

from virtuary.base.loads import HOURS
from virtuary.model.consolidation import Failure, Lack, Move, Stranded
from virtuary.planning.greedy import decreasing
from virtuary.planning.lanes import Bin, Frame, Item

LOOKED_AT = 4  # hosts, the emptiest, when it is told what is missing


def fail(lost: Bin, others: Sequence[Bin], whole: Frame, names: dict[int, str]) -> Failure:
    """What happens to the servers of `lost`. `others`: the fullest first; `whole`: the frame of
    full capacities; `names`: by `id`.
    """
    placed, stranded = _rehome(lost, others, None)
    if not stranded:
        return Failure(verdict="placed", moves=_moves(placed, names))
    strict = placed, stranded
    placed, stranded = _rehome(lost, others, whole)
    if not stranded:
        return Failure(verdict="headroom", moves=_moves(placed, names))
    if len(strict[1]) <= len(stranded):
        placed, stranded = strict
    reasons = tuple(strand(item, others, names, whole) for item in stranded)
    return Failure(verdict="stranded", moves=_moves(placed, names), stranded=reasons)


def _moves(placed: list[tuple[Item, int]], names: dict[int, str]) -> tuple[Move, ...]:
    return tuple(Move(server=item.name, host=names[place]) for item, place in placed)


def _rehome(
    lost: Bin, others: Sequence[Bin], frame: Frame | None
) -> tuple[list[tuple[Item, int]], list[Item]]:
    """Servers with the host (by `id`) each goes to, and those without; the first of `others` that
    takes one gets it.
    """
    opened: dict[int, Bin] = {}
    placed: list[tuple[Item, int]] = []
    stranded: list[Item] = []
    shift = frame.empty - lost.frame.empty if frame else 0
    for item in decreasing(lost.items):
        for bin in others:
            now = opened.get(id(bin))
            if now.fits(item) if now else _fits(bin, item, shift):
                placed.append((item, id(bin)))
                if now is None:
                    now = opened[id(bin)] = Bin(frame or bin.frame, bin.items)
                now.add(item)
                break
        else:
            stranded.append(item)
    return placed, stranded


def _fits(bin: Bin, item: Item, shift: int) -> bool:
    """Whether the server fits, on a host whose empty state is higher by `shift` (negative: it holds
    more).
    """
    if not shift:
        return bin.fits(item)
    return not (bin.present & item.conflicts) and not (
        (bin.state + shift + item.packed) & bin.frame.mask
    )


def strand(item: Item, others: Sequence[Bin], names: dict[int, str], frame: Frame) -> Stranded:
    """Why the server found no place on any of `others` (the fullest first) within the limits of
    `frame`, by the host where least is missing.
    """
    if not others:
        return Stranded(server=item.name, reason="there is no other host")
    allowed = [bin for bin in others if not bin.present & item.conflicts]
    if not allowed:
        return Stranded(
            server=item.name, reason="every other host has a server it must be kept apart from"
        )
    bin = min(allowed[-LOOKED_AT:], key=lambda bin: _worst(item, bin, frame))
    if missing := lacks(item, used(bin), frame):
        return Stranded(
            server=item.name, reason="no host has room", host=names[id(bin)], lacks=missing
        )
    return Stranded(
        server=item.name, reason="others that had to move took the room", host=names[id(bin)]
    )


def _worst(item: Item, bin: Bin, frame: Frame) -> float:
    """The share of its limit that the scarcest resource would need."""
    lanes = enumerate(zip(used(bin), item.values, strict=True))
    return max((have + need) / frame.limits[lane // HOURS] for lane, (have, need) in lanes)


def used(bin: Bin) -> list[int]:
    """The load of a host, lane by lane."""
    found = [0] * bin.frame.scale.lanes
    for item in bin.items:
        found = list(map(add, found, item.values))
    return found


def lacks(item: Item, taken: Sequence[int], frame: Frame) -> tuple[Lack, ...]:
    """What a server lacks on a host with the load `taken`, each resource at its worst hour."""
    found = []
    for number, (resource, unit) in enumerate(
        zip(frame.scale.resources, frame.scale.units, strict=True)
    ):
        lanes = range(number * HOURS, (number + 1) * HOURS)
        lane = max(lanes, key=lambda lane: (taken[lane] + item.values[lane], -lane))
        free = frame.limits[number] - taken[lane]
        if (needed := item.values[lane]) > free:
            fact = {
                "needed": needed / unit,
                "free": max(0, free) / unit,
                "missing": (needed - free) / unit,
            }
            found.append(Lack.model_validate({"resource": resource, "hour": lane % HOURS, **fact}))
    return tuple(found)
