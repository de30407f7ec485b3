"""Crash points: nothing happens unless asked; asked, it happens at the named point, at the named
visit.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import errno
from virtuary.base.crash import crashpoint, declare
declare("a.one", "a.two")
for turn in range(3):
    for name in ("a.one", "a.two"):
        try:
            crashpoint(name)
        except OSError as error:
            print(errno.errorcode[error.errno], end=" ", flush=True)
        print(name, flush=True)
"""
ALL = "a.one a.two a.one a.two a.one a.two"


def play(wanted: str, code: str = CODE, **environment: str) -> tuple[int, str]:
    env = {**os.environ, "VIRTUARY_CRASH": wanted, **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=20
    )
    return done.returncode, " ".join(done.stdout.split())


CASES = {
    "nothing asked": ("", 0, ALL),
    "another point": ("b.one", 0, ALL),
    "killed at the first visit": ("a.two", -signal.SIGKILL, "a.one"),
    "killed at the second visit": ("a.two:2", -signal.SIGKILL, "a.one a.two a.one"),
    "a full disk": ("a.one:2:enospc", 0, "a.one a.two ENOSPC a.one a.two a.one a.two"),
    "a broken disk": ("a.one::raise", 0, "EIO a.one a.two a.one a.two a.one a.two"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_fault_comes_where_it_was_asked_for(case: str) -> None:
    wanted, status, printed = CASES[case]
    assert play(wanted) == (status, printed)


def test_visited_points_are_traced(tmp_path: Path) -> None:
    play("", VIRTUARY_CRASH_TRACE=str(tmp_path / "trace"))
    assert (tmp_path / "trace").read_text().split() == ALL.split()


def test_an_undeclared_point_is_a_defect() -> None:
    assert (
        play("x", "from virtuary.base.crash import crashpoint; crashpoint('nobody.declared')")[0]
        == 1
    )
