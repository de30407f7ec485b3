"""Memory when there is not enough of it: levels, floors, order, whom a pause meets. Then a small
host on which it takes effect, second by second.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from virtuary.base.units import GIB, MIB
from virtuary.host.pressure import HostMemory
from virtuary.model.memory import MIN_MEMORY
from virtuary.model.runtime import Shape
from virtuary.model.vm import VmSpec
from virtuary.node.memory.pressure import (
    BLOCK,
    GIVE_AFTER,
    GRACE,
    KEPT,
    PAUSE_GAP,
    QUANTUM,
    RELEASE_AFTER,
    SLACK,
    STALE,
    Act,
    Guest,
    Level,
    Move,
    Past,
    Pause,
    Release,
    Said,
    by_use,
    decide,
    floor_of,
    left,
    level_of,
    limits_of,
    room_for,
    takeable,
    wants,
)

TOTAL = 8 * GIB
LIMITS = limits_of(TOTAL, 512 * MIB)
PLENTY, TIGHT, SHORT, CRITICAL = (
    HostMemory(TOTAL, size) for size in (4 * GIB, 600 * MIB, 400 * MIB, 100 * MIB)
)


def guest(name: str = "a", **facts: Any) -> Guest:
    """A guest of 1 GiB with a floor of a half, which uses little."""
    known = {
        "id": name, "name": name, "priority": 50, "weight": 100, "wished": GIB, "floor": GIB // 2,
        "has": GIB,
        "said": Said(900 * MIB, 800 * MIB, GIB, 1.0),
    }  # fmt: skip
    return Guest(**{**known, **facts})


def moves(acts: list[Act]) -> dict[str, int]:
    return {act.id: act.target for act in acts if isinstance(act, Move)}


# ---- how short the host is

LEVELS = [
    (HostMemory(TOTAL, 4 * GIB), Level.CALM),
    # somebody's own limit: taking from others would not help
    (HostMemory(TOTAL, 4 * GIB, some=50, full=50), Level.CALM),
    (HostMemory(TOTAL, 800 * MIB), Level.CALM),
    (HostMemory(TOTAL, 800 * MIB, some=3), Level.TIGHT),
    (HostMemory(TOTAL, 1 * GIB, some=15), Level.SHORT),
    (HostMemory(TOTAL, 700 * MIB), Level.TIGHT),
    (HostMemory(TOTAL, 500 * MIB), Level.SHORT),
    (HostMemory(TOTAL, 200 * MIB, some=60, full=10), Level.SHORT),
    (HostMemory(TOTAL, 200 * MIB, some=60, full=30), Level.CRITICAL),
    (HostMemory(TOTAL, 100 * MIB), Level.CRITICAL),
]


@pytest.mark.parametrize(("host", "level"), LEVELS)
def test_a_host_is(host: HostMemory, level: Level) -> None:
    assert level_of(host, LIMITS) is level


@given(
    st.integers(0, 64 * GIB),
    st.integers(0, 64 * GIB),
    st.floats(0, 100),
    st.floats(0, 100),
    st.integers(0, 64 * GIB),
)
def test_less_memory_and_more_waiting_are_never_a_better_level(
    a: int, b: int, some: float, full: float, reserve: int
) -> None:
    limits = limits_of(64 * GIB, reserve)
    low, high = sorted((a, b))
    assert level_of(HostMemory(64 * GIB, low, some, full), limits) >= level_of(
        HostMemory(64 * GIB, high, some, full), limits
    )
    assert level_of(HostMemory(64 * GIB, low, some, full), limits) >= level_of(
        HostMemory(64 * GIB, low), limits
    )
    assert limits.critical <= limits.short <= limits.aim <= limits.calm <= 64 * GIB


@given(st.integers(0, GIB), st.floats(0, 100))
def test_a_host_that_keeps_nothing_for_itself_is_never_short_by_our_judgement(
    available: int, some: float
) -> None:
    assert level_of(HostMemory(GIB, available, some, some), limits_of(GIB, 0)) is Level.CALM


# ---- what may be taken


def spec(**wish: Any) -> VmSpec:
    return VmSpec(image="tiny", **{"memory": GIB, **wish})


def shape(**facts: Any) -> Shape:
    return Shape(memory=facts.pop("memory", GIB), max_cpus=1, max_memory=8 * GIB, **facts)


FLOORS = [
    ("its own", spec(memory={"size": GIB, "min": 300 * MIB}), shape(), 4, 300 * MIB),
    ("what the overcommit leaves", spec(), shape(), 4, 256 * MIB),
    ("nothing is taken where nothing is promised twice", spec(), shape(), 1, GIB),
    ("its own, above what the overcommit leaves", spec(memory={"size": GIB, "min": GIB}), shape(), 16, GIB),
    ("a copy's base", spec(memory={"size": GIB, "min": 64 * MIB}), shape(memory=512 * MIB, borrowed=True), 4,
    512 * MIB),
    ("a copy's base, though its floor is higher", spec(memory={"size": GIB, "min": 768 * MIB}),
    shape(memory=512 * MIB, borrowed=True), 4, 768 * MIB),
    ("huge pages", spec(memory={"size": GIB, "pages": "huge", "min": 64 * MIB}), shape(), 4, GIB),
    ("the least there is", spec(memory=128 * MIB), shape(memory=128 * MIB), 16, MIN_MEMORY),
]  # fmt: skip


@pytest.mark.parametrize(("case", "wish", "begun", "overcommit", "floor"), FLOORS)
def test_the_floor_is(case: str, wish: VmSpec, begun: Shape, overcommit: float, floor: int) -> None:
    assert floor_of(wish, begun, overcommit) == floor


SPARED = {
    "it has its floor": {"floor": GIB},
    "nothing is known of it: no driver of the balloon": {"said": None},
    "what it said is old": {"said": Said(900 * MIB, 800 * MIB, GIB, STALE + 1)},
    "what it said is of the future": {"said": Said(900 * MIB, 800 * MIB, GIB, -5)},
    "it has little left": {"said": Said(60 * MIB, 60 * MIB, GIB, 1)},
    "it swaps": {"said": Said(900 * MIB, 800 * MIB, GIB, 1, struggles=True)},
    "it works, and what it does not use are caches": {
        "idle": False,
        "said": Said(900 * MIB, 50 * MIB, GIB, 1),
    },
    "it is booting": {"ready": False},
    "it is paused": {"runs": False},
    "it is paused by us": {"waits": GIB},
    "it owes what was asked before": {"asked": 700 * MIB},
    "QEMU did not say what it has": {"has": None},
}


@pytest.mark.parametrize("case", SPARED)
def test_nothing_is_taken_when(case: str) -> None:
    assert takeable(guest(**SPARED[case])) == 0
    assert moves(decide(10, SHORT, LIMITS, [guest(**SPARED[case])], Past())[0]) == {}


def test_a_step_is_a_sixteenth_or_64_mib_and_a_quarter_when_memory_runs_out() -> None:
    large = {
        "wished": 8 * GIB,
        "has": 8 * GIB,
        "floor": GIB,
        "said": Said(7 * GIB, 7 * GIB, 8 * GIB, 1),
    }
    assert (takeable(guest()), takeable(guest(**large)), takeable(guest(**large), 4)) == (
        QUANTUM,
        GIB // 2,
        2 * GIB,
    )


def test_what_was_taken_since_it_spoke_is_no_more_there() -> None:
    one = guest(asked=500 * MIB, has=500 * MIB, said=Said(600 * MIB, 600 * MIB, GIB, 9))
    assert left(one) == 76 * MIB and not wants(one) and takeable(one) == 0
    assert wants(replace(one, said=Said(540 * MIB, 540 * MIB, GIB, 9)))


def test_the_least_important_gives_first_then_what_weighs_least_then_what_uses_least() -> None:
    guests = [
        guest("important", priority=90), guest("heavy", weight=200), guest("user",
        said=Said(700 * MIB, 600 * MIB, GIB, 1)), guest("idler"),
        guest("last", priority=1),
    ]  # fmt: skip
    assert [item.name for item in sorted(guests, key=by_use)] == [
        "last",
        "idler",
        "user",
        "heavy",
        "important",
    ]
    acts, _ = decide(10, HostMemory(TOTAL, 500 * MIB), LIMITS, guests, Past())
    assert list(moves(acts)) == ["last", "idler", "user"], (
        "no more than is needed: 140 MiB to the aim"
    )


def test_waiting_alone_takes_a_step_at_a_time() -> None:
    acts, past = decide(
        10, HostMemory(TOTAL, GIB, some=30), LIMITS, [guest("a"), guest("b")], Past()
    )
    assert moves(acts) == {"a": GIB - QUANTUM} and past.level is Level.SHORT


def test_what_is_on_its_way_is_counted() -> None:
    giving = guest("a", asked=GIB - 200 * MIB)
    assert moves(decide(10, SHORT, LIMITS, [giving, guest("b")], Past())[0]) == {"b": GIB - QUANTUM}
    assert (
        moves(decide(10, HostMemory(TOTAL, 500 * MIB), LIMITS, [giving, guest("b")], Past())[0])
        == {}
    )


# ---- given back


def test_memory_is_given_back_after_a_while_of_calm_the_most_important_first() -> None:
    taken = {
        "has": GIB // 2,
        "asked": GIB // 2,
        "taken": True,
        "said": Said(300 * MIB, 200 * MIB, GIB // 2, 1),
    }
    guests = [guest("low", priority=10, **taken), guest("high", priority=90, **taken)]
    acts, past = decide(100, PLENTY, LIMITS, guests, Past())
    assert acts == []
    acts, past = decide(100 + GIVE_AFTER - 1, PLENTY, LIMITS, guests, past)
    assert acts == []
    acts, past = decide(100 + GIVE_AFTER, PLENTY, LIMITS, guests, past)
    assert moves(acts) == {"high": GIB // 2 + QUANTUM}
    assert decide(101 + GIVE_AFTER, PLENTY, LIMITS, guests, past)[0] == [], "a step at a time"
    assert decide(200, TIGHT, LIMITS, guests, past) == (
        [],
        replace(past, level=Level.TIGHT, calm_since=None),
    )


def test_no_more_is_given_back_than_keeps_the_host_calm() -> None:
    taken = guest(has=GIB // 2, asked=GIB // 2, taken=True)
    past = Past(calm_since=0.0)
    assert moves(
        decide(100, HostMemory(TOTAL, LIMITS.calm + 40 * MIB), LIMITS, [taken], past)[0]
    ) == {"a": GIB // 2 + 40 * MIB}
    assert decide(100, HostMemory(TOTAL, LIMITS.calm + 10 * MIB), LIMITS, [taken], past)[0] == []


@pytest.mark.parametrize("host", [PLENTY, TIGHT, SHORT])
def test_a_guest_that_is_short_itself_is_given_back_at_once(host: HostMemory) -> None:
    poor = guest(
        has=GIB // 2, asked=GIB // 2, taken=True, said=Said(10 * MIB, 5 * MIB, GIB // 2, 1)
    )
    assert moves(decide(100, host, LIMITS, [poor], Past())[0]) == {"a": GIB // 2 + QUANTUM}
    assert moves(decide(100, CRITICAL, LIMITS, [poor], Past())[0]) == {}
    assert (
        moves(decide(100, host, LIMITS, [replace(poor, taken=False, asked=None)], Past())[0]) == {}
    ), "its own wish is another's matter"


def test_a_floor_that_was_raised_is_given() -> None:
    low = guest(
        has=GIB // 2,
        asked=GIB // 2,
        taken=True,
        floor=768 * MIB,
        said=Said(300 * MIB, 200 * MIB, GIB // 2, 1),
    )
    assert moves(decide(100, SHORT, LIMITS, [low], Past())[0]) == {"a": GIB // 2 + QUANTUM}


# ---- paused


def paused(acts: list[Act]) -> Pause | None:
    return next((act for act in acts if isinstance(act, Pause)), None)


FULL = {"floor": GIB}


def test_the_least_important_is_paused_and_of_those_the_largest() -> None:
    guests = [
        guest("high", priority=90, **FULL),
        guest("small", priority=10, **FULL),
        guest("large", priority=10, has=2 * GIB, wished=2 * GIB, floor=2 * GIB),
    ]
    pause = paused(decide(10, CRITICAL, LIMITS, guests, Past())[0])
    assert pause and pause.id == "large" and pause.room == LIMITS.calm + GIB // 4
    assert pause.why == (
        "the host's memory ran out: paused, because it is the largest of those with the lowest "
        "priority (10); "
        "it goes on by itself when 1 GiB are free"
    )
    pause = paused(decide(10, CRITICAL, LIMITS, guests[:2], Past())[0])
    assert pause and "because its priority (10) is the lowest" in pause.why
    pause = paused(decide(10, CRITICAL, LIMITS, guests[:1], Past())[0])
    assert pause and "because nothing else runs" in pause.why


def test_taking_is_tried_before_anybody_is_paused() -> None:
    guests = [guest("a", priority=10, **FULL), guest("b", priority=90)]
    acts, past = decide(10, CRITICAL, LIMITS, guests, Past())
    assert moves(acts) == {"b": GIB - GIB // 4} and paused(acts) is None
    acts, past = decide(10 + GRACE, CRITICAL, LIMITS, guests, past)
    pause = paused(acts)
    assert pause and pause.id == "a"


def test_a_second_pause_waits_for_what_the_first_one_brings() -> None:
    guests = [guest("a", **FULL), guest("b", **FULL)]
    acts, past = decide(10, CRITICAL, LIMITS, guests, Past())
    assert paused(acts) and past.paused_at == 10
    guests[0] = replace(guests[0], runs=False, waits=GIB)
    assert paused(decide(10 + PAUSE_GAP - 0.1, CRITICAL, LIMITS, guests, past)[0]) is None
    second = paused(decide(10 + PAUSE_GAP, CRITICAL, LIMITS, guests, past)[0])
    assert second and second.id == "b"


def test_one_that_its_owner_let_go_on_is_not_paused_again() -> None:
    acts, _ = decide(
        10,
        CRITICAL,
        LIMITS,
        [guest("a", priority=1, exempt=True, **FULL), guest("b", **FULL)],
        Past(),
    )
    assert paused(acts) and (paused(acts) or guest()).id == "b"
    assert decide(10, CRITICAL, LIMITS, [guest("a", exempt=True, **FULL)], Past())[0] == []


def test_the_paused_go_on_in_the_order_of_importance_and_before_memory_is_given_back() -> None:
    guests = [
        guest("low", priority=10, runs=False, waits=LIMITS.calm + MIB),
        guest("high", priority=50, runs=False, waits=2 * GIB),
        guest(
            "taken",
            priority=90,
            has=GIB // 2,
            asked=GIB // 2,
            taken=True,
            said=Said(300 * MIB, 200 * MIB, GIB // 2, 1),
        ),
    ]
    past = Past(calm_since=0.0)
    assert decide(RELEASE_AFTER - 1, PLENTY, LIMITS, guests, past)[0] == []
    assert decide(99, HostMemory(TOTAL, GIB), LIMITS, guests, past)[0] == [], "nobody overtakes"
    acts, past = decide(99, PLENTY, LIMITS, guests, past)
    assert acts == [Release("high")]
    rest = [guests[0], guests[2]]
    assert decide(100, PLENTY, LIMITS, rest, past)[0] == []
    acts, past = decide(99 + PAUSE_GAP, PLENTY, LIMITS, rest, past)
    assert acts == [Release("low")]


@given(st.integers(64 * MIB, 64 * GIB), st.integers(0, 64 * GIB), st.integers(0, 64 * GIB))
def test_the_room_that_is_waited_for_can_come(has: int, total: int, reserve: int) -> None:
    limits = limits_of(total, min(reserve, total))
    assert limits.calm <= room_for(guest(has=has), HostMemory(total, 0), limits) <= total


# ---- whatever guests say

NUMBERS = st.one_of(st.integers(-(2**64), 2**64), st.integers(0, 2 * GIB))
LIES = st.builds(
    Said, NUMBERS, st.one_of(st.none(), NUMBERS), NUMBERS, st.floats(-100, 100), st.booleans()
)


@st.composite
def any_guest(draw: st.DrawFn, name: str) -> Guest:
    wished = draw(st.integers(32, 1024)) * 2 * MIB
    floor = draw(st.integers(32, wished // BLOCK)) * BLOCK
    has = draw(
        st.one_of(
            st.none(),
            st.integers(floor // BLOCK, wished // BLOCK).map(lambda blocks: blocks * BLOCK),
        )
    )
    asked = draw(
        st.one_of(
            st.none(),
            st.integers(floor // BLOCK, wished // BLOCK).map(lambda blocks: blocks * BLOCK),
        )
    )
    return guest(
        name, priority=draw(st.integers(0, 100)), weight=draw(st.sampled_from([10, 100, 1000])),
        wished=wished, floor=floor, has=has,
        asked=asked, said=draw(st.one_of(st.none(), LIES)), idle=draw(st.booleans()),
        ready=draw(st.booleans()), runs=draw(st.booleans()),
        exempt=draw(st.booleans()), taken=draw(st.booleans()), waits=draw(st.one_of(st.none(),
        st.integers(0, TOTAL))),
    )  # fmt: skip


HOSTS = st.builds(
    HostMemory, st.just(TOTAL), st.integers(0, TOTAL), st.floats(0, 100), st.floats(0, 100)
)
PASTS = st.builds(
    Past, calm_since=st.one_of(st.none(), st.floats(0, 100)), critical_since=st.one_of(st.none(),
    st.floats(0, 100)), paused_at=st.floats(0, 100)
)  # fmt: skip


@settings(max_examples=500)
@given(st.data(), st.integers(0, 6), HOSTS, PASTS)
@pytest.mark.slow
def test_whatever_guests_say_no_floor_is_broken_and_none_gets_more_than_its_own(
    data: st.DataObject, number: int, host: HostMemory, past: Past
) -> None:
    guests = {name: data.draw(any_guest(name)) for name in map(str, range(number))}
    acts, _ = decide(100.0, host, LIMITS, list(guests.values()), past)
    assert len({act.id for act in acts}) == len(acts), "one thing at a time"
    assert sum(isinstance(act, Pause | Release) for act in acts) <= 1
    for act in acts:
        one = guests[act.id]
        if isinstance(act, Move):
            assert one.ready and one.runs and one.has is not None
            assert one.floor <= act.target <= one.wished or act.target > one.target
            assert act.target <= one.wished
            assert act.target >= one.target or (
                not wants(one) and (left(one) or 0) >= KEPT and one.target - act.target >= SLACK
            )
        elif isinstance(act, Pause):
            others = [
                item
                for item in guests.values()
                if item.runs and item.waits is None and not item.exempt
            ]
            assert (
                level_of(host, LIMITS) is Level.CRITICAL
                and one in others
                and one.priority == min(item.priority for item in others)
            )
        else:
            waiting = [item for item in guests.values() if item.waits is not None]
            assert level_of(host, LIMITS) is Level.CALM and one.priority == max(
                item.priority for item in waiting
            )


@settings(max_examples=300)
@given(st.data(), st.integers(2, 6), HOSTS)
@pytest.mark.slow
def test_no_guest_gives_while_a_less_important_one_could_and_does_not(
    data: st.DataObject, number: int, host: HostMemory
) -> None:
    guests = [data.draw(any_guest(name)) for name in map(str, range(number))]
    taken = {
        act.id
        for act in decide(100.0, host, LIMITS, guests, Past())[0]
        if isinstance(act, Move)
        and act.target < next(one.target for one in guests if one.id == act.id)
    }
    if paused(decide(100.0, host, LIMITS, guests, Past())[0]):
        return
    for one in guests:
        for other in guests:
            if one.id in taken and other.priority < one.priority and takeable(other):
                assert other.id in taken


# ---- a host on which it takes effect


@dataclass
class Machine:
    """A guest: what it is, what its programs use, and how quickly it follows. Whatever it has is
    taken from the host.
    """

    one: Guest
    uses: int
    slow: int = 1
    """Seconds until it follows."""
    lags: int = 10
    """Seconds between two words of its balloon."""
    spoke: int = -1
    since: int = 0


@dataclass
class House:
    """A host and its guests, second by second; `others` is what everybody else on it takes."""

    machines: list[Machine]
    others: int
    past: Past = field(default_factory=Past)
    second: int = 0
    log: list[tuple[int, Act]] = field(default_factory=list)

    @property
    def available(self) -> int:
        return max(TOTAL - self.others - sum(machine.one.has or 0 for machine in self.machines), 0)

    def live(self, seconds: int) -> list[Act]:
        """So many seconds; what was done in them."""
        before = len(self.log)
        for _ in range(seconds):
            self.second += 1
            for machine in self.machines:
                self._speak(machine)
                if machine.one.asked is not None and self.second - machine.since >= machine.slow:
                    machine.one = replace(machine.one, has=machine.one.asked)
            acts, self.past = decide(
                float(self.second),
                HostMemory(TOTAL, self.available),
                LIMITS,
                [item.one for item in self.machines],
                self.past,
            )
            for act in acts:
                self._do(act)
        return [act for _, act in self.log[before:]]

    def _speak(self, machine: Machine) -> None:
        one = machine.one
        if self.second % machine.lags == 0 and one.has is not None:
            machine.spoke = self.second
            rest = max(one.has - machine.uses, 0)
            machine.one = replace(one, said=Said(rest, rest, one.has, 0.0))
        elif one.said:
            machine.one = replace(
                one, said=one.said._replace(age=float(self.second - machine.spoke))
            )

    def _do(self, act: Act) -> None:
        self.log.append((self.second, act))
        machine = next(item for item in self.machines if item.one.id == act.id)
        if isinstance(act, Move):
            assert machine.one.floor <= act.target or act.target > machine.one.target
            machine.one, machine.since = (
                replace(machine.one, asked=act.target, taken=True),
                self.second,
            )
        elif isinstance(act, Pause):
            machine.one = replace(machine.one, runs=False, waits=act.room)
        else:
            machine.one = replace(machine.one, runs=True, waits=None)


@st.composite
def machines(draw: st.DrawFn, number: int) -> list[Machine]:
    made = []
    for name in map(str, range(number)):
        wished = draw(st.integers(2, 16)) * 64 * MIB
        one = guest(
            name,
            wished=wished,
            has=wished,
            floor=wished // draw(st.integers(1, 4)),
            priority=draw(st.integers(0, 100)),
            said=None,
        )
        made.append(
            Machine(
                one,
                uses=draw(st.integers(16 * MIB, wished)),
                slow=draw(st.integers(1, 4)),
                lags=draw(st.integers(5, 12)),
            )
        )
    return made


@settings(max_examples=120)
@given(st.data(), st.integers(1, 5), st.integers(0, 900))
@pytest.mark.slow
def test_it_comes_to_rest_and_everything_is_given_back(
    data: st.DataObject, number: int, missing: int
) -> None:
    house = House(data.draw(machines(number)), 0)
    house.others = (
        TOTAL - sum(item.one.has or 0 for item in house.machines) - LIMITS.calm + missing * MIB
    )
    if house.available < LIMITS.critical:
        house.others -= LIMITS.critical - house.available
    house.live(240)
    assert house.live(120) == [], f"it swings: {house.log[-6:]}"
    if house.past.level is Level.SHORT:
        assert all(takeable(item.one) == 0 for item in house.machines), (
            "short, and there would be something to take"
        )
    house.others = 0
    house.live(600)
    assert all(item.one.has == item.one.wished and item.one.runs for item in house.machines)
    assert house.live(120) == []


def test_a_host_that_fills_up_ends_with_pauses_and_all_go_on_when_it_empties() -> None:
    full = [
        Machine(
            guest(
                str(number),
                priority=number,
                has=512 * MIB,
                wished=512 * MIB,
                floor=256 * MIB,
                said=None,
            ),
            100 * MIB,
        )
        for number in range(5)
    ]
    house = House(full, 0)
    house.live(15)
    house.others = TOTAL - 5 * 512 * MIB - 50 * MIB
    house.live(20)
    assert sum(not item.one.runs for item in full) == 0, "what the idle guests gave was enough"
    house.others += GIB + 300 * MIB
    house.live(60)
    stopped = [item.one.priority for item in full if not item.one.runs]
    assert stopped and stopped == list(range(len(stopped))), "the least important"
    times = [second for second, act in house.log if isinstance(act, Pause)]
    assert all(later - earlier >= PAUSE_GAP for earlier, later in pairwise(times))
    house.others = 0
    house.live(300)
    released = [int(act.id) for _, act in house.log if isinstance(act, Release)]
    assert released == sorted(stopped, reverse=True) and all(
        item.one.has == 512 * MIB for item in full
    )
