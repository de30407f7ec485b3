"""What a NIC may be given of its network: what makes sense, what a change leaves, and whether a
network can promise it.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from virtuary.base.errors import NoRoom
from virtuary.model.bandwidth import (
    Bandwidth,
    BandwidthChange,
    Rate,
    RateChange,
    admit,
    changed,
    refusal,
    usable,
)

MBIT = 10**6
SENSELESS = {
    "a floor above the limit": {"limit": 10 * MBIT, "floor": 11 * MBIT},
    "a limit of nothing": {"limit": 0},
    "a limit below any use": {"limit": 63_999},
    "a negative floor": {"floor": -MBIT},
    "a burst without a limit": {"burst": 100_000},
    "a burst that lasts for hours": {"limit": 64_000, "burst": 2**30},
    "a weight of nothing": {"weight": 0},
    "a weight beyond all": {"weight": 10_001},
}


@pytest.mark.parametrize("values", SENSELESS.values(), ids=SENSELESS)
def test_what_makes_no_sense_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Rate(**values)


def test_a_floor_may_be_as_high_as_the_limit() -> None:
    assert Rate(limit=MBIT, floor=MBIT).shares


def test_nothing_is_asked_for_at_first() -> None:
    assert not Bandwidth().inbound.shares and Bandwidth().outbound.limit is None


def test_a_change_leaves_what_it_does_not_name_and_null_takes_away() -> None:
    before = Bandwidth(
        inbound=Rate(limit=10 * MBIT, floor=MBIT, weight=300), outbound=Rate(limit=MBIT)
    )
    after = changed(
        before, BandwidthChange(inbound=RateChange(limit=20 * MBIT, floor=None, weight=None))
    )
    assert after == Bandwidth(inbound=Rate(limit=20 * MBIT), outbound=Rate(limit=MBIT))
    assert changed(before, BandwidthChange()) == before


def test_a_change_to_something_senseless_is_refused() -> None:
    before = Bandwidth(inbound=Rate(limit=10 * MBIT, floor=8 * MBIT))
    with pytest.raises(
        ValidationError, match="a floor of 8 Mbit/s lies above the limit of 5 Mbit/s"
    ):
        changed(before, BandwidthChange(inbound=RateChange(limit=5 * MBIT)))


def floors(inbound: int | None = None, outbound: int | None = None) -> Bandwidth:
    return Bandwidth(inbound=Rate(floor=inbound), outbound=Rate(floor=outbound))


def test_floors_up_to_the_link_without_its_reserve_are_admitted() -> None:
    assert admit(floors(45 * MBIT, 95 * MBIT), [floors(50 * MBIT), Bandwidth()], 100 * MBIT) == ()


def test_a_floor_too_much_says_what_is_missing_in_which_direction() -> None:
    shortages = admit(floors(46 * MBIT, 10 * MBIT), [floors(50 * MBIT)], 100 * MBIT)
    assert [(shortage.direction, shortage.missing) for shortage in shortages] == [("inbound", MBIT)]
    error = refusal(shortages)
    assert isinstance(error, NoRoom) and error.details == {"missing": {"inbound": MBIT}}
    assert error.sentence == (
        "a floor of 46 Mbit/s inbound can't be promised: 1 Mbit/s are missing, of 95 Mbit/s "
        "others have 50 Mbit/s"
    )


def test_nothing_is_promised_on_a_link_of_unknown_speed() -> None:
    shortages = admit(floors(outbound=MBIT), [], None)
    error = refusal(shortages)
    assert shortages[0].missing is None and error
    assert "not known" in error.sentence and "state the link's speed" in str(error.hint)


def test_who_asks_for_no_floor_is_admitted_anywhere() -> None:
    wish = Bandwidth(inbound=Rate(limit=MBIT, weight=500))
    assert admit(wish, [floors(10**12)], None) == admit(wish, [floors(10**12)], MBIT) == ()
    assert refusal(()) is None


@given(st.lists(st.integers(64_000, 10**9), min_size=1, max_size=8), st.integers(10**6, 10**10))
def test_what_is_admitted_one_after_another_never_exceeds_the_link(
    asked: list[int], link: int
) -> None:
    admitted: list[Bandwidth] = []
    for floor in asked:
        if not admit(floors(floor), admitted, link):
            admitted.append(floors(floor))
    assert sum(one.inbound.floor or 0 for one in admitted) <= usable(link) < link
