"""Firewall groups: named lists of rules that servers' network cards are attached to, and which rule
decides a connection.

A rule says who may open a connection; what belongs to an open one always passes. Nothing here looks
at a host: `decide` answers from values alone what the loaded rules do, so that a person can be told
why a connection fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from virtuary.model.meta import Document, Labels, Model, Name, check_name

Direction = Literal["in", "out"]
Action = Literal["allow", "deny", "reject"]
"""`deny` lets the caller wait, `reject` tells it at once."""
Protocol = Literal["tcp", "udp", "icmp", "any"]
"""`icmp` is that of both address families."""
Address = IPv4Address | IPv6Address
Subnet = IPv4Network | IPv6Network
Members = Mapping[str, tuple[Subnet, ...]]
"""What the peers `group:NAME` and `server:ID` stand for just now; who is not in it is nobody."""

SERVER = "server:"
"""How the peer begins that is a server."""
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def parse_ports(value: object) -> object:
    """The pair (first, last) of "80", "8000-8100", 80 or a pair. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        found = _PORTS.fullmatch(value.strip())
        if not found:
            raise ValueError(
                f"{value[:40]!r} is not a port: write a number or FIRST-LAST, for example 80 or "
                "8000-8100"
            )
        value = (int(found[1]), int(found[2] or found[1]))
    return value


def _check_ports(value: tuple[int, int]) -> tuple[int, int]:
    first, last = value
    if not 1 <= first <= last <= 65535:
        raise ValueError(
            f"{show_ports(value)} are no ports: they lie from 1 to 65535, the smaller one first"
        )
    return value


def show_ports(value: tuple[int, int]) -> str:
    """A pair of ports as a person writes it."""
    first, last = value
    return str(first) if first == last else f"{first}-{last}"


def check_peer(text: str) -> str:
    """A peer in its one spelling: a network in CIDR notation, `group:` and a name, or `server:` and
    a name, where documents are kept an id. Raises ValueError.
    """
    kind, _, name = text.strip().partition(":")
    if kind in ("group", "server"):
        return f"{kind}:{check_name(name)}"
    try:
        if "%" in text:
            raise ValueError("a scope is of one host only")
        return str(ip_network(text.strip()))
    except ValueError:
        raise ValueError(
            f"{text[:80]!r} is not a peer: write an address, a network like 10.0.0.0/8, "
            "group:NAME or server:NAME"
        ) from None


Ports = Annotated[
    tuple[int, int],
    BeforeValidator(parse_ports),
    AfterValidator(_check_ports),
    PlainSerializer(show_ports, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$"}),
]
Peer = Annotated[str, Field(max_length=80), AfterValidator(check_peer)]


class Rule(Model):
    """Who may, or may not, open a connection. The first rule of its direction that fits decides."""

    direction: Direction
    action: Action = "allow"
    protocol: Protocol = "any"
    ports: tuple[Ports, ...] = Field(default=(), max_length=32)
    """Of the side that is called; empty for all."""
    peers: tuple[Peer, ...] = Field(default=(), max_length=64)
    """The other side: who calls (`in`) or is called (`out`); empty for anybody."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.ports and self.protocol not in ("tcp", "udp"):
            raise ValueError(
                f"{self.protocol} has no ports: name the protocol tcp or udp, or leave the ports "
                "out"
            )
        return self


Rules = Annotated[tuple[Rule, ...], Field(max_length=256)]
Description = Annotated[str, Field(max_length=1000)]


class FirewallSpec(Model):
    rules: Rules = ()
    description: Description = ""


class FirewallStatus(Model):
    """The servers that rules name by their ids because no name leads to them: their last names, by
    id. Such a peer is nobody.
    """

    purged: dict[str, str] = Field(default_factory=dict)
    """Those that are gone for good."""
    trashed: dict[str, str] = Field(default_factory=dict)
    """Those in the trash; found when a group is shown, and never kept."""


class Firewall(Document):
    """A firewall group. Kept, its rules name servers by their ids; shown, by the names these have
    just now.
    """

    prefix: ClassVar[str] = "firewall"
    spec: FirewallSpec = FirewallSpec()
    status: FirewallStatus = FirewallStatus()

    def servers(self) -> frozenset[str]:
        """What its rules name servers by: ids, where it is kept."""
        return frozenset(
            peer.removeprefix(SERVER)
            for rule in self.spec.rules
            for peer in rule.peers
            if peer.startswith(SERVER)
        )

    def without(self, server_id: str, name: str) -> Self:
        """The same once the server of this name, which a rule names, is gone for good."""
        purged = {**self.status.purged, server_id: name}
        return self.seen(purged=purged)


def with_servers(rules: Iterable[Rule], called: Callable[[str], str]) -> tuple[Rule, ...]:
    """The rules with servers named as `called` has it, of what they are named by."""

    def of(peer: str) -> str:
        name = peer.removeprefix(SERVER)
        return peer if name == peer else SERVER + called(name)

    return tuple(rule.but(peers=tuple(map(of, rule.peers))) for rule in rules)


class FirewallWish(Model):
    """What a user may say when creating a firewall group."""

    name: Name
    labels: Labels = Field(default_factory=dict)
    rules: Rules = ()
    description: Description = ""


class FirewallChange(Model):
    """What a user may change later; what is left out stays. Rules are replaced as a whole: their
    order is their meaning.
    """

    labels: Labels | None = None
    rules: Rules | None = None
    description: Description | None = None


class Match(NamedTuple):
    """A rule whose peers are addresses. `peers` is None for anybody and empty for nobody."""

    direction: Direction
    action: Action
    protocol: Protocol
    ports: tuple[tuple[int, int], ...]
    peers: tuple[Subnet, ...] | None

    def fits(self, protocol: str, port: int | None, peer: Address) -> bool:
        """Whether a new connection of its direction is this rule's business."""
        if self.protocol not in ("any", protocol):
            return False
        if self.ports and (
            port is None or not any(first <= port <= last for first, last in self.ports)
        ):
            return False
        return self.peers is None or any(
            peer.version == net.version and peer in net for net in self.peers
        )


def resolve(rule: Rule, members: Members) -> Match:
    """The rule with addresses in place of groups and servers."""
    peers = None
    if rule.peers:
        peers = tuple(net for peer in rule.peers for net in _networks(peer, members))
    return Match(rule.direction, rule.action, rule.protocol, rule.ports, peers)


def _networks(peer: str, members: Members) -> Iterable[Subnet]:
    return members.get(peer, ()) if peer.startswith(("group:", "server:")) else (ip_network(peer),)


class Group(NamedTuple):
    """A firewall group as a network card is attached to it."""

    name: str
    rules: tuple[Rule, ...]


class Card(NamedTuple):
    """A server's network card, as the firewall sees it."""

    server: str
    network: str
    groups: tuple[Group, ...] = ()
    default_in: Action = "allow"
    default_out: Action = "allow"


class Verdict(NamedTuple):
    """What becomes of a new connection, and who says so."""

    action: Action
    direction: Direction | None = None
    """The side that decided: `out` of the source, `in` of the destination; None when no rule was
    asked.
    """
    server: str = ""
    group: str = ""
    number: int = 0
    """Of the rule within its group, from 1; 0 when the default of the network decided."""
    network: str = ""
    why: str = ""
    """Said where no rule was asked: what decides before all rules."""

    @property
    def sentence(self) -> str:
        """For people."""
        what = {"allow": "allowed", "deny": "denied", "reject": "rejected"}[self.action]
        if self.why:
            return f"{what}: {self.why}"
        if self.direction is None:
            return f"{what}: neither side is a server's network card"
        way = "outbound" if self.direction == "out" else "inbound"
        by = (
            f"rule {self.number} of group {self.group}"
            if self.group
            else f"the {way} default of network {self.network}"
        )
        return f"{what} by {by}, on the {way} side of {self.server}"


def decide(
    source: Address,
    destination: Address,
    protocol: str,
    port: int | None = None,
    *,
    source_card: Card | None = None,
    destination_card: Card | None = None,
    members: Members,
) -> Verdict:
    """Who decides about a new connection from `source` to `destination`, the addresses after any
    translation of published ports.

    The outbound side of the source is judged first, then the inbound side of the destination; a
    side that is no server's card (None) is not judged. On a side the first rule that fits decides,
    over the groups in the order they are attached and within a group in its own; then the default
    of the network. A connection is allowed when no side stops it; the verdict is that of the side
    that stopped it, else of the last one judged.
    """
    verdict = Verdict("allow")
    if source_card:
        verdict = _judge("out", source_card, destination, protocol, port, members)
    if destination_card and verdict.action == "allow":
        verdict = _judge("in", destination_card, source, protocol, port, members)
    return verdict


def _judge(
    direction: Direction,
    card: Card,
    peer: Address,
    protocol: str,
    port: int | None,
    members: Members,
) -> Verdict:
    for group in card.groups:
        for number, rule in enumerate(group.rules, 1):
            if rule.direction == direction and resolve(rule, members).fits(protocol, port, peer):
                return Verdict(
                    rule.action, direction, card.server, group.name, number, card.network
                )
    default = card.default_in if direction == "in" else card.default_out
    return Verdict(default, direction, card.server, network=card.network)


def resolve_all(card: Card, members: Members) -> tuple[Match, ...]:
    """All rules of a card in the order they are asked, with addresses in place of names."""
    return tuple(resolve(rule, members) for group in card.groups for rule in group.rules)
