"""What only one instance on a host can have: the users of its machines, and the networks of a
network namespace.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtuary.base.errors import HostLacks
from virtuary.base.proc import identify
from virtuary.host.neighbours import EACH, MOST, SYSTEM, Claim, Owner, claim_networks, take_users

WHOLE = range(1_500_000_000, 1_500_000_000 + MOST + 4 * EACH)
"""Users that nobody has, whatever else runs on this host."""


class Other:
    """An instance: a folder, and a process that stands for its daemon."""

    def __init__(self, root: Path, name: str) -> None:
        self.notes, self.state, self.used = root / "notes", root / name, root / name / "networks"
        self.used.mkdir(parents=True)
        self.process = subprocess.Popen(["sleep", "600"])

    def claim(self, name: str = "networks") -> Claim:
        identity = identify(self.process.pid) or (self.process.pid, 0)
        return Claim(self.notes, name, Owner(str(self.state), *identity, str(self.used)))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Other]:
    other = Other(tmp_path, "one")
    yield other
    other.end()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Other]:
    other = Other(tmp_path, "two")
    yield other
    other.end()


def test_the_first_has_it_and_the_second_is_told_who(one: Other, two: Other) -> None:
    assert (
        two.claim().find_other() is None
        and one.claim().take() is None
        and one.claim().take() is None
    )
    assert one.claim().is_mine() and not two.claim().is_mine()
    assert two.claim().take() == two.claim().find_other() == one.claim().owner
    assert str(two.claim().take()) == f"another Virtuary ({one.state}, pid {one.process.pid})"
    assert two.claim("something else").take() is None


def test_what_was_given_back_is_the_next_ones(one: Other, two: Other) -> None:
    one.claim().take()
    two.claim().give_back()
    assert two.claim().take(), "only the owner gives it back"
    one.claim().give_back()
    assert two.claim().take() is None


def test_looking_takes_nothing(one: Other, two: Other) -> None:
    assert one.claim().find_other() is None and two.claim().take() is None


def test_who_stopped_keeps_what_is_in_use_and_gets_it_again(one: Other, two: Other) -> None:
    one.claim().take()
    (one.used / "network").mkdir()
    one.end()
    assert str(two.claim().take()) == f"another Virtuary ({one.state}, whose daemon does not run)"
    again = Claim(
        one.notes,
        "networks",
        Owner(str(one.state), *(identify(two.process.pid) or (0, 0)), str(one.used)),
    )
    assert again.take() is None and "pid" in str(two.claim().take())


@pytest.mark.parametrize("left", ["nothing", "no folder"])
def test_who_stopped_and_uses_nothing_has_nothing(one: Other, two: Other, left: str) -> None:
    one.claim().take()
    one.end()
    if left == "no folder":
        one.used.rmdir()
    assert two.claim().take() is None and two.claim().is_mine()


def test_notes_are_roots_alone(one: Other) -> None:
    one.claim().take()
    assert (
        one.notes.stat().st_mode & 0o777 == 0o700
        and (one.notes / "networks").stat().st_mode & 0o777 == 0o600
    )


def test_networks_are_claimed_by_network_namespace(tmp_path: Path) -> None:
    assert (
        claim_networks(tmp_path, tmp_path, tmp_path).name
        == f"networks-{os.stat('/proc/self/ns/net').st_ino}"
    )


def test_no_two_instances_have_users_in_common(tmp_path: Path) -> None:
    ranges = [
        take_users(tmp_path / "notes", tmp_path / name, tmp_path / name, WHOLE) for name in "abcd"
    ]
    ranges.append(take_users(tmp_path / "notes", SYSTEM, SYSTEM / "vms", WHOLE))
    assert sum(map(len, ranges)) == len(set().union(*ranges)) == len(WHOLE)
    assert take_users(tmp_path / "notes", tmp_path / "b", tmp_path / "b", WHOLE) == ranges[1], (
        "a new daemon has what the last one had"
    )
    with pytest.raises(HostLacks, match="4 other Virtuaries"):
        take_users(tmp_path / "notes", tmp_path / "e", tmp_path / "e", WHOLE)


@pytest.mark.host
@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_users_of_processes_that_nobody_owns_are_given_to_nobody(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "600"], user=WHOLE[MOST + 5])
    try:
        assert take_users(tmp_path / "notes", tmp_path, tmp_path, WHOLE)[0] == WHOLE[MOST + EACH]
    finally:
        process.kill()
        process.wait()
