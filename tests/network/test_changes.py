"""What is taken from a host's interfaces is heard, and what goes by itself is not taken for it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlab import Lab, lab_of
from virtuary.network import changes

BRIDGE, TAP = "vb0123456789", "vt0123456789n0"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    yield from lab_of(False)


@pytest.fixture
def listener(lab: Lab) -> Iterator[socket.socket]:
    lab.run(
        "h", f"ip link add {BRIDGE} type bridge", f"ip link set {BRIDGE} up",
        f"ip address add 10.9.0.1/24 dev {BRIDGE}",
        f"ip tuntap add {TAP} mode tap", f"ip link set {TAP} master {BRIDGE} up",
        f"tc qdisc add dev {TAP} clsact",
    )  # fmt: skip
    with lab.inside("h"):
        sock = changes.open_listener()
    yield sock
    sock.close()
    for name in (TAP, BRIDGE):
        lab.run("h", f"ip link delete {name} || true")


def heard(lab: Lab, sock: socket.socket) -> bool:
    """Whether it was told of anything, soon."""
    with lab.inside("h"):
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            if changes.hear(sock):
                return True
            time.sleep(0.02)
    return False


TAKEN = {
    "the bridge": f"ip link delete {BRIDGE}",
    "its address": f"ip address del 10.9.0.1/24 dev {BRIDGE}",
    "the bridge is set down": f"ip link set {BRIDGE} down",
    "a tap from the bridge": f"ip link set {TAP} nomaster",
    "that packets are passed on": "sysctl -qw net.ipv4.ip_forward=1; sysctl -qw net.ipv4.ip_forward=0",
    "the same by IPv6": "sysctl -qw net.ipv6.conf.all.forwarding=1; sysctl -qw net.ipv6.conf.all.forwarding=0",
    "a tap's traffic control": f"tc qdisc del dev {TAP} clsact",
}
LEFT = {
    "a tap goes with its machine": f"ip link delete {TAP}",
    "something is added": "ip link add vb9876543210 type bridge; ip link set vb9876543210 up; ip address add 10.8.0.1/24 dev vb9876543210",
    "a tap is added": f"ip tuntap add vt9876543210n1 mode tap; ip link set vt9876543210n1 master {BRIDGE} up",
}


@pytest.mark.host
@pytest.mark.parametrize("what", TAKEN)
def test_what_is_taken_away_is_heard(lab: Lab, listener: socket.socket, what: str) -> None:
    lab.run("h", TAKEN[what])
    assert heard(lab, listener)
    assert not heard(lab, listener), "once"


@pytest.mark.host
@pytest.mark.parametrize("what", LEFT)
def test_what_goes_and_comes_by_itself_is_not(lab: Lab, listener: socket.socket, what: str) -> None:
    lab.run("h", *LEFT[what].split("; "))
    assert not heard(lab, listener)


@given(st.binary(max_size=200))
def test_no_message_is_too_strange(message: bytes) -> None:
    changes.takes_away(message)


@given(st.sampled_from([16, 17, 21, 37, 41, 45, 80, 99]), st.binary(max_size=120))
def test_no_body_is_too_strange(kind: int, body: bytes) -> None:
    changes.takes_away(changes._HEADER.pack(changes._HEADER.size + len(body), kind, 0, 0, 0) + body)
