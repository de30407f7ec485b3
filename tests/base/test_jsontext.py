"""What a parser would take long for is told before it is parsed, within milliseconds, and nothing
else is.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost import cost
from virtuary.base.jsontext import DEPTH_CAP, PARTS_CAP, find_excess

MIB = 1024 * 1024
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    return (opening * depth + closing * depth).encode()


@given(VALUES)
def test_whatever_people_write_may_be_parsed(value: object) -> None:
    for ascii_only in (True, False):
        assert (
            find_excess(json.dumps(value, ensure_ascii=ascii_only).encode(errors="replace")) is None
        )


@pytest.mark.parametrize(
    "text",
    ["[" * 100, "\\" * 50_000, '"' * 50_000, "a: b, [c]\n" * 20_000],
    ids=lambda text: text[:4],
)
def test_what_stands_in_a_text_does_not_count(text: str) -> None:
    assert find_excess(json.dumps({"user_data": text}).encode()) is None


def test_depth_and_parts_are_counted_exactly() -> None:
    assert find_excess(nested(DEPTH_CAP)) is None and "deep" in (
        find_excess(nested(DEPTH_CAP + 1)) or ""
    )
    assert find_excess(nested(DEPTH_CAP - 1, '{"a":[') + b"") is not None, (
        "an object and a list are one each"
    )
    full = b"[" + b"1," * (PARTS_CAP - 2) + b"1]"
    assert find_excess(full) is None and "values" in (find_excess(b"[" + full + b",2]") or "")


LONG = {
    "brackets": b"[" * MIB,
    "nested lists": nested(MIB // 2),
    "nested objects": b'{"a":' * (MIB // 5),
    "many lists": b"[" + b"[]," * (MIB // 3),
    "many numbers": b"[" + b"1," * (MIB // 2),
    "many texts": b'"",' * (MIB // 3),
    "many objects": b'{"a":1},' * (MIB // 8),
    "quotation marks": b'"' * MIB,
}


@pytest.mark.parametrize("case", LONG)
def test_a_mib_that_would_take_long_is_refused_within_5_ms(case: str) -> None:
    assert find_excess(LONG[case])
    assert cost(lambda: find_excess(LONG[case]), 0.005) < 0.005


def test_a_bracket_that_is_not_closed_is_called_so() -> None:
    for text in (b"{bad", b'{"a": [1', b"[" * 32):
        assert find_excess(text) == "brackets that are not closed"
