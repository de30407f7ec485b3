"""The packet filter of the host: what virtual servers may send, what may reach them, and how their
addresses are translated.

`render` is pure: values in, one nftables script out. The script replaces the two tables of ours in
one transaction and touches nothing else. Interface names, MACs and addresses are checked here once
more; no text that a user chose ever stands in the script. Connections that are open pass when rules
change; network/flows.py ends those that would not begin any more.

What must be true around it, and is the work of who makes bridges: on networks of kind `nat` and
`isolated` the bridge answers ARP itself (proxy_arp_pvlan, proxy_delay 0) and IPv6 addresses are on
no link, so packets between servers pass the host's IP stack and are filtered there. A tap joins its
bridge after a ruleset that names it was applied, and leaves before one that does not. The ruleset
lets no frame pass from tap to tap there; taps are isolated ports as well, except where the host
filters bridged packets (net.bridge.bridge-nf-call-iptables): there the kernel itself bridges what a
server sends to a published port of its own network, and taps are hairpin ports instead.

A connection is judged when it begins: by the networks first (a network reaches itself; one of kind
`nat` also what lies outside; both kinds are reached through published ports), then by the outbound
rules of the calling server, then by the inbound rules of the called one. The host reaches its
servers always. Servers reach the host for ICMP always, for DHCP and DNS at its addresses on their
own network, for the rest where the network allows it and their outbound rules do.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import collapse_addresses

from virtuary.base.errors import Invalid
from virtuary.base.proc import run
from virtuary.model.firewall import Action, Direction, Match, Subnet
from virtuary.network.filtered import External, Forward, Net, sift_ports, sift_translations
from virtuary.network.guard import CHECKS, HEARD, TRANSLATED, Port, bridge_table
from virtuary.network.nft import (
    chain,
    lines,
    load,
    named_set,
    quoted,
)

__all__ = [
    "CHECKS",
    "TABLES",
    "Port",
    "apply",
    "fingerprint",
    "is_applied",
    "remove",
    "render",
]

TABLES = ("inet virtuary", "bridge virtuary")

_MARK = re.compile(r"^    chain (is_[0-9a-f]{16}) \{$", re.MULTILINE)


# ---- rendering


@dataclass
class _Chains:
    """The chains of rules, each kept once however many cards share it."""

    names: dict[str, str] = field(default_factory=dict)
    known: dict[tuple[int, Direction, Action], str] = field(default_factory=dict)
    """By the identity of rules, which their cards keep: comparing long ones for each card would
    take the time.
    """

    def name(self, direction: Direction, rules: tuple[Match, ...], default: Action) -> str:
        """The chain that judges so."""
        key = (id(rules), direction, default)
        if key not in self.known:
            self.known[key] = self._make(direction, rules, default)
        return self.known[key]

    def _make(self, direction: Direction, rules: tuple[Match, ...], default: Action) -> str:
        told = [line for rule in rules if rule.direction == direction for line in _rule(rule)]
        body = lines([*told, _verdict(direction, default)])
        return self.names.setdefault(body, f"rules_{len(self.names)}")

    def text(self) -> str:
        return "".join(f"    chain {name} {{\n{body}    }}\n" for body, name in self.names.items())


def render(
    nets: Iterable[Net],
    ports: Iterable[Port],
    forwards: Iterable[Forward] = (),
    externals: Iterable[External] = (),
) -> str:
    """The script that makes this the ruleset of ours, in one transaction. The order of the
    arguments makes no difference, but for several external addresses of one server: it leaves under
    the first.
    """
    known = sorted(nets, key=lambda net: net.bridge)
    cards = sorted(ports, key=lambda port: port.interface)
    published = sorted(
        forwards, key=lambda item: (item.address.version, item.address, item.protocol, item.port)
    )
    whole = tuple(externals)
    _check_together(known, cards, published, whole)
    body = (
        _inet(known, cards, published, whole),
        bridge_table(cards, {net.bridge for net in known if net.kind != "bridge"}),
    )
    mark = "is_" + hashlib.sha256("".join(body).encode()).hexdigest()[:16]
    return "".join(_table(name, text, mark) for name, text in zip(TABLES, body, strict=True))


def _table(name: str, body: str, mark: str) -> str:
    # The rule in the marking chain tells a table that was emptied from one that is whole.
    return (
        f"table {name}\ndelete table {name}\ntable {name} {{\n{body}    chain {mark} {{\n     "
        "   return\n    }\n}\n"
    )


def _check_together(
    nets: list[Net], ports: list[Port], forwards: list[Forward], externals: tuple[External, ...]
) -> None:
    cards, faults = sift_ports(nets, ports)
    faults |= sift_translations(nets, cards, forwards, externals).faults
    for why in faults.values():
        raise Invalid(why)


@lru_cache(4096)
def _rule(rule: Match) -> tuple[str, ...]:
    """A rule's lines, one for each address family its peers are of; none when they are nobody."""
    what = _protocol(rule) + _verdict(rule.direction, rule.action)
    if rule.peers is None:
        return (what,)
    where = "saddr" if rule.direction == "in" else "daddr"
    told = []
    for version, word, family in ((4, "ip", "ipv4"), (6, "ip6", "ipv6")):
        peers = list(collapse_addresses([net for net in rule.peers if net.version == version]))  # type: ignore[type-var]
        if any(net.prefixlen == 0 for net in peers):
            told.append(f"meta nfproto {family} {what}")
        elif peers:
            told.append(f"{word} {where} {_any_of(map(_short, peers))} {what}")
    return tuple(told)


def _collapsed(nets: list[Subnet]) -> list[str]:
    return [str(net) for net in collapse_addresses(nets)]  # type: ignore[type-var]


def _short(net: Subnet) -> str:
    return str(net.network_address) if net.prefixlen == net.max_prefixlen else str(net)


def _protocol(rule: Match) -> str:
    if rule.protocol == "any":
        return ""
    if rule.protocol == "icmp":
        return "meta l4proto { icmp, ipv6-icmp } "
    if not rule.ports:
        return f"meta l4proto {rule.protocol} "
    ranges = (
        str(first) if first == last else f"{first}-{last}" for first, last in _merge(rule.ports)
    )
    return f"{rule.protocol} dport {_any_of(ranges)} "


def _merge(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ports as ranges that neither overlap nor touch: nft refuses others in one set."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _any_of(words: Iterable[str]) -> str:
    found = list(words)
    return found[0] if len(found) == 1 else f"{{ {', '.join(found)} }}"


def _verdict(direction: Direction, action: Action) -> str:
    if action == "allow":
        return "goto arrive" if direction == "out" else "accept"
    return "drop" if action == "deny" else "goto refuse"


# ---- the table of packets: who reaches whom, and translation


def _inet(
    nets: list[Net], ports: list[Port], forwards: list[Forward], externals: tuple[External, ...]
) -> str:
    own = [net.bridge for net in nets if net.kind != "bridge"]
    apart = [net.bridge for net in nets if net.kind == "isolated"]
    lans = [net.bridge for net in nets if net.kind == "bridge"]
    chains = _Chains()
    judged = _judged(nets, ports, chains)
    return "".join(
        (
            named_set("taps", "type ifname", quoted(port.interface for port in ports)),
            named_set("own", "type ifname", quoted(own)),
            named_set("apart", "type ifname", quoted(apart)),
            named_set("lans", "type ifname", quoted(lans)),
            named_set("inside", "type ifname . ifname", (f'"{name}" . "{name}"' for name in own)),
            named_set("open", "type ifname", quoted(net.bridge for net in nets if net.host_access)),
            judged,
            _translation_maps(nets, forwards),
            _external_maps(externals),
            _HOOKS,
            chains.text(),
            _translation_chains(nets),
        )
    )


def _judged(nets: list[Net], ports: list[Port], chains: _Chains) -> str:
    """The maps from a card's address to the chain that judges what it begins (`leaves`) and what is
    begun with it (`arrives`).
    """
    by_bridge = {net.bridge: net for net in nets}
    elements: dict[str, list[str]] = {"leaves4": [], "arrives4": [], "leaves6": [], "arrives6": []}
    others: dict[str, list[str]] = {"others_leave": [], "others_arrive": []}
    for port in ports:
        net = by_bridge[port.bridge]
        leaves = chains.name("out", port.rules, net.default_out)
        arrives = chains.name("in", port.rules, net.default_in)
        for address in port.addresses:
            elements[f"leaves{address.version}"].append(
                f'"{port.bridge}" . {address} : goto {leaves}'
            )
            elements[f"arrives{address.version}"].append(
                f'"{port.bridge}" . {address} : goto {arrives}'
            )
        for family in port.unguarded & {"ipv4", "ipv6"}:
            # It may lead on to addresses nobody knows; those are judged by the network's default.
            others["others_leave"].append(
                f'"{port.bridge}" . {family} : goto {chains.name("out", (), net.default_out)}'
            )
            others["others_arrive"].append(
                f'"{port.bridge}" . {family} : goto {chains.name("in", (), net.default_in)}'
            )
    kinds = {name: f"type ifname . ipv{name[-1]}_addr : verdict" for name in elements}
    kinds |= dict.fromkeys(others, "type ifname . nf_proto : verdict")
    return "".join(
        named_set(name, kinds[name], sorted(found), word="map")
        for name, found in (elements | others).items()
    )


_ESTABLISHED = ("ct state established,related accept", "ct state invalid drop")
_HOOKS = "".join(
    (
        # Frames to link-local MACs pass the bridge by and reach the IP stack as the tap's own.
        chain(
            "early",
            'iifname "lo" accept',
            "iifname @taps drop",
            "iifname @own ip daddr 127.0.0.0/8 drop",
            "iifname @own ip saddr 127.0.0.0/8 drop",
            "iifname @lans ip daddr 127.0.0.0/8 drop",
            hook="filter hook prerouting priority -310",
        ),
        # Where the host filters bridged packets, one whose destination was translated to its own
        # network is bridged on.
        chain(
            "returning",
            "iifname @own ct status dnat ip daddr @subnets4 meta mark set meta mark or "
            f"{TRANSLATED}",
            "iifname @own ct status dnat ip6 daddr @subnets6 meta mark set meta mark or "
            f"{TRANSLATED}",
            hook="filter hook prerouting priority -90",
        ),
        chain("input", "iifname @own goto host", hook="filter hook input priority -5"),
        # Packets between two servers leave by the bridge they came from, so the kernel would tell
        # them of a shorter way, which there is not.
        chain(
            "output",
            "oifname @own icmp type redirect drop",
            "oifname @own icmpv6 type nd-redirect drop",
            hook="filter hook output priority -5",
        ),
        chain(
            "host",
            *_ESTABLISHED,
            "meta l4proto { icmp, ipv6-icmp } accept",
            # Of the network's own dnsmasq alone: another resolver of the host listens on other
            # addresses.
            "iifname . ip daddr @gateways4 udp dport { 53, 67 } accept",
            "iifname . ip daddr @gateways4 tcp dport 53 accept",
            "iifname . ip6 daddr @gateways6 udp dport { 53, 547 } accept",
            "iifname . ip6 daddr @gateways6 tcp dport 53 accept",
            "ip daddr 255.255.255.255 udp dport 67 accept",
            "ip6 daddr ff02::1:2 udp dport 547 accept",
            "iifname @open goto leave",
            "goto refuse",
        ),
        chain(
            "forward",
            # A caller that knows nothing of a narrower way would wait for packets that never come
            # (RFC 2923).
            "iifname @own tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu",
            "oifname @own tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu",
            "iifname @own goto judge",
            "oifname @own goto judge",
            "iifname @lans goto judge_lan",
            "oifname @lans goto judge_lan",
            hook="filter hook forward priority -5",
        ),
        chain(
            "judge",
            *_ESTABLISHED,
            "iifname . oifname @inside goto leave",
            "iifname @apart goto refuse",
            "oifname @own ct status dnat goto leave",
            "oifname @own goto strange",
            "goto leave",
        ),
        chain("strange", "iifname @own goto refuse", "drop"),
        # Seen only where the host filters bridged packets (net.bridge.bridge-nf-call-iptables).
        chain("judge_lan", "ct state established,related accept", "goto leave"),
        chain(
            "leave",
            "iifname . ip saddr vmap @leaves4",
            "iifname . ip6 saddr vmap @leaves6",
            "iifname . meta nfproto vmap @others_leave",
            "iifname @own drop",
            "goto arrive",
        ),
        chain(
            "arrive",
            "oifname . ip daddr vmap @arrives4",
            "oifname . ip6 daddr vmap @arrives6",
            "oifname . meta nfproto vmap @others_arrive",
            "oifname @own drop",
            "accept",
        ),
        chain(
            "refuse",
            "meta l4proto tcp reject with tcp reset",
            "reject with icmpx type admin-prohibited",
        ),
    )
)


def _translation_maps(nets: list[Net], forwards: list[Forward]) -> str:
    """What is published, and the subnets that leave under the host's address."""
    own = [net for net in nets if net.kind != "bridge"]
    text = []
    for version in (4, 6):
        kind = f"ipv{version}_addr"
        mine = [item for item in forwards if item.address.version == version]
        wide = (
            f"{item.protocol} . {item.port} : {item.guest} . {item.guest_port}"
            for item in mine
            if item.address.is_unspecified
        )
        exact = (
            f"{item.address} . {item.protocol} . {item.port} : {item.guest} . {item.guest_port}"
            for item in mine
            if not item.address.is_unspecified
        )
        gateways = (
            f'"{net.bridge}" . {address}'
            for net in own
            for address in net.gateways
            if address.version == version
        )
        subnets = [subnet for net in own for subnet in net.subnets if subnet.version == version]
        away = [
            subnet
            for net in own
            if net.kind == "nat" and version in net.masquerade
            for subnet in net.subnets
            if subnet.version == version
        ]
        text += [
            named_set(
                f"wide{version}",
                f"type inet_proto . inet_service : {kind} . inet_service",
                wide,
                word="map",
            ),
            named_set(
                f"exact{version}",
                f"type {kind} . inet_proto . inet_service : {kind} . inet_service",
                exact,
                word="map",
            ),
            named_set(f"gateways{version}", f"type ifname . {kind}", gateways),
            named_set(f"subnets{version}", f"type {kind}", _collapsed(subnets), flags="interval"),
            named_set(f"away{version}", f"type {kind}", _collapsed(away), flags="interval"),
        ]
    return "".join(text)


def _external_maps(externals: tuple[External, ...]) -> str:
    """Which address leads to whom, and as which address a server leaves."""
    text = []
    for version in (4, 6):
        kind = f"type ipv{version}_addr : ipv{version}_addr"
        mine = [item for item in externals if item.address.version == version]
        leave = {item.guest: item.address for item in reversed(mine)}
        text += [
            named_set(
                f"outer{version}",
                kind,
                sorted(f"{item.address} : {item.guest}" for item in mine),
                word="map",
            ),
            named_set(
                f"seen{version}",
                kind,
                sorted(f"{guest} : {address}" for guest, address in leave.items()),
                word="map",
            ),
        ]
    return "".join(text)


def _translation_chains(nets: list[Net]) -> str:
    publish = []
    for version, word in ((4, "ip"), (6, "ip6")):
        key = f"dnat {word} to {word} daddr . meta l4proto . th dport map @exact{version}"
        local = (
            "ip6 daddr != ::1 fib daddr type local"
            if version == 6
            else "meta nfproto ipv4 fib daddr type local"
        )
        publish += [
            key,
            f"dnat {word} to {word} daddr map @outer{version}",
            f"{local} dnat {word} to meta l4proto . th dport map @wide{version}",
        ]
    # A network's own DNS and DHCP stay the host's, also where such a port is published to the
    # world.
    served = [
        line
        for word, version in (("ip", 4), ("ip6", 6))
        for line in (
            f"iifname . {word} daddr @gateways{version} meta l4proto {{ tcp, udp }} th dport {{ "
            "53, 67, 547 } accept",
        )
    ]
    hairpin = [
        f'oifname "{net.bridge}" {"ip" if subnet.version == 4 else "ip6"} saddr {subnet} ct '
        "status dnat masquerade"
        for net in nets
        if net.kind != "bridge"
        for subnet in net.subnets
    ]
    return "".join(
        (
            chain("publish", *publish),
            chain("arriving", *served, "jump publish", hook="nat hook prerouting priority -100"),
            chain("ours", "jump publish", hook="nat hook output priority -100"),
            chain(
                "leaving",
                "oifname @own ip saddr 127.0.0.0/8 masquerade",
                *hairpin,
                # such a server has no way back to elsewhere
                "oifname @apart ct status dnat masquerade",
                "oifname @own accept",
                "snat ip to ip saddr map @seen4",
                "snat ip6 to ip6 saddr map @seen6",
                "ip saddr @away4 masquerade",
                "ip6 saddr @away6 masquerade",
                hook="nat hook postrouting priority 100",
            ),
        )
    )


# ---- effects


def fingerprint(script: str) -> str:
    """The name that tells this ruleset from every other; it stands in the script itself."""
    found = _MARK.search(script)
    if not found:
        raise Invalid("this is no script of ours: it carries no mark")
    return found[1]


async def apply(script: str) -> None:
    """Make a rendered ruleset the one of this host, wholly or not at all; raises Failed with nft's
    own words. May be repeated.
    """
    await load(script)


async def is_applied(mark: str) -> bool:
    """Whether the ruleset of this `fingerprint` is loaded: False when another one is, or none, or
    it was flushed.

    Single rules taken out by hand are not noticed.
    """
    looks = [run("nft", "list", "chain", *table.split(), mark, check=False) for table in TABLES]
    return all(
        found.status == 0 and b"return" in found.stdout for found in await asyncio.gather(*looks)
    )


MOST_HEARD = 4
"""Addresses of a tap that are told: it may call itself whatever it likes."""


async def find_heard() -> dict[str, tuple[str, ...]]:
    """What the taps call themselves whose addresses nobody gave, by tap, the newest first; empty
    where the ruleset is not there.
    """
    looks = [
        run("nft", "-j", "list", "set", *TABLES[1].split(), name, check=False) for name in HEARD
    ]
    heard: dict[str, list[tuple[int, str]]] = {}
    for done in await asyncio.gather(*looks):
        for tap, expires, address in parse_heard(done.stdout) if done.status == 0 else ():
            heard.setdefault(tap, []).append((expires, address))
    return {
        tap: tuple(address for _, address in sorted(found, reverse=True)[:MOST_HEARD])
        for tap, found in heard.items()
    }


def parse_heard(listing: bytes) -> list[tuple[str, int, str]]:
    """The tap, the seconds until it is forgotten, and the address, of each element in what `nft -j
    list set` says.
    """
    sets = (item["set"] for item in json.loads(listing)["nftables"] if "set" in item)
    elements = (element["elem"] for found in sets for element in found.get("elem", ()))
    return [
        (element["val"]["concat"][0], int(element.get("expires", 0)), element["val"]["concat"][1])
        for element in elements
    ]


async def remove() -> None:
    """Take our tables away; nothing when there are none. Open connections stay, untranslated ones
    and translated ones alike.
    """
    await load("".join(f"table {name}\ndelete table {name}\n" for name in TABLES))
