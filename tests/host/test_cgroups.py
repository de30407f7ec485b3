"""Control groups of either version, and a host without any; what can't be had is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from virtuary.host.cgroups import (
    BUILDS,
    CONTROLLERS_V1,
    HELPERS,
    ROOT,
    builds_group,
    ensure_group,
    find_gap,
    find_missing,
    group_paths,
    outlive,
    prepare,
    remove_group,
    servers_unit,
    set_bounds,
    unit_command,
    version,
)


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
    assert (
        len(made) == number
        and gap is None
        and all(path.is_dir() and path.name == "ID" for path in made)
    )
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


@pytest.mark.parametrize(
    ("kind", "names"), [(1, ("memory.limit_in_bytes", "pids.max")), (2, ("memory.max", "pids.max"))]
)
def test_a_group_is_bounded_by_the_controllers_that_there_are(
    tmp_path: Path, kind: int, names: tuple[str, ...]
) -> None:
    root = host(tmp_path, kind)
    made, _ = ensure_group("ID", root)
    assert (
        set_bounds("ID", 7 << 20, 9, root)
        == "no bound of memory and pids (this host gives no controller for it)"
    )
    for name in names:
        (made[-1] / name).touch()
    assert set_bounds("ID", 7 << 20, 9, root) is None
    found = {
        path.name: path.read_text()
        for folder in made
        for path in folder.iterdir()
        if path.name in names
    }
    assert found == {names[0]: str(7 << 20), names[1]: "9"}


# ---- a unit of systemd for machines


def test_the_unit_is_the_user_s_own_and_names_no_other() -> None:
    assert servers_unit(ROOT, 0) == ROOT / "system.slice/virtuary-servers.scope"
    assert "user@1000.service/app.slice/virtuary-servers.scope" in str(servers_unit(ROOT, 1000))
    command = unit_command(True)
    assert {"--scope", "--property=Delegate=yes"} <= set(command) and not any(
        "virtuary.service" in word for word in command
    )
    assert "--user" not in command and "--user" in unit_command(False)


def systemd_run(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "systemd-run"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def unified(folder: Path) -> Path:
    root = folder / "root"
    root.mkdir()
    return host(root, 2)


def test_machines_are_in_a_unit_of_their_own_which_a_new_daemon_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The double makes the unit as systemd does, with itself in it, and stays for a moment."""
    root = unified(tmp_path)
    unit = servers_unit(root)
    fill = (
        f"echo cpu memory > {unit}/cgroup.controllers; : > {unit}/cgroup.subtree_control; "
        f"echo $$ > {unit}/cgroup.procs"
    )
    systemd_run(tmp_path, monkeypatch, f"mkdir -p {unit}; {fill}; exec sleep 0.3")
    assert prepare(root, tmp_path) is None
    held = (unit / HELPERS / "cgroup.procs").read_text()
    assert held == (unit / "cgroup.procs").read_text().strip(), (
        "a group that shares out has no processes itself"
    )
    assert (unit / "cgroup.subtree_control").read_text() in ("+cpu", "+memory"), (
        "the last one written"
    )
    assert group_paths("ID", root) == [unit / "ID"]
    assert builds_group(root) == unit / BUILDS and builds_group(tmp_path) is None
    systemd_run(tmp_path, monkeypatch, "exit 1")
    assert prepare(root, tmp_path) is None, "it is there"
    outlive(1234, root)
    assert (unit / HELPERS / "cgroup.procs").read_text() == "1234"
    outlive(1234, tmp_path)  # no unit: nothing to do


def test_a_systemd_that_makes_no_unit_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd_run(tmp_path, monkeypatch, "echo Failed to connect to bus: No medium found >&2; exit 1")
    said = prepare(unified(tmp_path), tmp_path)
    assert (
        said
        == "no control groups for machines: systemd-run: Failed to connect to bus: No medium found"
    )
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert "systemd-run: No such file" in str(prepare(tmp_path / "root", tmp_path))


def test_what_can_not_be_had_is_told_by_what_there_is(tmp_path: Path) -> None:
    assert find_gap(tmp_path) == "this host has no control groups" and find_missing(tmp_path) == (
        "cpu",
        "io",
    )
    root = unified(tmp_path)
    servers_unit(root).mkdir(parents=True)
    (servers_unit(root) / "cgroup.subtree_control").write_text("cpu memory pids")
    assert find_gap(root) is None and find_missing(root) == ("io",), "what user@.service delegates"
    old = tmp_path / "v1"
    old.mkdir()
    for name in ("cpu,cpuacct", "blkio"):
        (old / name).mkdir()
    (old / "cpu").symlink_to("cpu,cpuacct")
    assert find_missing(old) == ()


@pytest.mark.host
def test_another_user_s_groups_are_not_one_s_own() -> None:
    """Asked by a child that has given up root."""
    if find_gap():
        pytest.skip("this host has none")
    if not (child := os.fork()):
        status = 1
        try:
            os.setresuid(65534, 65534, 65534)
            group_paths.__globals__["_parents"].cache_clear()
            status = 0 if find_gap() == "this user has no control groups of its own" else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
