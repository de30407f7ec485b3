"""What is shown moves no cursor, changes no terminal and turns no reading direction, whoever wrote
it.
"""

from __future__ import annotations

import time
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.text import Stream, shown, shown_lines, shown_value

HOSTILE = {
    "CSI": "\x1b[2J", "CSI of 8 bits": "\x9b2J", "title": "\x1b]0;x\x07",
    "title of 8 bits": "\x9d0;x\x9c", "clipboard": "\x1b]52;c;aGk=\x1b\\",
    "DCS": "\x1bP1$q\x1b\\", "reset": "\x1bc", "charset": "\x1b(0", "next line": "\x85",
    "bell": "\x07", "backspace": "\b", "delete": "\x7f",
    "override": "\u202e", "isolate": "\u2066", "mark": "\u200f", "arabic mark": "\u061c",
    "zero width": "\u200b", "line": "\u2028", "half": "\ud800",
    "tag": "\U000e0041", "order": "\ufeff",
}  # fmt: skip


def is_harmless(text: str, kept: str = "") -> bool:
    return all(
        char in kept or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        for char in text
    )


@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_terminal_would_obey_does_not_pass_and_what_stands_beside_it_does(case: str) -> None:
    text = f"before {HOSTILE[case]}after\n"
    assert is_harmless(shown(text)) and is_harmless(shown_lines(text), "\n\t")
    assert shown_lines(text) == "before after\n"
    assert shown(text).startswith("before ") and shown(text).endswith("after")


@given(st.text())
def test_nothing_else_than_what_is_drawn_comes_out(text: str) -> None:
    assert (
        is_harmless(shown(text))
        and is_harmless(shown_lines(text), "\n\t")
        and len(shown(text, 3)) <= 3
    )


@given(
    st.recursive(
        st.text() | st.none() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_every_text_of_a_value_passes_the_door(value: Any) -> None:
    assert is_harmless(str(shown_value(value)).replace("\\n", "").replace("\\t", ""))


def test_words_of_every_language_stay() -> None:
    text = "größer, 大きい, больше, أكبر, 😀\tand\nso on"
    assert shown_lines(text) == text and shown(text) == text.replace("\t", " ").replace("\n", " ")


@given(
    st.lists(
        st.sampled_from(["\x1b[31", "m", "a", "\x1b", "]0;t", "\x07", "é", "\x9b", "1", "\n"]),
        max_size=12,
    ),
    st.data(),
)
def test_pieces_are_shown_like_the_whole(parts: list[str], data: Any) -> None:
    whole = "".join(parts).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
    stream = Stream()
    pieces = [whole[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    found = "".join(shown_lines(stream.text(piece)) for piece in pieces) + shown_lines(
        stream.text(b"\n" * 64)
    )
    assert is_harmless(found, "\n\t")


def test_a_sequence_that_is_cut_is_none_of_the_text() -> None:
    stream = Stream()
    assert (
        "".join(shown_lines(stream.text(piece)) for piece in (b"a\x1b[3", b"1mb\xc3", b"\xa9"))
        == "abé"
    )


@pytest.mark.parametrize(
    "unit", ["\x1b]", "\x9d", "\x1b[", "\x1b[0;", "\x9b0", "\x1b", "\u202e", "é\x1bP"]
)
def test_a_long_text_takes_time_by_its_length(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    began = time.thread_time()
    shown_lines(text)
    assert time.thread_time() - began < 1
