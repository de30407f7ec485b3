"""What the doctor says of an ordinary user's session and control groups, where systemd runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from virtuary.base.paths import Paths
from virtuary.node.site import Site
from virtuary.node.touch import doctor
from virtuary.store.memory import MemoryStore


@pytest.fixture
def site(paths: Paths) -> Site:
    return Site(replace(paths, mode="user"), MemoryStore(), "host")


async def test_servers_that_end_at_logout_are_told_of_with_what_keeps_them(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SYSTEMD", tmp_path)
    monkeypatch.setattr(doctor, "LINGER", tmp_path)
    monkeypatch.setattr(doctor.getpass, "getuser", lambda: "anna")
    said = await doctor.session(site)
    assert (said.state, said.remedy) == (
        "note",
        "loginctl enable-linger anna",
    ) and "when anna has logged out" in said.found
    (tmp_path / "anna").touch()
    assert (await doctor.session(site)).state == "ok"
    monkeypatch.setattr(doctor, "SYSTEMD", tmp_path / "nothing")
    assert (await doctor.session(site)).state == "ok"


@pytest.mark.parametrize(
    ("gap", "missing", "state", "word"),
    [
        (None, (), "ok", "a group of its own"),
        (None, ("io",), "ok", "without a weight of storage traffic"),
        (None, ("cpu", "io"), "note", "without a share and a limit of processor time"),
        ("this user has no control groups of its own", (), "note", "limits can't be applied"),
    ],
)
async def test_control_groups_are_told_by_what_there_is_not_by_who_asks(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    gap: str | None,
    missing: tuple[str, ...],
    state: str,
    word: str,
) -> None:
    monkeypatch.setattr(doctor.groups, "find_gap", lambda: gap)
    monkeypatch.setattr(doctor.groups, "find_missing", lambda: missing)
    said = await doctor.cgroups(site)
    assert (
        said.state == state
        and word in said.found
        and (said.remedy is None) == (not gap and not missing)
    )
    if missing:
        site.paths = replace(site.paths, mode="system")
        assert (await doctor.cgroups(site)).remedy is None, (
            "nothing of a user's session mends a host's daemon"
        )
