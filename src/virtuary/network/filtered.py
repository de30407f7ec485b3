"""What the packet filter is told: networks, published ports and external addresses as values, and
which of them are left out because they contradict something before them. Pure.

One bad document costs its own server the network; the rules of all others are applied.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Literal, NamedTuple

from virtuary.base.errors import Invalid
from virtuary.model.firewall import Action, Address, Subnet
from virtuary.network.guard import Port
from virtuary.network.nft import (
    check_address,
    check_interface,
)

Kind = Literal["nat", "isolated", "bridge"]


@dataclass(frozen=True)
class Net:
    """A network on this host. `masquerade` holds the address families (4, 6) that leave under the
    host's address.
    """

    bridge: str
    kind: Kind
    subnets: tuple[Subnet, ...] = ()
    gateways: tuple[Address, ...] = ()
    masquerade: frozenset[int] = frozenset({4, 6})
    host_access: bool = False
    default_in: Action = "allow"
    default_out: Action = "allow"

    def __post_init__(self) -> None:
        check_interface(self.bridge)
        for address in (*self.subnets, *self.gateways):
            check_address(address)


@dataclass(frozen=True)
class Forward:
    """A published port. `address` is one of the host's, or 0.0.0.0 or :: for all of its family."""

    protocol: Literal["tcp", "udp"]
    address: Address
    port: int
    guest: Address
    guest_port: int

    def __post_init__(self) -> None:
        check_address(self.address)
        check_address(self.guest)
        if self.protocol not in ("tcp", "udp"):
            raise Invalid(f"{str(self.protocol)[:20]!r} is not published: only tcp and udp are")
        if not (0 < self.port < 65536 and 0 < self.guest_port < 65536):
            raise Invalid("ports lie from 1 to 65535")
        if self.address.version != self.guest.version:
            raise Invalid(f"{self.address} and {self.guest} are of different address families")
        if self.address == IPv6Address("::1"):
            raise Invalid(
                "nothing is published on ::1: Linux translates no IPv6 loopback address",
                "publish it on 127.0.0.1 or ::",
            )


@dataclass(frozen=True)
class External:
    """An address outside that leads to one server, and under which that is seen there if it is the
    first of its family.
    """

    address: Address
    guest: Address

    def __post_init__(self) -> None:
        check_address(self.address)
        check_address(self.guest)
        if self.address.version != self.guest.version:
            raise Invalid(f"{self.address} and {self.guest} are of different address families")


def closed(port: Port) -> Port:
    """The same card with nothing that it may say: its frames are looked at, and none has a true
    sender.
    """
    return replace(port, addresses=(), unguarded=frozenset(), rules=(), trunk=())


def sift_ports(nets: Iterable[Net], ports: Iterable[Port]) -> tuple[list[Port], dict[str, str]]:
    """The cards, those closed that contradict one before them; and by interface or bridge, why.
    Pure.

    One bad document so costs its own server the network, and does not keep the rules of all others
    from being applied.
    """
    by_bridge: dict[str, Net] = {}
    faults: dict[str, str] = {}
    for net in nets:
        if by_bridge.setdefault(net.bridge, net) is not net:
            faults[net.bridge] = f"the bridge {net.bridge} is given twice"
    cards: dict[str, Port] = {}
    held: set[tuple[str, Address]] = set()
    for port in ports:
        if port.interface in cards:
            faults[port.interface] = f"the interface {port.interface} is given twice"
        elif there := by_bridge.get(port.bridge):
            why = _strange(port, there, held)
            faults |= {port.interface: why} if why else {}
            cards[port.interface] = closed(port) if why else port
            held.update((port.bridge, address) for address in cards[port.interface].addresses)
        else:
            faults[port.interface] = (
                f"{port.interface} is on {port.bridge}, which is no network's bridge"
            )
    return list(cards.values()), faults


def _strange(port: Port, net: Net, held: set[tuple[str, Address]]) -> str:
    """Why a card can't have its addresses; empty when it can."""
    for address in port.addresses:
        if (port.bridge, address) in held:
            return f"the address {address} on {port.bridge} is given twice"
        inside = any(
            address.version == subnet.version and address in subnet for subnet in net.subnets
        )
        if not inside and net.kind != "bridge":
            return f"{address} of {port.interface} lies in no subnet of {port.bridge}"
    return ""


class Translations(NamedTuple):
    """What leads to servers from elsewhere, without what contradicts something before it."""

    forwards: list[Forward]
    externals: list[External]
    faults: dict[str, str]
    """Why something was left out, by what it was."""


def sift_translations(
    nets: Iterable[Net],
    ports: Iterable[Port],
    forwards: Iterable[Forward],
    externals: Iterable[External],
) -> Translations:
    """Leave out of published ports and external addresses what leads to nobody, or twice. Pure."""
    routed = {net.bridge for net in nets if net.kind != "bridge"}
    owned = {address for port in ports if port.bridge in routed for address in port.addresses}
    faults: dict[str, str] = {}
    published: dict[str, Forward] = {}
    for item in forwards:
        name = f"published port {item.address} {item.protocol} {item.port}"
        if item.guest not in owned:
            faults[name] = f"the {name} leads to {item.guest}, which is no server's address here"
        elif published.setdefault(name, item) is not item:
            faults[name] = f"the {name} is given twice"
    led: dict[str, External] = {}
    for external in externals:
        name = f"external address {external.address}"
        if external.guest not in owned:
            faults[name] = (
                f"the {name} leads to {external.guest}, which is no server's address here"
            )
        elif led.setdefault(name, external) is not external:
            faults[name] = f"the {name} is given twice"
    return Translations(list(published.values()), list(led.values()), faults)
