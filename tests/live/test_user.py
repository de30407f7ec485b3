"""An ordinary user, without any right, gets a server: level L1, everything below the home folder,
nothing left at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from instances import SOURCE, Instance, Json, command_lines, until, zombies

from virtuary.network.passt import free_port

pytestmark = [pytest.mark.live, pytest.mark.host]


class User:
    """A user of this machine who can run the suite's Python and a copy of the source."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home = name, home
        self.uid = pwd.getpwnam(name).pw_uid
        self.root = home / "v"
        self.inside: tuple[str, ...] = ()
        """Words before every command of theirs, by which root brings them somewhere."""

    def open_tun(self) -> None:
        """From now on /dev/net/tun is for everybody, as it is on other machines; only what this
        user starts sees it.
        """
        tun = self.home / "tun"
        os.mknod(tun, 0o666 | stat.S_IFCHR, os.makedev(10, 200))
        tun.chmod(0o666)
        script = (
            f"mount --bind {tun} /dev/net/tun && exec setpriv --reuid {self.uid} --regid "
            f'{self.name} --clear-groups -- "$@"'
        )
        self.inside = ("unshare", "-m", "sh", "-c", script, "sh")

    def start(self, *words: str) -> subprocess.Popen[str]:
        env = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "VIRTUARY_ROOT": str(self.root),
            "PYTHONPATH": str(self.home / "src"),
        }
        nobody: dict[str, Any] = (
            {} if self.inside else {"user": self.name, "group": self.name, "extra_groups": []}
        )
        return subprocess.Popen(
            [*self.inside, sys.executable, *words], env=env, cwd=self.home, text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **nobody,
        )  # fmt: skip

    def run(self, *words: str, limit: float = 120) -> subprocess.CompletedProcess[str]:
        with self.start(*words) as process:
            try:
                out, err = process.communicate(timeout=limit)
            finally:
                process.kill()
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def virtuary(self, *words: str) -> str:
        done = self.run("-m", "virtuary", *words)
        log = self.root / "state/daemon.log"
        assert done.returncode == 0, (
            f"{words}: {done.stderr}\n{log.read_text() if log.exists() else ''}"
        )
        return done.stdout

    def marked(self, mark: str) -> list[int]:
        """Those of their processes that have this on their command line."""
        return [
            pid
            for pid, line in command_lines()
            if mark in line and os.stat(f"/proc/{pid}").st_uid == self.uid
        ]

    def end(self, mark: str) -> None:
        """Kill the one process that has this on its command line."""
        (pid,) = self.marked(mark)
        os.kill(pid, 9)
        until(lambda: pid not in self.marked(mark), 5, "it is gone", 0.02)

    def processes(self) -> list[int]:
        return [pid for pid, _ in command_lines() if os.stat(f"/proc/{pid}").st_uid == self.uid]


@pytest.fixture
def user(template: Path) -> Iterator[User]:
    name = f"vt{secrets.token_hex(4)}"
    home = Path("/tmp") / name
    made = subprocess.run(
        ["useradd", "-m", "-d", home, "-s", "/bin/sh", name],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"no user can be made here: {made.stderr.strip()}")
    try:
        found = User(name, home)
        shutil.copytree(SOURCE, home / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(template / "state/images", home / "images")
        subprocess.run(["chown", "-R", f"{name}:", home], check=True)
        probe = found.run("-c", "import pydantic, uvicorn, virtuary; print(virtuary.__file__)")
        if probe.returncode or str(home) not in probe.stdout:
            pytest.skip(
                "an ordinary user can't use this Python: "
                f"{(probe.stderr or probe.stdout).strip().splitlines()[-1:]}"
            )
        yield found
    finally:
        with contextlib.suppress(KeyError):
            uid = pwd.getpwnam(name).pw_uid
            for pid, _ in command_lines():
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{pid}").st_uid == uid:
                        os.kill(pid, 9)
        subprocess.run(["userdel", name], capture_output=True, check=False)
        shutil.rmtree(home, ignore_errors=True)


def test_an_ordinary_user_launches_uses_and_deletes_a_server(user: User, template: Path) -> None:
    # only to copy the prepared state; its daemon is the user's own
    prepared = Instance(root=user.root, template=template)
    subprocess.run(["chown", "-R", f"{user.name}:", user.root], check=True)
    user.virtuary("launch", "tiny", "mine")
    shown = " ".join(user.virtuary("show", "mine").split())
    assert "isolation level L1" in shown and f", user {user.uid}" in shown
    assert user.virtuary("shell", "mine", "--", "id", "-u").strip() == "0"
    vm_id = next(iter(prepared.ids()))
    (machine,) = prepared.machines(vm_id)
    status = Path(f"/proc/{machine}/status").read_text()
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    assert os.readlink(f"/proc/{machine}/ns/net") != os.readlink("/proc/self/ns/net")
    # its QEMU writes more than its disk can need, and then grows that
    user.virtuary("copy", "mine", "live", "--live")
    assert user.virtuary("exec", "live", "--", "hostname").strip() == "live"
    user.virtuary("set", "live", "--disk", "2G")
    assert user.virtuary("exec", "live", "--", "cat", "/sys/block/vda/size").strip() == str(
        (2 << 30) // 512
    )
    user.virtuary("delete", "live", "--now", "--force", "--yes")
    user.virtuary("image", "warm", "tiny")
    user.virtuary("launch", "tiny", "copied")
    shown = user.virtuary("show", "copied")
    assert "as a copy of a warm template" in shown and "isolation    level L1" in shown
    assert user.virtuary("shell", "copied", "--", "hostname").strip() == "copied"
    user.virtuary("delete", "copied", "--now", "--force", "--yes")
    user.virtuary("image", "cool", "tiny")
    user.virtuary("stop", "mine")
    assert not prepared.machines(vm_id)
    user.virtuary("delete", "mine", "--now", "--yes")
    assert prepared.leaks() == [line for line in prepared.leaks() if "virtuary daemon" in line]
    lines = dict(command_lines())
    (daemon,) = [pid for pid in user.processes() if "virtuary daemon" in lines[pid]]
    until(lambda: not zombies(daemon), 5, "it asks about its ended children")
    os.kill(daemon, 15)
    until(lambda: not user.processes(), 10, "its launcher goes with it")
    assert sorted(path.name for path in user.home.iterdir() if not path.name.startswith(".")) == [
        "images",
        "src",
        "v",
    ]


# ---- networks of their own

HOLDER, UPLINK, DAEMON = "tail -f", "-machine none", "virtuary daemon"


@pytest.fixture
def networker(user: User, template: Path) -> User:
    Instance(root=user.root, template=template)
    user.open_tun()
    subprocess.run(["chown", "-R", f"{user.name}:", user.root], check=True)
    return user


def network(user: User, name: str) -> Json:
    return json.loads(user.virtuary("network", "show", name, "-o", "json"))["status"]


def answer(port: int) -> bytes:
    """What is said on a port of the host's loopback."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as sock:
        sock.settimeout(3)
        return sock.recv(100)
    return b""


def closed(user: User) -> None:
    """Nothing of networks is left but who makes them: the daemon and its launcher."""

    def left() -> list[object]:
        files = [*(user.root / "run/networks").iterdir(), *(user.root / "run").glob("uplink*")]
        return [*user.marked(HOLDER), *user.marked(UPLINK), *user.marked("dnsmasq"), *files]

    until(lambda: not left(), 10, "all of it goes")


def test_servers_of_an_ordinary_user_share_a_network_that_no_process_of_theirs_takes_away(
    networker: User,
) -> None:
    user, port, secret = networker, free_port(), socket.create_server(("127.0.0.1", 0))
    user.virtuary("network", "create", "team")
    bridge = network(user, "team")["bridge"]
    assert not (Path("/sys/class/net") / bridge).exists(), "it is not on the host"
    user.virtuary("launch", "tiny", "web", "--network", "team", "--publish", f"{port}:80")
    user.virtuary("launch", "tiny", "desk", "--network", "team,in=50Mbit")
    listing = json.loads(user.virtuary("list", "-o", "json"))
    assert all(vm["status"]["addresses"] for vm in listing) and {
        vm["status"]["state"] for vm in listing
    } == {"running"}
    user.virtuary(
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "(while :; do echo hello | nc -l -p 80; done) >/dev/null 2>&1 &",
    )

    def desk(script: str) -> str:
        return user.run("-m", "virtuary", "exec", "desk", "--", "sh", "-c", script).stdout

    assert until(
        lambda: "hello" in desk("nc -w 2 web.virtuary 80 </dev/null"),
        20,
        "one reaches the other by name",
    )
    assert until(lambda: answer(port) == b"hello\n", 20, "what is published answers")
    tried = f"nc -w 2 10.0.2.2 {secret.getsockname()[1]} </dev/null; echo status $?"
    assert "status 1" in desk(tried), "the host's loopback is not the servers' to reach"
    assert "ok" in user.virtuary("doctor", "desk")

    user.virtuary("firewall", "create", "shut", "--rule", "in deny any")
    user.virtuary("set", "web", "--network", "team,firewall=shut")
    until(
        lambda: "hello" not in desk("nc -w 1 web.virtuary 80 </dev/null"),
        20,
        "a group of rules is held to",
    )
    user.virtuary("set", "web", "--network", "team")

    inside = os.readlink(f"/proc/{user.marked(HOLDER)[0]}/ns/net")
    assert Path(f"/proc/{user.marked(HOLDER)[0]}/root/sys/class/net/{bridge}-i").exists(), (
        "bandwidth is limited there"
    )
    user.end(UPLINK)
    assert until(lambda: answer(port) == b"hello\n", 20, "the way in is made again")
    user.end(DAEMON)
    assert until(
        lambda: answer(port) == b"hello\n", 20, "servers and their networks outlive the daemon"
    )
    assert not user.marked(DAEMON)
    assert until(
        lambda: "hello" in desk("nc -w 2 web.virtuary 80 </dev/null"), 20, "also for one another"
    )
    user.end(HOLDER)
    holder = until(lambda: user.marked(HOLDER), 20, "somebody stays again")
    assert os.readlink(f"/proc/{holder[0]}/ns/net") == inside, "in the same place"
    assert until(lambda: answer(port) == b"hello\n", 20, "and all goes on")

    user.end(DAEMON)
    user.end(HOLDER)
    user.end("dnsmasq")
    gaps = until(
        lambda: network(user, "team")["gaps"],
        20,
        "servers in a place that nobody can find again are named",
    )
    assert sorted(gap.partition(" ")[0] for gap in gaps) == ["desk", "web"]
    user.virtuary("restart", "desk")
    until(lambda: len(network(user, "team")["gaps"]) == 1, 20, "a restart brings one back")
    until(
        lambda: "hi" in user.run("-m", "virtuary", "shell", "desk", "--", "echo hi").stdout,
        30,
        "it can be reached",
    )
    for name in ("web", "desk"):
        user.virtuary("delete", name, "--now", "--force", "--yes")
    user.virtuary("network", "delete", "team")
    closed(user)
    assert "step failed" not in (user.root / "state/daemon.log").read_text()


def test_networks_of_an_ordinary_user_are_whole_whenever_the_daemon_is_killed(
    networker: User,
) -> None:
    user, names = networker, [f"n{number}" for number in range(6)]
    user.virtuary("list")
    for number, name in enumerate(names):
        with user.start("-m", "virtuary", "network", "create", name) as creating:
            # while it is made: namespace, bridge, dnsmasq, rules, way out
            time.sleep(0.15 + 0.1 * number)
            user.end(DAEMON)
            creating.kill()
        there = [
            item["meta"]["name"]
            for item in json.loads(user.virtuary("network", "list", "-o", "json"))
        ]
        if name not in there:
            user.virtuary("network", "create", name)
        until(lambda name=name: network(user, name)["state"] == "ready", 20, "it is there")  # type: ignore[misc]
        until(lambda: len(user.marked(UPLINK)) == 1, 10, "there is one way out")
        assert len(user.marked(HOLDER)) == 1 and len(user.marked("dnsmasq")) == number + 1
    for number, name in enumerate(names):
        with user.start("-m", "virtuary", "network", "delete", name) as deleting:
            time.sleep(0.15 + 0.05 * number)
            user.end(DAEMON)
            deleting.kill()
        user.run("-m", "virtuary", "network", "delete", name)
    closed(user)
