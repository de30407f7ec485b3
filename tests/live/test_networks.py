"""Servers on networks of the host's, with real guests: in network namespaces that stand for the
host and for what is outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from instances import Instance, serve, until
from lans import (
    HOST4,
    HOST6,
    HOST_TOO4,
    OUTSIDE4,
    OUTSIDE6,
    SPEAK,
    Place,
    foretold,
    ipv4,
    leases,
    run,
)

from virtuary.model.network import tap_of

pytestmark = [pytest.mark.live, pytest.mark.host]


# ---- joining


def test_the_first_server_makes_the_network_and_is_on_it(lan: Instance, one: str) -> None:
    vm = lan.vm(one)
    network = lan.call("GET", "/v1/networks/default")
    assert (network["spec"]["kind"], network["status"]["state"]) == ("nat", "ready")
    assert vm["status"]["runtime"]["network"] == "tap" and vm["status"]["runtime"]["template"], (
        "it was resumed from a template"
    )
    assert ipv4(lan, one) in vm["status"]["addresses"]
    until(lambda: leases(lan)[one]["taken"], 30, "the guest asked for its address")
    listed = next(item for item in lan.json("list") if item["meta"]["name"] == one)
    assert ipv4(lan, one) in listed["status"]["addresses"]


def test_its_qemu_complains_of_nothing_that_its_tap_refuses(lan: Instance) -> None:
    lan.ok("launch", "tiny", "calm", "--cold")
    lan.ok("stop", "calm", "--force")  # then its last words are kept
    assert "ioctl" not in lan.ok("logs", "calm").out
    lan.ok("delete", "calm", "--now", "--force", "--yes")


def test_a_shell_is_a_shell(lan: Instance, one: str) -> None:
    assert lan.ok("shell", one, "hostname").out.strip() == one


def test_a_server_that_was_just_launched_stays_reachable(lan: Instance, place: Place) -> None:
    """Its guest asks for the address that it was told already: meanwhile it keeps that."""
    lan.ok("launch", "tiny", "fresh")
    try:
        code = (
            "import socket,sys,time\nend=time.monotonic()+8\n"
            "while time.monotonic()<end:\n "
            "socket.create_connection((sys.argv[1],22),2).close()\n time.sleep(0.1)\n"
        )
        place.in_host("python3", "-c", code, ipv4(lan, "fresh"))
        until(lambda: leases(lan)["fresh"]["taken"], 30, "it asked")
    finally:
        lan.ok("delete", "fresh", "--now", "--force", "--yes")


def test_a_published_port_is_held_and_one_that_a_program_has_is_refused(
    lan: Instance, place: Place, one: str
) -> None:
    take = "import socket,sys\ns=socket.socket()\ns.bind(('',int(sys.argv[1])))\ns.listen()\nprint(flush=True)\nsys.stdin.read()"
    done = subprocess.run(
        ["ip", "netns", "exec", place.host, "python3", "-c", take, "8007"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert "Address already in use" in done.stderr, (
        "who comes later fails, and does not wait for calls that never come"
    )
    lan.ok("create", "tiny", "late", "-p", "8099:7")
    program = subprocess.Popen(
        ["ip", "netns", "exec", place.host, "python3", "-c", take, "8099"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert program.stdout and program.stdout.readline()
        said = lan.run("start", "late")
        assert (
            said.status == 4
            and "port 8099/tcp is in use on this host by another program" in said.err
        )
    finally:
        program.communicate()
        lan.ok("delete", "late", "--now", "--yes")


def test_the_address_of_a_deleted_server_is_the_next_ones_at_once(lan: Instance) -> None:
    lan.ok("network", "create", "small", "--ipv4", "10.99.0.0/29")
    fillers = [f"filler{number}" for number in range(4)]
    for name in fillers:
        lan.ok("create", "tiny", name, "--network", "small")
    (free,) = {f"10.99.0.{number}" for number in range(2, 7)} - {
        ipv4(lan, name) for name in fillers
    }
    for number, how in enumerate((None, "--cold")):
        name = f"heir{number}"
        lan.ok("launch", "tiny", name, "--network", "small", *([how] if how else []))
        assert ipv4(lan, name) == free
        until(lambda name=name: leases(lan, "small")[name]["taken"], 30, "it was given its address")
        lan.ok("delete", name, "--now", "--force", "--yes")
    lan.ok("delete", *fillers, "--now", "--yes")
    lan.ok("network", "delete", "small")


def test_it_has_a_name_an_address_and_the_way_out_by_both_protocols(
    lan: Instance, place: Place, one: str
) -> None:
    six = lan.vm(one)["spec"]["nics"][0]["ipv6"]
    until(
        lambda: (
            six
            in lan.in_guest(
                one, "ip -6 addr show dev eth0 scope global | grep -v tentative || true"
            )
        ),
        20,
        "it has its IPv6 address",
    )
    until(
        lambda: "1 packets received" in lan.in_guest(one, f"ping -6 -c1 -W2 {OUTSIDE6} || true"),
        20,
        "it reaches the outside by IPv6",
    )
    until(
        lambda: "1 packets received" in lan.in_guest(one, f"ping -c1 -W3 {OUTSIDE4} || true"),
        20,
        "it reaches the outside by IPv4",
    )
    ask = f"nslookup one.virtuary; nslookup {ipv4(lan, one)}; true"
    until(
        lambda: all(
            part in lan.in_guest(one, ask) for part in (ipv4(lan, one), six, "name = one.virtuary")
        ),
        20,
        "names and addresses are told",
    )


def test_neighbours_reach_each_other_by_name(lan: Instance, one: str, two: str) -> None:
    # by IPv6, once the guest has made sure that nobody else has its address
    for here, there in ((two, one), (one, two)):
        call = f"timeout 10 nc -w 3 {there}.virtuary 7 </dev/null || true"
        assert (
            until(
                lambda here=here, call=call: lan.in_guest(here, call).strip(),
                30,
                f"{there} answers",
            )
            == there
        )
        lan.in_guest(here, f"ping -c 2 -w 5 {ipv4(lan, there)}")
    counted = (
        "awk '$1 == \"Icmp6InRedirects\" { print $2 }' /proc/net/snmp6; awk '/^IcmpMsg/ && "
        "/InType5/' /proc/net/snmp"
    )
    for name in (one, two):
        assert lan.in_guest(name, counted).strip() == "0", (
            "nobody tells them to send to each other directly, which they can't"
        )


def test_nobody_comes_in_unasked(lan: Instance, place: Place, one: str, two: str) -> None:
    run("ip", "-n", place.outside, "route", "replace", ipv4(lan, two), "via", HOST4)
    assert place.ask(place.outside, ipv4(lan, two), 7) == ""
    assert place.ask(place.host, ipv4(lan, two), 7) == "two", "the host reaches its servers"


def test_published_ports_are_reached_from_everywhere(
    lan: Instance, place: Place, one: str, two: str
) -> None:
    assert place.ask(place.outside, HOST4, 8007) == "one"
    assert place.ask(place.outside, HOST6, 8007) == "one"
    assert place.ask(place.outside, HOST4, 8008) == "", "published on loopback only"
    assert (
        place.ask(place.host, "127.0.0.1", 8008) == "one"
        and place.ask(place.host, HOST4, 8007) == "one"
    )
    assert lan.in_guest(two, f"timeout 10 nc -w 3 {HOST4} 8007 </dev/null").strip() == "one"
    assert lan.in_guest(one, f"timeout 10 nc -w 3 {HOST4} 8007 </dev/null").strip() == "one", (
        "its own published port"
    )


def test_what_is_published_changes_at_once(lan: Instance, place: Place, two: str) -> None:
    lan.ok("set", two, "--publish", "0.0.0.0:8020:7")
    assert until(lambda: place.ask(place.outside, HOST4, 8020), 5, "the new port answers") == "two"
    lan.call("PATCH", f"/v1/vms/{two}", {"publish": []})
    until(lambda: place.ask(place.outside, HOST4, 8020) == "", 5, "it is published no more")


def test_the_hosts_own_services_are_out_of_reach(lan: Instance, place: Place, one: str) -> None:
    gateway = ".".join([*ipv4(lan, one).split(".")[:3], "1"])
    code = (
        "import socket,time\ns=socket.create_server(('0.0.0.0',8070))\nwhile 1:\n "
        "c,_=s.accept(); c.send(b'host'); c.close()"
    )
    process = subprocess.Popen(["ip", "netns", "exec", place.host, "python3", "-c", code])
    try:
        until(lambda: place.ask(place.outside, HOST4, 8070) == "host", 10, "the host serves")
        for address in (gateway, HOST4):
            assert "host" not in lan.in_guest(
                one, f"timeout 10 nc -w 2 {address} 8070 </dev/null || true"
            )
        lan.ok("network", "set", "default", "--host-access")
        until(
            lambda: (
                "host" in lan.in_guest(one, f"timeout 10 nc -w 2 {gateway} 8070 </dev/null || true")
            ),
            10,
            "now it may",
        )
        lan.ok("network", "set", "default", "--no-host-access")
    finally:
        process.kill()
        process.wait(5)


def test_traffic_is_counted_on_the_hosts_side(lan: Instance, place: Place, one: str) -> None:
    def counted() -> Any:
        usage = lan.call("GET", f"/v1/vms/{one}/usage")
        return usage["totals"]["network_sent"]

    before = until(counted, 15, "it is counted")
    lan.in_guest(one, f"ping -c5 -s1400 {OUTSIDE4}")
    until(lambda: counted() >= before + 5 * 1400, 15, "what it sent counts")


OUTER4, OUTER6 = "192.0.2.50", "2001:db8:1::50"


def test_an_address_outside_leads_to_a_server_and_is_its_own(
    lan: Instance, place: Place, two: str
) -> None:
    for address in (OUTER4, OUTER6):
        assert lan.ok("network", "forward", address, two).out.strip() == f"{address} leads to {two}"
    for address in (OUTER4, OUTER6):
        assert (
            until(
                lambda address=address: place.ask(place.outside, address, 7), 10, "it answers there"
            )
            == two
        )
        assert place.ask(place.host, address, 7) == two, "and for the host"
    assert (
        foretold(lan, OUTSIDE4, OUTER4, "tcp/7")["action"]
        == "allow"
        == foretold(lan, OUTSIDE4, two, "tcp/7")["action"]
    )
    code = (
        "import socket\ns=socket.create_server(('0.0.0.0',8099))\nfor _ in range(9):\n"
        " c,peer=s.accept(); c.send(peer[0].encode()); c.close()"
    )
    process = subprocess.Popen(["ip", "netns", "exec", place.outside, "python3", "-c", code])
    try:
        call = f"timeout 10 nc -w 3 {OUTSIDE4} 8099 </dev/null || true"
        assert until(lambda: lan.in_guest(two, call).strip(), 15, "it is told who calls") == OUTER4
    finally:
        process.kill()
        process.wait(5)
    lan.kill()
    assert place.ask(place.outside, OUTER4, 7) == two
    run("ip", "-n", place.host, "address", "delete", f"{OUTER4}/32", "dev", "out0")
    lan.start()
    until(
        lambda: place.ask(place.outside, OUTER4, 7) == two,
        15,
        "an address that was taken away is given back",
    )
    for address in (OUTER4, OUTER6):
        lan.ok("network", "forward", address, "--remove")
    until(
        lambda: OUTER4 not in (there := place.in_host("ip", "address")) and OUTER6 not in there,
        10,
        "nothing is left of it",
    )
    assert (
        place.ask(place.outside, OUTER4, 7) == ""
        and lan.run("network", "forward", OUTER4, "--remove").status == 3
    )


# ---- more than one


def test_a_second_nic_is_plugged_in_and_out_while_it_runs(
    lan: Instance, one: str, two: str
) -> None:
    lan.ok("network", "create", "back", "--kind", "isolated", "--ipv4", "10.99.0.0/24")
    for name in (one, two):
        lan.ok("set", name, "--network", "default", "--network", "back")
        until(
            lambda name=name: "eth1" in lan.in_guest(name, "ls /sys/class/net"),
            15,
            "the guest sees its second NIC",
        )
    kept = ipv4(lan, one)
    second = {name: lan.vm(name)["spec"]["nics"][1]["ipv4"] for name in (one, two)}
    for name in (one, two):
        until(
            lambda name=name: f" {second[name]}/24" in lan.in_guest(name, "ip -4 addr show eth1"),
            20,
            "it is given the address of its second NIC",
        )
    assert lan.in_guest(two, "ip route show default").split()[4] == "eth0"
    assert kept in lan.in_guest(two, f"nslookup {one}.virtuary"), "and names go on as before"
    assert lan.in_guest(two, f"timeout 10 nc -w 3 {second[one]} 7 </dev/null").strip() == "one"
    assert (
        lan.in_guest(
            two, f"ip route get {OUTSIDE4}; ping -I eth1 -c1 -W1 {OUTSIDE4} || true"
        ).count("1 packets received")
        == 0
    )
    said = lan.run("network", "delete", "back")
    assert said.status == 4 and "is used by" in said.err
    for name in (one, two):
        lan.ok("set", name, "--network", "default")
        until(
            lambda name=name: "eth1" not in lan.in_guest(name, "ls /sys/class/net"),
            15,
            "its second NIC is gone",
        )
    assert ipv4(lan, one) == kept
    lan.ok("network", "delete", "back")


def test_a_nic_that_is_to_lead_elsewhere_is_plugged_anew_and_the_first_one_waits(
    lan: Instance, place: Place, two: str
) -> None:
    for name in ("left", "right"):
        lan.ok("network", "create", name, "--ipv4", f"10.9{len(name)}.0.0/24")
    lan.ok("launch", "tiny", "mover", "--network", "default", "--network", "left")

    def reaches(network: str) -> bool:
        nic = next(nic for nic in lan.vm("mover")["spec"]["nics"] if nic["network"] == network)
        gateway = nic["ipv4"].rpartition(".")[0] + ".1"
        return "1 packets received" in lan.in_guest(
            "mover", f"ping -c1 -W1 -I eth1 {gateway} || true"
        )

    def plugged(number: int) -> Any:
        found = lan.vm("mover")["status"]["runtime"]["nics"]
        return next((nic for nic in found if nic["number"] == number), None)

    try:
        first = ipv4(lan, "mover")
        until(lambda: plugged(1) and reaches("left"), 20, "it is on its second network")
        lan.ok(
            "set",
            "mover",
            "--network",
            "default",
            "--network",
            "right,ip=10.95.0.7,mac=52:54:00:00:77:01",
        )
        until(lambda: (nic := plugged(1)) and nic["network"] == "right", 20, "it is plugged anew")
        until(
            lambda: "00:77:01" in lan.in_guest("mover", "cat /sys/class/net/eth1/address || true"),
            15,
            "the guest sees it",
        )
        until(lambda: reaches("right"), 20, "it is on its new network")
        lan.ok("network", "delete", "left")
        lan.ok(
            "set",
            "mover",
            "--network",
            "right",
            "--network",
            "right,ip=10.95.0.7,mac=52:54:00:00:77:01",
        )
        call = f"nc -w 3 {ipv4(lan, two)} 7 </dev/null"
        for _ in range(3):
            assert lan.in_guest("mover", call).strip() == "two", "its first NIC goes on as it was"
        assert plugged(0)["ipv4"] == first and {
            item["status"]["state"] for item in lan.json("network", "list")
        } == {"ready"}
        lan.ok("restart", "mover", "--force")
        until(
            lambda: (nic := plugged(0)) and nic["network"] == "right",
            60,
            "it is started with what is wished",
        )
    finally:
        lan.ok("delete", "mover", "--now", "--force", "--yes")
        for name in ("left", "right"):
            lan.run("network", "delete", name)


def test_a_live_copy_has_an_address_of_its_own(lan: Instance, place: Place, one: str) -> None:
    lan.ok("copy", one, "twin", "--live")
    try:
        assert ipv4(lan, "twin") != ipv4(lan, one)
        assert lan.vm("twin")["spec"]["nics"][0]["ipv6"] != lan.vm(one)["spec"]["nics"][0]["ipv6"]
        assert place.ask(place.host, ipv4(lan, "twin"), 7) == "one", (
            "it goes on with what its source did"
        )
        assert "1 packets received" in lan.in_guest("twin", f"ping -c1 -W3 {OUTSIDE4}")
        assert lan.ok("shell", "twin", "hostname").out.strip() == "twin"
    finally:
        lan.ok("delete", "twin", "--now", "--force", "--yes")


def test_a_restart_and_a_boot_keep_the_address(lan: Instance, place: Place) -> None:
    lan.ok("launch", "tiny", "cold", "--cold")
    try:
        address = ipv4(lan, "cold")
        assert address in lan.vm("cold")["status"]["addresses"]
        lan.ok("stop", "cold", "--force")
        lan.ok("start", "cold")
        until(
            lambda: (
                "1 packets received" in lan.in_guest("cold", f"ping -c1 -W3 {OUTSIDE4} || true")
            ),
            30,
            "it reaches the outside",
        )
        assert ipv4(lan, "cold") == address
    finally:
        lan.ok("delete", "cold", "--now", "--force", "--yes")


def test_many_at_once_have_addresses_of_their_own(lan: Instance) -> None:
    lan.ok("launch", "tiny", "many", "--count", "6", limit=120)
    names = [f"many-{number}" for number in range(1, 7)]
    try:
        found = {ipv4(lan, name) for name in names}
        assert len(found) == 6
        for name in names:
            assert lan.vm(name)["status"]["addresses"], name
    finally:
        lan.ok("delete", *names, "--now", "--force", "--yes")


def test_a_debian_knows_names_from_its_first_moment(warm_debian: Path) -> None:
    """Its own services have asked for nothing yet then."""
    place = Place("d")
    try:
        place.make()
        with contextlib.contextmanager(serve)(warm_debian, namespace=place.host) as instance:
            instance.ok("launch", "debian:12", "deb")
            assert instance.vm("deb")["status"]["runtime"]["template"]
            gateway = instance.call("GET", "/v1/networks/default")["spec"]["ipv4"].replace(
                ".0/24", ".1"
            )
            look = "getent ahostsv4 host.virtuary"
            assert gateway in instance.in_guest("deb", look)
            assert instance.ok("shell", "deb", "hostname").out.strip() == "deb"
            until(lambda: leases(instance)["deb"]["taken"], 60, "it has asked for its address")
            until(
                lambda: "127.0.0.53" in instance.in_guest("deb", "cat /etc/resolv.conf"),
                60,
                "its own service took over",
            )
            assert gateway in instance.in_guest("deb", look) and OUTSIDE4 not in instance.in_guest(
                "deb", look
            )
            instance.in_guest("deb", f"ping -c1 -W3 {OUTSIDE4}")
    finally:
        place.remove()


# ---- what others do


def test_flushed_rules_come_back(lan: Instance, place: Place, one: str) -> None:
    place.in_host("nft", "flush", "ruleset")
    until(
        lambda: "virtuary" in place.in_host("nft", "list", "tables"), 5, "the rules are there again"
    )
    assert place.ask(place.outside, HOST4, 8007) == "one"
    # as a firewall that loads its rules in several steps, with ours between them
    for _ in range(4):
        place.in_host(
            "sh",
            "-c",
            "until nft list table inet virtuary >/dev/null 2>&1; do :; done; nft flush ruleset",
        )
    until(
        lambda: "virtuary" in place.in_host("nft", "list", "tables"),
        5,
        "the rules are there in the end",
    )
    assert place.ask(place.outside, HOST4, 8007) == "one"


def test_a_dnsmasq_that_died_is_started_again(lan: Instance, one: str) -> None:
    before = lan.call("GET", "/v1/networks/default")["status"]["pid"]
    os.kill(before, 9)
    after = until(
        lambda: lan.call("GET", "/v1/networks/default")["status"]["pid"] != before,
        10,
        "another one",
    )
    assert after
    until(
        lambda: ipv4(lan, one) in lan.in_guest(one, "nslookup one.virtuary || true"),
        10,
        "names are known again",
    )


def test_a_bridge_that_was_removed_is_made_again_with_its_servers(
    lan: Instance, place: Place, one: str
) -> None:
    place.in_host(
        "ip", "link", "delete", lan.call("GET", "/v1/networks/default")["status"]["bridge"]
    )
    until(
        lambda: "1 packets received" in lan.in_guest(one, f"ping -c1 -W1 {OUTSIDE4} || true"),
        30,
        "it reaches the outside again",
    )


def test_a_killed_daemon_finds_everything_as_it_was(lan: Instance, place: Place, one: str) -> None:
    before = lan.call("GET", "/v1/networks/default")["status"]["pid"]
    rules = place.in_host("nft", "list", "tables")
    lan.kill()
    assert place.ask(place.outside, HOST4, 8007) == "one", "networks outlive the daemon"
    lan.start()
    until(lambda: lan.state(one) == "running", 10, "the server is there")
    assert lan.call("GET", "/v1/networks/default")["status"]["pid"] == before
    assert place.in_host("nft", "list", "tables") == rules
    assert place.ask(place.outside, HOST4, 8007) == "one"


def test_after_a_boot_of_the_host_all_is_as_it_was(warm_tiny: Path) -> None:
    """The boot is played: while no daemon runs all processes, rules and interfaces go, and the
    records are made to name another boot.
    """
    place = Place("b")
    try:
        place.make()
        with contextlib.contextmanager(serve)(warm_tiny, namespace=place.host) as instance:
            instance.ok("launch", "tiny", "web", "--autostart", "-p", "0.0.0.0:8007:7")
            instance.ok("network", "forward", OUTER4, "web")
            instance.ok("network", "create", "empty", "--kind", "isolated")
            before = ipv4(instance, "web")
            gone = [instance.vm("web")["status"]["runtime"]["pid"]]
            gone += [item["status"]["pid"] for item in instance.json("network", "list")]
            bridges = [item["status"]["bridge"] for item in instance.json("network", "list")]
            until(lambda: OUTER4 in place.in_host("ip", "address"), 10, "the address is there")
            instance.stop()
            for pid in gone:
                os.kill(pid, signal.SIGKILL)
            place.in_host("nft", "flush", "ruleset")
            place.in_host("ip", "address", "delete", f"{OUTER4}/32", "dev", "out0")
            for bridge in bridges:
                place.in_host("ip", "link", "delete", bridge)
            other_boot(instance)
            instance.start()
            until(lambda: runs_anew(instance, "web", gone), 60, "it runs again")
            instance.in_guest("web", SPEAK.format(name="web"))
            assert (
                ipv4(instance, "web") == before
                and instance.vm("web")["status"]["runtime"]["pid"] not in gone
            )
            for address, port in ((HOST4, 8007), (OUTER4, 7)):
                assert (
                    until(
                        lambda at=(address, port): place.ask(place.outside, *at),
                        20,
                        f"{address} answers",
                    )
                    == "web"
                )
            assert {item["status"]["state"] for item in instance.json("network", "list")} == {
                "ready"
            }
            instance.ok("delete", "web", "--now", "--force", "--yes")
            instance.ok("network", "delete", "default", "empty")
            left = (
                place.in_host("ip", "-br", "link")
                + place.in_host("ip", "address")
                + place.in_host("nft", "list", "ruleset")
            )
            assert not re.search(r"\bv[btl][0-9a-f]{8}|virtuary", left) and OUTER4 not in left, left
    finally:
        place.remove()


def test_without_ipv6_networks_work_with_ipv4_alone_and_say_so(warm_tiny: Path) -> None:
    place = Place("6")
    try:
        place.make()
        with contextlib.contextmanager(serve)(warm_tiny, namespace=place.host) as instance:
            instance.ok("launch", "tiny", "ran")
            place.in_host("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
            until(
                lambda: "IPv6 is switched off" in instance.ok("network", "show", "default").out,
                20,
                "it is said",
            )
            instance.ok("restart", "ran", "--detach")
            until(
                lambda: (
                    instance.vm("ran")["spec"]["restarts"] and instance.state("ran") == "running"
                ),
                20,
                "it is started again",
            )
            instance.ok("launch", "tiny", "later")
            gateway = ipv4(instance, "later").rpartition(".")[0] + ".1"
            assert "1 packets received" in instance.in_guest("later", f"ping -c1 -W3 {gateway}")
            assert instance.call("GET", "/v1/networks/default")["status"]["state"] == "ready"
            place.in_host("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
            instance.ok("set", "later", "--label", "a=b")  # whatever has it looked at
            until(
                lambda: "IPv6 is switched off" not in instance.ok("network", "show", "default").out,
                20,
                "and no more",
            )
            assert "fd" in place.in_host(
                "ip",
                "-6",
                "address",
                "show",
                "dev",
                instance.json("network", "list")[0]["status"]["bridge"],
            )
    finally:
        place.remove()


def test_a_server_that_starts_with_its_host_waits_for_an_uplink_that_comes_late(
    warm_tiny: Path,
) -> None:
    place = Place("l")
    try:
        place.make()
        with contextlib.contextmanager(serve)(warm_tiny, namespace=place.host) as instance:
            place.in_host("ip", "link", "add", "br0", "type", "bridge")
            instance.ok("network", "create", "office", "--kind", "bridge", "--interface", "br0")
            instance.ok("launch", "tiny", "desk", "--network", "office", "--autostart", "--detach")
            pid = until(
                lambda: (instance.vm("desk")["status"]["runtime"] or {}).get("pid"),
                30,
                "it is started",
            )
            until(lambda: "agent" in instance.vm("desk")["status"]["stages"], 60, "it is up")
            instance.stop()
            os.kill(pid, signal.SIGKILL)
            place.in_host("ip", "link", "delete", "br0")
            other_boot(instance)
            instance.start()
            until(
                lambda: (
                    "no network interface br0" in (instance.vm("desk")["status"]["reason"] or "")
                ),
                20,
                "it says why it waits",
            )
            vm = instance.vm("desk")
            assert (vm["status"]["state"], vm["spec"]["power"]) == ("starting", "running")
            place.in_host("ip", "link", "add", "br0", "type", "bridge")
            until(lambda: runs_anew(instance, "desk", [pid]), 60, "it runs again")
            assert instance.vm("desk")["status"]["reason"] is None
            instance.ok("delete", "desk", "--now", "--force", "--yes")
            instance.ok("network", "delete", "office")
    finally:
        place.remove()


def runs_anew(instance: Instance, name: str, gone: list[int]) -> bool:
    status = instance.vm(name)["status"]
    return (
        bool(status["runtime"])
        and status["runtime"]["pid"] not in gone
        and "agent" in status["stages"]
    )


def other_boot(instance: Instance) -> None:
    """Make the records of processes name another boot of the host."""
    with contextlib.closing(sqlite3.connect(instance.paths.store)) as db:
        for key, value in db.execute(
            "select key, value from object where key like 'vm/%' or key like 'here/%/network/%'"
        ).fetchall():
            document = json.loads(value)
            status = document.get("status", document)  # what a host has of a network is only that
            for where in (status, status.get("runtime") or {}):
                if "boot_id" in where:
                    where["boot_id"] = "another boot"
            db.execute(
                "update object set value = ? where key = ?",
                (json.dumps(document, separators=(",", ":")).encode(), key),
            )
        db.commit()


# ---- tried from inside


def tried(instance: Instance, name: str) -> dict[str, tuple[str, str]]:
    """What the doctor found from inside a guest: state and words of each check."""
    answer = instance.call("GET", f"/v1/vms/{name}/doctor")
    assert answer["healthy"] == all(check["state"] != "missing" for check in answer["checks"])
    return {
        check["name"]: (check["state"], f"{check['found']} {check['remedy']}")
        for check in answer["checks"]
    }


def test_the_doctor_finds_nothing_where_all_is_well(lan: Instance, one: str) -> None:
    until(lambda: all(state == "ok" for state, _ in tried(lan, one).values()), 20, "all is well")
    assert list(tried(lan, one)) == [
        "address",
        "host",
        "names",
        "outside",
        "large packets",
        "IPv6",
        "port 7",
    ]
    assert OUTSIDE6 in tried(lan, one)["IPv6"][1]
    said = lan.ok("doctor", one)
    assert (
        f"it reaches {OUTSIDE4}, as this host does" in said.out and "its network works" in said.out
    )


NARROW = (
    "add table ip narrow; add chain ip narrow in { type filter hook input priority 0; }; "
    "add rule ip narrow in ip length > 1400 drop"
)


def test_packets_are_as_large_as_the_way_out_has_them(
    lan: Instance, place: Place, one: str
) -> None:
    bridge = lan.call("GET", "/v1/networks/default")["status"]["bridge"]
    tap = tap_of(lan.vm(one)["meta"]["id"], 0)
    assert "1500 bytes" in lan.ok("network", "show", "default").out
    try:
        lan.ok("network", "set", "default", "--mtu", "1400")
        until(
            lambda: all(
                "mtu 1400" in place.in_host("ip", "link", "show", name) for name in (bridge, tap)
            ),
            10,
            "it is narrower",
        )
        until(lambda: "1400 bytes reach" in tried(lan, one)["large packets"][1], 10, "it is tried")
    finally:
        lan.ok("network", "set", "default", "--mtu", "none")
    until(
        lambda: all(
            "mtu 1500" in place.in_host("ip", "link", "show", name) for name in (bridge, tap)
        ),
        10,
        "and as wide as before",
    )
    for name, link in ((place.host, "out0"), (place.outside, "in0")):
        run("ip", "-n", name, "link", "set", link, "mtu", "1400")
    try:
        lan.ok("set", one, "--label", "a=b")  # whatever has it looked at
        until(
            lambda: "mtu 1400" in place.in_host("ip", "link", "show", bridge),
            10,
            "the way out is narrower",
        )
    finally:
        for name, link in ((place.host, "out0"), (place.outside, "in0")):
            run("ip", "-n", name, "link", "set", link, "mtu", "1500")
    lan.ok("set", one, "--label", "a=c")
    until(
        lambda: lan.call("GET", "/v1/networks/default")["status"]["mtu"] == 1500,
        10,
        "and wide again",
    )
    run(
        "ip",
        "netns",
        "exec",
        place.outside,
        "nft",
        "add table ip narrow; add chain ip narrow in { type filter hook input priority 0; }; add "
        "rule ip narrow in ip length > 1400 drop",
    )
    try:
        _, said = until(
            lambda: (found := tried(lan, one)["large packets"])[0] == "missing" and found,
            20,
            "large packets do not come through",
        )
        assert "packets of 1500 bytes do not reach" in said
        assert "network set default --mtu" in said
    finally:
        run("ip", "netns", "exec", place.outside, "nft", "delete table ip narrow")


def test_the_doctor_names_who_is_in_the_way(lan: Instance, place: Place, two: str) -> None:
    lan.ok("firewall", "create", "closed", "--rule", "out deny icmp")
    lan.ok("set", two, "--network", "default,firewall=closed", "--publish", "0.0.0.0:8021:4444")
    try:
        _, said = until(
            lambda: (found := tried(lan, two)["outside"])[0] == "missing" and found,
            10,
            "nothing goes out",
        )
        assert "closed" in said and "virtuary firewall test two" in said
        assert tried(lan, two)["port 4444"] == ("missing", tried(lan, two)["port 4444"][1])
        assert "nothing listens there" in tried(lan, two)["port 4444"][1]
        said = lan.run("doctor", two)
        assert said.status == 4 and "its network does not work" in said.out
    finally:
        lan.ok("set", two, "--network", "default")
        lan.call("PATCH", f"/v1/vms/{two}", {"publish": []})
        lan.ok("firewall", "delete", "closed")
    run(
        "ip",
        "netns",
        "exec",
        place.outside,
        "sh",
        "-c",
        "echo 1 >/proc/sys/net/ipv4/icmp_echo_ignore_all",
    )
    try:
        state, said = tried(lan, two)["outside"]
        assert state == "note" and "answers its pings" in said, (
            "a router that is silent is no fault"
        )
        place.in_host("ip", "route", "delete", "default")
        state, said = tried(lan, two)["outside"]
        assert state == "missing" and "this host itself has no way out" in said
    finally:
        place.in_host("ip", "route", "replace", "default", "via", OUTSIDE4)
        run(
            "ip",
            "netns",
            "exec",
            place.outside,
            "sh",
            "-c",
            "echo 0 >/proc/sys/net/ipv4/icmp_echo_ignore_all",
        )
    lan.in_guest(two, "ip -4 address flush dev eth0")
    found = tried(lan, two)
    assert (
        found["address"][0] == "missing"
        and "has not taken its address" in found["address"][1]
        and found["host"][0] == "note"
    )
    gateway = lan.call("GET", "/v1/networks/default")["spec"]["ipv4"].replace(".0/24", ".1")
    lan.in_guest(
        two, f"ip address add {ipv4(lan, two)}/24 dev eth0; ip route replace default via {gateway}"
    )
    assert tried(lan, two)["outside"][0] == "ok"


IN_THE_WAY = {
    "a VPN's route": (
        "ip link add vpn0 type veth peer name vpn1; ip link set vpn0 up; ip route add {own}/32 "
        "dev vpn0", "ip link delete vpn0", "host", "is routed to vpn0",
    ),
    "a chain that is jumped to": (
        "iptables -N THEIRS; iptables -A FORWARD -j THEIRS; iptables -A THEIRS -p icmp -j DROP",
        "iptables -F; iptables -X; nft delete table ip filter",
        "outside", "iptables drops it in ip filter FORWARD",
    ),
}  # fmt: skip
LOOKED_AT = "ip address add 192.0.2.99/32 dev out0; ip address delete 192.0.2.99/32 dev out0"
"""An address that goes has everything looked at."""


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_the_doctor_names_what_on_this_host_is_in_the_way(
    lan: Instance, place: Place, one: str, case: str
) -> None:
    begin, end, check, why = IN_THE_WAY[case]
    try:
        place.in_host("sh", "-ec", begin.replace("{own}", ipv4(lan, one)))
        state, said = tried(lan, one)[check]
        assert state == "missing" and why in said, said
        place.in_host("sh", "-c", LOOKED_AT)
        whole = why.replace("drops it", "drops what servers send outside (icmp)")
        until(lambda: whole in lan.ok("network", "show", "default").out, 10, "it is not so")
    finally:
        place.in_host("sh", "-c", end)
    place.in_host("sh", "-c", LOOKED_AT)
    until(lambda: "not so" not in lan.ok("network", "show", "default").out, 10, "all is well again")


def test_the_doctor_blames_nobody_for_what_it_has_not_found(
    lan: Instance, place: Place, one: str
) -> None:
    rule = (
        "add table ip far; add chain ip far in { type filter hook input priority 0; }; add "
        "rule ip far in ip ttl 63 drop"
    )
    # what was passed on, and not what the host itself sends
    run("ip", "netns", "exec", place.outside, "nft", rule)
    try:
        state, said = tried(lan, one)["outside"]
        assert (
            state == "missing"
            and "nothing found on this host; what was tried: its cable, our own rules, routes to it"
            in said
        )
    finally:
        run("ip", "netns", "exec", place.outside, "nft", "delete table ip far")
    address = lan.vm(one)["spec"]["nics"][0]["ipv6"]
    other = address.rpartition(":")[0] + ":abcd"
    lan.in_guest(
        one,
        f"ip -6 address add {other}/64 dev eth0; ip -6 address delete {address}/64 dev eth0 || "
        f"ip -6 address delete {address}/128 dev eth0",
    )
    try:
        state, said = tried(lan, one)["IPv6"]
        assert state == "missing" and f"the guest calls from {other}, which is not its own" in said
    finally:
        lan.in_guest(one, f"ip -6 address delete {other}/64 dev eth0")
        # an announcement may have given it back by now
        lan.in_guest(
            one,
            f"ip -6 address add {address}/64 dev eth0 2>/dev/null || ip -6 address show dev eth0 "
            f"| grep -q {address}",
        )


def test_the_doctor_looks_into_no_server_it_can_not(lan: Instance) -> None:
    lan.ok("create", "tiny", "asleep")
    try:
        assert (
            "not running" in lan.run("doctor", "asleep").err
            and "no server" in lan.run("doctor", "nobody").err
        )
    finally:
        lan.ok("delete", "asleep", "--now", "--yes")


# ---- refused


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("network", "create", "bad", "--ipv4", "192.0.2.0/24"), "which this host routes already"),
        (("network", "create", "user"), "always there"),
        (("network", "create", "bad", "--kind", "bridge"), "needs the host's bridge or interface"),
        (
            ("network", "create", "bad", "--kind", "bridge", "--interface", "nowhere"),
            "no network interface nowhere",
        ),
        (
            ("network", "create", "bad", "--kind", "bridge", "--interface", "out0"),
            "has the host's own addresses",
        ),
        (
            (
                "network",
                "create",
                "bad",
                "--kind",
                "bridge",
                "--interface",
                "nowhere",
                "--host-access",
            ),
            "is not ours to give",
        ),
        (("network", "create", "default"), "is there already"),
        (("network", "forward", HOST4, "one"), "is an address of this host itself"),
        (("network", "forward", HOST_TOO4, "one"), "is an address of this host itself"),
        (("network", "forward", "10.77.5", "one"), "is no address"),
        (("network", "forward", "127.0.0.1", "one"), "no address by which others reach a host"),
        (("network", "forward", "192.0.2.60"), "say the server"),
        (("network", "delete", "default"), "is used by"),
        (("launch", "tiny", "bad", "--network", "nowhere"), "no network named"),
        (("launch", "tiny", "bad", "--network", "default,ip=10.1.2.3"), "no address for a server"),
        (
            ("launch", "tiny", "bad", "--network", "none", "-p", "9999:1"),
            "nothing can be published",
        ),
    ],
)
def test_what_can_not_be_is_refused_with_a_reason_and_leaves_nothing(
    lan: Instance, one: str, words: tuple[str, ...], why: str
) -> None:  # fmt: skip
    said = lan.run(*words)
    assert said.status != 0 and why in said.err, said
    lan.run("network", "delete", "bad")
    assert [item["meta"]["name"] for item in lan.json("network", "list")] == ["default"]
    assert "bad" not in [vm["meta"]["name"] for vm in lan.json("list")]


def test_an_interface_is_taken_and_given_back_as_it_was(lan: Instance, place: Place) -> None:
    place.in_host("ip", "link", "add", "eth7", "type", "veth", "peer", "name", "far7")
    place.in_host("ip", "link", "add", "br7", "type", "bridge")
    try:
        place.in_host("ip", "link", "set", "far7", "master", "br7")
        refused = lan.run("network", "create", "desk", "--kind", "bridge", "--interface", "far7")
        assert (
            refused.status == 4
            and "far7 is on the bridge br7, whose hosts would lose it" in refused.err
        ), refused
        assert "desk" not in [item["meta"]["name"] for item in lan.json("network", "list")], (
            "nothing is half made"
        )
        lan.ok("network", "create", "desk", "--kind", "bridge", "--interface", "eth7")
        taken = lan.call("GET", "/v1/networks/desk")["status"]
        assert (
            f"master {taken['bridge']}" in place.in_host("ip", "link", "show", "eth7")
            and taken["was_up"] is False
        )
        lan.ok("network", "delete", "desk")
        there = place.in_host("ip", "link", "show", "eth7")
        assert "master" not in there and "state DOWN" in there
    finally:
        place.in_host("ip", "link", "delete", "eth7")
        place.in_host("ip", "link", "delete", "br7")


def test_a_bridge_of_the_hosts_is_joined(lan: Instance, place: Place) -> None:
    """Somebody else's bridge, with somebody else's addresses on it."""
    place.in_host("ip", "link", "add", "br0", "type", "bridge")
    place.in_host(
        "ip", "link", "add", "jumbo0", "mtu", "9000", "type", "veth", "peer", "name", "jumbo1"
    )
    place.in_host("ip", "link", "set", "jumbo0", "master", "br0", "up")
    place.in_host("ip", "address", "add", "198.51.100.1/24", "dev", "br0")
    place.in_host("ip", "link", "set", "br0", "up")
    try:
        lan.ok("network", "create", "office", "--kind", "bridge", "--interface", "br0")
        assert "reached as from anywhere" in lan.ok("network", "show", "office").out
        refused = lan.run("network", "set", "office", "--host-access")
        assert refused.status and "the host's own firewall decides" in refused.err
        lan.ok("launch", "tiny", "desk", "--network", "office", "--detach")
        until(lambda: lan.vm("desk")["status"]["state"] == "running", 30, "it runs")
        assert "mtu 9000" in place.in_host("ip", "link", "show", "br0"), (
            "who joins does not make it narrower"
        )
        assert "9000 bytes" in lan.ok("network", "show", "office").out
        lan.in_guest("desk", "ip addr flush dev eth0; ip addr add 198.51.100.9/24 dev eth0")
        assert "1 packets received" in lan.in_guest("desk", "ping -c1 -W3 198.51.100.1")
        lan.in_guest(
            "desk",
            "ip addr add 198.51.100.10/24 dev eth0; ping -c1 -W3 -I 198.51.100.10 198.51.100.1",
        )
        until(
            lambda: "198.51.100.10" in lan.vm("desk")["status"]["addresses"],
            15,
            "what it calls itself is heard, without its agent",
        )
        lan.ok("delete", "desk", "--now", "--force", "--yes")
        lan.ok("network", "delete", "office")
        assert "br0" in place.in_host("ip", "-br", "link"), "it is not ours to remove"
    finally:
        place.in_host("ip", "link", "delete", "jumbo0")
        place.in_host("ip", "link", "delete", "br0")


# ---- bandwidth


def received(place: Place, address: str, seconds: float) -> float:
    """Mbit/s that a guest's port 9 pours out, counted where the host receives it; after a second of
    warming up.

    What a program reads would not do: where TCP has lost a segment it is given nothing for a while
    and everything later.
    """
    code = (
        "import os,socket,subprocess,sys,threading,time\n"
        "device=subprocess.check_output(['ip','route','get',sys.argv[1]],text=True).split(' dev "
        "')[1].split()[0]\n"
        "count=lambda: int(open(f'/sys/class/net/{device}/statistics/rx_bytes').read())\n"
        "s=socket.create_connection((sys.argv[1],9),3)\n"
        "def drain():\n while s.recv(1<<20): pass\n"
        "threading.Thread(target=drain,daemon=True).start()\n"
        "time.sleep(1); begin=time.monotonic(); n=count()\n"
        "time.sleep(float(sys.argv[2])); "
        "print((count()-n)*8/1e6/(time.monotonic()-begin),flush=True); os._exit(0)"
    )
    return float(place.in_host("python3", "-c", code, address, str(seconds)))


@pytest.mark.alone
def test_bandwidth_is_limited_live_and_promised_only_where_it_is_there(
    lan: Instance, place: Place, one: str
) -> None:
    lan.in_guest(one, "setsid nc -ll -p 9 -e cat /dev/zero >/dev/null 2>&1 </dev/null &")
    free = received(place, ipv4(lan, one), 1)
    lan.ok("set", one, "--network", "default,out=4Mbit")
    until(lambda: "htb" in place.in_host("tc", "qdisc"), 5, "the limit is there")
    limited = received(place, ipv4(lan, one), 4)
    # The limit counts the headers of every frame, an interface those of what arrives as one.
    assert 3.8 < limited < 4.1 < free, (free, limited)
    said = lan.run("set", one, "--network", "default,floor-out=50Mbit")
    assert said.status == 4 and "speed of the network's link is not known" in said.err
    lan.ok("network", "set", "default", "--speed", "100Mbit")
    said = lan.run("set", one, "--network", "default,floor-out=96Mbit")
    assert said.status == 4 and "1 Mbit/s are missing" in said.err, said
    lan.ok("set", one, "--network", "default,floor-out=50Mbit")
    lan.ok("set", one, "--network", "default")
    until(lambda: "htb" not in place.in_host("tc", "qdisc"), 5, "nothing of it is left")
    assert received(place, ipv4(lan, one), 1) > 2 * limited
