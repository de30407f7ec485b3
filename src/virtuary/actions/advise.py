"""Right-sizing: whether a server has too much or too little, judged by its history. Pure, and
careful in one direction.

To call a server too big its busiest twentieth of time is looked at, by the minute and by the hour,
and its highest need of memory ever seen; that takes a day of history. Too small shows sooner,
because waiting hurts. What is advised leaves room: processors are to be busy six tenths of the time
at most, memory used seven tenths at its peak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from virtuary.base.units import MIB, format_duration, format_size
from virtuary.model.advice import Advice, Confidence, Finding
from virtuary.model.memory import default_memory
from virtuary.model.usage import Point
from virtuary.model.vm import Vm

MINUTE, HOUR, DAY = 60, 3600, 86400
BUSY = 0.6
"""Share of its processors that a server of the right size uses in its busiest twentieth of time."""
SATURATED = 0.9
"""Share of its processors from which on it could use more."""
CROWDED = 0.2
"""Share of the wanted processor time that was waited for from which on the host, not the server, is
too small.
"""
FULL, ROOMY = 0.9, 0.7
"""Share of memory in use: from FULL on too little; what is advised is used up to ROOMY at its peak.
"""
SWAPPING = 64 * 1024
"""Bytes a second to and from swap, over hours, that a server with enough memory does not show."""
WORTH = 0.7
"""Memory is to be taken only when so much of it or less is enough."""
SMALL_ENOUGH = 10 * MINUTE
"""Seconds of history it takes to call a server too small."""


FIELDS = {"cpus": ("cpu", "count"), "memory": ("memory", "size")}
"""What each resource is called in a change, with the noun it is part of."""


@dataclass(frozen=True)
class Limits:
    """What advice may not go beyond."""

    cpus: int
    """Processors of the host."""
    memory: int
    """Bytes that the host can give its servers in all."""
    enough: float = DAY
    """Seconds of history it takes to call a server too big."""


class Past(NamedTuple):
    """A server's history as advice reads it."""

    minutes: Sequence[Point]
    hours: Sequence[Point]
    watched: int


def advise(vm: Vm, minutes: Sequence[Point], hours: Sequence[Point], limits: Limits) -> Advice:
    """What there is to say about a server's size. `minutes` and `hours` are its history, oldest
    first.
    """
    early = [point for point in hours if not minutes or point.at + HOUR <= minutes[0].at]
    past = Past(minutes, hours, sum(point.covered for point in (*early, *minutes)))
    findings = (judge_cpus(vm, past, limits), judge_memory(vm, past, limits))
    change = {item.resource: item.wanted for item in findings if item.wanted is not None}
    words = [
        f"--{name} {value if name == 'cpus' else f'{value // MIB}MiB'}"
        for name, value in change.items()
    ]
    return Advice(
        id=vm.id,
        name=vm.name,
        revision=vm.meta.revision,
        state=vm.status.state,
        watched=past.watched,
        findings=findings,
        change={FIELDS[name][0]: {FIELDS[name][1]: value} for name, value in change.items()},
        command=f"virtuary set {vm.name} {' '.join(words)}" if change else None,
        saves={
            item.resource: item.now - item.wanted for item in findings if item.wanted is not None
        },
    )


# ---- processors


def judge_cpus(vm: Vm, past: Past, limits: Limits) -> Finding:
    """Whether it has too many or too few virtual processors, or whether something else holds it
    back.
    """
    cpus = vm.spec.cpu.count
    busy = quantile(past.minutes, 0.95, "cpu"), quantile(past.hours, 0.95, "cpu")
    known = [value for value in busy if value is not None]
    if past.watched < SMALL_ENOUGH or not known:
        return Finding(
            resource="cpus", verdict="unknown", now=cpus, evidence=(_too_short(past, SMALL_ENOUGH),)
        )
    high, recent = max(known), known[0]
    evidence = (
        f"its processors were busy {_percent(recent / cpus)} or more in the busiest "
        f"twentieth of {_span(past)}"
    )
    if held := _held_back(vm, past):
        return Finding(
            resource="cpus",
            verdict="too-small",
            now=cpus,
            evidence=(evidence, held),
            confidence=_sure(past, HOUR, DAY),
        )
    if recent >= SATURATED * cpus:
        wanted = _whole_cores(vm, min(2 * cpus, limits.cpus), math.floor)
        lack = () if wanted > cpus else (f"this host has no more than {limits.cpus} processors",)
        return Finding(
            resource="cpus", verdict="too-small", now=cpus,
            wanted=wanted if wanted > cpus else None, evidence=(evidence, *lack),
            confidence=_sure(past, HOUR, DAY),
        )  # fmt: skip
    return _perhaps_fewer(vm, past, limits, high, evidence)


def _perhaps_fewer(vm: Vm, past: Past, limits: Limits, high: float, evidence: str) -> Finding:
    cpus = vm.spec.cpu.count
    rare = quantile(past.minutes, 0.99, "cpu") or 0.0
    wanted = _whole_cores(
        vm, max(1, math.ceil(high / BUSY), math.ceil(rare / SATURATED)), math.ceil
    )
    if wanted >= cpus:
        return Finding(
            resource="cpus",
            verdict="right",
            now=cpus,
            evidence=(evidence,),
            confidence=_sure(past, DAY, 7 * DAY),
        )
    if past.watched < limits.enough:
        return Finding(
            resource="cpus",
            verdict="unknown",
            now=cpus,
            evidence=(evidence, _too_short(past, limits.enough)),
        )
    return Finding(
        resource="cpus",
        verdict="too-big",
        now=cpus,
        wanted=wanted,
        evidence=(evidence,),
        confidence=_sure(past, DAY, 7 * DAY),
    )


def _whole_cores(vm: Vm, cpus: int, rounding: Callable[[float], int]) -> int:
    """So many processors, as a multiple of what its sockets and threads ask for."""
    each = vm.spec.cpu.sockets * vm.spec.cpu.threads
    return rounding(cpus / each) * each


def _held_back(vm: Vm, past: Past) -> str | None:
    """What keeps it from the processor time it wants, when that is not its own number of
    processors.
    """
    cpu, steal = average(past.minutes, "cpu"), average(past.minutes, "steal")
    limit = average(past.minutes, "throttled")
    if limit is not None and limit > CROWDED * vm.spec.cpu.count:
        return (
            f"a limit of its processor time held it back {_percent(limit / vm.spec.cpu.count)} of "
            "the time: raise that, more processors do not help"
        )
    if (
        cpu is None
        or steal is None
        or steal < 0.05 * vm.spec.cpu.count
        or steal < CROWDED * (cpu + steal)
    ):
        return None
    return (
        f"it waited {_percent(steal / (cpu + steal))} of its processor time for the host, "
        "which is too busy: more processors do not help"
    )


# ---- memory


def judge_memory(vm: Vm, past: Past, limits: Limits) -> Finding:
    """Whether it has too much or too little memory, by what its guest says, or if that says nothing
    by what it ever touched.
    """
    memory = vm.spec.memory.size
    every = (*past.minutes, *past.hours)
    told = any("guest_used" in point.mean for point in every)
    if past.watched < SMALL_ENOUGH or not every:
        return Finding(
            resource="memory",
            verdict="unknown",
            now=memory,
            evidence=(_too_short(past, SMALL_ENOUGH),),
        )
    if told and (finding := _too_little(vm, past, limits)):
        return finding
    series = "guest_used" if told else "resident"
    peak = max((point.peak[series] for point in every if series in point.peak), default=None)
    if peak is None:
        return Finding(
            resource="memory",
            verdict="unknown",
            now=memory,
            evidence=("nobody could tell what it uses",),
        )
    need = peak + (_reserved(vm, every) if told else 0)
    who = "its guest used" if told else "its guest says nothing; it never occupied more than"
    evidence = f"{who} {format_size(int(peak))} at most in {_span(past)}"
    wanted = max(rounded(need / ROOMY), smallest(vm))
    if wanted > WORTH * memory:
        return Finding(
            resource="memory",
            verdict="right",
            now=memory,
            evidence=(evidence,),
            confidence=_sure(past, DAY, 7 * DAY),
        )
    if past.watched < limits.enough:
        return Finding(
            resource="memory",
            verdict="unknown",
            now=memory,
            evidence=(evidence, _too_short(past, limits.enough)),
        )
    return Finding(
        resource="memory",
        verdict="too-big",
        now=memory,
        wanted=wanted,
        evidence=(evidence,),
        confidence=_sure(past, DAY, 7 * DAY),
    )


def _too_little(vm: Vm, past: Past, limits: Limits) -> Finding | None:
    memory = vm.spec.memory.size
    shares = [_share(point) for point in past.minutes if "guest_used" in point.mean]
    full = weighted([(share, 1) for share in shares], 0.95)
    swap = average(past.minutes, "swap")
    swaps = swap is not None and swap >= SWAPPING
    if full is None or (full < FULL and not swaps):
        return None
    evidence = [
        f"its guest used {_percent(full)} of its memory or more in the busiest twentieth of "
        f"{_span(past)}"
    ]
    if swaps:
        evidence.append(f"it swapped {format_size(int(swap or 0))} a second")
    most = limits.memory // MIB * MIB
    own = vm.spec.memory.max
    wanted: int | None = min(
        rounded(max(full / ROOMY, 2.0 if swaps else 1.25) * memory), most, own or most
    )
    if wanted is not None and wanted <= memory:
        wanted = None
        evidence.append(
            f"it may have no more than {format_size(own)} (--memory-max)"
            if own is not None and own <= most
            else f"this host can give no more than {format_size(most)}"
        )
    return Finding(
        resource="memory",
        verdict="too-small",
        now=memory,
        wanted=wanted,
        evidence=tuple(evidence),
        confidence=_sure(past, HOUR, DAY),
    )


def _share(point: Point) -> float:
    return point.mean["guest_used"] / max(point.mean.get("guest_total", 0.0), 1.0)


def _reserved(vm: Vm, every: Sequence[Point]) -> float:
    """What the guest's kernel keeps from its memory at boot; a balloon that holds some of it looks
    alike and counts a quarter at most.
    """
    total = max(
        (point.mean["guest_total"] for point in every if "guest_total" in point.mean), default=0.0
    )
    return max(0.0, min(vm.spec.memory.size - total, vm.spec.memory.size / 4))


def smallest(vm: Vm) -> int:
    """The least memory that is advised: what its image boots with for certain, and never less than
    its floor.
    """
    return max(
        min(default_memory(vm.spec.image), 512 * MIB, vm.spec.memory.size), vm.spec.memory.min or 0
    )


def rounded(size: float) -> int:
    """`size` as people write it, never less: 64 MiB, 96 MiB, 128 MiB, 192 MiB and so on."""
    step = 64 * MIB
    while step < size:
        step *= 2
    return step // 4 * 3 if step > 64 * MIB and step // 4 * 3 >= size else step


# ---- figures


def quantile(points: Sequence[Point], share: float, series: str) -> float | None:
    """The mean below which a server was for this share of the time it was watched; None when nobody
    could tell.
    """
    return weighted(
        [(point.mean[series], max(point.covered, 1)) for point in points if series in point.mean],
        share,
    )


def weighted(values: Sequence[tuple[float, int]], share: float) -> float | None:
    """The quantile of values that count so much each."""
    left = share * sum(weight for _, weight in values)
    for value, weight in sorted(values):
        left -= weight
        if left <= 0:
            return value
    return None


def average(points: Sequence[Point], series: str) -> float | None:
    known = [
        (point.mean[series], max(point.covered, 1)) for point in points if series in point.mean
    ]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


def _sure(past: Past, medium: int, high: int) -> Confidence:
    return "high" if past.watched >= high else "medium" if past.watched >= medium else "low"


def _span(past: Past) -> str:
    return format_duration(past.watched)


def _too_short(past: Past, needed: float) -> str:
    return f"not enough history: {format_duration(past.watched)} of {format_duration(needed)}"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"
