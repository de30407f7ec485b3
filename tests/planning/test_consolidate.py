"""Plans: what is true of each, whatever the servers; how good they are; what is told when something
does not fit.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from virtuary.base.errors import Invalid
from virtuary.base.loads import HOURS
from virtuary.model.consolidation import ConsolidationWish, HostShape, ServerLoad
from virtuary.planning.consolidate import consolidate
from virtuary.planning.greedy import first_fit
from virtuary.planning.lanes import Frame, make_items, make_scale

sys.path.insert(0, str(Path(__file__).parent))  # test folders are no packages; these share a file
from fleets import GIB, SHAPE, check, fleet, wish

SMALL = HostShape(cpu=4, memory=8 * GIB)


def server(name: str, cpu: Any = 0.1, memory: Any = GIB // 4, **more: Any) -> ServerLoad:
    return ServerLoad(name=name, cpu=cpu, memory=memory, **more)


def at_hours(busy: float, hours: range, idle: float = 0.1) -> tuple[float, ...]:
    return tuple(busy if hour % 24 in hours else idle for hour in range(HOURS))


amounts = st.floats(0, 5, allow_nan=False).map(lambda value: round(value, 3))
weeks = st.one_of(
    amounts,
    st.tuples(amounts, amounts, st.integers(0, 23), st.integers(1, 24)).map(
        lambda given: tuple(
            given[0] if (hour - given[2]) % 24 < given[3] else given[1] for hour in range(HOURS)
        )
    ),
)


@st.composite
def wishes(draw: st.DrawFn) -> ConsolidationWish:
    count = draw(st.integers(1, 12))
    servers = [
        server(
            f"s{number}",
            draw(weeks),
            draw(st.integers(0, 9 * GIB)),
            network=draw(st.integers(0, 10**8)),
        )
        for number in range(count)
    ]
    names = [item.name for item in servers]
    apart = (
        draw(
            st.lists(
                st.lists(st.sampled_from(names), min_size=2, max_size=4, unique=True), max_size=2
            )
        )
        if count > 1
        else []
    )
    host = HostShape(
        cpu=draw(st.sampled_from([3, 6.5])),
        memory=8 * GIB,
        network=draw(st.sampled_from([None, 2 * 10**8])),
    )
    return wish(
        servers, host, headroom=draw(st.sampled_from([0, 0.1, 0.5])),
        growth=draw(st.sampled_from([0, 0.2])),
        spare=draw(st.integers(0, 2)), hosts=draw(st.sampled_from([None, None, 3, 5])),
        apart=tuple(map(tuple, apart)), solver_seconds=0.2,
    )  # fmt: skip


@given(wishes())
@settings(max_examples=150)
@pytest.mark.slow
def test_every_plan_places_each_server_once_and_exceeds_no_limit_at_any_hour(
    wanted: ConsolidationWish,
) -> None:
    check(wanted, consolidate(wanted))


@given(wishes(), st.randoms(use_true_random=False))
@settings(max_examples=40)
@pytest.mark.slow
def test_the_order_of_the_servers_changes_nothing(
    wanted: ConsolidationWish, chance: random.Random
) -> None:
    wanted = wanted.but(solver_seconds=0)
    servers = list(wanted.servers)
    chance.shuffle(servers)
    assert consolidate(wanted.but(servers=tuple(servers))) == consolidate(wanted)


@given(wishes())
@settings(max_examples=60)
@pytest.mark.slow
def test_the_solver_never_needs_more_hosts_than_the_greedy(wanted: ConsolidationWish) -> None:
    wanted = wanted.but(hosts=None, spare=0)
    exact, greedy = (
        consolidate(wanted.but(solver_seconds=1)),
        consolidate(wanted.but(solver_seconds=0)),
    )
    assert greedy.bound.hosts <= exact.bound.hosts <= exact.hosts_used <= greedy.hosts_used


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.slow
def test_a_fleet_needs_hardly_more_hosts_than_the_bound_and_fewer_than_first_fit(seed: int) -> None:
    wanted = wish(fleet(150, seed=seed), headroom=0.1, spare=1)
    plan = consolidate(wanted)
    check(wanted, plan)
    assert plan.survives_failure and plan.gap <= 0.2
    scale = make_scale(wanted.host, wanted.headroom)
    frame = Frame.of(scale, scale.limits)
    items = [item for item in make_items(wanted, scale) if not frame.excess(item)]
    for item in items:
        item.seal(scale)
    assert plan.hosts_used <= len(first_fit(items, frame))


def test_servers_that_work_at_different_hours_share_a_host() -> None:
    day, night = at_hours(3, range(8, 18)), at_hours(3, range(20, 24))
    plan = consolidate(wish([server("office", day), server("backup", night)], SMALL))
    assert plan.hosts_used == 1 and plan.optimal
    assert plan.hosts[0].peaks["cpu"].hour == 8 and plan.hosts[0].peaks[
        "cpu"
    ].value == pytest.approx(3.1)
    assert plan.hosts[0].peaks["cpu"].headroom == pytest.approx(1 - 3.1 / 4)
    plan = consolidate(wish([server("office", day), server("shop", day)], SMALL))
    assert (
        plan.hosts_used == 2
        and plan.bound.kind in ("volume", "large")
        and plan.bound.resource == "cpu"
    )


def test_the_hosts_limit_may_be_met_exactly() -> None:
    plan = consolidate(
        wish([server(f"s{number}", 0.1, 2 * GIB) for number in range(4)], SMALL, headroom=0)
    )
    assert plan.hosts_used == 1 and plan.hosts[0].peaks["memory"].headroom == 0
    plan = consolidate(
        wish([server(f"s{number}", 0.4, 0) for number in range(10)], SMALL, headroom=0)
    )
    assert plan.hosts_used == 1


@pytest.mark.parametrize(("field", "value"), [("headroom", 0.5), ("growth", 1.0)])
def test_headroom_and_growth_count(field: str, value: float) -> None:
    servers = [server(f"s{number}", 1) for number in range(4)]
    assert consolidate(wish(servers, SMALL, headroom=0)).hosts_used == 1
    assert consolidate(wish(servers, SMALL, **{"headroom": 0, field: value})).hosts_used == 2


def test_large_servers_that_cannot_share_raise_the_bound() -> None:
    plan = consolidate(
        wish(
            [server(f"s{number}", 2.1) for number in range(5)], SMALL, headroom=0, solver_seconds=0
        )
    )
    assert plan.bound.kind == "large" and plan.bound.hosts == plan.hosts_used == 5 and plan.optimal


def test_servers_to_be_kept_apart_are() -> None:
    names = ("a", "b", "c")
    plan = consolidate(wish([server(name) for name in names], SMALL, apart=(names,)))
    assert plan.hosts_used == 3 and plan.bound.kind == "apart" and plan.optimal
    failure = plan.hosts[0].failure
    assert failure.verdict == "stranded" and "kept apart" in failure.stranded[0].reason


def test_what_fits_on_no_host_is_named_with_what_it_lacks() -> None:
    plan = consolidate(
        wish(
            [server("big", at_hours(5, range(9, 10)), 20 * GIB), server("small")], SMALL, headroom=0
        )
    )
    (big,) = plan.unplaced
    assert big.server == "big" and [lack.resource for lack in big.lacks] == ["cpu", "memory"]
    assert (
        big.lacks[0].missing == pytest.approx(1)
        and big.lacks[0].hour == 9
        and big.lacks[1].missing == 12 * GIB
    )
    assert plan.hosts[0].servers == ("small",)


def test_with_too_few_hosts_the_others_are_named_and_it_is_told_how_many_would_do() -> None:
    wanted = wish([server(f"s{number}", 3) for number in range(5)], SMALL, hosts=2)
    plan = consolidate(wanted)
    check(wanted, plan)
    assert len(plan.unplaced) == 3 and plan.hosts_for_all == 5
    assert plan.unplaced[0].lacks[0].resource == "cpu" and plan.unplaced[0].host


def test_a_spare_host_is_added_only_where_the_others_have_no_room() -> None:
    tight = consolidate(wish([server(f"s{number}", 3) for number in range(3)], SMALL, spare=1))
    assert tight.hosts_spare == 1 and tight.survives_failure and tight.hosts_needed == 4
    roomy = consolidate(
        wish([server("a", 0.3), server("b", 0.3)], SMALL, spare=1, apart=(("a", "b"),))
    )
    assert roomy.hosts_spare == 1, "kept apart also after a failure"
    sizes = (2.5, 2.5, 1.2, 1.2, 1.2)
    loose = consolidate(
        wish(
            [server(f"s{number}", size) for number, size in enumerate(sizes)],
            SMALL,
            headroom=0,
            spare=1,
        )
    )
    check(
        wish(
            [server(f"s{number}", size) for number, size in enumerate(sizes)],
            SMALL,
            headroom=0,
            spare=1,
        ),
        loose,
    )
    assert loose.survives_failure and loose.hosts_used == 3


def test_hosts_in_use_may_have_room_for_one_that_fails() -> None:
    servers = [server(f"s{number}", 2.2) for number in range(3)] + [server("tiny", 0.5)]
    plan = consolidate(
        wish([*servers, server("b", 0.1)], SMALL, headroom=0, spare=1, apart=(("tiny", "b"),))
    )
    assert plan.survives_failure and plan.hosts_spare == 1
    easy = consolidate(
        wish([server("a", 1.5), server("b", 1.5)], SMALL, headroom=0, hosts=2, spare=1)
    )
    assert easy.hosts_used == 1 and easy.hosts_spare == 1


def test_what_a_failure_does_without_spare_hosts_is_told() -> None:
    plan = consolidate(wish([server("a", 3), server("b", 3)], SMALL))
    assert not plan.survives_failure
    (stranded,) = plan.hosts[0].failure.stranded
    assert stranded.lacks[0].resource == "cpu" and stranded.lacks[0].missing == pytest.approx(2)
    plan = consolidate(wish([server("a", 2), server("b", 2)], SMALL))
    assert [host.failure.verdict for host in plan.hosts] == ["headroom", "headroom"]
    alone = consolidate(wish([server("a")], SMALL)).hosts[0].failure
    assert alone.stranded[0].reason == "there is no other host"


@pytest.mark.slow
def test_the_solver_finds_what_the_greedy_misses_or_proves_that_there_is_nothing() -> None:
    sizes = [4, 4, 4, 3, 3, 3, 3, 3, 3]  # 30 into 10s: 4+3+3 three times
    servers = [server(f"s{number}", size) for number, size in enumerate(sizes)]
    plan = consolidate(wish(servers, HostShape(cpu=10, memory=64 * GIB), headroom=0))
    assert plan.hosts_used == 3 and plan.optimal
    # the bound says 3; only two of them share
    servers = [server(f"s{number}", 0.34) for number in range(8)]
    plan = consolidate(wish(servers, HostShape(cpu=1, memory=64 * GIB), headroom=0))
    assert plan.hosts_used == 4 and plan.optimal and plan.bound.kind == "search" and plan.searched


@pytest.mark.slow
def test_a_solver_without_time_claims_nothing() -> None:
    servers = [server(f"s{number}", 0.34) for number in range(14)]
    plan = consolidate(
        wish(servers, HostShape(cpu=1, memory=64 * GIB), headroom=0, solver_seconds=1e-9)
    )
    assert plan.hosts_used == 7 and not plan.optimal and plan.searched and plan.bound.hosts == 5


def test_hosts_of_terabytes_are_counted_in_larger_units() -> None:
    huge = HostShape(cpu=512, memory=16 * 2**40, network=2**40)
    plan = consolidate(
        wish(
            [server(f"s{number}", 30, 2**40, network=2**35) for number in range(20)],
            huge,
            headroom=0,
        )
    )
    assert plan.hosts_used == 2 and plan.hosts[0].peaks["memory"].value == 16 * 2**40


def test_resources_the_host_has_no_limit_for_are_not_considered() -> None:
    plan = consolidate(wish([server("a", network=10**12)], SMALL))
    assert plan.considered == ("cpu", "memory") and not plan.unplaced


def test_everything_may_be_idle_or_too_large() -> None:
    assert consolidate(wish([server("a", 0, 0)], SMALL)).hosts_used == 1
    nothing = consolidate(wish([server("a", 50)], SMALL, spare=1))
    assert nothing.hosts == () and nothing.bound.hosts == 0 and nothing.unplaced


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "twice": ({"servers": [server("a"), server("a")]}, "given twice"),
    "nobody": ({"servers": []}, "at least 1"),
    "apart from a stranger": ({"apart": (("a", "z"),)}, "not among the servers"),
    "apart from itself": ({"apart": (("a", "a"),)}, "twice"),
    "not measured": ({"host": SHAPE}, "was not measured"),
    "no headroom at all": ({"headroom": 1}, "less than 1"),
    "endless growth": ({"growth": float("inf")}, "finite"),
    "not a number": ({"growth": float("nan")}, "finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wish_that_makes_no_sense_is_refused(case: str) -> None:
    fields, words = REFUSED[case]
    with pytest.raises(ValidationError, match=words):
        ConsolidationWish.model_validate(
            {"servers": [server("a"), server("b")], "host": SMALL, **fields}
        )


@pytest.mark.parametrize(
    "value", [-1, float("nan"), float("inf"), 2.0**61, (1.0,) * 167, (1.0,) * 169, "many", [[1]]]
)
def test_a_load_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        ServerLoad(name="a", cpu=value)


def test_spare_hosts_must_leave_some() -> None:
    with pytest.raises(Invalid, match="spare"):
        consolidate(wish([server("a")], SMALL, hosts=1, spare=1))
    with pytest.raises(Invalid, match="holds nothing"):
        consolidate(wish([server("a")], HostShape(cpu=1e-7, memory=1), headroom=0.5))
