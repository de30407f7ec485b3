"""Networks that servers join, and the NICs by which they do."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from virtuary.model.bandwidth import MAX_RATE, MIN_RATE, Bandwidth
from virtuary.model.firewall import Action
from virtuary.model.host import Link
from virtuary.model.meta import Document, Model, Name

USER, NONE, DEFAULT = "user", "none", "default"
"""Names that are always there: a network of the server's own through the host's sockets; a NIC
without a cable; the host's NAT network.
"""
UPLINK = ("10.0.2.0/24", "fec0::/10")
"""Where what leads out of an ordinary user's networks has its own addresses: QEMU's user network.
"""
Kind = Literal["nat", "isolated", "bridge"]
Check = Literal["mac", "arp", "ipv4", "ipv6", "dhcp", "ra", "vlan", "ethertype"]
"""What is looked at in every frame that a server sends, see docs/networks.md."""
MAX_NICS = 4
USUAL_MTU, MIN_MTU, MAX_MTU = 1500, 1280, 9216
"""Bytes of a packet: of Ethernet, the least with which there is IPv6 (RFC 8200), and the most that
cards commonly can.
"""
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")
# other names (altname) are longer than the kernel's own
_INTERFACE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,126}")
_DOMAIN = re.compile(
    r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*"
)


def _check_mac(text: str) -> str:
    mac = text.strip().lower()
    if not _MAC.fullmatch(mac):
        raise ValueError(f"{text[:40]!r} is no MAC address such as 52:54:00:12:34:56")
    if int(mac[:2], 16) & 1:
        raise ValueError(f"{mac} is a group's address, not a NIC's")
    return mac


def _check_interface(text: str) -> str:
    if not _INTERFACE.fullmatch(text):
        raise ValueError(f"{text[:40]!r} is no name of a network interface")
    return text


def _check_domain(text: str) -> str:
    domain = text.strip().lower()
    if not _DOMAIN.fullmatch(domain) or len(domain) > 200:
        raise ValueError(f"{text[:80]!r} is no domain such as virtuary or lab.example")
    return domain


def _parse_tags(value: object) -> object:
    """The pair (first, last) of "10", "20-29", 10 or a pair. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        found = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", value.strip())
        if not found:
            raise ValueError(
                f"{value[:40]!r} is no VLAN tag: write a number or FIRST-LAST, for example 10 or "
                "20-29"
            )
        value = (int(found[1]), int(found[2] or found[1]))
    return value


def _check_tags(value: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= value[0] <= value[1] <= 4094:
        raise ValueError(
            f"{show_tags(value)} are no VLAN tags: they lie from 1 to 4094, the smaller one first"
        )
    return value


def show_tags(value: tuple[int, int]) -> str:
    """A range of VLAN tags as a person writes it."""
    first, last = value
    return str(first) if first == last else f"{first}-{last}"


def _merge_tags(ranges: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _check_groups(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"the firewall group {twice[0]} is named twice")
    return names


def _check_ipv4(text: str) -> str:
    return str(ipaddress.IPv4Address(text.strip()))


def _check_ipv6(text: str) -> str:
    if "%" in text:
        raise ValueError("an address of a server has no scope")
    return str(ipaddress.IPv6Address(text.strip()))


def _check_subnet4(text: str) -> str:
    net = ipaddress.IPv4Network(text.strip())
    if not 8 <= net.prefixlen <= 29:
        raise ValueError(
            f"{net} can't be a network of servers: its prefix has to be 8 to 29 bits long"
        )
    return str(net)


def _check_subnet6(text: str) -> str:
    net = ipaddress.IPv6Network(text.strip())
    if net.prefixlen != 64:
        raise ValueError(
            f"{net} can't be a network of servers: guests make their addresses from a prefix of "
            "64 bits"
        )
    return str(net)


def _check_external(text: str) -> str:
    if "%" in text:
        raise ValueError("an address of the host that leads to a server has no scope")
    address = ipaddress.ip_address(text.strip())
    odd = (
        address.is_unspecified
        or address.is_multicast
        or address.is_loopback
        or address.is_link_local
    )
    if odd or address == ipaddress.IPv4Address("255.255.255.255"):
        raise ValueError(f"{address} is no address by which others reach a host")
    return str(address)


def _check_distinct(addresses: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(addresses)) != len(addresses):
        raise ValueError("an address is named twice")
    return addresses


Mac = Annotated[str, AfterValidator(_check_mac)]
Interface = Annotated[str, AfterValidator(_check_interface)]
Domain = Annotated[str, AfterValidator(_check_domain)]
Ipv4 = Annotated[str, AfterValidator(_check_ipv4)]
Ipv6 = Annotated[str, AfterValidator(_check_ipv6)]
Subnet4 = Annotated[str, AfterValidator(_check_subnet4)]
Subnet6 = Annotated[str, AfterValidator(_check_subnet6)]
External = Annotated[str, AfterValidator(_check_external)]
Externals = Annotated[tuple[External, ...], Field(max_length=16), AfterValidator(_check_distinct)]
Tags = Annotated[
    tuple[int, int],
    BeforeValidator(_parse_tags),
    AfterValidator(_check_tags),
    PlainSerializer(show_tags, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,4}(-[0-9]{1,4})?$"}),
]
Trunk = Annotated[tuple[Tags, ...], Field(max_length=64), AfterValidator(_merge_tags)]
Groups = Annotated[tuple[Name, ...], Field(max_length=16), AfterValidator(_check_groups)]


class NetworkParts(Model):
    """What a network is, as far as it was said."""

    kind: Kind = "nat"
    ipv4: Subnet4 | None = None
    """The subnet, of which the host has the first address; None on a bridge of the physical
    network.
    """
    ipv6: Subnet6 | None = None
    domain: Domain = "virtuary"
    """Servers are known here as NAME.DOMAIN."""
    interface: Interface | None = None
    """For a bridge: the host's bridge or interface to join."""
    vlan: int | None = Field(default=None, ge=1, le=4094)
    """For a bridge: the tag of the servers' traffic on the physical network."""
    trunk: Trunk = ()
    """For a bridge: ranges of VLAN tags that the servers' own frames may have, besides none."""
    routed6: bool = False
    """Whether IPv6 leaves with the servers' own addresses, because somebody routes the subnet here;
    else it is masqueraded.
    """
    host_access: bool = False
    """Whether servers may reach the services of the host itself."""
    speed: int | None = Field(default=None, ge=MIN_RATE, le=MAX_RATE)
    """Bits a second of the link that its servers share. When not given: on a bridge of its slowest
    way out of the host, else of the host's fastest link.
    """
    mtu: int | None = Field(default=None, ge=MIN_MTU, le=MAX_MTU)
    """Bytes of the largest packet on it. When not given: that of its way out."""
    default_in: Action = "allow"
    """What becomes of a connection to a server that no rule of its firewall groups speaks of."""
    default_out: Action = "allow"
    """The same of one that a server begins."""


class NetworkSpec(NetworkParts):
    @model_validator(mode="after")
    def _parts_fit(self) -> NetworkSpec:
        if self.kind == "bridge":
            if self.interface is None:
                raise ValueError("a bridge needs the host's bridge or interface to join")
            if self.mtu:
                raise ValueError(
                    "the size of packets on a bridge is the physical network's: ip link set mtu "
                    "changes that of its interface"
                )
            if self.ipv4 or self.ipv6:
                raise ValueError("the addresses of a bridge are the physical network's")
            if (self.default_in, self.default_out) != ("allow", "allow"):
                raise ValueError(
                    "what passes a bridge of the physical network does not pass this host's "
                    "packet filter"
                )
            if self.vlan and self.trunk:
                raise ValueError(
                    "traffic of a VLAN has that tag alone: name a tag or a trunk, not both"
                )
        elif self.interface or self.vlan or self.trunk:
            raise ValueError(f"a network of kind {self.kind} joins no interface of the host")
        return self


class NetworkStatus(Model):
    state: Literal["creating", "ready", "failed"] = "creating"
    reason: str | None = None
    bridge: str = ""
    """The host's bridge that its NICs are on."""
    pid: int | None = None
    """The process that gives addresses and names."""
    start: int | None = None
    boot_id: str = ""
    was_up: bool | None = None
    """Of a bridge: whether the interface it joined was up before; None until it was joined."""
    external: tuple[tuple[str, str], ...] = ()
    """Interfaces of the host, and the addresses that were given to them because they lead to
    servers.
    """
    speed: int | None = None
    """Of a bridge: bits a second of its slowest way out of the host, where a driver tells."""
    mtu: int | None = None
    """Bytes of the largest packet on it."""
    gaps: tuple[str, ...] = ()
    """What this host can't give of what is wished, in words."""


class Network(Document):
    prefix: ClassVar[str] = "network"
    local: ClassVar[tuple[str, ...]] = tuple(NetworkStatus.model_fields)
    spec: NetworkSpec
    status: NetworkStatus = Field(default_factory=NetworkStatus)

    @property
    def bridge(self) -> str:
        """The bridge made for it, or that of the physical network which it joins."""
        return f"vb{self.id.replace('-', '')[:10]}"

    @property
    def gateways(self) -> tuple[str, ...]:
        """The host's own addresses on it."""
        return tuple(
            str(next(ipaddress.ip_network(net).hosts()))
            for net in (self.spec.ipv4, self.spec.ipv6)
            if net
        )


class NetworkWish(NetworkParts):
    """What a user may say when creating a network; subnets that are not named are chosen."""

    name: Name
    labels: dict[str, str] = Field(default_factory=dict)


class NetworkChange(Model):
    """What may be changed while servers are on it; an explicit null takes the speed or the MTU
    away.
    """

    labels: dict[str, str] | None = None
    routed6: bool | None = None
    host_access: bool | None = None
    speed: int | None = Field(default=None, ge=MIN_RATE, le=MAX_RATE)
    mtu: int | None = Field(default=None, ge=MIN_MTU, le=MAX_MTU)
    default_in: Action | None = None
    default_out: Action | None = None


class Lease(Model):
    """An address that a server has on a network."""

    vm: str
    mac: str
    ipv4: str | None = None
    ipv6: str | None = None
    taken: bool = False
    """Whether the guest has asked for it."""


class NicWish(Model):
    """A NIC as a user may ask for it."""

    network: Name = USER
    mac: Mac | None = None
    ipv4: Ipv4 | None = None
    unguarded: tuple[Check, ...] = ()
    groups: Groups = ()
    """Firewall groups, in the order their rules are asked."""
    bandwidth: Bandwidth = Bandwidth()
    external: Externals = ()
    """Addresses outside that lead to this NIC alone; the first of a family is what its server is
    seen as there.
    """


class Nic(Model):
    """A network interface of a server."""

    number: int = Field(default=0, ge=0, lt=MAX_NICS)
    network: Name = USER
    network_id: str = ""
    """The network's id; empty for those that are always there."""
    mac: Mac | None = None
    """None: made from the server's id."""
    ipv4: Ipv4 | None = None
    """The address that is kept for it."""
    ipv6: Ipv6 | None = None
    unguarded: tuple[Check, ...] = ()
    """What of its frames is not looked at."""
    groups: Groups = ()
    """Names of the firewall groups it is attached to, in the order their rules are asked."""
    bandwidth: Bandwidth = Bandwidth()
    external: Externals = ()
    """Addresses outside that lead to it alone."""

    @property
    def wiring(self) -> tuple[str, str, str | None, str | None, str | None]:
        """Where it leads and what it is known by there: what a guest that runs can't be given
        another of without being told.
        """
        return self.network, self.network_id, self.mac, self.ipv4, self.ipv6

    def wired_as(self, other: Nic) -> Nic:
        """This one, leading where the other one does, and known there as it is."""
        if self.wiring == other.wiring:
            return self
        network, network_id, mac, ipv4, ipv6 = other.wiring
        return self.but(network=network, network_id=network_id, mac=mac, ipv4=ipv4, ipv6=ipv6)

    def inside(self, address: str) -> str | None:
        """Its own address of the same family as this one; None when it has none."""
        return self.ipv4 if ipaddress.ip_address(address).version == 4 else self.ipv6


def link_speed(network: Network, links: Iterable[Link]) -> int | None:
    """Bits a second that the NICs of a network share: as stated, else of a bridge's own way out,
    and of the host's fastest link for others; None where nobody knows.
    """
    if network.spec.speed or network.spec.kind == "bridge":
        return network.spec.speed or network.status.speed
    return max((link.speed for link in links if link.speed), default=None)


def mac_of(vm_id: str, number: int = 0) -> str:
    """The MAC address of a server's NIC, from the server's id: locally administered, in QEMU's
    customary range.
    """
    digest = hashlib.sha256(vm_id.encode() + (str(number).encode() if number else b"")).digest()
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in digest[:3])


def own_mac(vm_id: str, nic: Nic) -> str:
    return nic.mac or mac_of(vm_id, nic.number)


def name_of(vm_name: str, number: int) -> str:
    """What one of a server's NICs is called on its network."""
    return f"{vm_name}-{number}" if number else vm_name


def tap_of(vm_id: str, number: int) -> str:
    """The name of a NIC's interface on the host: at most 15 characters, ours to recognise."""
    return f"vt{hashlib.sha256(vm_id.encode()).hexdigest()[:10]}n{number}"


def eui64(prefix: str, mac: str) -> str:
    """The address that a guest makes for itself in a prefix of 64 bits (RFC 4291, appendix A)."""
    raw = bytes.fromhex(mac.replace(":", ""))
    host = bytes([raw[0] ^ 2]) + raw[1:3] + b"\xff\xfe" + raw[3:]
    return str(ipaddress.IPv6Network(prefix)[int.from_bytes(host, "big")])


def choose_ipv4(subnet: str, mac: str, taken: Iterable[str]) -> str | None:
    """A free address of the subnet, the same one for the same MAC where that is free; None when it
    is full. The first is the host's.
    """
    net, busy = ipaddress.IPv4Network(subnet), set(taken)
    size = net.num_addresses - 3  # without the network's, the host's and everybody's
    begin = int.from_bytes(hashlib.sha256(mac.encode()).digest()[:4], "big") % size
    for offset in range(size):
        address = str(net[2 + (begin + offset) % size])
        if address not in busy:
            return address
    return None


def choose_subnets(seed: str, routed: Iterable[str]) -> tuple[str, str]:
    """An IPv4 and an IPv6 (ULA) subnet that meet nothing which is routed or used already. Pure;
    raises ValueError where none is free.
    """
    nets = (ipaddress.ip_network(text, strict=False) for text in routed)
    used = [(int(net[0]), int(net[-1])) for net in nets if net.version == 4 and net.prefixlen]
    digest = hashlib.sha256(seed.encode()).digest()
    words = (bytes((0xFD, digest[0])), digest[1:3], digest[3:5], digest[5:7])
    ula = ":".join(word.hex() for word in words) + "::/64"
    for base in _candidates(digest[7]):
        if not any(first <= base + 255 and base <= last for first, last in used):
            return f"{ipaddress.IPv4Address(base)}/24", ula
    raise ValueError("no private IPv4 subnet is free on this host: name one with --ipv4")


def _candidates(begin: int) -> Iterator[int]:
    """Where subnets of 256 addresses may begin: 10.77.0.0 and those beside it first, then the rest
    of what is private.
    """
    for second in (77, *(number for number in range(256) if number != 77)):
        for third in range(256):
            yield (10 << 24) + (second << 16) + ((begin + third) % 256 << 8)
    for second in range(16, 32):
        for third in range(256):
            yield (172 << 24) + (second << 16) + (third << 8)
