"""The packet filter: the script as it was reviewed, and what it does to real packets between
namespaces.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netlab import (
    HOST,
    HOST6,
    OUTSIDE,
    OUTSIDE6,
    Lab,
    forward,
    knows_bridge_filtering,
    lab_of,
    mac,
    nets,
    port,
    ports,
    v4,
    v6,
)
from virtuary.base.errors import Failed, Invalid
from virtuary.model.firewall import Card, Group, Match, Rule, decide, resolve_all
from virtuary.network import ruleset
from virtuary.network.filtered import External, Forward, Net
from virtuary.network.guard import CHECKS
from virtuary.network.ruleset import Port, fingerprint, render

WEB = Match("in", "allow", "tcp", ((80, 80), (8000, 8100), (8101, 8101)), None)
FROM_TWO = Match("in", "reject", "any", (), (ip_network("10.2.0.0/24"), ip_network("fd02::/64")))
NO_MAIL = Match("out", "deny", "tcp", ((25, 25),), (ip_network("0.0.0.0/0"),))
PING = Match(
    "in",
    "allow",
    "icmp",
    (),
    (ip_network("192.0.2.0/25"), ip_network("192.0.2.128/25"), ip_network("192.0.2.9/32")),
)
NOBODY = Match("in", "allow", "udp", (), ())
PUBLISHED = (
    forward("0.0.0.0", 8080, v4("a")), forward("::", 8080, v6("a")), forward(HOST, 8081, v4("b")),
    forward("127.0.0.1", 8082, v4("a")),
    forward("0.0.0.0", 8083, v4("d")), forward("::", 8083, v6("d")),
    forward("0.0.0.0", 5353, v4("a"), 53, "udp"), forward("0.0.0.0", 53, v4("a"), 80),
)  # fmt: skip
EXTERNAL, EXTERNAL6 = "198.51.100.7", "2001:db8:7::7"
LEADING = (
    External(ip_address(EXTERNAL), ip_address(v4("b"))), External(ip_address(EXTERNAL6),
    ip_address(v6("b"))),
    External(ip_address("198.51.100.8"), ip_address(v4("b"))),
)  # fmt: skip


# ---- the script


def test_the_script_is_the_one_that_was_reviewed(golden: Callable[[str, str], None]) -> None:
    cards = [
        port("a", WEB, FROM_TWO, NO_MAIL, PING, NOBODY),
        port("b"),
        port("c", free=True),
        port("d"),
        port("f", WEB),
    ]
    golden("ruleset.nft", render(nets(default_in="deny"), cards, PUBLISHED, LEADING))


def test_a_host_without_networks_has_a_script_as_well(golden: Callable[[str, str], None]) -> None:
    golden("ruleset-empty.nft", render((), ()))


@given(st.randoms(use_true_random=False))
@pytest.mark.slow
def test_the_order_of_things_makes_no_difference(chance: random.Random) -> None:
    lists = [nets(), ports(a=(WEB, PING), b=(NO_MAIL,)), list(PUBLISHED)]
    wanted = render(*lists)
    for one in lists:
        chance.shuffle(one)
    assert render(*lists) == wanted


def test_each_ruleset_has_its_own_fingerprint() -> None:
    scripts = [
        render(nets(), ports()),
        render(nets(), ports(a=(WEB,))),
        render(nets(), ports(), PUBLISHED),
        render(nets(host_access=True), ports()),
    ]
    assert len({fingerprint(script) for script in scripts}) == len(scripts)
    with pytest.raises(Invalid, match="no script of ours"):
        fingerprint("table inet virtuary { }")


def test_cards_with_the_same_rules_share_their_chains() -> None:
    alike, different = (
        render(nets(), ports(a=(WEB,), b=(WEB,))),
        render(nets(), ports(a=(WEB,), b=(PING,))),
    )
    assert alike.count("chain rules_") == 3 and different.count("chain rules_") == 4


@pytest.mark.parametrize("name", ["", "a b", "eth0;", 'e"0', "x" * 16, "-i", "br0\n", "{", "é"])
def test_a_name_that_is_no_interfaces_never_gets_into_a_script(name: str) -> None:
    with pytest.raises(Invalid):
        Net(name, "nat")
    with pytest.raises(Invalid):
        Port(name, "vbr1", "52:54:00:00:00:01")


@given(st.text(max_size=20).filter(lambda text: text not in CHECKS))
def test_any_text_as_a_mac_or_check_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        Port("tap0", "vbr1", text)
    with pytest.raises(Invalid):
        Port("tap0", "vbr1", "52:54:00:00:00:01", unguarded=frozenset({text}))


REFUSED: dict[str, Callable[[], Any]] = {
    "a group's MAC": lambda: Port("tap0", "vbr1", "53:54:00:00:00:01"),
    "an address with a scope": lambda: Port("tap0", "vbr1", "52:54:00:00:00:01",
    (ip_address("fe80::1%;drop"),)),
    "a rule with a scope": lambda: Port("tap0", "vbr1", "52:54:00:00:00:01",
    rules=(WEB._replace(peers=(ip_network("fe80::1%x"),)),)),
    "the same tap twice": lambda: render(nets(), [port("a"), port("a")]),
    "an unknown bridge": lambda: render((), [port("a")]),
    "the same bridge twice": lambda: render([*nets(), *nets()], ()),
    "an address of elsewhere": lambda: render(nets(), [Port("tap0", "vbr1", "52:54:00:00:00:01",
    (ip_address("10.9.0.1"),))]),
    "an address twice": lambda: render(nets(), [port("a"), Port("tap0", "vbr1", "52:54:00:00:00:01",
    (ip_address(v4("a")),))]),
    "a port published twice": lambda: render(nets(), ports(), [forward(HOST, 1, v4("a")),
    forward(HOST, 1, v4("b"))]),
    "a port of nobody": lambda: render(nets(), ports(), [forward(HOST, 1, "10.1.0.99")]),
    "families that differ": lambda: forward(HOST, 80, v6("a")),
    "the IPv6 loopback": lambda: forward("::1", 80, v6("a")),
    "an address of nobody": lambda: render(nets(), ports(), (), [External(ip_address(EXTERNAL),
    ip_address("10.1.0.99"))]),
    "an address led twice": lambda: render(nets(), ports(), (), [External(ip_address(EXTERNAL),
    ip_address(v4(x))) for x in "ab"]),
    "an address of another family": lambda: External(ip_address(EXTERNAL), ip_address(v6("b"))),
    "port 0": lambda: forward(HOST, 0, v4("a")),
    "another protocol": lambda: forward(HOST, 80, v4("a"), protocol="tcp; drop"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_before_anything_is_applied(case: str) -> None:
    with pytest.raises(Invalid):
        REFUSED[case]()


def test_the_link_local_address_is_the_one_of_the_mac() -> None:
    assert port("a").link_local == ip_address("fe80::5054:ff:fe00:102")


# ---- real packets


@pytest.fixture(scope="module", params=[False, True], ids=["routed", "bridge-filtering"])
def made(request: pytest.FixtureRequest) -> Iterator[Lab]:
    if request.param and not knows_bridge_filtering():
        pytest.skip("this kernel does not filter bridged packets")
    yield from lab_of(request.param)


@pytest.fixture
def lab(made: Lab) -> Iterator[Lab]:
    made.run(
        "o", f"ip route replace {EXTERNAL} via {HOST}", f"ip route replace {EXTERNAL6} via {HOST6}"
    )
    use(made, published=PUBLISHED)
    yield made
    made.on_host(ruleset.remove)


def use(
    lab: Lab,
    *,
    published: tuple[Forward, ...] = (),
    net: dict[str, Any] | None = None,
    **rules: tuple[Match, ...],
) -> str:
    script = render(nets(**(net or {})), ports(**rules), published, LEADING)
    lab.on_host(ruleset.apply, script)
    return fingerprint(script)


CALLS = {
    "out into the world": ("a", OUTSIDE, 80, "o", HOST),
    "out into the world (6)": ("a", OUTSIDE6, 80, "o", HOST6),
    "its own network": ("a", v4("b"), 80, "b", v4("a")),
    "its own network (6)": ("a", v6("b"), 80, "b", v6("a")),
    "another network": ("a", v4("c"), 80, "c", "refused"),
    "another network (6)": ("a", v6("c"), 80, "c", "refused"),
    "an isolated network": ("a", v4("d"), 80, "d", "refused"),
    "within an isolated network": ("d", v4("e"), 80, "e", v4("d")),
    "within an isolated network (6)": ("d", v6("e"), 80, "e", v6("d")),
    "out of an isolated network": ("d", OUTSIDE, 80, "o", "refused"),
    "out of an isolated network (6)": ("d", OUTSIDE6, 80, "o", "refused"),
    "a server from outside": ("o", v4("a"), 80, "a", "silence"),
    "a server from outside (6)": ("o", v6("a"), 80, "a", "silence"),
    "an isolated server from outside": ("o", v4("d"), 80, "d", "silence"),
    "a server from the host": ("h", v4("a"), 80, "a", "10.1.0.1"),
    "a published port from outside": ("o", HOST, 8080, "a", OUTSIDE),
    "a published port from outside (6)": ("o", HOST6, 8080, "a", OUTSIDE6),
    "one published on an address": ("o", HOST, 8081, "b", OUTSIDE),
    "one published on loopback, from outside": ("o", HOST, 8082, "a", "refused"),
    "a published port from the host": ("h", HOST, 8080, "a", HOST),
    "a published port from the host (6)": ("h", HOST6, 8080, "a", HOST6),
    "a published port from loopback": ("h", "127.0.0.1", 8080, "a", "10.1.0.1"),
    "one published on loopback, from there": ("h", "127.0.0.1", 8082, "a", "10.1.0.1"),
    "the IPv6 loopback": ("h", "::1", 8080, "a", "refused"),
    "a neighbour's published port": ("b", HOST, 8080, "a", "10.1.0.1"),
    "a neighbour's published port (6)": ("b", HOST6, 8080, "a", "fd01::1"),
    "its own published port": ("a", HOST, 8080, "a", "10.1.0.1"),
    "its own published port (6)": ("a", HOST6, 8080, "a", "fd01::1"),
    "another network's published port": ("c", HOST, 8080, "a", v4("c")),
    "one published on loopback, from a server": ("a", "10.1.0.1", 8082, "a", "refused"),
    "an address that leads to it": ("o", EXTERNAL, 80, "b", OUTSIDE),
    "an address that leads to it (6)": ("o", EXTERNAL6, 80, "b", OUTSIDE6),
    "one that leads to it, a port that is published elsewhere": ("o", EXTERNAL, 8080, "a",
    "refused"),
    "out, as the address that leads to it": ("b", OUTSIDE, 80, "o", EXTERNAL),
    "out, as the address that leads to it (6)": ("b", OUTSIDE6, 80, "o", EXTERNAL6),
    "an address that leads to a neighbour": ("a", EXTERNAL, 80, "b", "10.1.0.1"),
    "an address that leads to itself (6)": ("b", EXTERNAL6, 80, "b", "fd01::1"),
    "another network's address": ("c", EXTERNAL, 80, "b", v4("c")),
    "an isolated server's published port": ("o", HOST, 8083, "d", "10.3.0.1"),
    "an isolated server's published port (6)": ("o", HOST6, 8083, "d", "fd03::1"),
    "an isolated server's published port, from another network": ("a", HOST, 8083, "d", "10.3.0.1"),
    "an isolated server's published port, from the host": ("h", "127.0.0.1", 8083, "d", "10.3.0.1"),
    "along its bridge to outside": ("f", v4("g"), 80, "g", v4("f")),
}  # fmt: skip


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("case", CALLS)
def test_who_reaches_whom_and_as_whom(lab: Lab, case: str) -> None:
    caller, address, number, answers, wanted = CALLS[case]
    assert lab.call(caller, address, number, answers) == wanted


@pytest.mark.host
@pytest.mark.slow
def test_an_isolated_server_does_not_reach_what_others_publish(lab: Lab) -> None:
    assert lab.call("d", HOST, 8080, "a") in ("refused", "silence")


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("address", ["10.1.0.1", HOST, "fd01::1"])
def test_the_host_is_closed_to_servers_except_for_dns_unless_the_network_opens_it(
    lab: Lab, address: str
) -> None:
    assert lab.call("a", address, 22, "h", 22) == "refused"
    if address != HOST:  # there port 53 is published
        assert lab.call("a", address, 53, "h", 53) in (v4("a"), v6("a"))
    use(lab, net={"host_access": True})
    assert lab.call("a", address, 22, "h", 22) in (v4("a"), v6("a"))
    use(lab, net={"host_access": True}, a=(Match("out", "reject", "tcp", ((22, 22),), None),))
    assert lab.call("a", address, 22, "h", 22) == "refused"


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("address", ["10.2.0.1", HOST, "fd02::1", HOST6])
def test_a_resolver_of_the_hosts_on_another_address_is_out_of_reach(lab: Lab, address: str) -> None:
    use(lab)
    assert lab.call("a", address, 53, "h", 53) == "refused"
    use(lab, net={"host_access": True})
    assert lab.call("a", address, 53, "h", 53) in (v4("a"), v6("a"))


@pytest.mark.host
@pytest.mark.slow
def test_the_dns_of_a_network_stays_the_hosts_though_its_port_is_published(lab: Lab) -> None:
    assert lab.call("b", "10.1.0.1", 53, "h", 53) == v4("b")
    assert lab.call("o", HOST, 53, "a") == OUTSIDE


@pytest.mark.host
@pytest.mark.slow
def test_a_server_does_not_reach_the_loopback_of_the_host(lab: Lab) -> None:
    lab.run(
        "a",
        "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet",
        "ip route replace 127.0.0.9 via 10.1.0.1",
    )
    use(lab, net={"host_access": True})
    seen = lab.socket("h", socket.AF_INET, socket.SOCK_DGRAM)
    seen.settimeout(0.2)
    seen.bind(("", 999))
    sender = lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM)
    sender.bind((v4("a"), 0))
    sender.sendto(b"to the address", ("10.1.0.1", 999))
    assert seen.recv(99) == b"to the address"
    sender.sendto(b"to loopback", ("127.0.0.9", 999))
    with pytest.raises(TimeoutError):
        seen.recv(99)


@pytest.mark.host
@pytest.mark.slow
def test_udp_is_published_and_answered(lab: Lab) -> None:
    server = lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM)
    server.settimeout(1)
    server.bind(("", 53))
    for caller, address in (("o", HOST), ("h", "127.0.0.1"), ("b", HOST)):
        client = lab.socket(caller, socket.AF_INET, socket.SOCK_DGRAM)
        client.settimeout(1)
        client.sendto(b"who?", (address, 5353))
        found, peer = server.recvfrom(99)
        server.sendto(found[::-1], peer)
        assert client.recvfrom(99) == (b"?ohw", (address, 5353))
    server.close()


@pytest.mark.host
@pytest.mark.slow
def test_what_is_open_stays_open_when_rules_change_and_new_calls_are_judged(lab: Lab) -> None:
    shut = (Match("in", "reject", "any", (), None), Match("out", "reject", "any", (), None))
    calls = [
        ("a", v4("b"), 80, "b"),
        ("o", HOST, 8080, "a"),
        ("a", OUTSIDE, 80, "o"),
        ("b", HOST, 8080, "a"),
    ]
    for call in calls:
        use(lab, published=PUBLISHED)
        with lab.connect(*call) as (_, client, server):
            client.sendall(b"1")
            assert server.recv(9) == b"1"
            use(lab, a=shut, b=shut)  # and nothing is published any more
            client.sendall(b"2")
            assert server.recv(9) == b"2", "what was open is open"
            server.sendall(b"3")
            assert client.recv(9) == b"3"
            assert lab.call(*call) in ("refused", "silence")


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        ("a", OUTSIDE, 80, "o"),
        ("a", OUTSIDE6, 80, "o"),
        ("o", HOST, 8080, "a"),
        ("o", HOST6, 8080, "a"),
    ],
)
def test_who_calls_by_a_narrow_way_is_told_to_send_less(
    lab: Lab, call: tuple[str, str, int, str]
) -> None:
    """Else a download over an uplink of 1400 bytes would hang where nobody is told of it."""
    headers = 60 if ":" in call[1] else 40
    lab.run("h", "ip link set up0 mtu 1400")
    try:
        with lab.connect(*call) as (_, client, server):
            assert {
                sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) for sock in (client, server)
            } <= {
                1400 - headers,
                1400 - headers - 12,
            }
    finally:
        lab.run("h", "ip link set up0 mtu 1500")
    with lab.connect(*call) as (_, client, server):
        assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) > 1400


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("known", ["ab", "a", "b"])
def test_no_frame_passes_from_tap_to_tap_of_a_routed_network(lab: Lab, known: str) -> None:
    """Whether or not the ports are isolated ones, and also while one of the two is not in the
    ruleset.
    """
    lab.on_host(ruleset.apply, render(nets(), [port(server) for server in known]))
    sender, watcher = (
        lab.socket(server, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) for server in "ab"
    )
    for server, one in (("a", sender), ("b", watcher)):
        with lab.inside(server):
            one.bind(("eth0", 3))
    watcher.settimeout(0.2)
    head = (
        bytes.fromhex(mac("a").replace(":", ""))
        + b"\x08\x00\x45\x00\x00\x20"
        + bytes(4)
        + b"\x40\x11"
        + bytes(2)
    )
    for target in (bytes.fromhex(mac("b").replace(":", "")), b"\xff" * 6):
        for _ in range(100):
            sender.send(
                target
                + head
                + ip_address(v4("a")).packed
                + ip_address(v4("b")).packed
                + b"from tap to tap"
            )
    seen = []
    with contextlib.suppress(TimeoutError):
        while True:
            seen.append(watcher.recv(4096))
    assert not [frame for frame in seen if b"from tap to tap" in frame]
    sender.close()
    watcher.close()


@pytest.mark.host
@pytest.mark.slow
def test_a_server_that_may_lead_on_to_other_addresses_does_and_its_neighbour_may_not(
    lab: Lab,
) -> None:
    """As a router or the end of a tunnel: its address checks are off, and the host knows the
    way.
    """
    try:
        lab.run("a", "ip addr add 10.77.0.1/32 dev lo")
        lab.run("h", "ip route add 10.77.0.0/24 via 10.1.0.2")
        assert lab.call("b", "10.77.0.1", 80, "a") in ("refused", "silence"), (
            "nobody knows that address"
        )
        for default, wanted in (("allow", v4("b")), ("reject", "refused")):
            script = render(nets(default_in=default), [port("a", free=True), port("b")])
            lab.on_host(ruleset.apply, script)
            assert lab.call("b", "10.77.0.1", 80, "a") == wanted
    finally:
        lab.run("h", "ip route del 10.77.0.0/24")
        lab.run("a", "ip addr del 10.77.0.1/32 dev lo")


@pytest.mark.host
@pytest.mark.slow
def test_a_denied_caller_waits_and_a_rejected_one_is_told(lab: Lab) -> None:
    for action, wanted in (("deny", "silence"), ("reject", "refused"), ("allow", v4("a"))):
        for default in (False, True):
            rules = {} if default else {"b": (Match("in", action, "tcp", ((80, 80),), None),)}  # type: ignore[arg-type]
            use(lab, net={"default_in": action} if default else {}, **rules)
            assert lab.call("a", v4("b"), 80, "b") == wanted
    use(lab, net={"default_out": "reject"})
    assert lab.call("a", OUTSIDE, 80, "o") == "refused"


@pytest.mark.host
@pytest.mark.slow
def test_a_group_without_members_is_nobody_not_anybody(lab: Lab) -> None:
    use(lab, net={"default_in": "reject"}, b=(Match("in", "allow", "any", (), ()),))
    assert lab.call("a", v4("b"), 80, "b") == "refused"


@pytest.mark.host
@pytest.mark.slow
def test_the_kernel_does_what_decide_says(lab: Lab) -> None:
    chance = random.Random(7)
    peers = ("10.1.0.0/24", "fd00::/8", "group:web", "server:a", "192.0.2.2", "10.1.0.3", "fd01::3")
    members = {
        "group:web": (ip_network(v4("a")), ip_network(v6("b"))),
        "server:a": (ip_network(v4("a")), ip_network(v6("a"))),
    }
    calls = [("a", v4, "b"), ("a", v6, "b"), ("b", v4, "a"), ("b", v6, "a")]
    for _ in range(12):
        groups = tuple(
            Group(f"g{n}", tuple(
                Rule(direction=chance.choice(["in", "out"]), action=chance.choice(["allow",
                "reject"]), protocol=chance.choice(["tcp", "any", "icmp"]),
                     peers=chance.sample(peers, chance.randint(0,
                     2))) for _ in range(chance.randint(1, 3))))
            for n in range(2)
        )  # fmt: skip
        cards = {
            name: Card(name, "one", attached, chance.choice(["allow", "reject"]), "allow")
            for name, attached in (("a", groups[:1]), ("b", groups[::-1]))
        }
        kept = [
            Port(**{**vars(port(name)), "rules": resolve_all(card, members)})
            for name, card in cards.items()
        ]
        default_in = cards["a"].default_in
        cards["b"] = cards["b"]._replace(default_in=default_in)
        lab.on_host(ruleset.apply, render(nets(default_in=default_in), kept))
        for caller, address, called in calls:
            verdict = decide(
                ip_address(address(caller)), ip_address(address(called)), "tcp", 80,
                source_card=cards[caller], destination_card=cards[called], members=members,
            )  # fmt: skip
            found = lab.call(caller, address(called), 80, called)
            assert (found == address(caller)) == (verdict.action == "allow"), (
                verdict.sentence,
                found,
            )


@pytest.mark.host
@pytest.mark.slow
def test_a_flushed_emptied_or_other_ruleset_is_noticed(lab: Lab) -> None:
    mark = use(lab, published=PUBLISHED)
    assert lab.on_host(ruleset.is_applied, mark)
    for harm in (
        "nft flush ruleset",
        "nft delete table bridge virtuary",
        "nft flush table inet virtuary",
        "nft flush table bridge virtuary",
    ):
        lab.run("h", harm)
        assert not lab.on_host(ruleset.is_applied, mark), harm
        assert use(lab, published=PUBLISHED) == mark
        assert lab.on_host(ruleset.is_applied, mark)
    other = use(lab)
    assert lab.on_host(ruleset.is_applied, other) and not lab.on_host(ruleset.is_applied, mark)
    lab.on_host(ruleset.remove)
    lab.on_host(ruleset.remove)
    assert not lab.on_host(ruleset.is_applied, other)


@pytest.mark.host
@pytest.mark.slow
def test_tables_of_others_are_left_alone_and_a_bad_script_changes_nothing(lab: Lab) -> None:
    mark = use(lab)
    lab.run("h", "nft add table inet theirs", "nft add chain inet theirs keep")
    with pytest.raises(Failed, match=r"nft failed: .*[a-z]"):
        lab.on_host(
            ruleset.apply, render(nets(), ports()) + "table inet virtuary {\n    nonsense\n}\n"
        )
    assert lab.on_host(ruleset.is_applied, mark)
    lab.on_host(ruleset.remove)
    tables = [
        item["table"]["name"]
        for item in json.loads(lab.run("h", "nft -j list tables"))["nftables"]
        if "table" in item
    ]
    assert tables == ["theirs"]
    lab.run("h", "nft delete table inet theirs")


@pytest.mark.host
@pytest.mark.slow
def test_two_hundred_cards_with_rules_of_their_own_are_applied_at_once() -> None:
    name = f"vt-many-{os.getpid()}"
    cards = []
    for i in range(200):
        rules = (
            Match("in", "allow", "tcp", ((22, 22),), (ip_network(f"192.168.{i}.0/24"),)),
            Match("in", "allow", "tcp", ((80, 80), (8000 + i, 8100 + i)), None),
            Match("in", "allow", "any", (), tuple(ip_network(f"10.1.{j}.{i}") for j in range(8))),
            Match("out", "deny", "tcp", ((25, 25 + i),), None),
        )
        addresses = (ip_address(f"10.1.1.{i}"), ip_address(f"fd01::1:{i:x}"))
        cards.append(Port(f"vt{i}", "vbr1", f"52:54:00:00:00:{i:02x}", addresses, rules=rules))
    net = Net("vbr1", "nat", (ip_network("10.1.0.0/16"), ip_network("fd01::/64")))
    script = render(
        [net],
        cards,
        [forward("0.0.0.0", 10000 + i, str(card.addresses[0])) for i, card in enumerate(cards)],
    )
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=10)
    try:
        took = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run(
                ["ip", "netns", "exec", name, "nft", "-f", "-"],
                input=script.encode(),
                check=True,
                timeout=30,
            )
            took.append(time.perf_counter() - began)
        assert min(took) < 0.3, took
    finally:
        subprocess.run(["ip", "netns", "del", name], timeout=10)
