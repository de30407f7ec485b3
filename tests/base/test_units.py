"""Sizes and durations: what people write is taken exactly or refused with an example."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.errors import Invalid
from virtuary.base.units import (
    GIB,
    KIB,
    MAX_BANDWIDTH,
    MAX_SIZE,
    MIB,
    TIB,
    format_bandwidth,
    format_duration,
    format_size,
    parse_bandwidth,
    parse_duration,
    parse_size,
)

SIZES = {
    "0": 0, "1048576": MIB, "512M": 512 * MIB, "512MiB": 512 * MIB, "512mib": 512 * MIB,
    " 4 GiB ": 4 * GIB, "4G": 4 * GIB,
    "4GB": 4 * 10**9, "1.5G": 3 * GIB // 2, "0.5K": 512, "2T": 2 * TIB, "7B": 7, "1KB": 1000,
    "1k": KIB, "1024TiB": 2**50,
}  # fmt: skip
DURATIONS = {
    "30": 30,
    "90s": 90,
    "5m": 300,
    "5min": 300,
    "1.5h": 5400,
    "250ms": 0.25,
    "2d": 172800,
    " 1 H ": 3600,
}


@pytest.mark.parametrize(("text", "size"), SIZES.items())
def test_a_size_means_exactly_its_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items())
def test_a_duration_means_exactly_its_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "G",
        "-1G",
        "4 parsecs",
        "1.2.3G",
        "1e3",
        "0x10",
        "4GiBB",
        "1" * 19,
        "2048P",
        "9" * 18 + "T",
    ],
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_size(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "12 parsecs", "-1s", "5 minutes and more", "inf", "nan", "1e9s"]
)
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_duration(text)
    assert caught.value.hint == "write a number and a unit, for example 30s or 5m"


@given(st.integers(0, 1023), st.sampled_from([1, KIB, MIB, GIB, TIB]))
def test_whole_sizes_survive_a_round_trip(number: int, unit: int) -> None:
    assert parse_size(format_size(number * unit)) == number * unit


@given(st.integers(0, MAX_SIZE))
def test_any_size_shown_is_right_within_six_percent(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.06)


@given(st.text(max_size=30))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(Invalid):
        assert 0 <= parse_size(text) <= MAX_SIZE


BANDWIDTHS = {
    "100Mbit": 10**8, "100 Mbit/s": 10**8, "1.5Gbit": 1_500_000_000, "64kbit": 64_000,
    "64Kbit": 64_000, "10MB/s": 80_000_000, "10MB": 80_000_000,
    "1MiB/s": 8 * MIB, "1GiB": 8 * GIB, "2Gbps": 2 * 10**9, "5000000": 5_000_000, "8B/s": 64,
    "9bit": 9, " 1Tbit ": 10**12,
}  # fmt: skip


@pytest.mark.parametrize(("text", "bits"), BANDWIDTHS.items())
def test_a_bandwidth_means_exactly_its_bits_a_second(text: str, bits: int) -> None:
    assert parse_bandwidth(text) == bits


@pytest.mark.parametrize(
    "text", ["", "Mbit", "10Mb", "10M", "10mbit", "-1Mbit", "1e3", "10Kibit", "11Tbit", "10MiB/h"]
)
def test_what_is_no_bandwidth_or_has_two_meanings_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_bandwidth(text)
    assert caught.value.hint


@given(st.integers(0, MAX_BANDWIDTH))
def test_any_bandwidth_shown_is_right_within_a_thousandth(bits: int) -> None:
    assert parse_bandwidth(format_bandwidth(bits)) == pytest.approx(bits, rel=0.001)


@given(st.text(max_size=30))
def test_any_text_is_a_bandwidth_or_refused(text: str) -> None:
    with contextlib.suppress(Invalid):
        assert 0 <= parse_bandwidth(text) <= MAX_BANDWIDTH


def test_bandwidths_are_shown_in_decimal_units() -> None:
    shown = [format_bandwidth(bits) for bits in (0, 999, 64_000, 10**8, 1_500_000_000, 10**12)]
    assert shown == ["0 bit/s", "999 bit/s", "64 kbit/s", "100 Mbit/s", "1.5 Gbit/s", "1 Tbit/s"]


SHOWN = {
    0: "0 ms", 0.85: "850 ms", 0.9994: "999 ms", 0.9996: "1.0 s", 4.2: "4.2 s", 59.94: "59.9 s",
    59.96: "1 min 0 s",
    200: "3 min 20 s", 3599.6: "1 h 0 min", 7500: "2 h 5 min", 86400 * 3 + 3600 * 4: "3 d 4 h",
}  # fmt: skip


@pytest.mark.parametrize(("seconds", "text"), SHOWN.items())
def test_durations_are_shown_in_the_two_units_that_matter(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(0, 1e9))
def test_no_duration_shows_sixty_of_anything(seconds: float) -> None:
    text = format_duration(seconds)
    assert "60 " not in text.replace("360 ", "").replace("160 ms", "") or text.endswith(
        ("d", "h", "ms")
    )
