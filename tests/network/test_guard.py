"""Spoofed frames: ten thousand of each kind, and none is delivered to a neighbour, the host or the
world outside.

The servers f and g share a bridge with the world outside, where nothing but the guard stands
between them. That the watchers would see each kind is shown first, with a card that is not guarded.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlab import Lab, lab_of, mac, nets, port, v4, v6
from virtuary.network import ruleset
from virtuary.network.frames import checksum
from virtuary.network.guard import CHECKS, bridge_table
from virtuary.network.ruleset import Port, render

MARK = b"vt-marked-frame!"
OWN, OTHER = (bytes.fromhex(mac(name).replace(":", "")) for name in "fg")
GATEWAY = bytes.fromhex("525400000401")
IP, OTHER_IP, GATEWAY_IP = (IPv4Address(text).packed for text in (v4("f"), v4("g"), "10.4.0.1"))
IP6, OTHER_IP6, GATEWAY_IP6 = (IPv6Address(text).packed for text in (v6("f"), v6("g"), "fd04::1"))
LINK = port("f").link_local.packed
ALL, ALL6, NOTHING6 = b"\xff" * 6, IPv6Address("ff02::1").packed, bytes(16)
TO_ALL6 = bytes.fromhex("333300000001")


def ether(kind: int, data: bytes, source: bytes = OWN, target: bytes = ALL) -> bytes:
    return target + source + struct.pack(">H", kind) + data


def arp(
    sender_mac: bytes = OWN, sender: bytes = IP, operation: int = 1, target: bytes = GATEWAY_IP
) -> bytes:
    return ether(
        0x0806,
        struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation)
        + sender_mac
        + sender
        + bytes(6)
        + target
        + MARK,
    )


def udp(source_port: int, target_port: int) -> bytes:
    return struct.pack(">HHHH", source_port, target_port, 8 + len(MARK), 0) + MARK


def bootp(card: bytes, source_port: int = 68) -> bytes:
    """A DHCP client's message about this card."""
    data = bytes(28) + card + bytes(10) + MARK
    return struct.pack(">HHHH", source_port, 67, 8 + len(data), 0) + data


def ip4(source: bytes, data: bytes, target: bytes = b"\xff" * 4, /, **frame: bytes) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(data), 0, 0, 64, 17, 0) + source + target
    head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    return ether(0x0800, head + data, **frame)


def ip6(
    source: bytes, data: bytes, following: int = 17, target: bytes = ALL6, hops: int = 255
) -> bytes:
    head = struct.pack(">IHBB", 0x60000000, len(data), following, hops) + source + target
    return ether(0x86DD, head + data, target=TO_ALL6)


def icmp6(source: bytes, kind: int, body: bytes, fragment: bytes = b"") -> bytes:
    message = struct.pack(">BBH", kind, 0, 0) + body
    total = source + ALL6 + struct.pack(">II", len(message), 58) + message
    message = message[:2] + struct.pack(">H", checksum(total)) + message[4:]
    return ip6(source, fragment + message, 44 if fragment else 58) + MARK


def option(kind: int, address: bytes) -> bytes:
    return bytes([kind, 1]) + address


def vlan(*kinds: int) -> bytes:
    inner = b"".join(struct.pack(">HH", 7, kind) for kind in (*kinds[1:], 0x0800))
    return ether(kinds[0], inner + ip4(IP, udp(9, 9))[14:])


ADVERT = bytes([0x20, 0, 0, 0])
ROUTER = struct.pack(">BBHII", 64, 0, 1800, 0, 0)
SPOOFED = {
    "source MAC": ip4(IP, udp(9, 9), source=OTHER),
    "source MAC of nobody": ip4(IP, udp(9, 9), source=bytes.fromhex("525400999999")),
    "ARP sender MAC": arp(sender_mac=OTHER),
    "ARP sender IP": arp(sender=OTHER_IP),
    "ARP answer for the gateway": arp(sender=GATEWAY_IP, operation=2, target=OTHER_IP),
    "ARP of another shape": arp()[:18] + b"\x08\x04" + arp()[20:],
    "IPv4 source": ip4(OTHER_IP, udp(9, 9)),
    "IPv4 source nobody": ip4(bytes(4), udp(9, 9)),
    "IPv6 source": ip6(OTHER_IP6, udp(9, 9)),
    "IPv6 source link-local": ip6(IPv6Address("fe80::1").packed, udp(9, 9)),
    "IPv6 source nobody": ip6(NOTHING6, udp(9, 9)),
    "advertisement of another's address": icmp6(IP6, 136, ADVERT + OTHER_IP6 + option(2, OWN)),
    "advertisement with another's MAC": icmp6(IP6, 136, ADVERT + IP6 + option(2, OTHER)),
    "advertisement from another": icmp6(OTHER_IP6, 136, ADVERT + IP6 + option(2, OWN)),
    "advertisement with two options": icmp6(IP6, 136, ADVERT + IP6 + option(2, OWN) + option(2,
    OTHER)),
    "advertisement in a fragment": icmp6(IP6, 136, ADVERT + OTHER_IP6 + option(2, OWN), bytes([58,
    0, 0, 1, 0, 0, 0, 9])),
    "solicitation with another's MAC": icmp6(IP6, 135, bytes(4) + GATEWAY_IP6 + option(1, OTHER)),
    "detection of another's address": icmp6(NOTHING6, 135, bytes(4) + OTHER_IP6),
    "router solicitation with another's MAC": icmp6(LINK, 133, bytes(4) + option(1, OTHER)),
    "router advertisement": icmp6(LINK, 134, ROUTER),
    "router advertisement in a fragment": icmp6(LINK, 134, ROUTER, bytes([58, 0, 0, 1, 0, 0, 0,
    9])),
    "redirect": icmp6(LINK, 137, bytes(4) + GATEWAY_IP6 + IP6),
    "DHCP request for another": ip4(bytes(4), bootp(OTHER)),
    "DHCP release of another's": ip4(IP, bootp(OTHER), GATEWAY_IP),
    "DHCP release from another port": ip4(IP, bootp(OTHER, 1068), GATEWAY_IP),
    "DHCP request too short to be one": ip4(bytes(4), udp(68, 67)),
    "DHCP server": ip4(IP, udp(67, 68)),
    "DHCPv6 server": ip6(IP6, udp(547, 546)),
    "VLAN tag": vlan(0x8100),
    "provider's VLAN tag": vlan(0x88A8),
    "two VLAN tags": vlan(0x88A8, 0x8100),
    "old VLAN tag": vlan(0x9100),
    "other ethertype": ether(0x88B5, MARK * 3),
    "reverse ARP": ether(0x8035, arp()[14:]),
    "spanning tree": ether(len(MARK) * 3, b"\x42\x42\x03" + MARK * 3),
    "nothing at all": ether(0x0806, MARK),
}  # fmt: skip
HONEST = {
    "ARP request": arp(),
    "ARP probe": arp(sender=bytes(4)),
    "ARP answer": arp(operation=2),
    "IPv4": ip4(IP, udp(9, 9)),
    "DHCP request": ip4(bytes(4), bootp(OWN)),
    "DHCP renewal": ip4(IP, bootp(OWN), GATEWAY_IP),
    "IPv6": ip6(IP6, udp(9, 9)),
    "IPv6 link-local": ip6(LINK, udp(9, 9)),
    "advertisement": icmp6(IP6, 136, ADVERT + IP6 + option(2, OWN)),
    "advertisement without option": icmp6(LINK, 136, ADVERT + LINK),
    "solicitation": icmp6(IP6, 135, bytes(4) + GATEWAY_IP6 + option(1, OWN)),
    "detection of its address": icmp6(NOTHING6, 135, bytes(4) + IP6),
    "detection of its link-local address": icmp6(NOTHING6, 135, bytes(4) + LINK + option(14,
    b"nonce!")),
    "router solicitation": icmp6(LINK, 133, bytes(4) + option(1, OWN)),
    "router solicitation without address": icmp6(NOTHING6, 133, bytes(4)),
    "multicast report without address": icmp6(NOTHING6, 143, bytes(4)),
    "echo": icmp6(IP6, 128, bytes(4)),
}  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    yield from lab_of(False)


class Wire:
    """A sender in f, and watchers on the neighbour, the host and outside."""

    def __init__(self, lab: Lab) -> None:
        self.sender = self._open(lab, "f", "eth0")
        self.watchers = {
            "neighbour": self._open(lab, "g", "eth0"), "host": self._open(lab, "h", "vbr4"),
            "outside": self._open(lab, "o", "eth4"),
        }  # fmt: skip

    @staticmethod
    def _open(lab: Lab, place: str, interface: str) -> socket.socket:
        made = lab.socket(place, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        # SO_RCVBUFFORCE: a watcher must not miss any
        made.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)
        with lab.inside(place):
            made.bind((interface, 3))
        made.setblocking(False)
        return made

    def send(self, frame: bytes, times: int) -> None:
        self.sender.setblocking(True)
        for _ in range(times):
            self.sender.send(frame)

    def seen(self) -> dict[str, int]:
        return {name: self._drain(watcher) for name, watcher in self.watchers.items()}

    @staticmethod
    def _drain(watcher: socket.socket) -> int:
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                count += MARK in watcher.recv(4096)
        return count


@pytest.fixture(scope="module")
def wire(lab: Lab) -> Wire:
    return Wire(lab)


def guard(lab: Lab, free: bool) -> None:
    lab.on_host(ruleset.apply, render(nets(), [port("f", free=free), port("g", free=free)]))


NONE, EVERYBODY = (dict.fromkeys(("neighbour", "host", "outside"), count) for count in (0, 20))


@pytest.mark.host
@pytest.mark.slow
def test_the_watchers_see_each_kind_when_nothing_is_checked(lab: Lab, wire: Wire) -> None:
    guard(lab, free=True)
    wire.seen()
    for name, frame in {**SPOOFED, **HONEST}.items():
        wire.send(frame, 20)
        found = wire.seen()
        # a host without VLANs takes none in
        wanted = {**EVERYBODY, "host": found["host"]} if "VLAN" in name else EVERYBODY
        assert found == ({**NONE} if name.endswith("in a fragment") else wanted), name


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("kind", HONEST)
def test_honest_frames_are_delivered(lab: Lab, wire: Wire, kind: str) -> None:
    guard(lab, free=False)
    wire.seen()
    wire.send(HONEST[kind], 20)
    assert wire.seen() == EVERYBODY


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("kind", SPOOFED)
def test_of_ten_thousand_spoofed_frames_none_is_delivered(lab: Lab, wire: Wire, kind: str) -> None:
    guard(lab, free=False)
    wire.seen()
    wire.send(SPOOFED[kind], 10_000)
    wire.send(HONEST["IPv4"], 1)  # what was sent before this one has arrived or never will
    assert wire.seen() == dict.fromkeys(NONE, 1)


@pytest.mark.host
@pytest.mark.slow
def test_the_watchers_miss_none_of_ten_thousand(lab: Lab, wire: Wire) -> None:
    guard(lab, free=True)
    wire.seen()
    wire.send(SPOOFED["ARP sender IP"], 10_000)
    assert wire.seen() == dict.fromkeys(NONE, 10_000)


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_a_check_that_a_card_is_free_of_leaves_the_others(lab: Lab, wire: Wire, check: str) -> None:
    cards = [Port(**{**vars(port(name)), "unguarded": frozenset({check})}) for name in "fg"]
    lab.on_host(ruleset.apply, render(nets(), cards))
    wire.seen()
    passed = set()
    for name, frame in SPOOFED.items():
        wire.send(frame, 20)
        if wire.seen()["neighbour"]:
            passed.add(name)
    assert passed == PASSED_BY[check]


ASKED = {name for name in SPOOFED if name.startswith(("DHCP request", "DHCP release"))}
PASSED_BY: dict[str, set[str]] = {
    "mac": {"source MAC", "source MAC of nobody"} | ASKED,
    "arp": {name for name in SPOOFED if name.startswith("ARP ")} | {"nothing at all"},
    "ipv4": {"IPv4 source", "IPv4 source nobody"},
    "ipv6": {
        name
        for name in SPOOFED
        if name.startswith(
            ("IPv6", "advertisement", "solicitation", "detection", "router solicitation")
        )
    }
    - {"advertisement in a fragment"},
    "dhcp": {"DHCP server", "DHCPv6 server"} | ASKED,
    "ra": {"router advertisement", "redirect"},
    "vlan": {"VLAN tag", "provider's VLAN tag"},
    "ethertype": {"other ethertype", "reverse ARP", "spanning tree", "old VLAN tag"},
}


@pytest.mark.host
@pytest.mark.slow
def test_a_trunk_passes_its_tags_and_no_other_either_way(lab: Lab, wire: Wire) -> None:
    def delivered(
        sender: tuple[tuple[int, int], ...], neighbour: tuple[tuple[int, int], ...], frame: bytes
    ) -> tuple[int, int]:
        cards = [
            Port(**{**vars(port(name)), "trunk": trunk})
            for name, trunk in (("f", sender), ("g", neighbour))
        ]
        lab.on_host(ruleset.apply, render(nets(), cards))
        wire.seen()
        wire.send(frame, 20)
        found = wire.seen()
        return found["outside"], found["neighbour"]

    seven, others = ((3, 3), (5, 9)), ((8, 4094),)
    assert delivered(seven, seven, vlan(0x8100)) == (20, 20)
    assert delivered(seven, others, vlan(0x8100)) == (20, 0), "another trunk's"
    assert delivered(seven, (), vlan(0x8100)) == (20, 0), (
        "tags of a wire are not for servers without a trunk"
    )
    assert delivered(others, seven, vlan(0x8100)) == (0, 0)
    assert (
        delivered(seven, seven, vlan(0x88A8))
        == (0, 0)
        == delivered(seven, seven, vlan(0x8100, 0x8100))
    )
    assert delivered(seven, seven, HONEST["IPv4"]) == (20, 20), "and what has no tag"
    spoofed = vlan(0x8100)[:6] + OTHER + vlan(0x8100)[12:]
    assert delivered(seven, seven, spoofed) == (0, 0), "a tag hides no spoofed frame"
    server = ether(0x8100, struct.pack(">HH", 7, 0x0800) + ip4(IP, udp(67, 68))[14:])
    assert delivered(seven, seven, server) == (0, 0), "nor a server of addresses"


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("free", [False, True])
def test_frames_to_a_link_local_mac_do_not_reach_the_host_past_its_bridge(
    lab: Lab, wire: Wire, free: bool
) -> None:
    """The kernel hands those to the IP stack as the tap's own, whatever filters the bridge has."""
    listening = lab.socket("h", socket.AF_INET, socket.SOCK_DGRAM)
    listening.settimeout(0.1)
    listening.bind(("", 999))
    frames = [
        ip4(
            IP,
            udp(9, 999),
            IPv4Address("10.4.0.1").packed,
            target=bytes.fromhex(f"0180c20000{last:02x}"),
        )
        for last in range(16)
    ]
    for guarded in (True, False):
        lab.on_host(
            ruleset.apply if guarded else ruleset.remove,
            *([render(nets(), [port("f", free=free)])] if guarded else []),
        )
        for frame in frames:
            wire.send(frame, 1)
        received: Callable[[], bytes] = lambda: listening.recv(99)  # noqa: E731
        if guarded:
            with pytest.raises(TimeoutError):
                received()
        else:
            assert received() == MARK, "without the ruleset it would be received"
    listening.close()


@given(st.integers(0, 2**46 - 1), st.integers(1, 2**128 - 1))
def test_every_identity_stands_in_the_table_as_text_and_as_number(
    number: int, address: int
) -> None:
    text = f"52:54:{':'.join(f'{(number >> shift) & 255:02x}' for shift in (24, 16, 8, 0))}"
    card = Port("tap0", "vbr1", text, (IPv6Address(address),))
    table = bridge_table([card], {"vbr1"})
    assert f'"tap0" . {text}' in table and f'"tap0" . 0x{text.replace(":", "")}' in table
    assert f'"tap0" . {IPv6Address(address)}' in table and f'"tap0" . 0x{address:032x}' in table


@pytest.mark.host
def test_what_a_tap_calls_itself_is_heard_where_nobody_gave_it_an_address(
    lab: Lab, wire: Wire
) -> None:
    lab.on_host(ruleset.apply, render(nets(), [port("f", free=True), port("g")]))
    tap = port("f").interface
    for last in (20, 21, 22, 23, 24):
        wire.send(arp(sender=IPv4Address(f"10.4.0.{last}").packed), 1)
    wire.send(arp(sender=bytes(4)), 1)
    heard = lab.on_host(ruleset.find_heard)
    assert set(heard) == {tap} and len(heard[tap]) == ruleset.MOST_HEARD, (
        "and not one that only asks whether an address is taken"
    )
    assert set(heard[tap]) <= {f"10.4.0.{last}" for last in (20, 21, 22, 23, 24)}
    lab.on_host(ruleset.apply, render(nets(), [port("f", free=True)]))
    for source, target in (("fd04::77", "fd04::1"), ("fe80::77", "fd04::1"), ("::", "fd04::78")):
        wire.send(icmp6(IPv6Address(source).packed, 135, bytes(4) + IPv6Address(target).packed), 1)
    assert lab.on_host(ruleset.find_heard) == {tap: ("fd04::77",)}
    lab.on_host(ruleset.apply, render(nets(), [port("f")]))
    wire.send(arp(), 3)
    assert lab.on_host(ruleset.find_heard) == {}, "where it was given one that is known"
    lab.on_host(ruleset.remove)
    assert lab.on_host(ruleset.find_heard) == {}


@pytest.mark.host
def test_a_tap_of_a_server_that_belongs_to_nobody_passes_nothing(lab: Lab, wire: Wire) -> None:
    """One that outlived its server, or is not known yet. Others' interfaces on the bridge are none
    of ours.
    """
    lab.on_host(ruleset.apply, render(nets(), [port("g", free=True)]))
    wire.seen()
    rename(lab, "tapf", "vtforgotten")
    try:
        wire.send(HONEST["IPv4"], 20)
        assert wire.seen() == NONE
    finally:
        rename(lab, "vtforgotten", "tapf")
    wire.send(HONEST["IPv4"], 20)
    assert wire.seen() == EVERYBODY


def rename(lab: Lab, name: str, new: str) -> None:
    lab.run(
        "h", f"ip link set {name} down", f"ip link set {name} name {new}", f"ip link set {new} up"
    )
