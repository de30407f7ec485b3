"""The rings of a history: whatever is written, torn, or done to the clock, what is read is what was
seen, and no more than fits.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.host.history import HEADER, RINGS, Layout, Ring, open_history, read_history
from virtuary.model.usage import HOST_SERIES, VM_SERIES, Point

SERIES = ("a", "b")
SMALL = (Ring("second", 1, 12, False), Ring("minute", 4, 9, True), Ring("hour", 12, 6, True))
"""The same rings, small enough to go round many times."""
BEGIN = 1000 * 12

steps = st.lists(
    st.tuples(st.integers(1, 30), st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=80
)


def written(
    path: Path, moments: list[tuple[int, float]], reopen: Callable[[int], bool] = lambda _: False
) -> dict[int, float]:
    """Write these, by one writer or by one after another; what is to be found, by time."""
    history = open_history(path, SERIES, SMALL)
    for number, (at, value) in enumerate(moments):
        history.append(at, 1, (value, math.nan))
        if reopen(number):
            history.close()
            history = open_history(path, SERIES, SMALL)
    history.close()
    return dict(moments)


def read(path: Path, resolution: str, now: int, since: int = 0) -> list[Point]:
    return read_history(path, SERIES, resolution, since, now, SMALL)


def forward(changes: list[tuple[int, float]]) -> list[tuple[int, float]]:
    at, found = BEGIN, []
    for step, value in changes:
        at += step
        found.append((at, value))
    return found


@given(steps)
@pytest.mark.slow
def test_the_last_seconds_are_what_was_written(changes: list[tuple[int, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        moments = forward(changes)
        wanted, now = written(Path(folder, "h"), moments), moments[-1][0]
        found = read(Path(folder, "h"), "second", now)
        assert {point.at: point.mean for point in found} == {
            at: {"a": v} for at, v in wanted.items() if at > now - 12
        }
        assert [point.at for point in found] == sorted(point.at for point in found)
        assert all(point.peak == {} and point.covered == 1 for point in found)


@given(steps, st.integers(0, 7))
@pytest.mark.slow
def test_minutes_and_hours_are_made_of_their_parts_however_often_the_writer_is_killed(
    changes: list[tuple[int, float]], kills: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        moments = forward([(min(step, 3), value) for step, value in changes])
        wanted = written(
            Path(folder, "h"), moments, lambda number: bool(kills) and number % kills == 0
        )
        now = moments[-1][0]
        for resolution, step, slots in (("minute", 4, 9), ("hour", 12, 6)):
            found = read(Path(folder, "h"), resolution, now)
            assert len({point.at for point in found}) == len(found) <= slots + 1
            for point in found:
                inside = [v for at, v in wanted.items() if point.at <= at < point.at + step]
                # the running hour knows its minutes that are over
                if resolution == "hour" and point.at + step > now:
                    inside = [v for at, v in wanted.items() if point.at <= at < now // 4 * 4]
                assert point.covered == len(inside)
                assert point.peak["a"] == max(inside)
                assert point.mean["a"] == pytest.approx(
                    sum(inside) / len(inside), rel=1e-5, abs=0.2
                )
            first = max(moments[0][0] // step, now // step - slots) * step
            due = {at // step * step for at in wanted if first <= at < now // step * step}
            assert due <= {point.at for point in found}


@given(
    steps,
    st.lists(
        st.tuples(st.integers(0, 2**20), st.binary(min_size=1, max_size=40)), min_size=1, max_size=5
    ),
)
@pytest.mark.slow
def test_what_was_torn_is_not_read(
    changes: list[tuple[int, float]], tears: list[tuple[int, bytes]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "h")
        moments = forward(changes)
        written(path, moments)
        now = moments[-1][0]
        before = {
            resolution: {point.at: point for point in read(path, resolution, now)}
            for resolution in ("second", "minute")
        }
        size = path.stat().st_size
        with open(path, "r+b") as file:
            for place, noise in tears:
                file.seek(HEADER + place % (size - HEADER - len(noise)))
                file.write(noise)
        for point in read(path, "second", now):
            assert point == before["second"][point.at]
        for point in read(path, "minute", now):
            if point.at + 4 <= now // 4 * 4:
                assert point == before["minute"][point.at]
        history = open_history(path, SERIES, SMALL)
        history.append(now + 1, 1, (7.0, 8.0))
        history.close()
        assert read(path, "second", now + 1)[-1].mean == {"a": 7.0, "b": 8.0}


@given(
    st.lists(st.tuples(st.integers(1, 4000), st.floats(0, 1e6, width=32)), min_size=1, max_size=60),
    st.integers(0, 5000),
)
def test_a_clock_that_jumps_corrupts_nothing(moments: list[tuple[int, float]], now: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "h")
        wanted = written(path, moments)
        for point in read(path, "second", now):
            assert point.mean["a"] == wanted[point.at] and now - 12 < point.at <= now
        for resolution, step in (("minute", 4), ("hour", 12)):
            for point in read(path, resolution, now):
                assert point.at % step == 0 and point.at <= now and point.covered <= step
        assert path.stat().st_size == Layout(SERIES, SMALL).size


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    path = tmp_path / "h"
    written(path, [(BEGIN + second, float(second)) for second in range(40)])
    now = BEGIN + 39
    assert [point.at - BEGIN for point in read(path, "second", now, since=BEGIN + 37)] == [
        37,
        38,
        39,
    ]
    assert [point.at - BEGIN for point in read(path, "minute", now, since=BEGIN + 33)] == [32, 36]
    assert read(path, "hour", now, since=now + 100) == []


@pytest.mark.parametrize("series", [VM_SERIES, HOST_SERIES])
@pytest.mark.slow
def test_a_year_of_nothing_else_takes_no_more_room(tmp_path: Path, series: tuple[str, ...]) -> None:
    path = tmp_path / "h"
    history = open_history(path, series)
    size = path.stat().st_size
    for day in range(365):
        history.append(1_800_000_000 + day * 86400, 1, [1.0] * len(series))
    history.close()
    assert path.stat().st_size == size == Layout(series, RINGS).size < 700_000


def test_a_file_of_another_layout_is_put_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "h"
    written(path, [(BEGIN, 1.0)])
    before = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        open_history(path, ("a", "b", "c"), SMALL).close()
    assert (tmp_path / "h.old").read_bytes() == before and "put aside" in caplog.text
    assert read(path, "second", BEGIN) == []


@pytest.mark.parametrize("content", [b"", b"V", b"not a history at all", os.urandom(3000)])
def test_whatever_lies_there_a_history_is_made(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "h"
    path.write_bytes(content)
    written(path, [(BEGIN, 1.0)])
    assert [point.mean for point in read(path, "second", BEGIN)] == [{"a": 1.0}]


def test_a_file_that_was_cut_is_made_whole(tmp_path: Path) -> None:
    path = tmp_path / "h"
    written(path, [(BEGIN + second, 1.0) for second in range(30)])
    os.truncate(path, HEADER + 10)
    assert read(path, "second", BEGIN + 29) == []
    written(path, [(BEGIN + 30, 2.0)])
    assert [point.mean for point in read(path, "second", BEGIN + 30)] == [{"a": 2.0}]


def test_no_number_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "h"
    history = open_history(path, SERIES, SMALL)
    history.append(BEGIN, 10**9, (1e300, 5.0))
    history.close()
    assert read(path, "second", BEGIN) == [Point(BEGIN, 65535, {"b": 5.0}, {})]


def test_where_nothing_is_nothing_is_read_and_a_link_is_not_followed(tmp_path: Path) -> None:
    assert read(tmp_path / "h", "hour", BEGIN) == []
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "h").symlink_to(tmp_path / "target")
    assert read(tmp_path / "h", "hour", BEGIN) == []
    with pytest.raises(OSError):
        open_history(tmp_path / "h", SERIES, SMALL)
    assert (tmp_path / "target").read_bytes() == b"x"
