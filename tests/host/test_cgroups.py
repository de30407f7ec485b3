"""Control groups of either version, and a host without any; what can't be had is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from virtuary.host.cgroups import CONTROLLERS_V1, ensure_group, group_paths, remove_group, version


def host(folder: Path, kind: int) -> Path:
    if kind == 2:
        (folder / "cgroup.controllers").touch()
    elif kind == 1:
        for name in CONTROLLERS_V1[:3]:
            (folder / name).mkdir()
    return folder


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_the_version_is_found(tmp_path: Path, kind: int) -> None:
    assert version(host(tmp_path, kind)) == kind


@pytest.mark.parametrize(("kind", "number"), [(1, 3), (2, 1)])
def test_a_group_is_made_once_and_removed(tmp_path: Path, kind: int, number: int) -> None:
    root = host(tmp_path, kind)
    made, gap = ensure_group("ID", root)
    assert len(made) == number and gap is None and all(path.is_dir() and path.name == "ID" for path in made)
    assert ensure_group("ID", root) == (made, None)
    remove_group("ID", root)
    remove_group("ID", root)
    assert not any(path.exists() for path in made)


def test_without_control_groups_it_is_said(tmp_path: Path) -> None:
    assert group_paths("ID", tmp_path) == []
    assert ensure_group("ID", tmp_path) == ([], "no control group of its own (this host has none)")


def test_what_is_refused_is_said(tmp_path: Path) -> None:
    root = host(tmp_path, 1)
    (root / CONTROLLERS_V1[0] / "virtuary").write_text("in the way")
    made, gap = ensure_group("ID", root)
    assert made == [] and gap and gap.startswith("no control group of its own (")
