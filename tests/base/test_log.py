"""A line of log is one line, whatever a guest or a user put into it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.log import FIELD_CAP, clean, say


@given(st.text())
def test_no_control_character_comes_out(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.isprintable() and len(cleaned) <= 2 * FIELD_CAP


def test_a_new_line_stays_visible() -> None:
    assert clean("a\nb\x1b[31m") == "a\\nb?[31m"


def test_fields_are_words_and_quoted_where_needed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        say(logging.getLogger("test"), "step", vm="web1", why="no space", empty="")
    assert caplog.messages == ['step vm=web1 why="no space" empty=""']


def test_a_percent_sign_stays_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        say(logging.getLogger("test"), "50% done", text="%s %d")
    assert caplog.messages == ['50% done text="%s %d"']


SPEAK = """
import logging
from virtuary.base.log import set_up
set_up("info")
logging.getLogger("x").warning("one\\x1b[2J\\ntwo")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("x").exception("three")
"""


@pytest.mark.parametrize(("journal", "starts"), [({}, "20"), ({"JOURNAL_STREAM": "8:1"}, "<")])
def test_what_reaches_stderr_is_one_line_an_event(journal: dict[str, str], starts: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPEAK], capture_output=True, text=True, env={**os.environ, **journal}, check=True
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and all(line.startswith(starts) and line.isprintable() for line in lines)
    assert "one?[2J\\ntwo" in lines[0] and "ZeroDivisionError" in lines[1]
