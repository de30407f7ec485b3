"""A line of log is one line, whatever a guest or a user put into it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

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
        [sys.executable, "-c", SPEAK],
        capture_output=True,
        text=True,
        env={**os.environ, **journal},
        check=True,
    )
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and all(line.startswith(starts) and line.isprintable() for line in lines)
    assert "one?[2J\\ntwo" in lines[0] and "ZeroDivisionError" in lines[1]


FILL = """
import logging, sys
from pathlib import Path
from virtuary.base import log
log.LOG_CAP = 10_000
log.set_up("info", Path(sys.argv[1]))
for number in range(1000):
    logging.getLogger("x").warning("line %d", number)
print("the end", flush=True)
"""


@pytest.mark.parametrize("streams", ["both", "stderr"])
def test_a_log_file_of_the_daemons_own_is_begun_anew_whoever_opened_it(
    tmp_path: Path, streams: str
) -> None:
    place = tmp_path / "daemon.log"
    place.write_text("from before\n" * 1000)
    with place.open("ab") as log, (tmp_path / "out").open("wb") as other:
        out = log if streams == "both" else other
        subprocess.run([sys.executable, "-c", FILL, str(place)], stdout=out, stderr=log, check=True)
    assert place.stat().st_size < 10_200 and place.with_suffix(".old").stat().st_size < 12_200
    assert place.stat().st_mode & 0o777 == 0o600
    assert "line 999" in place.read_text() and ("the end" in place.read_text()) == (
        streams == "both"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["daemon.log", "daemon.old", "out"]


def test_a_file_that_is_not_the_daemons_own_is_left_alone(tmp_path: Path) -> None:
    place = tmp_path / "mine.log"
    with place.open("ab") as log:
        subprocess.run(
            [sys.executable, "-c", FILL, str(tmp_path / "daemon.log")], stderr=log, check=True
        )
    assert place.stat().st_size > 20_000 and not (tmp_path / "daemon.log").exists()
