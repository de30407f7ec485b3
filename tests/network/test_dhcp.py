"""Addresses and names: what dnsmasq is told, and what a real one answers to good and to hostile
guests.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dhcp_rig import (
    ACK,
    DISCOVER,
    GATEWAYS,
    RESERVED,
    SERVICE,
    ask_address,
    labels_of,
    look_up,
    message,
    own,
    served,
)
from netlab import OUTSIDE, Lab, lab_of, mac, v4, v6
from virtuary.base.errors import Failed
from virtuary.base.known import RECORD, recorded
from virtuary.network import dhcp, leases
from virtuary.network.dhcp import Service


def test_the_configuration_is_the_one_that_was_reviewed(
    golden: Callable[[str, str], None], tmp_path: Path
) -> None:
    parts = [
        dhcp.config(SERVICE, Path("/run/net")),
        dhcp.config(
            Service("vbr3", "lab.example", "10.3.0.0/20", None, outside=False), Path("/run/net")
        ),
        dhcp.hosts(RESERVED),
        dhcp.names(SERVICE, GATEWAYS, RESERVED),
        dhcp.own(SERVICE, GATEWAYS, RESERVED),
        dhcp.own(replace(SERVICE, domain="corp.example"), GATEWAYS, RESERVED),
    ]
    golden("dnsmasq.txt", "\n".join(parts))


def test_an_isolated_network_leads_to_its_host_who_leads_to_neighbours() -> None:
    """Whoever is on another network too has a better way outside."""
    inside, outside = (
        dhcp.config(replace(SERVICE, outside=leads), Path("/run/net")) for leads in (False, True)
    )
    assert ",low,60,1800" in inside and ",low," not in outside and ",60,1800" in outside


# ---- a real one


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    yield from lab_of(False)


@pytest.fixture
def serving(lab: Lab, short: Path) -> Iterator[Path]:
    """The folder of a dnsmasq that serves network 1."""
    with served(lab, short) as folder:
        yield folder


@pytest.mark.host
@pytest.mark.slow
def test_each_is_given_what_is_kept_for_it_and_a_stranger_nothing(lab: Lab, serving: Path) -> None:
    assert ask_address(lab, "a", own("a")) == (v4("a"), ACK)
    assert ask_address(lab, "b", own("b")) == (v4("b"), ACK)
    assert ask_address(lab, "a", bytes.fromhex("525400999999"), tries=2) is None
    assert {(item.mac, item.address) for item in leases.read(serving)} == {
        (mac("a"), v4("a")),
        (mac("b"), v4("b")),
    }
    assert look_up(lab, "web1.virtuary") == [v4("a")] and look_up(lab, "web1.virtuary", 28) == [
        v6("a")
    ]
    assert look_up(lab, "host.virtuary") == [GATEWAYS[0]]
    assert (
        look_up(lab, "3.0.1.10.in-addr.arpa", 12) == ["db1.virtuary"]
        and look_up(lab, "nobody.virtuary") == []
    )


A, PTR, AAAA = 1, 12, 28


@contextlib.contextmanager
def answering(lab: Lab, known: dict[tuple[str, int], bytes]) -> Iterator[list[tuple[str, int]]]:
    """A resolver outside that knows these names; what it was asked for."""
    sock = lab.socket("o", socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((OUTSIDE, 53))
    asked, ends = list[tuple[str, int]](), threading.Event()
    sock.settimeout(0.2)

    def serve() -> None:
        while not ends.is_set():
            with contextlib.suppress(TimeoutError):
                question, peer = sock.recvfrom(999)
                end = question.index(b"\0", 12) + 5
                labels, kind = (
                    question[12 : end - 4],
                    int.from_bytes(question[end - 4 : end - 2], "big"),
                )
                name = ".".join(labels_of(labels))
                asked.append((name, kind))
                data = known.get((name, kind))
                head = question[:2] + struct.pack(
                    ">HHHHH", 0x8180 if data else 0x8183, 1, int(data is not None), 0, 0
                )
                record = (
                    struct.pack(">HHHIH", 0xC00C, kind, 1, 60, len(data)) + data if data else b""
                )
                sock.sendto(head + question[12:end] + record, peer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        ends.set()
        thread.join()
        sock.close()


COMPANY = {
    ("wiki.corp.example", A): IPv4Address("10.200.3.4").packed,
    ("printer", A): IPv4Address("192.168.7.7").packed,
    ("7.7.168.192.in-addr.arpa", PTR): b"\7printer\4corp\7example\0",
    ("db1.corp.example", AAAA): bytes(15) + b"\7",
}


@pytest.mark.host
@pytest.mark.slow
def test_what_is_not_ours_is_asked_of_the_hosts_resolver(lab: Lab, short: Path) -> None:
    """Private addresses, their names, words alone, and the other names of a domain that is a
    company's too.
    """
    service = replace(SERVICE, domain="corp.example", ipv6=None)
    (short / "resolv.conf").write_text(f"nameserver {OUTSIDE}\n")
    service = replace(service, resolvers=short / "resolv.conf")
    there = [replace(item, ipv6=None) for item in RESERVED]
    with answering(lab, COMPANY) as asked, served(lab, short, service=service, reserved=there):
        assert look_up(lab, "wiki.corp.example") == ["10.200.3.4"]
        assert look_up(lab, "printer") == ["192.168.7.7"]
        assert look_up(lab, "7.7.168.192.in-addr.arpa", PTR) == ["printer.corp.example"]
        assert (
            look_up(lab, "db1.corp.example") == [v4("b")]
            and look_up(lab, "db1.corp.example", AAAA) == []
        )
        assert look_up(lab, "99.0.1.10.in-addr.arpa", PTR) == []
    assert not {name for name, _ in asked} & {"db1.corp.example", "99.0.1.10.in-addr.arpa"}, (
        "what is ours is nobody else's"
    )


@pytest.mark.host
@pytest.mark.slow
def test_nobody_is_asked_for_the_networks_own_domain(lab: Lab, short: Path) -> None:
    with answering(lab, {}) as asked, served(lab, short, "no-resolv", f"server={OUTSIDE}"):
        assert look_up(lab, "nobody.virtuary") == []
    assert not [name for name, _ in asked if name.endswith("virtuary")]


def option(number: int, text: bytes) -> bytes:
    return bytes([number, len(text)]) + text


HOSTILE = {
    "its host's": b"host", "a neighbour's": b"db1", "a neighbour's in full": b"db1.virtuary",
    "everybody's": b"*", "nothing": b"",
    "a path": b"../../../etc/passwd",
    "a line of its own": b"x\n0 52:54:00:00:01:03 10.1.0.3 evil *\n", "a zero": b"a\0b",
    "a shell's words": b"$(touch /tmp/x);`id`", "an option": b"--conf-script=/bin/sh",
    "as long as can be": b"a" * 255, "bytes": bytes(range(128, 255)),
    "wpad": b"wpad", "dots": b"....", "a domain": b"www.example.com",
}  # fmt: skip


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
def test_what_a_guest_calls_itself_changes_nothing(lab: Lab, serving: Path, case: str) -> None:
    name = HOSTILE[case]
    full = option(81, b"\x05\0\0" + name[:250])  # flags: let the server write it into its names
    for words in (
        [option(12, name)],
        [full],
        [
            option(12, name),
            full,
            option(15, name),
            option(60, name),
            option(61, b"\0" + name[:250]),
        ],
    ):
        answer = ask_address(lab, "a", own("a"), *words, tries=1)
        assert answer is None or answer[0] == v4("a"), (
            "its own address, or none to one that sends rubbish"
        )
    assert ask_address(lab, "b", own("b")) == (v4("b"), ACK), "the others are served as before"
    assert look_up(lab, "host.virtuary") == [GATEWAYS[0]] and look_up(lab, "db1.virtuary") == [
        v4("b")
    ]
    assert look_up(lab, "web1.virtuary") == [v4("a")]
    for strange in ("wpad.virtuary", "evil.virtuary", "x.virtuary", "passwd.virtuary"):
        assert look_up(lab, strange) == []
    known = {(mac("a"), v4("a"), "web1"), (mac("b"), v4("b"), "db1")}
    assert {(item.mac, item.address, item.hostname) for item in leases.read(serving)} <= known


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def words_of(pid: int) -> bytes:
    """What it said and nobody read, from the pipes it has open."""
    found = b""
    for place in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(place).startswith("pipe:"):
            with open(os.open(place, os.O_RDONLY | os.O_NONBLOCK), "rb", 0) as pipe:
                found += pipe.read(1 << 20) or b""
    return found


def ask_as_strangers(lab: Lab, times: int) -> None:
    """Requests for an address, each of another card that nobody knows: dnsmasq complains of every
    one.
    """
    sock = lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.setsockopt(socket.SOL_SOCKET, 25, b"eth0\0")
    sock.bind(("", 68))
    for number in range(times):
        sock.sendto(
            message(bytes.fromhex(f"5254ff{number:06x}"), number, DISCOVER), ("255.255.255.255", 67)
        )
    sock.close()


@pytest.mark.host
@pytest.mark.slow
def test_who_calls_itself_as_a_neighbour_does_not_get_or_release_what_that_has(
    lab: Lab, serving: Path
) -> None:
    """The client identifier is the guest's own words; the card's MAC is looked at on the way."""
    words = option(61, b"\1" + own("b"))
    assert ask_address(lab, "b", own("b"), words) == (v4("b"), ACK)
    assert ask_address(lab, "a", own("a"), words) == (v4("a"), ACK)
    sock = lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, 25, b"eth0\0")
    sock.bind(("", 68))
    release = bytearray(message(own("a"), 1, 7, words, option(54, IPv4Address(GATEWAYS[0]).packed)))
    release[12:16] = IPv4Address(v4("b")).packed
    sock.sendto(bytes(release), (GATEWAYS[0], 67))
    sock.close()
    assert ask_address(lab, "a", own("a"), words) == (v4("a"), ACK), (
        "what was sent before is worked off"
    )
    assert {(item.mac, item.address) for item in leases.read(serving)} == {
        (mac("a"), v4("a")),
        (mac("b"), v4("b")),
    }


@pytest.mark.host
@pytest.mark.slow
def test_a_dnsmasq_that_can_not_start_says_why(lab: Lab, tmp_path: Path) -> None:
    dhcp.write(tmp_path, SERVICE, GATEWAYS, RESERVED)
    (tmp_path / "dnsmasq.conf").write_text("no-such-option\n")
    with pytest.raises(Failed, match=r"dnsmasq ended at once: .*bad option"):
        lab.on_host(dhcp.start, tmp_path, 3)


@pytest.mark.host
@pytest.mark.slow
def test_it_is_nobody_and_can_become_nothing_more(lab: Lab, serving: Path) -> None:
    (pid,) = (item.pid for item in recorded(serving / RECORD))
    said = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    low_ports, networks, raw, users = 1 << 10, 1 << 12, 1 << 13, 1 << 6 | 1 << 7
    assert set(said["Uid"].split()) == {"65534"} and said["NoNewPrivs"] == "1"
    assert int(said["CapPrm"], 16) == low_ports | networks | raw
    assert int(said["CapBnd"], 16) == low_ports | networks | raw | users
    limits = Path(f"/proc/{pid}/limits").read_text().split("\n")
    assert [line.split()[-3] for line in limits if line.startswith(("Max address space",
    "Max file size", "Max core"))] == [
        str(64 << 20), "0", str(1 << 30),
    ]  # fmt: skip


@pytest.mark.host
@pytest.mark.slow
def test_a_flood_does_not_end_it_and_fills_nothing(lab: Lab, serving: Path) -> None:
    assert ask_address(lab, "a", own("a")) == (v4("a"), ACK)
    before = {place.name: place.stat().st_size for place in serving.iterdir()}
    (pid,) = (item.pid for item in recorded(serving / RECORD))
    memory = resident(pid)
    ask_as_strangers(lab, 20_000)
    chance = random.Random(5)
    for port in (53, 67):
        sock = lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM)
        for _ in range(2000):
            sock.sendto(chance.randbytes(chance.randrange(600)), (GATEWAYS[0], port))
        sock.close()
    assert ask_address(lab, "a", own("a")) == (v4("a"), ACK) and look_up(lab, "db1.virtuary") == [
        v4("b")
    ], "it serves on"
    assert {place.name: place.stat().st_size for place in serving.iterdir()} == before, (
        "not a byte on the host's disk"
    )
    assert resident(pid) < memory + (2 << 20)
    assert (
        0 < len(said := words_of(pid)) <= os.sysconf("SC_PAGESIZE")
        and b"no address available" in said
    ), "the first are kept"
