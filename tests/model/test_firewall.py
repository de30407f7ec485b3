"""Firewall groups: how rules are written, and which one decides about a connection."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from virtuary.model.firewall import (
    Card,
    Firewall,
    FirewallChange,
    FirewallSpec,
    FirewallWish,
    Group,
    Match,
    Rule,
    decide,
    resolve,
    resolve_all,
)
from virtuary.model.meta import Meta

names = st.sampled_from(["web", "db", "lost"])
addresses = st.sampled_from(
    [
        ip_address(text)
        for text in (
            "10.0.0.1",
            "10.0.0.2",
            "10.9.0.1",
            "192.0.2.7",
            "fd00::1",
            "fd00::2",
            "2001:db8::7",
        )
    ]
)
peers = st.sampled_from(
    ["10.0.0.0/8", "10.0.0.1", "0.0.0.0/0", "::/0", "fd00::/64", "fd00::1"]
) | st.builds("{}:{}".format, st.sampled_from(["group", "server"]), names)
ranges = st.tuples(st.integers(1, 90), st.integers(0, 20)).map(
    lambda pair: (pair[0], pair[0] + pair[1])
)
actions = st.sampled_from(["allow", "deny", "reject"])


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    protocol = draw(st.sampled_from(["tcp", "udp", "icmp", "any"]))
    return Rule(
        direction=draw(st.sampled_from(["in", "out"])), action=draw(actions), protocol=protocol,
        ports=tuple(draw(st.lists(ranges, max_size=2))) if protocol in ("tcp", "udp") else (),
        peers=tuple(draw(st.lists(peers, max_size=3))),
    )  # fmt: skip


groups = st.builds(Group, names, st.lists(rules(), max_size=4).map(tuple))
cards = st.none() | st.builds(
    Card, st.just("s"), st.just("n"), st.lists(groups, max_size=3).map(tuple), actions, actions
)
members = st.dictionaries(
    st.builds("{}:{}".format, st.sampled_from(["group", "server"]), names),
    st.lists(addresses.map(lambda address: ip_network(address)), max_size=3).map(tuple),
)


# ---- writing rules


@pytest.mark.parametrize(
    ("written", "meant"),
    {
        "80": (80, 80),
        "8000-8100": (8000, 8100),
        80: (80, 80),
        " 1-65535 ": (1, 65535),
        (7, 9): (7, 9),
    }.items(),
)
def test_ports_are_written_as_people_write_them(written: Any, meant: tuple[int, int]) -> None:
    rule = Rule(direction="in", protocol="tcp", ports=(written,))
    assert rule.ports == (meant,)
    assert Rule.model_validate_json(rule.model_dump_json()) == rule


@pytest.mark.parametrize(
    "written",
    ["", "0", "65536", "9-8", "80,81", "-1", "80-", "http", "٣", True, None, (1,), (1, 2, 3), 1.5],
)
def test_what_is_no_port_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError):
        Rule(direction="in", protocol="tcp", ports=(written,))


@pytest.mark.parametrize(
    ("written", "meant"),
    {
        "10.0.0.0/8": "10.0.0.0/8",
        "192.0.2.1": "192.0.2.1/32",
        "FD00::0/8": "fd00::/8",
        " group:Web ": "group:web",
        "server:db1": "server:db1",
    }.items(),
)
def test_a_peer_has_one_spelling(written: str, meant: str) -> None:
    assert Rule(direction="in", peers=(written,)).peers == (meant,)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "10.0.0.1/8",
        "web",
        "group:",
        "group:a b",
        "host:x",
        "fe80::1%eth0",
        "10.0.0.0/33",
        "server:a:b",
        "300.0.0.1",
    ],
)
def test_what_is_no_peer_is_refused(written: str) -> None:
    with pytest.raises(ValidationError):
        Rule(direction="in", peers=(written,))


@pytest.mark.parametrize("protocol", ["icmp", "any"])
def test_only_tcp_and_udp_have_ports(protocol: Any) -> None:
    with pytest.raises(ValidationError, match=f"{protocol} has no ports"):
        Rule(direction="in", protocol=protocol, ports=("80",))


@given(st.lists(rules(), max_size=4).map(tuple))
def test_a_group_survives_the_store(written: tuple[Rule, ...]) -> None:
    document = Firewall(
        meta=Meta(name="web"), spec=FirewallSpec(rules=written, description="for the web")
    )
    assert document.key == f"firewall/{document.id}"
    again = Firewall.load(document.dump(), 5)
    assert again.spec == document.spec and again.dump() == document.dump()
    assert (
        FirewallWish.model_validate(
            json.loads(FirewallWish(name="web", rules=written).model_dump_json())
        ).rules
        == written
    )


def test_unknown_fields_and_too_much_are_refused() -> None:
    for model in (Rule, FirewallSpec, FirewallWish, FirewallChange):
        with pytest.raises(ValidationError):
            model.model_validate({"direction": "in", "name": "x", "surprise": 1})
    with pytest.raises(ValidationError):
        FirewallSpec(rules=(Rule(direction="in"),) * 257)


# ---- deciding


def naive(
    source: Any,
    target: Any,
    protocol: str,
    port: int | None,
    cards: tuple[Card | None, Card | None],
    members: Any,
) -> str:
    """The same, written as one table of all rules in the order they are asked, addresses compared
    as strings of bits.
    """
    for way, card, peer in (("out", cards[0], target), ("in", cards[1], source)):
        if card is None:
            continue
        table = [rule for group in card.groups for rule in group.rules if rule.direction == way]
        default = Rule(direction="in", action=card.default_in if way == "in" else card.default_out)
        action = next(
            rule.action for rule in [*table, default] if _fits(rule, protocol, port, peer, members)
        )
        if action != "allow":
            return str(action)
    return "allow"


def _bits(address: Any) -> str:
    return f"{address.version}:{int(address):0{address.max_prefixlen}b}"


def _fits(rule: Rule, protocol: str, port: int | None, peer: Any, members: Any) -> bool:
    nets = []
    for text in rule.peers:
        nets += (
            members.get(text, ())
            if ":" in text and text.split(":")[0] in ("group", "server")
            else [ip_network(text)]
        )
    return (
        (rule.protocol in {"any", protocol})
        and (
            rule.ports == ()
            or port in {number for first, last in rule.ports for number in range(first, last + 1)}
        )
        and (
            rule.peers == ()
            or any(
                _bits(peer).startswith(_bits(net.network_address)[: 2 + net.prefixlen])
                for net in nets
            )
        )
    )


@given(
    addresses,
    addresses,
    st.sampled_from(["tcp", "udp", "icmp", "sctp"]),
    st.integers(1, 120),
    cards,
    cards,
    members,
)
@pytest.mark.slow
def test_decide_agrees_with_the_naive_model(
    source: Any, target: Any, protocol: str, port: int, one: Card | None, two: Card | None, who: Any
) -> None:
    number = port if protocol in ("tcp", "udp") else None
    verdict = decide(
        source, target, protocol, number, source_card=one, destination_card=two, members=who
    )
    assert verdict.action == naive(source, target, protocol, number, (one, two), who)
    if verdict.group:
        card = one if verdict.direction == "out" else two
        assert card is not None
        rule = next(
            group
            for group in card.groups
            if group.name == verdict.group and len(group.rules) >= verdict.number
        ).rules[verdict.number - 1]
        assert verdict.number > 0 and (
            rule.direction == verdict.direction
            or len({group.name for group in card.groups}) < len(card.groups)
        )
    assert verdict.sentence


WEB = Group(
    "web",
    (
        Rule(direction="in", protocol="tcp", ports=("80",)),
        Rule(direction="in", action="reject", peers=("10.0.0.2",)),
    ),
)
QUIET = Group("quiet", (Rule(direction="out", action="deny", protocol="tcp", ports=("25",)),))
STORY = {
    "a rule lets in": ((None, Card("s2", "lan", (WEB,), "deny")), "tcp", 80,
    "allowed by rule 1 of group web, on the inbound side of s2"),
    "the second rule": ((None, Card("s2", "lan", (WEB,))), "tcp", 22,
    "rejected by rule 2 of group web, on the inbound side of s2"),
    "the default": ((None, Card("s2", "lan", (QUIET,), "deny")), "udp", 9,
    "denied by the inbound default of network lan, on the inbound side of s2"),
    "outbound first": ((Card("s1", "lan", (QUIET,)), Card("s2", "lan", (WEB,))), "tcp", 25,
    "denied by rule 1 of group quiet, on the outbound side of s1"),
    "the first group": ((None, Card("s2", "lan", (QUIET, WEB), "deny")), "tcp", 80,
    "allowed by rule 1 of group web, on the inbound side of s2"),
    "only outbound": ((Card("s1", "lan"), None), "tcp", 80,
    "allowed by the outbound default of network lan, on the outbound side of s1"),
    "nobody's card": ((None, None), "tcp", 80, "allowed: neither side is a server's network card"),
}  # fmt: skip


@pytest.mark.parametrize("case", STORY)
def test_the_verdict_names_who_decided(case: str) -> None:
    (one, two), protocol, port, sentence = STORY[case]
    verdict = decide(
        ip_address("10.0.0.2"),
        ip_address("10.0.0.3"),
        protocol,
        port,
        source_card=one,
        destination_card=two,
        members={},
    )
    assert verdict.sentence == sentence


def test_an_empty_group_is_nobody_and_no_peers_is_anybody() -> None:
    named, free = Rule(direction="in", peers=("group:web",)), Rule(direction="in")
    assert resolve(named, {}).peers == () and resolve(free, {}).peers is None
    assert not resolve(named, {}).fits("tcp", 80, ip_address("10.0.0.1")) and resolve(
        free, {}
    ).fits("tcp", 80, ip_address("10.0.0.1"))


def test_all_rules_of_a_card_are_resolved_in_order() -> None:
    card = Card("s", "lan", (QUIET, WEB))
    assert resolve_all(card, {}) == (
        Match("out", "deny", "tcp", ((25, 25),), None),
        Match("in", "allow", "tcp", ((80, 80),), None),
        Match("in", "reject", "any", (), (ip_network("10.0.0.2/32"),)),
    )
