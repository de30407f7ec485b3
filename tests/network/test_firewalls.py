"""ufw, firewalld and Docker themselves beside our rules: what they stop is let pass, and what they
forbid on purpose stays forbidden.

Their packages are fetched and unpacked, not installed: nothing of this machine is configured or
started. They run in a namespace of mounts and processes, over the machine's own files, and in the
lab's host network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab import BRIDGES, OUTSIDE, Lab, lab_of, v4
from virtuary.network import obstacles

pytestmark = [pytest.mark.host, pytest.mark.slow]
PACKAGES = ("ufw", "firewalld", "docker.io")


class Box:
    """Programs of other packages beside the machine's own, with an /etc, /var/lib and /run that are
    theirs alone.
    """

    def __init__(self, folder: Path, tree: Path, namespace: str) -> None:
        layers = (
            f"mkdir -p {folder}/$place/upper {folder}/$place/work {tree}/$place; "
            "mount -t overlay box -o "
            f"lowerdir={tree}/$place:/$place,upperdir={folder}/$place/upper,workdir={folder}/$place/work /$place"
        )
        script = f"""
            mount -t tmpfs box {folder}
            for place in etc usr var/lib; do {layers}; done
            mount -t tmpfs box /run; mkdir -p /run/dbus /run/lock
            echo ready; exec sleep infinity"""
        enter = [
            "nsenter",
            f"--net=/run/netns/{namespace}",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        self.process = subprocess.Popen(
            [*enter, "sh", "-ec", script], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.first = int(children.read_text().split()[0])

    def run(self, *lines: str) -> str:
        command = [
            "nsenter",
            "-t",
            str(self.first),
            "-m",
            "-n",
            "-p",
            "sh",
            "-ec",
            "\n".join(lines),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def close(self) -> None:
        """Everything in it ends with its first process."""
        os.kill(self.first, 9)
        self.process.communicate(timeout=10)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages and what they need that is not here, unpacked."""
    if not shutil.which("apt-get"):
        pytest.skip("fetches packages of Debian")
    debs, unpacked = tmp_path_factory.mktemp("debs"), tmp_path_factory.mktemp("tree")
    (debs / "partial").mkdir()
    fetch = [
        "apt-get",
        "install",
        "-y",
        "--download-only",
        "--no-install-recommends",
        "-o",
        f"Dir::Cache::archives={debs}/",
        *PACKAGES,
    ]
    done = subprocess.run(fetch, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"the packages can't be fetched: {done.stderr.strip()[-200:]}")
    for deb in debs.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(deb), str(unpacked)], check=True, timeout=60)
    for place in ("lib", "bin", "sbin"):  # on the machine these are below /usr
        if (unpacked / place).is_dir():
            shutil.copytree(
                unpacked / place, unpacked / "usr" / place, symlinks=True, dirs_exist_ok=True
            )
    for place in ("share/ufw", "share/ufw/iptables"):  # what the package's installation would do
        for file in (unpacked / "usr" / place).glob("*.rules"):
            shutil.copy(file, unpacked / "etc/ufw")
    shutil.copy(unpacked / "usr/share/ufw/ufw.conf", unpacked / "etc/ufw")
    return unpacked


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    for made in lab_of(False):
        made.rule()
        yield made


@pytest.fixture
def box(lab: Lab, tree: Path, tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path, tree, lab.name("h"))
    try:
        yield made
    finally:
        made.close()
        flush = (
            "for i in iptables ip6tables; do $i -P INPUT ACCEPT; $i -P FORWARD ACCEPT; done; "
            "nft flush ruleset"
        )
        lab.run("h", flush, "echo 1 > /proc/sys/net/ipv4/ip_forward")
        lab.rule()


def served(lab: Lab) -> bool:
    """Whether a server reaches the DNS of its network."""
    return lab.call("a", "10.1.0.1", 53, "h", 53) == v4("a")


def owners(found: tuple[obstacles.Obstacle, ...]) -> set[str]:
    return {obstacle.owner for obstacle in found}


def test_ufw(lab: Lab, box: Box) -> None:
    assert all(lab.reached()) and served(lab) and lab.clear() == ()
    box.run("ufw --force enable")
    assert not any(lab.reached()) and not served(lab)
    assert owners(lab.clear()) == {"ufw"}
    assert all(lab.reached()) and served(lab) and lab.clear() == ()
    box.run("ufw reload")
    assert all(lab.reached()) and lab.clear() == (), (
        "ufw leaves rules in the chains of the kernel's own alone"
    )
    box.run(f"ufw route reject in on vbr1 out on up0 to {OUTSIDE} port 81")
    assert lab.call("a", OUTSIDE, 81, "o", 81) == "refused", (
        "what an administrator forbids stays forbidden"
    )
    box.run("ufw default reject routed")
    assert not any(lab.reached())
    assert owners(lab.clear()) == {"ufw"}
    assert all(lab.reached()) and lab.call("a", OUTSIDE, 81, "o", 81) == "refused"
    lab.on_host(obstacles.restore)
    assert (
        not any(lab.reached())
        and not served(lab)
        and "virtuary:" not in lab.run("h", "iptables -S; ip6tables -S")
    )


def test_firewalld(lab: Lab, box: Box) -> None:
    box.run(
        # which would want to know the package's actions
        "rm -f /usr/share/dbus-1/system-services/org.freedesktop.PolicyKit1.service",
        "dbus-daemon --system --fork",
        "setsid firewalld --nofork >/run/firewalld.log 2>&1 </dev/null &",
        "for turn in $(seq 100); do ! firewall-cmd --state >/dev/null 2>&1 || exit 0; sleep 0.2; "
        "done; cat /run/firewalld.log; exit 1",
    )
    # firewalld lets pass whatever was led elsewhere by DNAT
    published = [False, False, True, True, False]
    assert lab.reached() == published and not served(lab)
    assert owners(lab.clear()) == {"firewalld"}
    assert all(lab.reached()) and served(lab) and lab.clear() == ()
    box.run("firewall-cmd --zone=public --add-interface=up0")
    assert all(lab.reached()) and served(lab) and lab.clear() == (), (
        "a zone for the way out changes nothing"
    )
    for reload in ("--reload", "--complete-reload"):
        box.run(f"firewall-cmd {reload}")
        assert lab.reached() == published, "its tables were made anew"
        assert owners(lab.clear()) == {"firewalld"}
        assert all(lab.reached()) and served(lab) and lab.clear() == ()
    box.run("firewall-cmd --panic-on")
    lab.clear()
    assert not any(lab.reached()), "who stops everything has everything stopped"
    box.run("firewall-cmd --panic-off")
    assert all(lab.reached())
    lab.on_host(obstacles.restore)
    assert lab.reached() == published and "virtuary:" not in lab.run("h", "nft list ruleset")


START_DOCKER = (
    "setsid dockerd --storage-driver vfs --data-root /run/docker --exec-root /run/docker-exec "
    "--pidfile /run/docker.pid -H unix:///run/docker.sock"
    " >/run/docker.log 2>&1 </dev/null &\n"
    "for turn in $(seq 150); do ! docker version >/dev/null 2>&1 || exit 0; sleep 0.2; done; cat "
    "/run/docker.log; exit 1"
)


def test_docker(lab: Lab, box: Box) -> None:
    # As on a machine that has just started: then Docker forwards, and drops what it does not know.
    lab.run("h", "echo 0 > /proc/sys/net/ipv4/ip_forward")
    box.run(START_DOCKER)
    assert lab.reached() == [False, True, False, True, False], "Docker 20 leaves IPv6 alone"
    assert owners(lab.clear()) == {"Docker"}
    assert all(lab.reached()) and lab.clear() == ()
    box.run("docker network create other")
    assert all(lab.reached()) and lab.clear() == (), (
        "Docker's own networks come and go before our rules"
    )
    box.run(f"iptables -I DOCKER-USER -s {v4('a')} -d {OUTSIDE} -p tcp --dport 81 -j DROP")
    assert lab.call("a", OUTSIDE, 81, "o", 81) == "silence", (
        "what an administrator forbids stays forbidden"
    )
    box.run("kill $(cat /run/docker.pid)", "while test -e /run/docker.pid; do sleep 0.1; done")
    assert all(lab.reached())
    box.run(START_DOCKER)
    assert all(lab.reached()) and lab.clear() == (), "a Docker that starts again leaves our rules"
    rules = lab.run("h", "iptables -S FORWARD")
    assert all(f"virtuary:{bridge}:0" in rules for bridge in BRIDGES)
    lab.on_host(obstacles.restore)
    assert lab.reached() == [False, True, False, True, False] and "virtuary:" not in lab.run(
        "h", "iptables -S"
    )
