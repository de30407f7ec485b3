"""What other people's rules in this kernel's packet filter do with a packet of a server's: gone
through as the kernel would, and told.

Every chain that such a packet passes is looked at, on whatever hook, and the chains they jump to.
What a rule asks for that is not known here (a set, a mark, how many came before) makes it doubtful:
it is passed over, and what follows is told as what may be.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from typing import Any, Literal, NamedTuple

from virtuary.base.proc import run
from virtuary.network.obstacles import FIREWALLD, OURS

PATHS = {
    "forward": ("ingress", "prerouting", "forward", "postrouting", "egress"),
    "input": ("ingress", "prerouting", "input"),
    "output": ("output", "postrouting", "egress"),
}
"""The hooks that a packet passes on, arriving, and leaving."""
_DEVICE = re.compile(
    r"chain (\S+) \{\s*type \S+ hook \S+ devices? (?:= )?(.*?) priority", re.DOTALL
)
_QUIET = {
    "counter",
    "log",
    "comment",
    "nftrace",
    "mangle",
    "notrack",
    "masquerade",
    "snat",
    "dnat",
    "redirect",
    "set",
    "tproxy",
    "ct helper",
}
"""Statements that stop nothing."""
_DEEPEST = 16

Outcome = Literal["accept", "drop", "go on"]


@dataclass(frozen=True)
class Packet:
    """The first packet of a call."""

    way: Literal["forward", "input", "output"]
    iif: str
    oif: str
    source: str
    target: str
    protocol: str
    """tcp, udp or icmp."""
    port: int | None = None
    from_port: int | None = None

    @property
    def version(self) -> int:
        return ip_address(self.target).version


class Stop(NamedTuple):
    """Who stops a packet."""

    owner: str
    where: str
    """Family, table and chain."""
    certain: bool


@dataclass
class Ruleset:
    """The chains and rules of a kernel, without ours."""

    bases: list[dict[str, Any]] = field(default_factory=list)
    rules: dict[tuple[str, str, str], list[Sequence[Mapping[str, Any]]]] = field(
        default_factory=dict
    )
    devices: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    """By table and chain of family netdev: what they are asked of."""

    def add(self, other: Ruleset) -> None:
        self.bases += other.bases
        self.rules |= other.rules
        self.devices |= other.devices

    def find_stop(self, packet: Packet) -> Stop | None:
        """Who stops this packet first; one that is certain before one that is not."""
        stops = [stop for chain in self._passed(packet) if (stop := self._stop_of(chain, packet))]
        return next((stop for stop in stops if stop.certain), stops[0] if stops else None)

    def _passed(self, packet: Packet) -> Iterator[dict[str, Any]]:
        families = {"inet", "ip" if packet.version == 4 else "ip6", "netdev", "bridge"}
        order = PATHS[packet.way]
        chains = [
            chain for chain in self.bases if chain["family"] in families and chain["hook"] in order
        ]
        for chain in sorted(
            chains, key=lambda chain: (order.index(chain["hook"]), chain.get("prio", 0))
        ):
            if chain["family"] == "netdev":
                asked = self.devices.get((chain["table"], chain["name"]), frozenset())
                if (packet.iif if chain["hook"] == "ingress" else packet.oif) not in asked:
                    continue
            if chain["family"] == "bridge" and (
                packet.way == "output" or chain["hook"] not in ("prerouting", "input")
            ):
                continue
            yield chain

    def _stop_of(self, chain: Mapping[str, Any], packet: Packet) -> Stop | None:
        doubts: list[None] = []
        outcome = self._walk((chain["family"], chain["table"], chain["name"]), packet, doubts, 0)
        dropped = outcome == "drop" or (outcome == "go on" and chain.get("policy") == "drop")
        if not dropped:
            return None
        return Stop(
            self._owner_of(chain), f"{chain['family']} {chain['table']} {chain['name']}", not doubts
        )

    def _owner_of(self, chain: Mapping[str, Any]) -> str:
        """Whose a chain is, as people know it."""
        names = {
            name
            for family, table, name in self.rules
            if (family, table) == (chain["family"], chain["table"])
        }
        if chain["table"] == FIREWALLD:
            return "firewalld"
        if any(name.startswith(("ufw-", "ufw6-")) for name in names):
            return "ufw"
        if "DOCKER-USER" in names and chain["hook"] == "forward":
            return "Docker"
        return (
            "iptables"
            if chain["table"] in ("filter", "raw", "mangle") and chain["name"].isupper()
            else "nftables"
        )

    def _walk(
        self, name: tuple[str, str, str], packet: Packet, doubts: list[None], depth: int
    ) -> Outcome:
        for rule in self.rules.get(name, ()) if depth < _DEEPEST else ():
            outcome = self._judge(name, rule, packet, doubts, depth)
            if outcome == "return":
                return "go on"
            if outcome != "go on":
                return outcome
        return "go on"

    def _judge(
        self,
        name: tuple[str, str, str],
        rule: Sequence[Mapping[str, Any]],
        packet: Packet,
        doubts: list[None],
        depth: int,
    ) -> Outcome | Literal["return"]:
        fits: bool | None = True
        for statement in rule:
            (word, value), *_ = statement.items()
            if word == "match":
                found = matches(value, packet)
                if found is False:
                    return "go on"
                fits = fits and found
            elif word == "vmap":
                verdict = _mapped(value, packet)
                return (
                    self._follow(name, verdict, packet, doubts, depth)
                    if verdict and fits
                    else _doubtful(doubts)
                )
            elif word == "xt" and value.get("type") == "target":
                word = {"REJECT": "reject", "DROP": "drop"}.get(str(value.get("name")), "counter")
                if word != "counter":
                    return "drop" if fits else _doubtful(doubts)
            elif word in ("accept", "drop", "reject", "return", "jump", "goto"):
                return (
                    self._follow(name, statement, packet, doubts, depth)
                    if fits
                    else _doubtful(doubts)
                )
            elif word == "xt" and value.get("name") == "comment":
                continue
            elif word not in _QUIET:
                fits = None
        return "go on"

    def _follow(
        self,
        name: tuple[str, str, str],
        verdict: Mapping[str, Any],
        packet: Packet,
        doubts: list[None],
        depth: int,
    ) -> Outcome | Literal["return"]:
        (word, value), *_ = verdict.items()
        if word in ("jump", "goto"):
            outcome = self._walk((*name[:2], value["target"]), packet, doubts, depth + 1)
            return "return" if outcome == "go on" and word == "goto" else outcome
        return {"accept": "accept", "drop": "drop", "reject": "drop", "return": "return"}.get(
            word, "go on"
        )  # type: ignore[return-value]


def _doubtful(doubts: list[None]) -> Literal["go on"]:
    doubts.append(None)
    return "go on"


def matches(match: Mapping[str, Any], packet: Packet) -> bool | None:
    """Whether a packet is what a rule asks for; None where that is not known."""
    known = value_of(match["left"], packet)
    if known is None:
        return None
    found = _is_in(known, match["right"])
    return found if found is None or match.get("op") != "!=" else not found


def value_of(left: object, packet: Packet) -> str | int | Literal[False] | None:
    """What a packet has at this place; False where it has no such place, None where nobody knows
    here.
    """
    if not isinstance(left, dict) or len(left) != 1:
        return None
    (kind, where), *_ = left.items()
    if kind == "ct":
        return {"state": "new", "direction": "original"}.get(where.get("key"))
    if kind == "meta":
        family = "ipv4" if packet.version == 4 else "ipv6"
        protocol = (
            "ipv6-icmp" if packet.protocol == "icmp" and packet.version == 6 else packet.protocol
        )
        names = {"iifname": packet.iif, "iif": packet.iif, "oifname": packet.oif, "oif": packet.oif}
        return (
            names
            | {
                "l4proto": protocol,
                "nfproto": family,
                "protocol": "ip" if family == "ipv4" else "ip6",
            }
        ).get(where["key"])
    return _payload(where, packet) if kind == "payload" else None


def _payload(where: Mapping[str, Any], packet: Packet) -> str | int | Literal[False] | None:
    protocol, place = where.get("protocol"), where.get("field")
    if protocol in ("ip", "ip6"):
        if (protocol == "ip") != (packet.version == 4):
            return False
        return {
            "saddr": packet.source,
            "daddr": packet.target,
            "protocol": packet.protocol,
            "nexthdr": packet.protocol,
        }.get(str(place))
    if protocol in ("tcp", "udp", "th"):
        if protocol not in (packet.protocol, "th") or packet.protocol == "icmp":
            return False
        return {"dport": packet.port, "sport": packet.from_port}.get(str(place))
    if protocol in ("icmp", "icmpv6"):
        asked = packet.protocol == "icmp" and (protocol == "icmp") == (packet.version == 4)
        return False if not asked else "echo-request" if place == "type" else None
    return None


def _is_in(known: str | int | Literal[False], right: object) -> bool | None:
    if known is False:
        return False
    if isinstance(right, dict) and "set" in right:
        found = [_is_in(known, item) for item in right["set"]]
        return True if True in found else None if None in found else False
    if isinstance(right, list):
        found = [_is_in(known, item) for item in right]
        return True if True in found else None if None in found else False
    if isinstance(right, dict) and "prefix" in right:
        return ip_address(str(known)) in ip_network(
            f"{right['prefix']['addr']}/{right['prefix']['len']}", strict=False
        )
    if isinstance(right, dict) and "range" in right:
        return _between(known, *right["range"])
    if isinstance(right, dict) or (isinstance(right, str) and right.startswith("@")):
        return None
    if isinstance(known, str) and isinstance(right, str):
        return (
            fnmatchcase(known, right)
            if right.endswith("*")
            else known == right or {known, right} == {"icmpv6", "ipv6-icmp"}
        )
    return str(known) == str(right)


def _between(known: str | int, first: Any, last: Any) -> bool:
    if isinstance(known, int):
        return int(first) <= known <= int(last)
    return int(ip_address(first)) <= int(ip_address(known)) <= int(ip_address(last))


def _mapped(value: Mapping[str, Any], packet: Packet) -> Mapping[str, Any] | None:
    known = value_of(value.get("key"), packet)
    data = value.get("data")
    if known is None or not isinstance(data, dict):
        return None
    pairs: Iterable[Any] = data.get("set", ())
    return next((verdict for key, verdict in pairs if _is_in(known, key)), {"continue": None})


def parse(listing: bytes, netdev: str = "") -> Ruleset:
    """The rules of others, from `nft -j list ruleset`, and where chains of devices are asked from
    what nft says in words.
    """
    found = Ruleset()
    for item in json.loads(listing or b"{}").get("nftables", ()):
        chain, rule = item.get("chain"), item.get("rule")
        if chain and not chain["table"].startswith(OURS) and chain.get("type") == "filter":
            found.bases.append(chain)
        elif rule and not rule["table"].startswith(OURS):
            found.rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(
                rule.get("expr", ())
            )
    for table, text in re.findall(r"table netdev (\S+) \{(.*?)\n\}", netdev, re.DOTALL):
        for name, devices in _DEVICE.findall(text):
            found.devices[table, name] = frozenset(re.findall(r"[\w.-]+", devices))
    return found


async def read() -> Ruleset:
    """Those of this kernel: table by table, since ours may be long. Raises Failed."""
    tables = [
        item["table"]
        for item in json.loads((await run("nft", "-j", "list", "tables")).stdout or b"{}")[
            "nftables"
        ]
        if "table" in item
    ]
    found, words = Ruleset(), ""
    for table in tables:
        if table["name"].startswith(OURS) or table["family"] == "arp":
            continue
        place = table["family"], table["name"]
        # it may be gone meanwhile
        listing = await run("nft", "-j", "-t", "list", "table", *place, check=False)
        if table["family"] == "netdev":
            words += (await run("nft", "-t", "list", "table", *place, check=False)).stdout.decode(
                errors="replace"
            )
        found.add(parse(listing.stdout, words) if listing.status == 0 else Ruleset())
    return found
