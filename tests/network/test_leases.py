"""Leases: what dnsmasq remembers, and that it forgets what its NIC outlived, so that an address can
be another one's at once.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv6Address
from pathlib import Path
from uuid import UUID

import pytest

from dhcp_rig import ACK, REFUSED, ask_address, confirm_address, own
from netlab import Lab, lab_of, mac, v6
from virtuary.model.meta import Meta
from virtuary.model.network import Network, NetworkSpec, NetworkStatus, choose_ipv4, mac_of
from virtuary.network import leases
from virtuary.network.dhcp import Reservation
from virtuary.network.leases import Taken
from virtuary.network.netns import Host
from virtuary.node.networks.serving import Serving

FOUR = "1795984132 52:54:00:00:01:02 10.1.0.2 web1 *"
SIX = "1795984132 305419896 fd01::2 web1 00:01:00:01:32:9f:39:74:52:54:00:00:01:02"
FILE = (
    f"{FOUR}\nduid 00:01:00:01:32:9f:39:74:86:51:a0:c2:5d:93\n{SIX}\nrubbish\n1 2\n5 T77 "
    "fd01::9 x y z\n"
)
LEFT = [
    Taken("52:54:00:00:01:02", "10.1.0.2", "web1"),
    Taken("", "fd01::2", "web1", 305419896, SIX.split()[-1]),
]


def test_leases_of_both_families_are_read_and_rubbish_is_none(tmp_path: Path) -> None:
    (tmp_path / "leases").write_text(FILE)
    assert leases.read(tmp_path) == LEFT


@pytest.mark.parametrize(
    ("there", "gone"),
    [
        (Reservation("web1", "52:54:00:00:01:02", "10.1.0.2", "fd01::2"), []),
        (Reservation("renamed", "52:54:00:00:01:02", "10.1.0.2", "fd01::2"), []),
        (Reservation("web1", "52:54:00:00:01:02", "10.1.0.3", "fd01::2"), LEFT[:1]),
        (Reservation("other", "52:54:00:00:01:99", "10.1.0.2", "fd01::99"), LEFT),
    ],
)
def test_a_lease_outlives_its_nic_by_mac_or_by_address(
    there: Reservation, gone: list[Taken]
) -> None:
    assert leases.outlived(LEFT, [there]) == gone


def test_only_the_leases_that_are_meant_are_struck_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "leases").write_text(FILE)
    leases.strike(tmp_path, LEFT[:1])
    assert (tmp_path / "leases").read_text() == FILE.removeprefix(f"{FOUR}\n")


# ---- a real dnsmasq, kept as a network's is


BRIDGE = Network(meta=Meta(name="lan", id=str(UUID(int=1 << 88))), spec=NetworkSpec()).bridge


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Its first network has the bridge of ours."""
    for lab in lab_of(False):
        lab.run(
            "h",
            f"ip link set vbr1 down name {BRIDGE}",
            f"ip link set {BRIDGE} up",
            f"ip addr add fd01::1/64 dev {BRIDGE} nodad",
        )
        yield lab


class Site:
    """A network whose servers come and go; the last one stands in namespace a."""

    def __init__(self, lab: Lab, folder: Path, subnet: str) -> None:
        self.lab, self.folder, self.there = lab, folder, list[Reservation]()
        spec = NetworkSpec(ipv4=subnet, ipv6="fd01::/64")
        self.network = Network(
            meta=Meta(name="lan", id=str(UUID(int=1 << 88))),
            spec=spec,
            status=NetworkStatus(boot_id="now"),
        )
        self.serving = Serving(folder, Host(), lambda: None)
        self.starts = 0

    async def keep(self) -> None:
        started = await self.serving.keep(self.network, self.there, "now")
        if started:
            self.starts += 1
            self.network = self.network.but(status=self.network.status.but(**started))


def churn(site: Site, held: int, rounds: int) -> list[int]:
    """Rounds of create, ask and delete beside `held` servers; those in which nobody answered. Half
    of the guests know their address, as copies do.
    """

    async def work() -> list[int]:
        unanswered = []
        for number in range(held):
            site.there.append(reserve(site, f"held{number}"))
        await site.keep()
        for number in range(rounds):
            new = reserve(site, f"new{number}")
            site.there.append(new)
            await site.keep()
            asked = bytes.fromhex(new.mac.replace(":", ""))
            told = None
            if number % 2:
                told = confirm_address(site.lab, "a", asked, str(new.ipv4), tries=40, patience=0.03)
            # dnsmasq may not have read its list yet: a guest then begins anew
            if told is None or told[1] == REFUSED:
                told = ask_address(site.lab, "a", asked, tries=40, patience=0.03)
            if told != (new.ipv4, ACK):
                unanswered.append(number)
            site.there.remove(new)
            if number % 3:  # in the others the next one comes in the same breath
                await site.keep()
        await site.serving.end()
        return unanswered

    with site.lab.inside("h"):
        return asyncio.run(work())


def reserve(site: Site, name: str) -> Reservation:
    assert site.network.spec.ipv4
    its_mac = mac_of(name)
    return Reservation(
        name,
        its_mac,
        choose_ipv4(site.network.spec.ipv4, its_mac, [str(item.ipv4) for item in site.there]),
        None,
    )


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize(("subnet", "held"), [("10.1.0.0/28", 12), ("10.1.0.0/24", 240)])
def test_servers_after_each_other_are_all_answered(
    lab: Lab, short: Path, subnet: str, held: int
) -> None:
    site = Site(lab, short / "net", subnet)
    assert churn(site, held, 150) == []
    assert site.starts == 1, "dnsmasq was never interrupted"


def ask_six(lab: Lab, place: str, duid: bytes) -> str | None:
    """The address that a guest with this identity is given by DHCPv6; None when it gets none."""
    sock = lab.socket(place, socket.AF_INET6, socket.SOCK_DGRAM)
    sock.settimeout(0.5)
    with lab.inside(place):
        where = ("ff02::1:2", 547, 0, socket.if_nametoindex("eth0"))
    sock.bind(("::", 546))
    head, server = struct.pack(">HH", 1, len(duid)) + duid, b""
    held = struct.pack(">HHIII", 3, 12, 7, 0, 0)
    found = None
    for kind in (1, 3):  # solicit, request
        sock.sendto(struct.pack(">I", kind << 24 | 99) + head + server + held, where)
        try:
            answer = sock.recv(2000)
        except TimeoutError:
            break
        options, at = {}, 4
        while at < len(answer):
            number, length = struct.unpack_from(">HH", answer, at)
            options[number] = answer[at + 4 : at + 4 + length]
            at += 4 + length
        if 3 not in options:
            break
        server = struct.pack(">HH", 2, len(options[2])) + options[2]
        held = struct.pack(">HH", 3, len(options[3])) + options[3]
        if struct.unpack_from(">H", options[3], 12)[0] == 5:
            found = str(IPv6Address(options[3][16:32]))
    sock.close()
    return found


@pytest.mark.host
@pytest.mark.slow
def test_an_address_of_ipv6_is_released_too(lab: Lab, short: Path) -> None:
    site = Site(lab, short / "net", "10.1.0.0/24")
    first = Reservation("a", mac("a"), "10.1.0.2", v6("a"))

    async def work() -> None:
        site.there = [first]
        await site.keep()
        assert ask_six(lab, "a", b"\0\1" + b"one-guest") == v6("a")
        assert ask_six(lab, "a", b"\0\1" + b"another-guest") is None, "it is leased"
        site.there = []
        await site.keep()
        assert leases.read(site.folder) == []
        site.there = [first]
        await site.keep()
        assert ask_six(lab, "a", b"\0\1" + b"another-guest") == v6("a")
        await site.serving.end()

    with lab.inside("h"):
        asyncio.run(work())
    assert site.starts == 1


@pytest.mark.host
@pytest.mark.slow
def test_a_dnsmasq_that_does_not_hear_of_it_is_started_again_without_the_lease(
    lab: Lab, short: Path
) -> None:
    site = Site(lab, short / "net", "10.1.0.0/24")

    async def work() -> None:
        site.there = [Reservation("a", mac("a"), "10.1.0.2", None)]
        await site.keep()
        assert ask_address(lab, "a", own("a")) == ("10.1.0.2", ACK)
        os.system(
            "nft add table ip deaf; nft add chain ip deaf in '{ type filter hook input priority "
            "0; }'"
        )
        os.system("nft add rule ip deaf in iifname lo udp dport 67 drop")
        site.there = [Reservation("b", mac("b"), "10.1.0.2", None)]
        await site.keep()
        assert ask_address(lab, "b", own("b")) == ("10.1.0.2", ACK)
        os.system("nft delete table ip deaf")
        await site.serving.end()

    with lab.inside("h"):
        asyncio.run(work())
    assert site.starts == 2
