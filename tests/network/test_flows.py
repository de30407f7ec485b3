"""Tracked connections: those that the rules of now would not let begin end, and no other ones."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from netlab import HOST, HOST6, OUTSIDE, Lab, forward, lab_of, nets, ports, v4, v6
from virtuary.model.firewall import Match
from virtuary.network import conntrack, flows, ruleset
from virtuary.network.conntrack import SOURCE_TRANSLATED, TARGET_TRANSLATED, End, Flow, Glance
from virtuary.network.filtered import External, Forward
from virtuary.network.flows import World

DENY = (Match("in", "deny", "any", (), None),)
SILENT = (Match("out", "reject", "tcp", (), None),)
OWN = {ip_address(address) for address in (HOST, "127.0.0.1", "10.1.0.1", "10.2.0.1", "10.3.0.1")}
OUTER = "203.0.113.7"


def flow(
    source: str,
    target: str,
    port: int | None,
    *,
    by: str | None = None,
    by_port: int | None = None,
    seen: str | None = None,
    protocol: str = "tcp",
) -> Flow:
    """A connection from `source` to `target`. `by`: who is called in place of the target; `seen`:
    as whom the caller is.
    """
    original = End(ip_address(source), ip_address(target), port, 40000 if port else None)
    reply = End(
        ip_address(by or target),
        ip_address(seen or source),
        40000 if port else None,
        by_port or port,
    )
    return Flow(
        protocol,
        original,
        reply,
        (TARGET_TRANSLATED if by else 0) | (SOURCE_TRANSLATED if seen else 0),
    )


def world(
    *published: Forward,
    externals: tuple[External, ...] = (),
    left: tuple[str, ...] = (),
    without: str = "",
    net: dict[str, Any] | None = None,
    **rules: tuple[Match, ...],
) -> World:
    cards = [card for card in ports(**rules) if card.interface != f"tap{without}"]
    return World(
        tuple(nets(**(net or {}))), tuple(cards), published, externals, tuple(map(ip_address, left))
    )


A80 = forward("0.0.0.0", 8080, v4("a"))
B80 = forward("0.0.0.0", 8080, v4("b"))
TO_A = External(ip_address(OUTER), ip_address(v4("a")))
PUBLISHED = flow(OUTSIDE, HOST, 8080, by=v4("a"), by_port=80)

STAYS = {
    "what is published": (world(A80), PUBLISHED),
    "by an address of its own": (world(forward(HOST, 8080, v4("a")), B80), PUBLISHED),
    "between servers": (world(), flow(v4("a"), v4("b"), 80)),
    "what the host calls": (world(a=DENY), flow("10.1.0.1", v4("a"), 22)),
    "what a server calls outside": (world(a=DENY), flow(v4("a"), OUTSIDE, 80, seen=HOST)),
    "under an address outside": (world(externals=(TO_A,)), flow(v4("a"), OUTSIDE, 80, seen=OUTER)),
    "to an address outside": (world(externals=(TO_A,)), flow(OUTSIDE, OUTER, 80, by=v4("a"))),
    "a ping of that": (world(externals=(TO_A,)), flow(OUTSIDE, OUTER, None, by=v4("a"),
    protocol="icmp")),
    "an answer of the host": (world(), flow(v4("a"), "10.1.0.1", 53, protocol="udp")),
    "names where that port is published": (world(forward("0.0.0.0", 53, v4("b"), 53, "udp")),
    flow(v4("a"), "10.1.0.1", 53, protocol="udp")),
    "an open host": (world(net={"host_access": True}), flow(v4("a"), "10.1.0.1", 80)),
    "strangers": (world(), flow(OUTSIDE, HOST, 22)),
    "what others translate": (world(), flow(OUTSIDE, HOST, 80, by="172.17.0.2")),
    "a bridge's": (world(), flow(v4("f"), v4("g"), 80)),
    "another server's rule": (world(b=DENY), flow(v4("b"), v4("a"), 80)),
    "another protocol's rule": (world(a=SILENT), flow(v4("a"), OUTSIDE, 53, seen=HOST,
    protocol="udp")),
}  # fmt: skip
ENDS = {
    "what is published no more": (world(), PUBLISHED),
    "what is published by another one": (world(B80), PUBLISHED),
    "what leads to another port": (world(forward("0.0.0.0", 8080, v4("a"), 81)), PUBLISHED),
    "what the host calls by a port that is gone": (world(), flow(HOST, "127.0.0.1", 8080,
    by=v4("a"), by_port=80)),
    "what was the host's own and is published now": (world(A80), flow(OUTSIDE, HOST, 8080,
    protocol="tcp")),
    "what a rule denies now": (world(b=DENY), flow(v4("a"), v4("b"), 80)),
    "what the caller's rule denies now": (world(a=SILENT), flow(v4("a"), OUTSIDE, 80, seen=HOST)),
    "a ping to a server that is gone": (world(without="b"), flow(v4("a"), v4("b"), None,
    protocol="icmp")),
    "calls of a server that is gone": (world(without="a"), flow(v4("a"), OUTSIDE, 80, seen=HOST)),
    "what a published port's server denies now": (world(A80, a=DENY), PUBLISHED),
    "to an address outside that is another's": (world(externals=(TO_A,)), flow(OUTSIDE, OUTER, 80,
    by=v4("b"))),
    "to an address outside that is nobody's": (world(left=(OUTER,)), flow(OUTSIDE, OUTER, 80,
    by=v4("a"))),
    "under an address outside that is another's": (world(externals=(TO_A,)), flow(v4("b"), OUTSIDE,
    80, seen=OUTER)),
    "under an address outside that is nobody's": (world(left=(OUTER,)), flow(v4("a"), OUTSIDE, 80,
    seen=OUTER)),
    "an isolated server's way out": (world(), flow(v4("d"), OUTSIDE, 80, seen=HOST)),
    "a host that is closed now": (world(), flow(v4("a"), "10.1.0.1", 80)),
    "another network's default": (world(net={"default_in": "deny"}), flow(v4("a"), v4("b"), 80)),
    "of the other family": (world(b=DENY), flow(v6("a"), v6("b"), 80)),
}  # fmt: skip


@pytest.mark.parametrize("case", STAYS)
def test_what_would_begin_so_now_stays(case: str) -> None:
    rules, open_one = STAYS[case]
    assert not rules.is_over(open_one, OWN)


@pytest.mark.parametrize("case", ENDS)
def test_what_would_not_begin_now_ends(case: str) -> None:
    rules, open_one = ENDS[case]
    assert rules.is_over(open_one, OWN)


NARROWER = {
    "nothing": (world(A80), world(A80), False),
    "one more server": (world(without="b"), world(), False),
    "one more port": (world(), world(A80), False),
    "one server less": (world(), world(without="b"), True),
    "one port less": (world(A80), world(), True),
    "other rules": (world(a=DENY), world(a=SILENT), True),
    "another default": (world(), world(net={"default_out": "deny"}), True),
    "an address outside less": (world(externals=(TO_A,)), world(), True),
}


@pytest.mark.parametrize("case", NARROWER)
def test_connections_are_judged_where_something_went_or_changed(case: str) -> None:
    before, after, expected = NARROWER[case]
    assert after.narrows(before) == expected
    assert after.after(before).left == (
        (ip_address(OUTER),) if case == "an address outside less" else ()
    )


# ---- in a kernel


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    yield from lab_of(False)


def use(lab: Lab, rules: World) -> int:
    """Load these rules as the daemon does; how many connections ended."""
    lab.on_host(
        ruleset.apply, ruleset.render(rules.nets, rules.ports, rules.forwards, rules.externals)
    )
    return int(lab.on_host(flows.end_those_over, rules))


def goes_on(client: socket.socket, server: socket.socket) -> bool:
    try:
        client.sendall(b"2")
        return server.recv(9) == b"2"
    except OSError:
        return False


IN_A_KERNEL = {
    "a port that is moved": (world(A80), world(B80), ("o", HOST, 8080, "a")),
    "a port that is taken back": (world(A80), world(), ("b", HOST, 8080, "a")),
    "a group": (world(), world(b=DENY), ("a", v4("b"), 80, "b")),
    "a group, by IPv6": (world(), world(b=DENY), ("a", v6("b"), 80, "b")),
    "a server's calls outside": (world(), world(a=SILENT), ("a", OUTSIDE, 80, "o")),
    "a server that goes": (world(), world(without="b"), ("a", v4("b"), 80, "b")),
}


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.parametrize("case", IN_A_KERNEL)
def test_a_connection_ends_with_what_allowed_it_and_another_one_goes_on(
    lab: Lab, case: str
) -> None:
    before, after, call = IN_A_KERNEL[case]
    use(lab, replace(before, forwards=(*before.forwards, forward("0.0.0.0", 9090, v4("a"), 81))))
    with (
        lab.connect(*call) as (_, client, server),
        lab.connect("o", HOST, 9090, "a", 81) as (_, other, its),
    ):
        assert goes_on(client, server) and goes_on(other, its)
        assert (
            use(
                lab,
                replace(after, forwards=(*after.forwards, forward("0.0.0.0", 9090, v4("a"), 81))),
            )
            >= 1
        )
        assert not goes_on(client, server)
        assert goes_on(other, its)


@pytest.mark.host
@pytest.mark.slow
def test_a_glance_sees_what_a_whole_look_sees(lab: Lab) -> None:
    use(lab, world(A80, forward("::", 8080, v6("a"))))
    seen, found = list[Glance](), list[Flow]()
    with (
        lab.connect("o", HOST, 8080, "a"),
        lab.connect("o", HOST6, 8080, "a"),
        lab.connect("a", OUTSIDE, 80, "o"),
        lab.inside("h"),
        conntrack.open_socket() as sock,
    ):
        conntrack.find(
            sock, lambda one: seen.append(one) or True, lambda one: found.append(one) or False
        )  # type: ignore[func-returns-value]
    assert len(found) >= 3 and [
        Glance(
            one.original.source.packed,
            one.original.target.packed,
            one.reply.source.packed,
            one.reply.target.packed,
            one.original.port or 0,
        )
        for one in found
        if one.protocol == "tcp"
    ] == [one for one, whole in zip(seen, found, strict=True) if whole.protocol == "tcp"]


@pytest.mark.parametrize("case", ENDS)
def test_whatever_ends_is_worth_a_look(case: str) -> None:
    rules, one = ENDS[case]
    ends = one.original.source, one.original.target, one.reply.source, one.reply.target
    assert rules.concerned(OWN)(
        Glance(*(address.packed for address in ends), one.original.port or 0)
    )
    assert not rules.concerned(OWN)(
        Glance(*(ip_address(text).packed for text in (OUTSIDE, HOST, HOST, OUTSIDE)), 22)
    ), "and nothing else"


@pytest.mark.host
@pytest.mark.slow
def test_datagrams_to_a_port_that_was_moved_go_where_it_leads_now(lab: Lab) -> None:
    """A caller that never pauses would be led to the server before for ever."""
    use(lab, world(forward("0.0.0.0", 5353, v4("a"), 5353, "udp")))
    inside = {name: lab.socket(name, socket.AF_INET, socket.SOCK_DGRAM) for name in "ab"}
    for one in inside.values():
        one.bind(("", 5353))
        one.settimeout(0.5)
    client = lab.socket("o", socket.AF_INET, socket.SOCK_DGRAM)
    client.sendto(b"1", (HOST, 5353))
    assert inside["a"].recv(9) == b"1"
    assert use(lab, world(forward("0.0.0.0", 5353, v4("b"), 5353, "udp"))) == 1
    client.sendto(b"2", (HOST, 5353))
    assert inside["b"].recv(9) == b"2"
