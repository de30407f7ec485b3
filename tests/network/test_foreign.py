"""Other people's rules, gone through for a packet of a server's: who stops it is named, and what is
not known is no certainty.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netlab import OUTSIDE, Lab, lab_of, v4
from virtuary.network import foreign
from virtuary.network.foreign import Packet, Stop

PING = Packet("forward", "vbr1", "up0", v4("a"), OUTSIDE, "icmp")
WEB = Packet("forward", "vbr1", "up0", v4("a"), OUTSIDE, "tcp", 443, 40000)
NAMES = Packet("input", "vbr1", "", v4("a"), "10.1.0.1", "udp", 53, 40000)
ANSWERS = Packet("output", "", "vbr1", "10.1.0.1", v4("a"), "udp", 40000, 53)
MINE = "add table inet mine; add chain inet mine c {{ type filter hook {} priority 0; {} }};"

STOPPED: dict[str, tuple[str, Packet, Stop | None]] = {
    "nothing": ("nft 'add table inet mine'", PING, None),
    "a chain that is jumped to": (
        "iptables -N THEIRS; iptables -A FORWARD -j THEIRS; iptables -A THEIRS -p tcp -j DROP", WEB,
        Stop("iptables", "ip filter FORWARD", True),
    ),
    "another protocol": ("iptables -A FORWARD -p tcp -j DROP", PING, None),
    "a whole protocol": ("iptables -A FORWARD -p icmp -j REJECT", PING, Stop("iptables",
    "ip filter FORWARD", True)),
    "other addresses": ("iptables -A FORWARD -s 10.9.0.0/16 -j DROP", PING, None),
    "its addresses": ("iptables -A FORWARD -s 10.0.0.0/8 -o up+ -j DROP", PING, Stop("iptables",
    "ip filter FORWARD", True)),
    "another interface": ("iptables -A FORWARD -i docker+ -j DROP", PING, None),
    "what is accepted before": ("iptables -A FORWARD -i vbr+ -j ACCEPT; iptables -A FORWARD -j DROP", PING, None),
    "what nobody knows here": (
        "iptables -A FORWARD -m mark --mark 7 -j ACCEPT; iptables -A FORWARD -j DROP", PING,
        Stop("iptables", "ip filter FORWARD", False),
    ),
    "before it is routed": (
        f"nft '{MINE.format('prerouting', '')} add rule inet mine c ip saddr {{ 10.1.0.0/24, "
        f"10.2.0.1 }} meta l4proto {{ tcp, udp }} drop'",
        WEB, Stop("nftables", "inet mine c", True),
    ),
    "a map of verdicts": (
        f"nft '{MINE.format('forward', '')} add rule inet mine c ct state vmap {{ established : "
        "accept, new : drop }'",
        WEB, Stop("nftables", "inet mine c", True),
    ),
    "a range of ports": (
        f"nft '{MINE.format('forward', '')} add rule inet mine c tcp dport 400-500 drop'", WEB,
        Stop("nftables", "inet mine c", True),
    ),
    "but for some": (
        f"nft '{MINE.format('forward', '')} add rule inet mine c ip daddr != {OUTSIDE} drop'", WEB,
        None,
    ),
    "names": (f"nft '{MINE.format('input', 'policy drop;')}'", NAMES, Stop("nftables",
    "inet mine c", True)),
    "answers": (f"nft '{MINE.format('output', '')} add rule inet mine c udp sport 53 drop'",
    ANSWERS, Stop("nftables", "inet mine c", True)),
    "as it leaves": (
        "nft 'add table netdev mine; add chain netdev mine c { type filter hook egress device "
        "up0 priority 0; }; add rule netdev mine c ip protocol icmp drop'",
        PING, Stop("nftables", "netdev mine c", True),
    ),
    "as it leaves elsewhere": (
        "nft 'add table netdev mine; add chain netdev mine c { type filter hook egress device "
        "vbr2 priority 0; policy drop; }'", PING, None,
    ),
}  # fmt: skip
UNDO = (
    "for i in iptables ip6tables; do $i -F; $i -X; done; nft delete table inet mine || true; "
    "nft delete table netdev mine || true"
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    yield from lab_of(False)


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("case", STOPPED)
def test_who_stops_a_packet_is_named(lab: Lab, case: str) -> None:
    script, packet, stop = STOPPED[case]
    lab.rule()
    try:
        lab.run("h", script)
        assert lab.on_host(foreign.read).find_stop(packet) == stop
    finally:
        lab.run("h", UNDO)


def test_rules_that_are_no_rules_are_borne() -> None:
    assert foreign.parse(b"").find_stop(PING) is None
    strange = (
        b'{"nftables": [{"chain": {"family": "ip", "table": "t", "name": "c", "type": '
        b'"filter", "hook": "forward", "policy": "accept"}},'
    )
    strange += (
        b'{"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [{"fib": {}}, '
        b'{"match": {"op": "in", "left": 7, "right": {"x": 1}}}, {"drop": null}]}}]}'
    )
    assert foreign.parse(strange).find_stop(PING) is None
