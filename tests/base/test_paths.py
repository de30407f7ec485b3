"""Where everything lies, by mode and environment."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from virtuary.base.paths import Paths, find_paths

HOME = {"HOME": "/home/ada"}
CASES = {
    "root": ({}, 0, "/var/lib/virtuary", "/var/cache/virtuary", "/run/virtuary", "/etc/virtuary"),
    "plain user": (
        HOME, 1000, "/home/ada/.local/state/virtuary", "/home/ada/.cache/virtuary",
        "/home/ada/.local/state/virtuary/run", "/home/ada/.config/virtuary",
    ),
    "XDG": (
        {**HOME, "XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/c", "XDG_CONFIG_HOME": "/f",
        "XDG_RUNTIME_DIR": "/tmp"},
        1000, "/s/virtuary", "/c/virtuary", "/tmp/virtuary", "/f/virtuary",
    ),
    "relative XDG values are ignored": (
        {**HOME, "XDG_STATE_HOME": "s", "XDG_CACHE_HOME": "c", "XDG_CONFIG_HOME": "f",
        "XDG_RUNTIME_DIR": "r"},
        1000, "/home/ada/.local/state/virtuary", "/home/ada/.cache/virtuary",
        "/home/ada/.local/state/virtuary/run", "/home/ada/.config/virtuary",
    ),
    "a runtime folder that is not there": (
        {**HOME, "XDG_RUNTIME_DIR": "/nowhere/at/all"}, 1000, "/home/ada/.local/state/virtuary",
        "/home/ada/.cache/virtuary",
        "/home/ada/.local/state/virtuary/run", "/home/ada/.config/virtuary",
    ),
    "one root for all": ({**HOME, "VIRTUARY_ROOT": "/r", "XDG_STATE_HOME": "/s"}, 1000, "/r/state",
    "/r/cache", "/r/run", "/r/config"),
    "one root for all, as root": ({"VIRTUARY_ROOT": "/r"}, 0, "/r/state", "/r/cache", "/r/run",
    "/r/config"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_places_follow_mode_and_environment(case: str) -> None:
    environment, uid, *wanted = CASES[case]
    paths = find_paths(environment, uid)
    assert [str(place) for place in (paths.state, paths.cache, paths.run, paths.config)] == wanted
    assert paths.mode == ("system" if uid == 0 else "user")


def test_root_ignores_xdg() -> None:
    assert find_paths({"XDG_STATE_HOME": "/s"}, 0) == find_paths({}, 0)


def test_folders_are_passable_where_machines_pass_and_closed_elsewhere(paths: Paths) -> None:
    paths.ensure()  # a second time is harmless
    modes = {
        name: stat.S_IMODE(getattr(paths, name).stat().st_mode)
        for name in ("state", "run", "cache", "images", "layers", "vms", "probes")
    }
    assert modes == {
        "state": 0o711,
        "run": 0o711,
        "cache": 0o700,
        "images": 0o700,
        "layers": 0o700,
        "vms": 0o700,
        "probes": 0o700,
    }


def test_every_place_of_a_server_is_made_of_its_id(paths: Paths) -> None:
    vm = paths.vm("ID")
    kept = [vm.disk, vm.seed, vm.firmware_vars, vm.console, vm.errors, vm.known_hosts]
    assert all(place.parent == vm.home for place in kept) and len(set(kept)) == len(kept)
    assert vm.socket("qmp") == paths.run / "vms" / "ID" / "qmp"


def test_no_place_is_another_ones_place(paths: Paths) -> None:
    names = [name for name, value in vars(Paths).items() if isinstance(value, property)]
    found: list[Path] = [getattr(paths, name) for name in names]
    assert len(set(found)) == len(found) > 8
