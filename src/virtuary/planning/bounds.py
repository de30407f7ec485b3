"""How few hosts could possibly do: bounds from below that hold for every plan, each with its
reason.

*Volume*: in every hour, all loads of a resource together, divided by what a host holds. *Large*: in
one hour, loads above half a host need a host each, and what the others leave beside them is limited
(Martello and Toth's bound L2, for every hour of every resource). *Apart*: servers that must not
meet. Integer arithmetic throughout, so nothing is lost to rounding.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import attrgetter

from virtuary.base.loads import HOURS
from virtuary.model.consolidation import Bound
from virtuary.planning.lanes import Item, Scale, total

THRESHOLDS = 16


def lower_bound(items: Sequence[Item], scale: Scale, apart: Sequence[int] = ()) -> Bound:
    """The best of the bounds for `items`, each of which fits on an empty host. `apart`: sizes of
    groups among them.
    """
    if not items:
        return Bound(hosts=0, kind="none")
    best = _volume(items, scale)
    if (large := _large(items, scale)) and large.hosts > best.hosts:
        best = large
    if max(apart, default=0) > best.hosts:
        best = Bound(hosts=max(apart), kind="apart")
    return best if best.hosts >= 1 else Bound(hosts=1, kind="none")


def _bound(hosts: int, kind: str, lane: int, scale: Scale) -> Bound:
    return Bound.model_validate(
        {
            "hosts": hosts,
            "kind": kind,
            "resource": scale.resources[lane // HOURS],
            "hour": lane % HOURS,
        }
    )


def _volume(items: Sequence[Item], scale: Scale) -> Bound:
    sums = total(items, scale.lanes)
    lane = max(range(scale.lanes), key=lambda lane: (sums[lane] / scale.limit_of(lane), -lane))
    return _bound(
        max(-(-sums[lane] // scale.limit_of(lane)) for lane in range(scale.lanes)),
        "volume",
        lane,
        scale,
    )


def _large(items: Sequence[Item], scale: Scale) -> Bound | None:
    """The best L2 over all lanes in which some load exceeds half a host."""
    best: tuple[int, int] = (0, 0)
    for lane, column in enumerate(zip(*map(attrgetter("values"), items), strict=True)):
        limit = scale.limit_of(lane)
        if 2 * max(column) > limit:
            best = max(best, (martello_toth(sorted(column), limit), -lane))
    return _bound(best[0], "large", -best[1], scale) if best[0] else None


def martello_toth(ordered: Sequence[int], limit: int) -> int:
    """The bound L2 for one-dimensional bin packing of ascending sizes, none above `limit`; some
    thresholds are tried, not all.
    """
    sums = [0, *accumulate(ordered)]
    half = bisect_right(ordered, limit // 2)  # ordered[half:] are above half: no two of them share
    small = ordered[:half]
    tried = sorted({0, *(small[at] for at in range(0, half, max(1, half // THRESHOLDS)))})
    best = len(ordered) - half
    for threshold in tried:
        # ordered[alone:] leave no room for one of threshold or more
        alone = bisect_right(ordered, limit - threshold)
        first = bisect_left(ordered, threshold, 0, half)
        beside = max(half, alone)
        room = (beside - half) * limit - (sums[beside] - sums[half])
        rest = sums[half] - sums[first] - room
        best = max(best, len(ordered) - half + max(0, -(-rest // limit)))
    return best
