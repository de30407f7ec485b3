"""What is done when the host is short of memory: from whom it is taken, to whom it is given back,
who is paused. Pure; see `keeper.py`.

The host is *calm*, *tight* (nothing is taken and nothing given), *short* (idle memory is taken) or
*critical* (about to run out: more is taken, and where that does not help at once the least
important server is paused). What is between short and calm, and the time that calm has to last,
keep it from swinging. A guest's statistics decide only how much is asked of it; its floor holds
whatever it says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

from virtuary.base.units import MIB, format_size
from virtuary.host.pressure import HostMemory
from virtuary.model.memory import MIN_MEMORY
from virtuary.model.runtime import Shape
from virtuary.model.vm import VmSpec

BLOCK = 2 * MIB
"""Memory is plugged and unplugged in whole blocks."""
SLACK = 16 * MIB
"""Less than this is not worth asking for, and a guest may keep so much of what it was asked to
give.
"""
QUANTUM, PART, LARGE_PART = 64 * MIB, 16, 4
"""A step: so much, or a sixteenth of what the server is to have; a quarter when the host is about
to run out.
"""
KEPT, KEPT_PART = 48 * MIB, 8
"""What a guest keeps free or in caches in any case: so much, or an eighth of what it is to have."""
WANTED, WANTED_PART = 24 * MIB, 16
"""A guest with less than this left is itself short."""
STALE = 45.0
"""Seconds after which what a guest said of itself counts no more."""
SOME, FULL, QUIET = 10.0, 20.0, 2.0
"""Percent of time waited for memory: from there on short (some), critical (full); and below which
it is calm (some).
"""
GRACE = 3.0
"""Seconds for which taking is tried when the host is about to run out, before somebody is paused.
"""
PAUSE_GAP = 5.0
"""Seconds between two pauses: the first has to show its effect."""
RELEASE_AFTER, GIVE_AFTER = 10.0, 20.0
"""Seconds of calm after which what was paused goes on, and after which memory is given back."""
GIVE_GAP = 2.0
"""Seconds between two steps of giving back unasked."""


class Level(IntEnum):
    CALM, TIGHT, SHORT, CRITICAL = range(4)


class Limits(NamedTuple):
    """Bytes available below which the host is critical, short and not calm any more."""

    critical: int
    short: int
    calm: int

    @property
    def aim(self) -> int:
        """What taking is to bring back: a little more than the end of shortage."""
        return (self.short + self.calm) // 2


def limits_of(total: int, reserve: int) -> Limits:
    """From what is kept for the host itself. Where nothing is kept it is never short by our
    judgement.
    """
    return Limits(reserve // 4, reserve, min(reserve * 3 // 2, (reserve + total) // 2))


def level_of(host: HostMemory, limits: Limits) -> Level:
    """How short the host is. Waiting counts only while little is available: else somebody else's
    limit is the reason.
    """
    scarce = host.available < 2 * limits.calm
    if host.available < limits.critical or (
        host.available < limits.short // 2 and host.full >= FULL
    ):
        return Level.CRITICAL
    if host.available < limits.short or (scarce and host.some >= SOME):
        return Level.SHORT
    return (
        Level.TIGHT
        if host.available < limits.calm or (scarce and host.some >= QUIET)
        else Level.CALM
    )


# ---- guests


class Said(NamedTuple):
    """What a guest said of its memory."""

    available: int
    free: int | None
    has: int
    """What it had when it said so."""
    age: float
    struggles: bool = False
    """Whether it swaps, or reads pages again that it had dropped."""


@dataclass(frozen=True)
class Guest:
    """One server that runs, as far as its memory goes."""

    id: str
    name: str
    priority: int
    weight: int
    wished: int
    """What it is to have, in bytes."""
    floor: int
    """What is never taken from it."""
    has: int | None
    """What it has, by QEMU; None while that is not known."""
    asked: int | None = None
    """What it was asked to have last; None when nothing was asked of it."""
    said: Said | None = None
    """None: it has no balloon's driver, or did not say yet."""
    idle: bool = True
    ready: bool = True
    """Whether its guest is up and may be asked for something just now."""
    runs: bool = True
    """Whether its virtual CPUs run, and are wished to."""
    exempt: bool = False
    """Whether its owner had it go on though the host was short: it is not paused."""
    taken: bool = False
    """Whether the host has taken memory from it."""
    waits: int | None = None
    """Bytes that have to be available before it goes on; None when it was not paused for lack of
    them.
    """

    @property
    def target(self) -> int:
        return self.asked if self.asked is not None else self.has or 0

    @property
    def owes(self) -> bool:
        """Whether it has not given yet what was asked for last."""
        return self.has is not None and self.has > self.target + SLACK


def floor_of(spec: VmSpec, shape: Shape, overcommit: float) -> int:
    """Bytes below which nothing is taken: its own floor, or what the host's overcommit leaves every
    server. Memory that lies in a template's file or in huge pages gives the host nothing back, so
    that only what was plugged above it can be taken.
    """
    memory = spec.memory
    floor = memory.min if memory.min is not None else math.ceil(memory.size / overcommit)
    fixed = shape.memory if shape.borrowed or memory.pages == "huge" else 0
    return max(floor, fixed, MIN_MEMORY)


def left(guest: Guest) -> int | None:
    """Bytes its programs could still get, reckoned from what it said last and what was asked of it
    since; None when nobody knows.
    """
    said = guest.said
    if said is None or not 0 <= said.age <= STALE:
        return None
    return max(min(said.available, said.has) + guest.target - said.has, 0)


def unused(guest: Guest) -> int:
    """Bytes it could do without: of one that is idle its caches too."""
    rest = left(guest)
    if rest is None or guest.said is None:
        return 0
    if guest.idle:
        return rest
    return max(min(rest, (guest.said.free or 0) + guest.target - guest.said.has), 0)


def wants(guest: Guest) -> bool:
    """Whether the guest is itself short of memory."""
    rest = left(guest)
    if rest is None or guest.said is None:
        return False
    return guest.said.struggles or rest < max(WANTED, guest.wished // WANTED_PART)


def takeable(guest: Guest, part: int = PART) -> int:
    """Bytes to take from it in one step, in whole blocks; 0 when nothing may be taken."""
    if (
        not (guest.ready and guest.runs)
        or guest.has is None
        or guest.owes
        or guest.waits is not None
        or wants(guest)
    ):
        return 0
    kept = max(KEPT, guest.wished // KEPT_PART)
    most = min(unused(guest) - kept, guest.target - guest.floor, max(QUANTUM, guest.wished // part))
    return most // BLOCK * BLOCK if most >= SLACK else 0


def givable(guest: Guest) -> int:
    """Bytes to give back to it in one step; 0 when nothing was taken, or it has not taken what was
    given last.
    """
    if (
        not (guest.ready and guest.runs and guest.taken)
        or guest.has is None
        or guest.has < guest.target - SLACK
    ):
        return 0
    return max(min(max(QUANTUM, guest.wished // PART), guest.wished - guest.target), 0)


def _size(guest: Guest) -> int:
    return guest.has or guest.wished


def by_use(guest: Guest) -> tuple[int, int, int, str]:
    """Order of taking: the least important first, of those what weighs least, then what uses least
    of what it has.
    """
    return guest.priority, guest.weight, -unused(guest), guest.id


def by_importance(guest: Guest) -> tuple[int, int, str]:
    """Order of pausing: the least important first, of those the largest."""
    return guest.priority, -_size(guest), guest.id


# ---- deciding


class Move(NamedTuple):
    """Ask a guest to have so many bytes: less than before, or more."""

    id: str
    target: int


class Pause(NamedTuple):
    id: str
    room: int
    """Bytes that have to be available before it goes on."""
    why: str


class Release(NamedTuple):
    id: str


Act = Move | Pause | Release


@dataclass(frozen=True)
class Past:
    """What is remembered from one look to the next."""

    level: Level = Level.CALM
    calm_since: float | None = None
    critical_since: float | None = None
    paused_at: float = -math.inf
    released_at: float = -math.inf
    gave_at: float = -math.inf


def decide(
    now: float, host: HostMemory, limits: Limits, guests: Sequence[Guest], past: Past
) -> tuple[list[Act], Past]:
    """What to do now (monotonic seconds), and what to remember for the next look."""
    level = level_of(host, limits)
    past = replace(
        past,
        level=level,
        calm_since=(past.calm_since if past.calm_since is not None else now)
        if level is Level.CALM
        else None,
        critical_since=(past.critical_since if past.critical_since is not None else now)
        if level is Level.CRITICAL
        else None,
    )
    match level:
        case Level.CALM:
            return _ease(now, host, limits, guests, past)
        case Level.CRITICAL:
            return _rescue(now, host, limits, guests, past)
    acts: list[Act] = list(_help(guests))
    if level is Level.SHORT:
        acts += _take(host, limits, guests)
    return acts, past


def _help(guests: Iterable[Guest]) -> Iterable[Move]:
    """A step for each guest that is short itself, or below a floor it was given since, of what was
    taken from it.
    """
    for guest in guests:
        if (wants(guest) or guest.target < guest.floor) and (step := givable(guest)):
            yield Move(guest.id, guest.target + step)


def _take(host: HostMemory, limits: Limits, guests: Sequence[Guest]) -> Iterable[Move]:
    """A step from each in turn, until that is enough; what is being given already counts. At least
    one, where others wait for memory.
    """
    need = max(limits.aim - host.available, BLOCK)
    need -= sum(
        guest.has - guest.target for guest in guests if guest.owes and guest.has is not None
    )
    for guest in sorted(guests, key=by_use):
        if need <= 0:
            return
        if step := takeable(guest):
            need -= step
            yield Move(guest.id, guest.target - step)


def _rescue(
    now: float, host: HostMemory, limits: Limits, guests: Sequence[Guest], past: Past
) -> tuple[list[Act], Past]:
    """The host is about to run out: take from everybody at once; where that does not help, pause
    the least important.
    """
    acts: list[Act] = [
        Move(guest.id, guest.target - step)
        for guest in guests
        if (step := takeable(guest, LARGE_PART))
    ]
    assert past.critical_since is not None
    hope = acts or any(guest.owes for guest in guests)
    if (hope and now - past.critical_since < GRACE) or now - past.paused_at < PAUSE_GAP:
        return acts, past
    running = sorted(
        (guest for guest in guests if guest.runs and guest.waits is None and not guest.exempt),
        key=by_importance,
    )
    if not running:
        return acts, past
    first = running[0]
    acts = [act for act in acts if act.id != first.id]
    return [
        *acts,
        Pause(
            first.id, room_for(first, host, limits), _why(running, room_for(first, host, limits))
        ),
    ], replace(past, paused_at=now)


def room_for(guest: Guest, host: HostMemory, limits: Limits) -> int:
    """Bytes that have to be available before this one goes on: more than calm, and never more than
    there can be.
    """
    return min(limits.calm + _size(guest) // 8, (limits.calm + host.total) // 2)


def _why(running: Sequence[Guest], room: int) -> str:
    first, *others = running
    if not others:
        because = "because nothing else runs"
    elif others[0].priority == first.priority:
        because = f"because it is the largest of those with the lowest priority ({first.priority})"
    else:
        because = f"because its priority ({first.priority}) is the lowest"
    return (
        f"the host's memory ran out: paused, {because}; it goes on by itself when "
        f"{format_size(room)} are free"
    )


def _ease(
    now: float, host: HostMemory, limits: Limits, guests: Sequence[Guest], past: Past
) -> tuple[list[Act], Past]:
    """There is room again: what was paused goes on first, then memory is given back, each the most
    important first.
    """
    acts: list[Act] = list(_help(guests))
    assert past.calm_since is not None
    calm = now - past.calm_since
    waiting = sorted(
        (guest for guest in guests if guest.waits is not None), key=by_importance, reverse=True
    )
    if waiting:
        due = calm >= RELEASE_AFTER and now - past.released_at >= PAUSE_GAP
        if due and host.available >= (waiting[0].waits or 0):
            return [*acts, Release(waiting[0].id)], replace(past, released_at=now)
        return acts, past
    if acts or calm < GIVE_AFTER or now - past.gave_at < GIVE_GAP:
        return acts, past
    spare = host.available - limits.calm
    for guest in sorted(guests, key=by_use, reverse=True):
        whole = givable(guest)
        step = whole if whole <= spare else spare // BLOCK * BLOCK
        if step and (step == whole or step >= SLACK):
            return [Move(guest.id, guest.target + step)], replace(past, gave_at=now)
        if whole:
            break  # the less important ones wait for it
    return acts, past
