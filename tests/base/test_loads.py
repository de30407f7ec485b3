"""Measurements become 168 values: by percentile, by the clock of a zone, and what was not measured
is taken as the highest.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.loads import HOURS, Load, Track, check_server, hour_name, hour_of, percentile

MONDAY = datetime(2026, 11, 23, tzinfo=UTC).timestamp()


def track(values: dict[float, float]) -> Track:
    found = Track("web1", ["cpu", "disk"])
    for number, (moment, value) in enumerate(values.items()):
        found.moments.append(moment)
        found.places.append(number)
        found.values["cpu"].append(value)
        found.values["disk"].append(math.nan)
    return found


def test_hours_are_counted_from_monday() -> None:
    assert hour_of(MONDAY) == 0 and hour_name(0) == "Mon 00:00"
    assert hour_of(MONDAY + 33 * 3600 + 59) == 33 and hour_name(33) == "Tue 09:00"
    assert hour_of(MONDAY - 1) == 167 and hour_name(167) == "Sun 23:00"
    assert hour_of(0) == 72  # a Thursday


def test_hours_follow_the_clock_of_the_zone_also_when_it_is_put_back() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert hour_of(datetime(2026, 7, 6, 7, tzinfo=UTC).timestamp(), berlin) == 9
    assert hour_of(datetime(2026, 12, 7, 8, tzinfo=UTC).timestamp(), berlin) == 9
    assert (
        hour_of(datetime(2026, 11, 23, 3, 30, tzinfo=UTC).timestamp(), ZoneInfo("Asia/Kolkata"))
        == 9
    )


@given(st.lists(st.floats(0, 1e9), min_size=1), st.floats(0.001, 100))
def test_the_percentile_was_measured_and_enough_values_are_no_higher(
    values: list[float], wanted: float
) -> None:
    found = percentile(sorted(values), wanted)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * wanted / 100 - 1e-6
    assert sum(value < found for value in values) < max(1, len(values) * wanted / 100)


def test_the_percentile_of_an_hour_leaves_out_a_rare_peak() -> None:
    values = {MONDAY + second: 100.0 if second == 0 else 1.0 for second in range(100)}
    assert track(values).reduce(95).hours["cpu"] == [1.0] * HOURS
    assert track(values).reduce(100).hours["cpu"] == [100.0] * HOURS


def test_hours_without_a_measurement_are_taken_as_the_highest() -> None:
    load = track({MONDAY: 1.0, MONDAY + 3600: 3.0, MONDAY + 7 * 86400: 2.0}).reduce(100)
    assert load.hours["cpu"] == [2.0, 3.0, *[3.0] * 166] and load.assumed == 166
    assert "disk" not in load.hours


def test_a_moment_measured_twice_is_found() -> None:
    once = track({MONDAY: 1.0, MONDAY + 1: 1.0})
    assert once.twice() is None
    once.moments.append(MONDAY)
    once.places.append(7)
    assert once.twice() == (7, 0)


def test_a_load_for_the_wire_is_rounded_up_and_short_where_it_is_flat() -> None:
    body = Load("a", {"cpu": [0.1234567] * HOURS, "memory": [1000.5, *[1.0] * 167]}, 0).body()
    assert body["cpu"] == 0.123457 and body["memory"] == [1001, *[1.0] * 167]


@pytest.mark.parametrize("name", ["", " ", "a,b", "x" * 101, "a\nb", "\x1b[31m"])
def test_names_that_could_harm_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="server's name"):
        check_server(name)
    assert check_server(" db 1.example ") == "db 1.example"
