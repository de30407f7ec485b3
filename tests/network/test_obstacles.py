"""Other people's firewalls: what stops our traffic is seen, cleared with as little as possible, and
left as it was found.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from netlab import BRIDGES, OUTSIDE, Lab, lab_of, v4
from virtuary.base.errors import Failed, Invalid
from virtuary.network import obstacles
from virtuary.network.obstacles import (
    Chain,
    Obstacle,
    Rules,
    is_in_the_way,
    lacking,
    name_owner,
    parse_chains,
    parse_iptables,
    parse_nft,
    plan_iptables,
    plan_nft,
)

FORWARD = Chain("ip", "filter", "FORWARD", "forward", "drop")
THEIRS = Chain("inet", "firewalld", "filter_FORWARD", "forward", "accept")
NOTHING = Rules(frozenset())
PLAIN = b"-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n"
REJECTING = (
    b"-P FORWARD ACCEPT\n-A FORWARD -i lo -j ACCEPT\n-A FORWARD -j REJECT --reject-with "
    b"icmp-host-prohibited\n-A FORWARD -i br9 -j ACCEPT\n"
)
DOCKER = (
    b"-P FORWARD DROP\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n-A DOCKER-USER -i eth0 -s "
    b"192.0.2.0/24 -j DROP\n"
)
UFW = (
    b"-P FORWARD DROP\n-N ufw-reject-forward\n-A FORWARD -j ufw-before-forward\n-A FORWARD -j "
    b"ufw-reject-forward\n"
)
CLEARED = PLAIN + b"".join(
    f'-A FORWARD -i vbr1 -m comment --comment "virtuary:vbr1:{number}" -j ACCEPT\n'.encode()
    for number in range(3)
)


def base_chain(**changes: Any) -> dict[str, Any]:
    return {
        "chain": {
            "family": "ip",
            "table": "filter",
            "name": "FORWARD",
            "type": "filter",
            "hook": "forward",
            "policy": "drop",
        }
        | changes
    }


def test_only_chains_of_others_that_packets_pass_are_looked_at() -> None:
    found = [
        base_chain(), base_chain(table="virtuary"), base_chain(hook="prerouting"),
        base_chain(type="nat"), base_chain(family="bridge"),
        base_chain(family="inet", table="firewalld", name="filter_INPUT", hook="input",
        policy="accept"), {"table": {"name": "x"}},
        {"chain": {"family": "ip", "table": "filter", "name": "DOCKER-USER"}},
    ]  # fmt: skip
    chains = parse_chains(json.dumps({"nftables": found}).encode())
    assert chains == (FORWARD, Chain("inet", "firewalld", "filter_INPUT", "input", "accept"))
    assert [chain.program for chain in chains] == ["iptables", None]
    assert parse_chains(b"") == ()


@pytest.mark.parametrize(
    ("listing", "policy", "owner", "stops", "lacks"),
    {
        "policy": (PLAIN, "drop", "iptables", True, ("vbr1",)),
        "nothing": (b"-P FORWARD ACCEPT\n", "accept", "iptables", False, ("vbr1",)),
        "last rule": (REJECTING, "accept", "iptables", True, ("vbr1",)),
        "Docker": (DOCKER, "drop", "Docker", True, ("vbr1",)),
        "ufw": (UFW, "drop", "ufw", True, ("vbr1",)),
        "cleared": (CLEARED, "drop", "iptables", True, ()),
        "too late": (b"-A FORWARD -j DROP\n" + CLEARED, "drop", "iptables", True, ("vbr1",)),
    }.values(),
)
def test_what_iptables_says_is_understood(
    listing: bytes, policy: str, owner: str, stops: bool, lacks: tuple[str, ...]
) -> None:
    chain, rules = FORWARD._replace(policy=policy), parse_iptables(listing, "FORWARD")
    assert is_in_the_way(chain, rules) == stops
    assert name_owner(chain, rules) == owner
    assert lacking(chain, rules, ["vbr1"]) == lacks


def test_rules_go_to_the_end_or_before_what_stops_everything() -> None:
    first, second, third = (
        shlex.join(words)
        for words in plan_iptables(FORWARD, parse_iptables(PLAIN, "FORWARD"), ["vbr1"])
    )
    assert first == "-A FORWARD -i vbr1 -m comment --comment virtuary:vbr1:0 -j ACCEPT"
    assert second == (
        "-A FORWARD -o vbr1 -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "
        "virtuary:vbr1:1 -j ACCEPT"
    )
    assert (
        third
        == "-A FORWARD -o vbr1 -m conntrack --ctstate DNAT -m comment --comment virtuary:vbr1:2 -j ACCEPT"
    )
    assert {
        words[2] for words in plan_iptables(FORWARD, parse_iptables(REJECTING, "FORWARD"), ["vbr1"])
    } == {"2"}
    assert plan_iptables(FORWARD, parse_iptables(CLEARED, "FORWARD"), ["vbr1"]) == []


def test_a_full_ufw_rejection_is_a_stop_and_an_empty_one_is_not() -> None:
    assert parse_iptables(UFW, "FORWARD").end is None
    assert parse_iptables(UFW + b"-A ufw-reject-forward -j REJECT\n", "FORWARD").end == 2


def test_firewalld_gets_our_rules_before_its_own() -> None:
    assert (
        is_in_the_way(THEIRS, Rules(frozenset()))
        and name_owner(THEIRS, Rules(frozenset())) == "firewalld"
    )
    assert plan_nft(THEIRS, Rules(frozenset({"virtuary:vbr1:0"}), 9), ["vbr1"]).splitlines() == [
        'insert rule inet firewalld filter_FORWARD oifname "vbr1" ct state established,related '
        'accept comment "virtuary:vbr1:1"',
        'insert rule inet firewalld filter_FORWARD oifname "vbr1" ct status dnat accept comment '
        '"virtuary:vbr1:2"',
    ]
    with pytest.raises(Failed, match="can't be written"):
        plan_nft(THEIRS._replace(name="a b"), NOTHING, ["vbr1"])
    with pytest.raises(Invalid):
        plan_nft(THEIRS, NOTHING, ['vbr1" drop'])


def test_other_chains_of_nftables_get_our_rules_at_the_end_or_before_what_stops_everything() -> (
    None
):
    mine = Chain("inet", "mine", "f", "forward", "accept")
    assert not is_in_the_way(mine, NOTHING) and is_in_the_way(mine, Rules(frozenset(), 9))
    assert plan_nft(mine, NOTHING, ["vbr1"]).splitlines()[0] == (
        'add rule inet mine f iifname "vbr1"  accept comment "virtuary:vbr1:0"'
    )
    assert plan_nft(mine, Rules(frozenset({"virtuary:vbr1:0"}), 9), ["vbr1"]).splitlines()[0] == (
        'insert rule inet mine f handle 9 oifname "vbr1" ct state established,related accept '
        'comment "virtuary:vbr1:1"'
    )


def test_rules_of_ours_are_known_by_their_comments() -> None:
    listing = {
        "nftables": [
            {"rule": {"comment": "virtuary:vbr1:0", "handle": 7, "expr": [{"accept": None}]}},
            {"rule": {"comment": "x", "handle": 8, "expr": [{"match": {}}, {"drop": None}]}},
            {
                "rule": {
                    "handle": 9,
                    "expr": [{"counter": {"packets": 1}}, {"reject": {"type": "tcp reset"}}],
                }
            },
            {"rule": {"comment": "virtuary:vbr1:1", "handle": 10, "expr": [{"accept": None}]}},
        ]
    }
    rules, ours = parse_nft(json.dumps(listing).encode())
    assert rules == Rules(frozenset({"virtuary:vbr1:0", "x"}), 9), (
        "what stands after a rule that stops everything lets nothing pass"
    )
    assert ours == {7: "virtuary:vbr1:0", 10: "virtuary:vbr1:1"}
    assert parse_nft(b"") == (NOTHING, {})


def test_an_obstacle_is_told_in_one_sentence() -> None:
    assert (
        Obstacle(FORWARD, ("vbr1", "vbr2"), "Docker").sentence
        == "Docker drops forwarded traffic of vbr1, vbr2 in ip filter FORWARD"
    )


# ---- a real one


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    for made in lab_of(False):
        made.rule()
        yield made


SETUPS = {
    "iptables' policy": "iptables -P FORWARD DROP; ip6tables -P FORWARD DROP",
    "iptables' last rule": "iptables -A FORWARD -j REJECT; ip6tables -A FORWARD -j REJECT",
    "Docker's chains": "for i in iptables ip6tables; do $i -P FORWARD DROP; $i -N DOCKER-USER; $i -A FORWARD -j DOCKER-USER; done",
    "firewalld's table": "nft 'add table inet firewalld'; nft 'add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }';"
    "nft 'add rule inet firewalld filter_FORWARD ct state established,related accept'; nft 'add "
    "rule inet firewalld filter_FORWARD reject'",
    "another table's policy": "nft 'add table inet mine'; nft 'add chain inet mine f { type filter hook forward priority 10; policy drop; }'",
}
UNDO = (
    "for i in iptables ip6tables; do $i -P FORWARD ACCEPT; $i -P INPUT ACCEPT; $i -F; $i -X; "
    "done; nft delete table inet firewalld || true; nft delete table inet mine || true"
)
needs_iptables = pytest.mark.skipif(
    not shutil.which("iptables", path="/usr/sbin:/sbin"), reason="iptables is not installed"
)


@pytest.mark.host
@pytest.mark.slow
@needs_iptables
@pytest.mark.parametrize("case", SETUPS)
def test_traffic_that_another_firewall_stops_is_let_pass_and_stopped_again_when_we_go(
    lab: Lab, case: str
) -> None:
    try:
        assert all(lab.reached()) and lab.clear() == ()
        lab.run("h", SETUPS[case])
        before = lab.run("h", "iptables -S; ip6tables -S")
        assert not any(lab.reached())
        assert lab.clear()
        assert all(lab.reached())
        assert lab.clear() == (), "what was cleared is no obstacle any more"
        assert lab.call("o", v4("a"), 80, "a", patience=0.25) == "silence", "our own rules hold"
        lab.on_host(obstacles.restore, BRIDGES)
        assert all(lab.reached()), "these bridges are kept"
        lab.on_host(obstacles.restore)
        lab.on_host(obstacles.restore)
        assert not any(lab.reached())
        assert lab.run("h", "iptables -S; ip6tables -S") == before
    finally:
        lab.run("h", UNDO)


NFT = (
    "nft add table inet mine; nft 'add chain inet mine f { type filter hook forward priority "
    "10; policy %s; }'; nft 'add rule inet mine f %s'"
)


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize(("policy", "last"), [("drop", "counter"), ("accept", "counter reject")])
def test_what_an_administrator_forbids_in_a_chain_of_nftables_stays_forbidden(
    lab: Lab, policy: str, last: str
) -> None:
    try:
        lab.run(
            "h",
            NFT % (policy, "ip daddr 192.0.2.2 tcp dport 81 drop"),
            f"nft 'add rule inet mine f {last}'",
        )
        before = lab.run("h", "nft -s list table inet mine")
        assert not any(lab.reached())
        assert lab.clear() and lab.clear() == ()
        assert all(lab.reached())
        assert lab.call("a", OUTSIDE, 81, "o", 81, patience=0.25) == "silence"
        lab.on_host(obstacles.restore)
        assert lab.run("h", "nft -s list table inet mine") == before
    finally:
        lab.run("h", "nft delete table inet mine")


ANSWERS = {
    "iptables' policy": "iptables -P OUTPUT DROP",
    "iptables' last rule": "iptables -A OUTPUT -j REJECT",
    "another table's": "nft 'add table inet mine'; nft 'add chain inet mine o { type filter hook output priority 10; policy drop; }'",
}


@pytest.mark.host
@pytest.mark.slow
@needs_iptables
@pytest.mark.parametrize("case", ANSWERS)
def test_answers_to_servers_are_let_pass_where_the_host_sends_nothing(lab: Lab, case: str) -> None:
    try:
        lab.run("h", ANSWERS[case])
        before = lab.run("h", "iptables -S; nft -s list table inet mine || true")
        assert lab.call("a", "10.1.0.1", 53, "h", 53) in ("silence", "refused")
        (found,) = lab.clear()
        assert "drops answers of DNS and DHCP of vbr1, vbr2, vbr3" in found.sentence
        assert lab.call("a", "10.1.0.1", 53, "h", 53) == v4("a") and lab.clear() == ()
        lab.on_host(obstacles.restore)
        assert lab.run("h", "iptables -S; nft -s list table inet mine || true") == before
    finally:
        lab.run("h", "iptables -P OUTPUT ACCEPT", UNDO)


@pytest.mark.host
@pytest.mark.slow
@needs_iptables
def test_dns_of_our_networks_is_let_pass_where_the_host_takes_in_nothing(lab: Lab) -> None:
    try:
        lab.run(
            "h",
            "iptables -P INPUT DROP",
            "iptables -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        )
        assert lab.call("a", "10.1.0.1", 53, "h", 53) == "silence"
        (found,) = lab.clear()
        assert (
            found.sentence == "iptables drops DNS and DHCP of vbr1, vbr2, vbr3 in ip filter INPUT"
        )
        assert lab.call("a", "10.1.0.1", 53, "h", 53) == v4("a")
        lab.on_host(obstacles.restore)
        assert lab.call("a", "10.1.0.1", 53, "h", 53) == "silence"
    finally:
        lab.run("h", UNDO)
