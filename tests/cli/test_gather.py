"""Measuring other machines: what ssh is told, what a machine answers, what happens when one does
not.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import find_tool, with_libraries
from virtuary.base.errors import Invalid
from virtuary.base.measurements import Measurements
from virtuary.cli.gather import check_host, listen, ssh_words
from virtuary.cli.sampling import Row, script

SSHD = find_tool("sshd")
ALONE = (
    *("unshare", "--mount", "sh", "-ec"),
    """cp /etc/passwd "$0/passwd"; echo 'sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin' >> "$0/passwd"
    mount --bind "$0/passwd" /etc/passwd; mount -t tmpfs tmpfs /run; mkdir -m 755 /run/sshd; exec "$@" """,
)
"""Root's sshd needs a user and a folder that the package's installation makes: it gets them in
mounts of its own.
"""
PROGRAM = str(Path(sys.executable).with_name("virtuary"))
LOCAL = ["/bin/sh", "-s"]


def gathered(
    commands: dict[str, list[str]], text: str
) -> tuple[dict[str, list[Row]], dict[str, str]]:
    rows: dict[str, list[Row]] = {host: [] for host in commands}
    failed: dict[str, str] = {}
    for host, what in listen(commands, text):
        if isinstance(what, str):
            failed[host] = what
        elif what is not None:
            rows[host] += what
    return rows, failed


@pytest.mark.parametrize(
    "host",
    [
        "-oProxyCommand=touch /tmp/x",
        "",
        "a b",
        "a;b",
        "$(id)",
        "`id`",
        "a\nb",
        "--",
        "@a",
        "x" * 300,
        "a|b",
        "é",
    ],
)
def test_what_is_no_host_is_never_told_to_ssh(host: str) -> None:
    with pytest.raises(Invalid):
        check_host(host)


@pytest.mark.parametrize(
    "host", ["db1", "root@db1.example", "192.0.2.7", "ada@[2001:db8::1]", "my_alias-2"]
)
def test_hosts_are_the_last_word_before_the_program(host: str) -> None:
    words = ssh_words(host, None)
    assert words[-4:] == ["--", host, "sh", "-s"] and "BatchMode=yes" in words


@pytest.mark.slow
def test_the_script_measures_this_machine() -> None:
    rows, failed = gathered({"here": LOCAL, "there": LOCAL}, script(False, 2, 1))
    assert not failed and len(rows["here"]) == len(rows["there"]) == 2
    for row in rows["here"]:
        assert (
            0 <= row.cpu <= (os.cpu_count() or 1)
            and row.memory > 2**20
            and abs(row.moment - time.time()) < 60
        )


@pytest.mark.slow
def test_a_machine_that_can_not_be_measured_does_not_stop_the_others() -> None:
    commands = {
        "well": LOCAL,
        "gone": ["/bin/sh", "-c", "echo 'connect to host gone: no route' >&2; exit 255"],
        "odd": ["/bin/sh", "-c", "cat >/dev/null; echo @sample soon; echo @end"],
        "mute": ["/bin/sh", "-c", "cat >/dev/null"],
        "cut": ["/bin/sh", "-c", "exit 9"],
    }
    rows, failed = gathered(commands, script(False, 1, 1))
    assert len(rows["well"]) == 1 and sorted(failed) == ["cut", "gone", "mute", "odd"]
    assert (
        "no route" in failed["gone"]
        and "can't be understood" in failed["odd"]
        and "status 9" in failed["cut"]
    )
    assert failed["mute"] == "it said nothing"


@pytest.mark.slow
def test_what_was_started_is_ended_when_nobody_listens_any_more() -> None:
    listening = listen(
        {"here": ["/bin/sh", "-c", "cat >/dev/null; echo $$ >&2; exec sleep 300"], "there": LOCAL},
        script(False, 1, 1),
    )
    assert next(listening)[0] == "there"
    listening.close()  # type: ignore[attr-defined]
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not any(
        b"sleep\x00300" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children
    )


# ---- a real sshd on loopback, with keys of its own


@pytest.fixture
def ssh_config(short: Path) -> Iterator[Path]:
    """A client configuration that reaches a server started for this test as `db1`."""
    if SSHD is None:
        pytest.skip("sshd can't be had here")
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(short / name)], check=True
        )
    shutil.copy(short / "user.pub", short / "authorized")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    (short / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {short}/host\nAuthorizedKeysFile "
        f"{short}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
    )
    key = (short / "host.pub").read_text().split()[:2]
    (short / "known").write_text(f"[127.0.0.1]:{port} {' '.join(key)}\n")
    (short / "config").write_text(
        f"Host db1\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  "
        f"IdentityFile {short}/user\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {short}/known\n  StrictHostKeyChecking yes\n"
    )
    words = [
        *((*ALONE, str(short)) if os.getuid() == 0 else ()),
        SSHD,
        "-D",
        "-e",
        "-f",
        str(short / "sshd_config"),
    ]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=with_libraries()) as server:
        try:
            assert server.stderr
            said = server.stderr.readline()
            assert "listening" in said
            yield short / "config"
        finally:
            server.kill()


def test_a_machine_is_measured_by_ssh_and_the_file_is_what_the_planner_reads(
    ssh_config: Path,
) -> None:
    words = [
        PROGRAM,
        "plan",
        "gather",
        "db1",
        "--sample",
        "--for",
        "2s",
        "--every",
        "1s",
        "--ssh-config",
        str(ssh_config),
    ]
    done = subprocess.run(words, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    place = ssh_config.with_name("loads.csv")
    place.write_bytes(done.stdout)
    measurements = Measurements()
    with place.open("rb") as handle:
        measurements.read("loads.csv", handle)
    (load,) = measurements.loads()
    assert load.name == "db1" and measurements.rows == 2 and load.hours["memory"][0] > 2**20


def test_a_machine_that_refuses_is_told(ssh_config: Path) -> None:
    ssh_config.with_name("authorized").write_text("")
    words = [
        PROGRAM,
        "plan",
        "gather",
        "db1",
        "--for",
        "1s",
        "--every",
        "1s",
        "--ssh-config",
        str(ssh_config),
    ]
    done = subprocess.run(words, capture_output=True, check=False, text=True, timeout=60)
    assert done.returncode == 4 and "db1: " in done.stderr and "Permission denied" in done.stderr
