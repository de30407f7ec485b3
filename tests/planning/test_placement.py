"""Where servers could go: no host is ever given more than it has, and a server without a place has
none.
"""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from virtuary.base.errors import NoRoom
from virtuary.model.placement import PlacementWish
from virtuary.planning.arrange import arrange
from virtuary.planning.placement import Need, Placement, Reason, Site, fewest

SITES = st.builds(
    Site,
    st.tuples(st.integers(0, 12), st.integers(0, 12)),
    st.integers(0, 3),
    st.sampled_from(["", "a", "b"]),
)
NEEDS = st.builds(
    Need, st.tuples(st.integers(0, 6), st.integers(0, 6)), st.sampled_from([0, 0, 0, 1, 2, 3]),
    st.sampled_from([None, None, "g", "h"]),
    st.sampled_from(["host", "zone"]),
)  # fmt: skip
Where = list[tuple[Need, int]]


def refusals(sites: list[Site], there: Where, need: Need, number: int) -> list[tuple[str, int]]:
    """Why a host does not take a server, worked out from nothing."""
    site = sites[number]
    used = [
        sum(other.amounts[part] for other, where in there if where == number) for part in range(2)
    ]
    found = [
        ("resource", part)
        for part in range(2)
        if need.amounts[part] > site.capacity[part] - used[part]
    ]
    found += [("feature", bit) for bit in (1, 2) if need.features & bit and not site.features & bit]
    mates = [
        where for other, where in there if need.group is not None and other.group == need.group
    ]
    met = any(
        where == number or (need.apart == "zone" and sites[where].zone == site.zone)
        for where in mates
    )
    return [*found, *([("apart", 0)] if met else [])]


@given(
    st.lists(SITES, min_size=1, max_size=6),
    st.lists(NEEDS, max_size=25),
    st.booleans(),
    st.randoms(use_true_random=False),
    st.booleans(),
)
@settings(max_examples=300)
def test_a_place_is_found_where_there_is_one_and_told_why_where_there_is_none(
    sites: list[Site], needs: list[Need], told: bool, chance: random.Random, sparing: bool
) -> None:
    least = (
        [min((need.amounts[part] for need in needs), default=0) for part in range(2)]
        if told
        else ()
    )
    placement, there = Placement(sites, least=least, sparing=sparing), Where()
    for need in needs:
        number = placement.place(need)
        open_to_it = [host for host in range(len(sites)) if not refusals(sites, there, need, host)]
        if number is None:
            assert open_to_it == []
            counts: dict[tuple[str, int], int] = {}
            for host in range(len(sites)):
                for what in refusals(sites, there, need, host):
                    counts[what] = counts.get(what, 0) + 1
            assert {
                (reason.kind, reason.which): reason.hosts for reason in placement.why(need)
            } == counts
        else:
            assert number in open_to_it
            there.append((need, number))
        if there and chance.random() < 0.2:
            gone = there.pop(chance.randrange(len(there)))
            placement.remove(*gone)
    assert placement.used == len({number for _, number in there})
    for number, site in enumerate(sites):
        used = [
            sum(need.amounts[part] for need, where in there if where == number) for part in range(2)
        ]
        assert placement.free[number] == [
            has - takes for has, takes in zip(site.capacity, used, strict=True)
        ]


@given(st.lists(SITES, min_size=1, max_size=6), st.lists(NEEDS, max_size=12))
def test_the_bound_is_one(sites: list[Site], needs: list[Need]) -> None:
    placement = Placement(sites)
    placed = [need for need in needs if placement.place(need) is not None]
    assert fewest(sites, placed) <= max(placement.used, 1)


def test_few_hosts_are_used_and_the_fullest_that_takes_it_has_it() -> None:
    placement = Placement([Site((10, 10))] * 3)
    assert [placement.place(Need((amount, 1))) for amount in (4, 7, 3, 3)] == [0, 1, 1, 0]
    placement = Placement([Site((10, 10)), Site((10, 10))])
    placement.put(Need((2, 5)), 0)
    placement.put(Need((5, 2)), 1)
    assert placement.place(Need((5, 2))) == 0, "what is left over can be used"


@pytest.mark.parametrize(("sparing", "where"), [(True, 1), (False, 0)])
def test_hosts_with_rare_features_are_kept_for_those_that_need_them_while_more_may_come(
    sparing: bool, where: int
) -> None:
    placement = Placement([Site((10,), features=1), Site((10,))], sparing=sparing)
    assert placement.place(Need((2,), features=1)) == 0
    assert placement.place(Need((2,))) == where
    assert placement.place(Need((9,))) == (None if sparing else 1)


def test_a_smaller_server_than_all_before_finds_what_was_put_away() -> None:
    placement = Placement([Site((10,))], least=[4])
    assert placement.place(Need((8,))) == 0 and placement.place(Need((4,))) is None
    assert placement.place(Need((2,))) == 0
    assert placement.why(Need((1,))) == [Reason("resource", 0, 1, 0)]


def test_thousands_are_packed_nearly_as_tightly_as_could_be() -> None:
    chance = random.Random(7)
    sites = [Site((64, 256)) for _ in range(400)]
    needs = [
        Need((chance.choice((1, 2, 2, 4, 8)), chance.choice((2, 4, 8, 16, 32))))
        for _ in range(4000)
    ]
    placement = Placement(sites)
    assert all(placement.place(need) is not None for need in needs)
    assert placement.used <= 1.05 * fewest(sites, needs)


# ---- the wish and the plan


def wish(hosts: list[dict[str, Any]], servers: list[dict[str, Any]]) -> PlacementWish:
    return PlacementWish.model_validate({"hosts": hosts, "servers": servers})


HOSTS = [
    {"name": "h1", "cpu": 16, "memory": 64, "zone": "a"}, {"name": "h2", "cpu": 16, "memory": 64,
    "zone": "a", "features": ["huge"]},
    {"name": "h3", "cpu": 16, "memory": 64, "zone": "b"},
]  # fmt: skip


def test_a_plan_tells_where_and_why_not() -> None:
    web = [
        {"name": f"web{number}", "cpu": 0.5, "memory": 4, "group": "web", "apart": "zone"}
        for number in (1, 2, 3)
    ]
    plan = arrange(wish(HOSTS, [
        {"name": "old", "cpu": 8, "memory": 48, "host": "h1"}, *web, {"name": "db", "cpu": 4,
        "memory": 32, "features": ["huge"]},
        {"name": "big", "cpu": 17, "memory": 8},
    ]))  # fmt: skip
    places = {server: host.name for host in plan.hosts for server in host.servers}
    assert places["old"] == "h1" and places["db"] == "h2"
    assert sorted((places["web1"] in ("h1", "h2"), places["web2"] in ("h1", "h2"))) == [False, True]
    assert [(host.name, host.new) for host in plan.hosts if "old" in host.servers] == [
        ("h1", len(plan.hosts[0].servers) - 1)
    ]
    why = {
        item.server: [(reason.kind, reason.what, reason.hosts) for reason in item.why]
        for item in plan.unplaced
    }
    assert why == {"web3": [("apart", "web", 3)], "big": [("resource", "cpu", 3)]}
    big = next(item for item in plan.unplaced if item.server == "big").why[0]
    assert big.needed == 17 and big.free == max(host.free["cpu"] for host in plan.hosts)
    assert plan.placed == 3 and plan.hosts_used == 3
    assert json.loads(plan.model_dump_json())["hosts"][0]["free"]["disk"] == 0


@pytest.mark.parametrize(
    ("servers", "words"),
    [
        ([{"name": "a", "cpu": 1, "memory": 1}] * 2, "'a' is given twice"),
        (
            [{"name": "a", "cpu": 1, "memory": 1, "host": "h9"}],
            "'a' is on 'h9', which is not among the hosts",
        ),
        ([{"name": "a", "cpu": -1, "memory": 1}], "greater than or equal to 0"),
        (
            [
                {
                    "name": "a",
                    "cpu": 1,
                    "memory": 1,
                    "features": [f"f{number}" for number in range(70)],
                }
            ],
            "64 are the most",
        ),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(servers: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        wish(HOSTS, servers)


def test_what_is_said_to_be_there_must_fit() -> None:
    with pytest.raises(NoRoom, match="h1 has no room for b, which is said to be there"):
        arrange(wish(HOSTS, [{"name": name, "cpu": 9, "memory": 1, "host": "h1"} for name in "ab"]))
