"""What the host says of its memory, and the kernel's order of victims."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtuary.host.oom import EXPENDABLE, ORDINARY, PROTECTED, protect_self, score_of, set_score
from virtuary.host.pressure import HostMemory, parse_waits, read_memory

MEMINFO = "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n"
WAITS = (
    "some avg10=12.50 avg60=3.00 avg300=1.00 total=12345\nfull avg10=4.25 avg60=0.00 "
    "avg300=0.00 total=99\n"
)


def place(folder: Path, meminfo: str | None, waits: str | None) -> Path:
    (folder / "pressure").mkdir()
    for name, text in (("meminfo", meminfo), ("pressure/memory", waits)):
        if text is not None:
            (folder / name).write_text(text)
    return folder


def test_memory_and_waiting_are_read(tmp_path: Path) -> None:
    assert read_memory(place(tmp_path, MEMINFO, WAITS)) == HostMemory(8 << 30, 4 << 30, 12.5, 4.25)


def test_a_kernel_without_an_account_of_waiting_tells_memory_alone(tmp_path: Path) -> None:
    assert read_memory(place(tmp_path, MEMINFO, None)) == HostMemory(8 << 30, 4 << 30)


@pytest.mark.parametrize(
    "meminfo", [None, "", "MemTotal: 5 kB\n", "MemTotal: many kB\nMemAvailable: 1 kB\n"]
)
def test_a_host_that_does_not_tell_is_none(tmp_path: Path, meminfo: str | None) -> None:
    assert read_memory(place(tmp_path, meminfo, WAITS)) is None


def test_a_file_that_is_none_of_ours_is_nothing() -> None:
    assert parse_waits(b"") == parse_waits(b"some total=1\nless avg10=5\n") == (0.0, 0.0)


def test_this_host_tells() -> None:
    seen = read_memory()
    assert seen and 0 < seen.available <= seen.total and 0 <= seen.full <= 100


# ---- the kernel's order of victims


def test_scores_fall_with_priority_and_lie_above_what_is_no_server() -> None:
    scores = [score_of(priority) for priority in range(101)]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 101
    assert PROTECTED < ORDINARY < min(scores) and max(scores) < EXPENDABLE <= 1000


def test_a_score_is_written_once_and_what_is_not_allowed_is_left(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    file = tmp_path / "7/oom_score_adj"
    file.write_text("0\n")
    assert set_score(7, 500, tmp_path) and file.read_text() == "500"
    assert not set_score(8, 500, tmp_path), "it is gone"
    (tmp_path / str(os.getpid())).mkdir()
    own = tmp_path / str(os.getpid()) / "oom_score_adj"
    own.write_text("0\n")
    assert protect_self(tmp_path) and own.read_text() == str(PROTECTED)
    own.write_text("nonsense")
    assert not protect_self(tmp_path)
