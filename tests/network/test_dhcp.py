"""Addresses and names: what dnsmasq is told, and what a real one answers to good and to hostile guests."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dhcp_rig import ACK, DISCOVER, GATEWAYS, RESERVED, SERVICE, ask_address, look_up, message, own, served
from netlab import OUTSIDE, Lab, lab_of, mac, v4, v6
from virtuary.base.errors import Failed
from virtuary.base.known import RECORD, recorded
from virtuary.network import dhcp, leases
from virtuary.network.dhcp import Service


def test_the_configuration_is_the_one_that_was_reviewed(golden: Callable[[str, str], None], tmp_path: Path) -> None:
    parts = [
        dhcp.config(SERVICE, Path("/run/net")),
        dhcp.config(Service("vbr3", "lab.example", "10.3.0.0/20", None, outside=False), Path("/run/net")),
        dhcp.hosts(RESERVED),
        dhcp.names(SERVICE, GATEWAYS, RESERVED),
    ]
    golden("dnsmasq.txt", "\n".join(parts))


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
    assert {(item.mac, item.address) for item in leases.read(serving)} == {(mac("a"), v4("a")), (mac("b"), v4("b"))}
    assert look_up(lab, "web1.virtuary") == [v4("a")] and look_up(lab, "web1.virtuary", 28) == [v6("a")]
    assert look_up(lab, "host.virtuary") == [GATEWAYS[0]]
    assert look_up(lab, "3.0.1.10.in-addr.arpa", 12) == ["db1.virtuary"] and look_up(lab, "nobody.virtuary") == []


@pytest.mark.host
@pytest.mark.slow
def test_names_of_a_company_with_private_addresses_are_told(lab: Lab, short: Path) -> None:
    resolver = lab.socket("o", socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind((OUTSIDE, 53))
    resolver.settimeout(3)

    def answer() -> None:
        asked, peer = b"", None
        while b"wiki" not in asked:  # it looks for loops as well
            asked, peer = resolver.recvfrom(999)
        end = asked.index(b"\0", 12) + 5
        head = asked[:2] + struct.pack(">HHHHH", 0x8180, 1, 1, 0, 0)
        record = struct.pack(">HHHIH4s", 0xC00C, 1, 1, 60, 4, IPv4Address("10.200.3.4").packed)
        resolver.sendto(head + asked[12:end] + record, peer)

    with served(lab, short, "no-resolv", f"server={OUTSIDE}"), ThreadPoolExecutor(1) as pool:
        done = pool.submit(answer)
        assert look_up(lab, "wiki.corp.example") == ["10.200.3.4"]
        done.result(5)
    resolver.close()


def option(number: int, text: bytes) -> bytes:
    return bytes([number, len(text)]) + text


HOSTILE = {
    "its host's": b"host", "a neighbour's": b"db1", "a neighbour's in full": b"db1.virtuary", "everybody's": b"*", "nothing": b"",
    "a path": b"../../../etc/passwd", "a line of its own": b"x\n0 52:54:00:00:01:03 10.1.0.3 evil *\n", "a zero": b"a\0b",
    "a shell's words": b"$(touch /tmp/x);`id`", "an option": b"--conf-script=/bin/sh", "as long as can be": b"a" * 255, "bytes": bytes(range(128, 255)),
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
        [option(12, name), full, option(15, name), option(60, name), option(61, b"\0" + name[:250])],
    ):
        answer = ask_address(lab, "a", own("a"), *words, tries=1)
        assert answer is None or answer[0] == v4("a"), "its own address, or none to one that sends rubbish"
    assert ask_address(lab, "b", own("b")) == (v4("b"), ACK), "the others are served as before"
    assert look_up(lab, "host.virtuary") == [GATEWAYS[0]] and look_up(lab, "db1.virtuary") == [v4("b")]
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
    """Requests for an address, each of another card that nobody knows: dnsmasq complains of every one."""
    sock = lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.setsockopt(socket.SOL_SOCKET, 25, b"eth0\0")
    sock.bind(("", 68))
    for number in range(times):
        sock.sendto(message(bytes.fromhex(f"5254ff{number:06x}"), number, DISCOVER), ("255.255.255.255", 67))
    sock.close()


@pytest.mark.host
@pytest.mark.slow
def test_who_calls_itself_as_a_neighbour_does_not_get_or_release_what_that_has(lab: Lab, serving: Path) -> None:
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
    assert ask_address(lab, "a", own("a"), words) == (v4("a"), ACK), "what was sent before is worked off"
    assert {(item.mac, item.address) for item in leases.read(serving)} == {(mac("a"), v4("a")), (mac("b"), v4("b"))}


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
    said = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    low_ports, networks, raw, users = 1 << 10, 1 << 12, 1 << 13, 1 << 6 | 1 << 7
    assert set(said["Uid"].split()) == {"65534"} and said["NoNewPrivs"] == "1"
    assert int(said["CapPrm"], 16) == low_ports | networks | raw
    assert int(said["CapBnd"], 16) == low_ports | networks | raw | users
    limits = Path(f"/proc/{pid}/limits").read_text().split("\n")
    assert [line.split()[-3] for line in limits if line.startswith(("Max address space", "Max file size", "Max core"))] == [
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
    assert ask_address(lab, "a", own("a")) == (v4("a"), ACK) and look_up(lab, "db1.virtuary") == [v4("b")], "it serves on"
    assert {place.name: place.stat().st_size for place in serving.iterdir()} == before, "not a byte on the host's disk"
    assert resident(pid) < memory + (2 << 20)
    assert 0 < len(said := words_of(pid)) <= os.sysconf("SC_PAGESIZE") and b"no address available" in said, "the first are kept"
