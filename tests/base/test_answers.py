"""What a peer said costs at most milliseconds, and is of the type that was asked for, or refused
with one kind of error.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cost import cost
from virtuary.base.answers import DEPTH_CAP, LINE_CAP, PARTS_CAP, parse, read
from virtuary.base.errors import Misbehaves

ROOM = LINE_CAP - 8


def many(unit: bytes, size: int = ROOM) -> bytes:
    return unit * (size // len(unit))


REFUSED = {
    "small lists": b"[" + many(b"[],") + b"1]", "small objects": b"[" + many(b'{"a":{}},') + b"1]",
    "numbers": b"[" + many(b"1,") + b"1]",
    "long numbers": b"[" + many(b"9" * 4000 + b",") + b"1]",
    "fractions": b"[" + many(b"9" * 14 + b".9,") + b"1]", "escapes": b'"' + many(b"\\\\") + b'"',
    "quotes": many(b'""'), "deep": many(b"[", ROOM // 2) + many(b"]", ROOM // 2),
    "spaces": many(b" ") + b"1", "zeros": many(b"\0"),
    "a line too long": b'"' + b"x" * LINE_CAP + b'"', "no ASCII": '"é"'.encode(),
    "wide": b'"' + many(b"a", ROOM - 8) + "😀".encode() + b'"',
    "a broken end": b'"' + many(b"a") + b"\x80", "not a number": b"[NaN]",
    "infinity": b"[-Infinity]", "nothing": b"", "two": b"1 2",
    "a bracket too many": b"[]]", "mixed brackets": b"[}", "a number of 5000 digits": b"9" * 5000,
    "an open string": b'"a', "a byte order mark": b"\xef\xbb\xbf1",
    "one level too deep": b"[" * (DEPTH_CAP + 1) + b"]" * (DEPTH_CAP + 1),
}  # fmt: skip
TAKEN = {
    "as many parts as may be": b"[" + b"{}," * (PARTS_CAP // 2 - 2) + b"1]",
    "as many names": b"{" + b",".join(b'"%0120d":1' % i for i in range(8190)) + b"}",
    "a long text": b'"' + many(b"a") + b'"',
    "escapes": b'"' + b"\\u00e9" * 60_000 + b"a" * (LINE_CAP - 360_010) + b'"',
    "escaped marks": b'"' + b'\\"' * 30_000 + b"a" * (LINE_CAP - 60_010) + b'"',
    "widened late": b'"' + b"a" * (LINE_CAP - 20) + b'\\ud83d\\ude00"',
    "long numbers": b"[" + (b"9" * 4000 + b",") * 32 + b"1]",
    "fractions": b"[" + (b"9" * 13 + b".9,") * 8000 + b"1]", "a fraction": b"9" * 130_000 + b".5",
    "text and parts": b"[" + b'{"a":{}},' * 4000 + b'"' + b"a" * (LINE_CAP - 50_000) + b'"]',
    "as deep as may be": b"[" * DEPTH_CAP + b"]" * DEPTH_CAP,
    "brackets in a text": b'["' + b"[" * 100_000 + b'", "\\"[[[[{{{{", "\\\\"]',
}  # fmt: skip


def ask(line: bytes) -> None:
    with contextlib.suppress(Misbehaves):
        parse(line)


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_take_long_or_is_no_json_is_refused_at_once(case: str) -> None:
    with pytest.raises(Misbehaves):
        parse(REFUSED[case])
    assert cost(lambda: ask(REFUSED[case]), 0.005) < 0.005


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_taken_takes_less_than_five_milliseconds(case: str) -> None:
    assert parse(TAKEN[case]) == json.loads(TAKEN[case])
    assert cost(lambda: ask(TAKEN[case]), 0.005) < 0.005


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)  # fmt: skip


@given(values)
def test_every_value_of_ordinary_size_comes_through(value: Any) -> None:
    assert parse(json.dumps(value).encode()) == value


@given(st.binary(max_size=40) | st.text(alphabet='[]{}",:\\ 1aetrufn', max_size=30).map(str.encode))
def test_a_line_is_what_json_says_or_refused(line: bytes) -> None:
    try:
        found = parse(line)
    except Misbehaves:
        return
    assert found == json.loads(line)


def test_an_error_names_who_said_it_and_what_it_was() -> None:
    with pytest.raises(
        Misbehaves, match=r"the guest agent answered something unexpected: pid is not a number"
    ):
        read({"pid": "x"}, "the guest agent").number("pid")
    with pytest.raises(Misbehaves, match="it says no pid"):
        read({}).number("pid")


@pytest.mark.parametrize("value", [True, 1.0, "1", None, -1, 2**63, [1]])
def test_a_number_is_a_whole_one_within_its_bounds(value: Any) -> None:
    with pytest.raises(Misbehaves):
        read(value).number()


def test_what_may_be_left_out_has_a_value_then() -> None:
    answer = read({"there": 5})
    assert (
        answer.number("missing", 7) == 7
        and answer.text("missing", None) is None
        and answer.items("missing") == []
    )
    assert (
        answer.flag("missing") is False
        and answer.fields("missing") == {}
        and answer.words("missing", "none") == "none"
    )
    assert "there" in answer and "missing" not in answer
