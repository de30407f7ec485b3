"""Firewall groups with real guests: what a rule closes is closed, at once, and with it what was
open.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from collections.abc import Iterator

import pytest
from instances import Instance, until
from lans import HOST4, OUTSIDE4, OUTSIDE6, Place, foretold, ipv4

pytestmark = [pytest.mark.live, pytest.mark.host]


def hears(instance: Instance, caller: str, address: str, port: int = 7) -> bool:
    """Whether a server is answered by another one's port."""
    return bool(
        instance.in_guest(caller, f"timeout 10 nc -w 2 {address} {port} </dev/null || true").strip()
    )


@pytest.fixture
def web(lan: Instance, one: str, two: str) -> Iterator[str]:
    """A group without rules that `one` and `two` are attached to."""
    lan.ok("firewall", "create", "web")
    for name in (one, two):
        lan.ok("set", name, "--network", "default,firewall=web")
    yield "web"
    for name in (one, two):
        lan.ok("set", name, "--network", "default")
    lan.ok("firewall", "delete", "web")


def test_a_group_closes_a_port_and_opens_it_to_one_server(
    lan: Instance, place: Place, one: str, two: str
) -> None:
    target = ipv4(lan, two)
    lan.ok("firewall", "create", "shut", "--rule", "in reject tcp 7")
    try:
        assert hears(lan, one, target) and foretold(lan, one, two)["allowed"]
        lan.ok("set", two, "--network", "default,firewall=shut")
        until(lambda: not hears(lan, one, target), 5, "the port is closed")
        said = foretold(lan, one, two)
        assert (said["action"], said["server"], said["group"], said["number"]) == (
            "reject",
            two,
            "shut",
            1,
        )
        assert hears(lan, two, ipv4(lan, one)), "only the one that is attached is closed"
        assert place.ask(place.host, target, 7) == "two", "the host reaches its servers always"
        lan.ok(
            "firewall",
            "set",
            "shut",
            "--rule",
            "in allow tcp 7 from server:one",
            "--rule",
            "in reject any",
        )
        until(lambda: hears(lan, one, target), 5, "it is open to one server")
        assert (
            lan.json("firewall", "test", one, two, "tcp/7") == foretold(lan, one, two)
            and foretold(lan, one, two)["number"] == 1
        )
        assert "2 packets received" not in lan.in_guest(one, f"ping -c2 -W1 {target} || true"), (
            "pings are closed"
        )
        assert foretold(lan, one, two, "icmp")["action"] == "reject"
        said = lan.run("firewall", "delete", "shut")
        assert said.status == 4 and "attached to two" in said.err
        assert lan.vm(two)["meta"]["generation"] == lan.vm(two)["status"]["power"]["applied"], (
            "nothing waits for a start"
        )
    finally:
        lan.ok("set", two, "--network", "default")
        lan.ok("firewall", "delete", "shut")
    until(lambda: hears(lan, one, target), 5, "without a group the port is open")


def test_an_open_connection_goes_on_as_long_as_the_rules_allow_it(
    lan: Instance, web: str, one: str, two: str
) -> None:
    target = ipv4(lan, two)
    lan.in_guest(two, "setsid nc -l -p 99 -e cat >/dev/null 2>&1 </dev/null &")
    lan.in_guest(
        one,
        "rm -f /tmp/in /tmp/out; mkfifo /tmp/in; setsid sh -c 'sleep 60 >/tmp/in' >/dev/null "
        "2>&1 </dev/null &",
    )
    lan.in_guest(
        one, f"setsid sh -c 'nc {target} 99 </tmp/in >/tmp/out' >/dev/null 2>&1 </dev/null &"
    )
    until(
        lambda: "first" in lan.in_guest(one, "echo first >/tmp/in; sleep 0.2; cat /tmp/out"),
        10,
        "the connection is open",
    )
    lan.ok("firewall", "set", web, "--rule", "in allow tcp 99", "--rule", "in deny any")
    until(lambda: not hears(lan, one, target), 5, "no other connection is let through")
    until(
        lambda: "second" in lan.in_guest(one, "echo second >/tmp/in; sleep 0.2; cat /tmp/out"),
        5,
        "the open one goes on",
    )
    lan.ok("firewall", "set", web, "--rule", "in deny any")
    until(lambda: "connections ended that the rules allow no more" in lan.words(), 5, "it ended")
    assert "third" not in lan.in_guest(one, "echo third >/tmp/in; sleep 1; cat /tmp/out")


def test_members_of_a_group_are_let_in_as_they_are_attached(
    lan: Instance, web: str, one: str, two: str
) -> None:
    target = ipv4(lan, two)
    lan.ok(
        "firewall", "set", web, "--rule", "in allow tcp 7 from group:web", "--rule", "in deny any"
    )
    assert until(lambda: hears(lan, one, target), 5, "a member is let in")
    lan.ok("set", one, "--network", "default")
    until(lambda: not hears(lan, one, target), 5, "who is no member any more is not")
    assert foretold(lan, one, two)["number"] == 2
    lan.ok("set", one, "--network", "default,firewall=web")
    until(lambda: hears(lan, one, target), 5, "a member again")


def test_what_goes_out_is_judged_too(lan: Instance, web: str, one: str, two: str) -> None:
    lan.ok("firewall", "set", web, "--rule", f"out reject icmp to {OUTSIDE4},{OUTSIDE6}")
    until(
        lambda: "1 packets received" not in lan.in_guest(one, f"ping -c1 -W1 {OUTSIDE4} || true"),
        5,
        "no ping leaves",
    )
    assert foretold(lan, one, OUTSIDE4, "icmp")["direction"] == "out"
    assert (
        "1 packets received" in lan.in_guest(one, f"ping -c1 -W3 {ipv4(lan, two)}")
        and foretold(lan, one, two, "icmp")["allowed"]
    )


def test_a_network_denies_what_no_rule_allows(
    lan: Instance, place: Place, web: str, one: str, two: str
) -> None:
    lan.ok("firewall", "set", web, "--rule", "in allow icmp")
    lan.ok("network", "set", "default", "--default-in", "deny")
    try:
        until(lambda: not hears(lan, one, ipv4(lan, two)), 5, "nothing is let in")
        said = foretold(lan, one, two)
        assert (
            said["action"] == "deny"
            and said["group"] == ""
            and "inbound default of network default" in said["sentence"]
        )
        assert "1 packets received" in lan.in_guest(one, f"ping -c1 -W3 {ipv4(lan, two)}")
        assert place.ask(place.outside, HOST4, 8007) == "", "a published port is judged too"
        assert foretold(lan, OUTSIDE4, HOST4, "tcp/8007")["action"] == "deny"
        lan.ok("firewall", "set", web, "--rule", "in allow tcp 7")
        assert (
            until(
                lambda: place.ask(place.outside, HOST4, 8007),
                5,
                "it is opened by the server's own port",
            )
            == "one"
        )
        assert foretold(lan, OUTSIDE4, HOST4, "tcp/8007")["group"] == web
    finally:
        lan.ok("network", "set", "default", "--default-in", "allow")


def test_a_rule_means_its_server_by_any_name_and_no_other_one_by_that_name(
    lan: Instance, two: str
) -> None:
    """Renamed, deleted, taken back, under rules written before rules held ids, purged."""
    target = ipv4(lan, two)
    rules = ("--rule", "in allow tcp 7 from server:guest", "--rule", "in deny any")
    lan.ok("launch", "tiny", "guest")
    lan.ok("firewall", "create", "one-guest", *rules)
    try:
        lan.ok("set", two, "--network", "default,firewall=one-guest")
        until(lambda: hears(lan, "guest", target), 5, "it is let in")
        assert "one-guest follows: in allow tcp 7 from server:visitor" in (
            lan.ok("rename", "guest", "visitor").out
        )
        assert hears(lan, "visitor", target)
        assert "names nobody in its place until" in lan.ok("delete", "visitor", "--force").out
        assert "from server visitor, in the trash" in lan.ok("firewall", "show", "one-guest").out
        assert "means it again" in lan.ok("undelete", "visitor").out
        lan.stop()
        _write_names(lan, "visitor")
        lan.start()
        lan.ok("start", "visitor")
        until(lambda: hears(lan, "visitor", target), 10, "it is let in by a rule of before")
        said = lan.ok("delete", "visitor", "--now", "--force", "--yes").out
        assert "rule 1 of firewall group one-guest names nobody" in said
        lan.ok("launch", "tiny", "visitor")
        assert "from server visitor, purged" in lan.ok("firewall", "show", "one-guest").out
        assert not hears(lan, "visitor", target), "that is another one"
        assert foretold(lan, "visitor", two)["number"] == 2
    finally:
        lan.ok("set", two, "--network", "default")
        lan.ok("firewall", "delete", "one-guest")
        for name in ("guest", "visitor"):
            lan.run("delete", name, "--now", "--force", "--yes")


def _write_names(lan: Instance, name: str) -> None:
    """Have the store hold the group as it was written when rules held names."""
    (key,) = (key for key, value in lan.documents("firewall/") if b'"one-guest"' in value)
    document = json.loads(dict(lan.documents("firewall/"))[key])
    del document["status"]
    document["spec"]["rules"][0]["peers"] = [f"server:{name}"]
    with contextlib.closing(sqlite3.connect(lan.paths.store)) as db, db:
        db.execute(
            "update object set value = ? where key = ?", (json.dumps(document).encode(), key)
        )


def test_what_is_told_is_what_happens(lan: Instance, place: Place, one: str, two: str) -> None:
    """Every pair of ends, by every kind of way, with rules and without."""
    rules = (
        "in allow tcp 7 from server:two",
        f"in reject tcp 7 from {OUTSIDE4}",
        "in deny udp",
        "out deny tcp 7 to group:strict",
    )
    lan.ok("firewall", "create", "strict")
    lan.ok("firewall", "set", "strict", *(word for rule in rules for word in ("--rule", rule)))
    gateway = ".".join([*ipv4(lan, one).split(".")[:3], "1"])
    code = (
        "import socket\ns=socket.create_server(('0.0.0.0',8071))\nwhile 1:\n c,_=s.accept(); "
        "c.send(b'host'); c.close()"
    )
    service = subprocess.Popen(["ip", "netns", "exec", place.host, "python3", "-c", code])
    ways = [
        (one, two, 7),
        (two, one, 7),
        (one, one, 7),
        (two, gateway, 8071),
        (two, HOST4, 8007),
        (one, HOST4, 8007),
    ]
    try:
        until(lambda: place.ask(place.host, HOST4, 8071) == "host", 10, "the host serves")
        for attached in ((), (one,), (one, two)):
            for name in (one, two):
                lan.ok(
                    "set",
                    name,
                    "--network",
                    "default,firewall=strict" if name in attached else "default",
                )
            for source, destination, port in ways:
                said = foretold(lan, source, destination, f"tcp/{port}")
                address = destination if "." in destination else ipv4(lan, destination)
                wanted = f"{source} to {destination} {port} with {attached} is {said['sentence']}"
                until(
                    lambda a=source, b=address, c=port, d=said: hears(lan, a, b, c) == d["allowed"],
                    5,
                    wanted,
                )
            for destination in (HOST4, ipv4(lan, one), ipv4(lan, two)):
                port = 8007 if destination == HOST4 else 7
                said = foretold(lan, OUTSIDE4, destination, f"tcp/{port}")
                wanted = f"{destination} from outside with {attached} is {said['sentence']}"
                until(
                    lambda a=destination, b=port, c=said: (
                        bool(place.ask(place.outside, a, b)) == c["allowed"]
                    ),
                    5,
                    wanted,
                )
    finally:
        service.kill()
        service.wait(5)
        for name in (one, two):
            lan.ok("set", name, "--network", "default")
        lan.ok("firewall", "delete", "strict")


def test_a_server_begins_within_its_groups(lan: Instance, place: Place, one: str) -> None:
    """Also one that is resumed from a template is never seen without them."""
    lan.ok("firewall", "create", "dark", "--rule", f"out reject tcp to {ipv4(lan, one)}")
    try:
        lan.ok("launch", "tiny", "born", "--network", "default,firewall=dark")
        assert not hears(lan, "born", ipv4(lan, one)) and not foretold(lan, "born", one)["allowed"]
    finally:
        lan.run("delete", "born", "--now", "--force", "--yes")
        until(
            lambda: lan.run("firewall", "delete", "dark").status == 0, 10, "nothing uses the group"
        )
