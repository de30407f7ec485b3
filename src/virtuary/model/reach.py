"""Who reaches whom on this host, from documents alone: what the firewall knows of servers, and what
forbids a connection before any rule.

The daemon fills its packet filter from `members_of` and `card_of`, and `judge` asks the same two,
so what a person is told is what is loaded. Pure. Nothing here knows whether a server runs, or what
listens in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Literal, NamedTuple

from virtuary.base.errors import Invalid
from virtuary.model.firewall import SERVER, Address, Card, Group, Members, Subnet, Verdict, decide
from virtuary.model.network import NONE, USER, Network, Nic
from virtuary.model.publish import Publish
from virtuary.model.vm import Vm

SERVED = {("udp", 53), ("udp", 67), ("udp", 547), ("tcp", 53)}
"""What the host answers its servers always, at its addresses on their own network: names and
addresses.
"""


def members_of(cards: Iterable[tuple[Vm, Nic]]) -> Members:
    """The addresses that the peers `server:ID` and `group:NAME` stand for, of NICs of servers that
    are not in the trash.
    """
    found: dict[str, list[Subnet]] = {}
    for vm, nic in cards:
        own = [ip_network(address) for address in (nic.ipv4, nic.ipv6) if address]
        for peer in (f"{SERVER}{vm.id}", *(f"group:{name}" for name in nic.groups)):
            found.setdefault(peer, []).extend(own)
    return {peer: tuple(nets) for peer, nets in found.items()}


def card_of(vm: Vm, nic: Nic, network: Network, groups: Mapping[str, Group]) -> Card:
    """A NIC as the firewall sees it."""
    attached = tuple(groups[name] for name in nic.groups if name in groups)
    return Card(vm.name, network.name, attached, network.spec.default_in, network.spec.default_out)


def translated(
    vms: Iterable[Vm], address: Address, protocol: str, port: int | None
) -> tuple[Address, int | None] | None:
    """Where an address of the host leads: the server's own address and port; None when nothing of
    it leads to one.

    A port published on this very address goes before the address as a whole, and that before ports
    published on all.
    """
    servers = tuple(vms)
    exact, wide = (
        _published(servers, where, protocol, port) for where in (address, _all_of(address))
    )
    return exact or _led(servers, address, port) or wide


def _all_of(address: Address) -> Address:
    return IPv4Address(0) if address.version == 4 else IPv6Address(0)


def _led(
    vms: Iterable[Vm], address: Address, port: int | None
) -> tuple[Address, int | None] | None:
    for nic in (nic for vm in vms for nic in vm.nics if str(address) in nic.external):
        if own := nic.inside(str(address)):
            return ip_address(own), port
    return None


def _published(
    vms: Iterable[Vm], address: Address, protocol: str, port: int | None
) -> tuple[Address, int | None] | None:
    for vm in vms:
        nic = _published_by(vm)
        for item in vm.spec.publish if nic else ():
            own = nic and nic.inside(item.address)
            if (
                own
                and ip_address(item.address) == address
                and (item.protocol, item.host) == (protocol, port)
            ):
                return ip_address(own), item.guest
    return None


def _published_by(vm: Vm) -> Nic | None:
    """The NIC that published ports lead to through the packet filter."""
    first = next((nic for nic in vm.nics if nic.ipv4), None)
    return first if vm.nics[0].network != USER else None


class Side(NamedTuple):
    """One end of a connection."""

    name: str
    """Of the server, else the address."""
    address: Address
    place: Literal["card", "host", "nobody", "outside"]
    """`nobody`: an address of a network of this host that is kept for no server."""
    network: Network | None = None
    """Of a card, and of nobody."""
    card: Card | None = None
    publish: tuple[Publish, ...] = ()
    """Ports that lead to this card from elsewhere; none where the caller named the card's address,
    to which nothing leads.
    """
    external: tuple[str, ...] = ()
    """Addresses that do, likewise."""
    named: bool = True
    """Whether the caller said the server's name, meaning any way to it, and not an address."""

    def is_reached(self, protocol: str, port: int | None) -> bool:
        """Whether this port of the card is published to others than the host itself, or an address
        of theirs leads here.
        """
        return any(
            ip_address(item).version == self.address.version for item in self.external
        ) or any(
            (item.protocol, item.guest) == (protocol, port)
            and (where := ip_address(item.address)).version == self.address.version
            and not where.is_loopback
            for item in self.publish
        )


def barrier(
    source: Side, destination: Side, protocol: str, port: int | None, *, published: bool = False
) -> Verdict | None:
    """What decides about a connection before any rule is asked; None when rules are. `published`:
    it came by a port of the host's.
    """
    here, there = source.network, destination.network
    if source.address == destination.address and not published:
        return Verdict("allow", why=f"what {source.name} says to itself does not leave it")
    stop: Literal["deny", "reject"] = "reject" if here and there and here.id != there.id else "deny"
    for side in (source, destination):
        if side.place == "nobody" and side.network:
            return Verdict(
                stop,
                why=f"{side.address} is no server's address on the network {side.network.name}",
            )
    if source.place == "host":
        return (
            Verdict("allow", why="this host reaches its servers always")
            if destination.card
            else None
        )
    if here and destination.place == "host":
        return _to_host(here, destination.address, protocol, port)
    if here and there and here.id == there.id:
        return None
    if here and here.spec.kind == "isolated":
        return Verdict(
            "reject", why=f"servers on the isolated network {here.name} reach only each other"
        )
    if there and not published and not destination.is_reached(protocol, port):
        inside = any(
            (item.protocol, item.guest) == (protocol, port) and ip_address(item.address).is_loopback
            for item in destination.publish
        )
        fault = (
            "is published to this host alone, by its loopback address"
            if inside
            else "is not published"
        )
        what = f"and {protocol}{f' port {port}' if port else ''} of {destination.name} {fault}"
        way = (
            f"by published ports, {what}"
            if destination.named
            else "by published ports, not by their own addresses"
        )
        return Verdict(
            stop, why=f"servers on the network {there.name} are reached from elsewhere {way}"
        )
    return None


def _to_host(network: Network, address: Address, protocol: str, port: int | None) -> Verdict | None:
    if protocol == "icmp" or ((protocol, port) in SERVED and str(address) in network.gateways):
        return Verdict(
            "allow",
            why="this host answers its servers' pings, and gives them addresses and names, always",
        )
    if network.spec.host_access:
        return None
    return Verdict(
        "reject",
        why=f"the network {network.name} lets no server reach the services of this host "
        "(--host-access does)",
    )


@dataclass(frozen=True)
class Scene:
    """Documents as they are now. `vms` are those that are not in the trash, `networks` by id,
    `groups` by name.
    """

    vms: tuple[Vm, ...]
    networks: Mapping[str, Network]
    groups: Mapping[str, Group]
    is_own: Callable[[Address], bool]
    """Whether an address is the host's own."""

    @property
    def members(self) -> Members:
        return members_of((vm, nic) for vm in self.vms for nic in vm.nics if nic.network_id)

    def judge(
        self, source: Vm | Address, destination: Vm | Address, protocol: str, port: int | None
    ) -> Verdict:
        """What becomes of a new connection to this port of the destination. Raises Invalid where an
        address has to be named instead.
        """
        if early := _cableless(source, destination):
            return early
        led = None
        if (
            not isinstance(destination, Vm)
            and self._is_hosts(destination)
            and not self._is_served(source, destination, protocol, port)
        ):
            led = translated(self.vms, destination, protocol, port)
        target, port = led or (destination, port)
        begin, end = self._sides(source, target)
        verdict = barrier(begin, end, protocol, port, published=led is not None)
        return verdict or decide(
            begin.address, end.address, protocol, port,
            source_card=begin.card, destination_card=end.card, members=self.members,
        )  # fmt: skip

    def _is_served(
        self, source: Vm | Address, address: Address, protocol: str, port: int | None
    ) -> bool:
        """Whether the host answers itself, whatever is published: to servers of that network
        alone.
        """
        if (protocol, port) not in SERVED:
            return False
        joined = [self.networks.get(nic.network_id) for nic in self._nics(source, address.version)]
        return any(str(address) in network.gateways for network in joined if network)

    def _is_hosts(self, address: Address) -> bool:
        return self._is_gateway(address) or self._is_external(address) or self.is_own(address)

    def _is_external(self, address: Address) -> bool:
        return any(str(address) in nic.external for vm in self.vms for nic in vm.nics)

    def _is_gateway(self, address: Address) -> bool:
        return any(str(address) in network.gateways for network in self.networks.values())

    def _sides(self, source: Vm | Address, destination: Vm | Address) -> tuple[Side, Side]:
        versions = [side.version for side in (source, destination) if not isinstance(side, Vm)]
        if len(set(versions)) > 1:
            raise Invalid(
                f"{source} and {destination} are of different address families",
                "name two of the same one",
            )
        for version in versions or (4, 6):
            nics = [self._nics(side, version) for side in (source, destination)]
            if all(nics):
                common = {nic.network_id for nic in nics[1]}
                shared = next((nic.network_id for nic in nics[0] if nic.network_id in common), "")
                begin, end = (
                    self._side(side, own, shared, version)
                    for side, own in zip((source, destination), nics, strict=True)
                )
                return begin, end
        lost = next(
            side
            for side in (source, destination)
            if isinstance(side, Vm) and not self._nics(side, (versions or [4])[0])
        )
        raise Invalid(
            f"{lost.name} has no IPv{(versions or [4])[0]} address of this host's networks",
            "name the address it has on the physical network, or one of the other family",
        )

    def _nics(self, side: Vm | Address, version: int) -> list[Nic]:
        """The NICs of a server with an address of this family, or the one that an address belongs
        to; a bare one for other addresses.
        """
        if isinstance(side, Vm):
            return [nic for nic in side.nics if (nic.ipv4 if version == 4 else nic.ipv6)]
        held = [nic for vm in self.vms for nic in vm.nics if str(side) in (nic.ipv4, nic.ipv6)]
        return held or [Nic(network=NONE)]

    def _side(self, side: Vm | Address, nics: list[Nic], shared: str, version: int) -> Side:
        nic = next((nic for nic in nics if nic.network_id == shared), nics[0])
        network = self.networks.get(nic.network_id)
        if isinstance(side, Vm):
            address, owner = ip_address((nic.ipv4 if version == 4 else nic.ipv6) or ""), [side]
        else:
            address, owner = side, [vm for vm in self.vms if nic.network_id and nic in vm.nics]
        if owner and network:
            named = isinstance(side, Vm)
            leads = owner[0].spec.publish if named and _published_by(owner[0]) == nic else ()
            card = card_of(owner[0], nic, network, self.groups)
            return Side(
                owner[0].name,
                address,
                "card",
                network,
                card,
                leads,
                nic.external if named else (),
                named,
            )
        if self._is_hosts(address):
            return Side(str(address), address, "host")
        return self._stranger(address)

    def _stranger(self, address: Address) -> Side:
        for network in self.networks.values():
            for text in (network.spec.ipv4, network.spec.ipv6):
                if text and address.version == (net := ip_network(text)).version and address in net:
                    return Side(str(address), address, "nobody", network)
        return Side(str(address), address, "outside")


def _cableless(source: Vm | Address, destination: Vm | Address) -> Verdict | None:
    """What is known of servers that are on none of the host's networks."""
    for side in (source, destination):
        if isinstance(side, Vm) and all(nic.network == NONE for nic in side.nics):
            return Verdict("deny", why=f"{side.name} has no cable")
    if isinstance(destination, Vm) and _only_user(destination):
        return Verdict(
            "deny",
            why=f"{destination.name} is on the network `{USER}`, where servers are called by "
            "published ports only",
        )
    if isinstance(source, Vm) and _only_user(source):
        return Verdict(
            "allow",
            why=f"{source.name} is on the network `{USER}`: what it begins is this host's own, "
            "and no rule is asked",
        )
    return None


def _only_user(vm: Vm) -> bool:
    return all(nic.network in (USER, NONE) for nic in vm.nics)


def plain_address(text: str) -> Address | None:
    """The address that a text is, None when it is none; raises Invalid for one that is nobody's
    alone.
    """
    try:
        address = ip_address(text.strip())
    except ValueError:
        return None
    odd = (
        address.is_unspecified
        or address.is_multicast
        or address.is_loopback
        or address == IPv4Address("255.255.255.255")
    )
    if odd or getattr(address, "scope_id", None) or address.is_link_local:
        raise Invalid(
            f"{text[:80]} is no address by which one reaches another",
            "name a server, or an address of its own",
        )
    return address
