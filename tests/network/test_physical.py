"""Interfaces of the host that servers may join, and those that would be missed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from virtuary.network.physical import find_fault


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """Interfaces as /sys/class/net shows them: on their own, of a bridge, of a bond."""
    for name in ("nic0", "nic1", "nic2", "nic3", "br0", "bond0", "vb0123456789"):
        (tmp_path / name).mkdir()
    for name in ("br0", "vb0123456789"):
        (tmp_path / name / "bridge").mkdir()
    for name, master in (("nic1", "br0"), ("nic2", "bond0"), ("nic3", "vb0123456789")):
        (tmp_path / name / "master").symlink_to(f"../{master}")
    return tmp_path


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Routes and IPv6 addresses of the host: all by nic0, but for a link-local one."""
    (tmp_path / "route").write_text(
        "Iface Destination Gateway Flags RefCnt Use Metric "
        "Mask\nbr0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    )
    (tmp_path / "ipv6_route").write_text(
        f"{'0' * 32} 00 {'0' * 32} 00 fe800000000000000000000000000001 00000400 1 0 00000003     "
        "nic0\n"
    )
    (tmp_path / "if_inet6").write_text("fe800000000000000000000000000002 03 40 20 80     nic1\n")
    return tmp_path


FAULTS = {
    ("nic9", False): "this host has no network interface nic9",
    ("nic0", False): "nic0 is the host's way out, which it would lose on a bridge",
    ("nic1", False): "nic1 is on the bridge br0, whose hosts would lose it",
    ("nic2", False): "nic2 is a part of bond0, which would lose it",
    ("nic2", True): "nic2 is a part of bond0, which would lose it",
}


@pytest.mark.parametrize(("interface", "tagged"), FAULTS)
def test_what_would_be_missed_is_not_taken(
    net: Path, proc: Path, interface: str, tagged: bool
) -> None:
    found = find_fault(interface, "vb0123456789", tagged=tagged, net=net, proc=proc)
    assert found and found[0].startswith(FAULTS[interface, tagged]) and found[1]


@pytest.mark.parametrize(
    ("interface", "tagged"),
    [("nic0", True), ("nic1", True), ("br0", False), ("bond0", False), ("nic3", False)],
)
def test_what_is_nobodys_is_joined_and_a_vlan_takes_nothing_away(
    net: Path, proc: Path, interface: str, tagged: bool
) -> None:
    assert find_fault(interface, "vb0123456789", tagged=tagged, net=net, proc=proc) is None


ALTNAMES = """
import subprocess, sys
from virtuary.network.physical import find_fault, real_name
def ip(words): subprocess.run(["ip", *words.split()], check=True)
ip("link add name port0 type veth peer name port9")
ip("link property add dev port0 altname enp0s31f6-a-name-that-is-long")
assert real_name("enp0s31f6-a-name-that-is-long") == "port0" and real_name("port0") == "port0" and real_name("port1") == "port1"
assert find_fault("enp0s31f6-a-name-that-is-long", None, tagged=False) is None
assert find_fault("port1", None, tagged=False)
"""


def test_an_interface_may_be_called_by_any_of_its_names() -> None:
    words = [
        "unshare",
        "--net",
        "--mount",
        "sh",
        "-c",
        'mount -t sysfs sysfs /sys; exec "$@"',
        "sh",
        sys.executable,
        "-c",
        ALTNAMES,
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr and os.getuid():
        pytest.skip("only root may make network namespaces here")
    assert done.returncode == 0, done.stderr
