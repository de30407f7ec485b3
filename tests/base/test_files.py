"""Files are there whole or not at all, with their mode from the first byte on."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from virtuary.base.files import publish, remove, write_whole


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_written_with_its_mode_and_nothing_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "key", b"x" * 100_000)
    assert (tmp_path / "key").read_bytes() == b"x" * 100_000
    assert mode(tmp_path / "key") == 0o600
    assert os.listdir(tmp_path) == ["key"]


def test_an_old_file_is_replaced_whole(tmp_path: Path) -> None:
    place = tmp_path / "key"
    write_whole(place, b"long old content")
    with place.open("rb") as before:
        write_whole(place, b"new")
        assert before.read() == b"long old content"
    assert place.read_bytes() == b"new"


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path) -> None:
    place = tmp_path / "key"
    write_whole(place, b"old")
    with pytest.raises(TypeError):
        write_whole(place, "no bytes")  # type: ignore[arg-type]
    assert place.read_bytes() == b"old" and os.listdir(tmp_path) == ["key"]


def test_what_a_crash_left_behind_is_no_obstacle_and_lends_no_mode(tmp_path: Path) -> None:
    rest = tmp_path / ".key.partial"
    rest.write_bytes(b"half of something longer than the new content")
    rest.chmod(0o644)
    write_whole(tmp_path / "key", b"secret")
    assert (tmp_path / "key").read_bytes() == b"secret" and mode(tmp_path / "key") == 0o600


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / ".key.partial").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError):
        write_whole(tmp_path / "key", b"theirs")
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_publishing_gives_the_mode_before_the_name(tmp_path: Path) -> None:
    (tmp_path / ".p").write_bytes(b"content")
    publish(tmp_path / ".p", tmp_path / "final", 0o444)
    assert mode(tmp_path / "final") == 0o444 and os.listdir(tmp_path) == ["final"]


def test_removing_says_whether_it_was_there(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert remove(tmp_path / "a") and not remove(tmp_path / "a")
