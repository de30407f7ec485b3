"""How the first command starts the daemon under systemd, with doubles of systemd's two programs
that note how they were called.
"""

from __future__ import annotations

import configparser
import socket
from pathlib import Path

import pytest

from virtuary.base.paths import Paths, find_paths
from virtuary.client.start import by_systemd, transient_command, unit_command

UNIT = Path(__file__).parents[2] / "packaging/virtuary.service"


def test_a_user_s_service_knows_where_that_user_keeps_things() -> None:
    environment = {
        "PATH": "/bin",
        "XDG_STATE_HOME": "/big/state",
        "VIRTUARY_LOG": "debug",
        "SECRET": "x",
    }
    command = transient_command(False, environment)
    assert command[:2] == ["systemd-run", "--user"]
    assert [word for word in command if word.startswith("--setenv")] == [
        "--setenv=PATH=/bin", "--setenv=XDG_STATE_HOME=/big/state", "--setenv=VIRTUARY_LOG=debug",
    ]  # fmt: skip
    assert "--user" not in transient_command(True, environment) and "--user" not in unit_command(
        True
    )


def test_neither_service_is_delegated_and_both_are_told_when_the_daemon_is_ready() -> None:
    """Machines in a delegated group of the daemon's own would keep systemd from ever starting it
    again (status=219/CGROUP).
    """
    packaged = configparser.ConfigParser()
    packaged.optionxform = str  # type: ignore[assignment, method-assign]
    packaged.read(UNIT)
    transient = dict(
        word.removeprefix("--property=").split("=", 1)
        for word in transient_command(True, {})
        if word.startswith("--property=")
    )
    assert "Delegate" not in {**packaged["Service"], **transient}
    for name in ("Type", "KillMode", "OOMPolicy", "TasksMax"):
        assert packaged["Service"][name] == transient[name]
    assert (transient["Type"], transient["KillMode"]) == ("notify", "process")
    assert transient["After"] in packaged["Unit"]["After"].split(), (
        "the daemon ends first when the host does"
    )


def systemd(folder: Path, monkeypatch: pytest.MonkeyPatch, **statuses: int) -> Path:
    """Programs that end with these statuses and write down what they were asked; where they write
    it.
    """
    calls = folder / "calls"
    for name, status in statuses.items():
        program = folder / name.replace("_", "-")
        program.write_text(f'#!/bin/sh\necho "$(basename "$0") $*" >> {calls}\nexit {status}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.delenv("VIRTUARY_ROOT", raising=False)
    return calls


@pytest.fixture
def places(short: Path) -> Paths:
    found = find_paths({"VIRTUARY_ROOT": str(short)})
    found.ensure()
    return found


def listen(places: Paths) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(places.socket))
    server.listen()
    return server


def test_a_unit_that_is_there_is_started_before_one_is_made(
    places: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packaged one; or the transient one of before, which systemd-run refuses to make again
    while anything is left in it.
    """
    calls = systemd(tmp_path, monkeypatch, systemctl=0, systemd_run=1)
    with listen(places):
        assert by_systemd(places, tmp_path)
    assert (
        calls.read_text().splitlines()[0].endswith("start virtuary.service")
        and len(calls.read_text().splitlines()) == 1
    )


def test_where_there_is_none_one_is_made(
    places: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = systemd(tmp_path, monkeypatch, systemctl=5, systemd_run=0)
    with listen(places):
        assert by_systemd(places, tmp_path)
    assert [line.split()[0] for line in calls.read_text().splitlines()] == [
        "systemctl",
        "systemd-run",
    ]


def test_a_service_that_can_not_start_or_ends_again_leaves_it_to_the_background(
    places: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd(tmp_path, monkeypatch, systemctl=0, systemd_run=0)
    assert not by_systemd(places, tmp_path), "it is said to run, and nobody listens"
    systemd(tmp_path, monkeypatch, systemctl=1, systemd_run=1)
    assert not by_systemd(places, tmp_path)
    assert not by_systemd(places, tmp_path / "no-systemd")
