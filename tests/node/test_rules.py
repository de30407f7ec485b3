"""The packet filter as documents want it: groups become rules of cards, their peers the addresses
that servers have now.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from netlab import Lab, lab_of
from virtuary.host.neighbours import claim
from virtuary.model.firewall import Firewall, FirewallSpec
from virtuary.model.meta import Meta, utcnow
from virtuary.model.network import Network, NetworkSpec, NetworkStatus, Nic, tap_of
from virtuary.model.publish import Publish
from virtuary.model.status import VmStatus
from virtuary.model.vm import Vm, VmSpec
from virtuary.network.netns import Private
from virtuary.network.uplink import ADDRESS, Held
from virtuary.node.networks.members import Member
from virtuary.node.networks.networks import Networks
from virtuary.node.networks.rules import Wanted
from virtuary.store.memory import MemoryStore

# test folders are no packages; this one shares a file
sys.path.insert(0, str(Path(__file__).parent))
from worlds import runtime

LAN = Network(
    meta=Meta(name="lan"), spec=NetworkSpec(ipv4="10.1.0.0/24", ipv6="fd00:1::/64",
    default_in="deny", default_out="reject"),
    status=NetworkStatus(state="ready", bridge="vb1"),
)  # fmt: skip
WEB = [
    {"direction": "in", "protocol": "tcp", "ports": ["80"], "peers": ["group:web", "server:db-id"]},
    {"direction": "out", "action": "deny", "protocol": "udp"},
]


def moment(day: int) -> datetime:
    return datetime(2026, 1, 1 + day, tzinfo=UTC)


def server(name: str, number: int, *groups: str, **meta: Any) -> Vm:
    nic = Nic(
        network="lan",
        network_id=LAN.id,
        ipv4=f"10.1.0.{number}",
        ipv6=f"fd00:1::{number}",
        groups=groups,
    )
    return Vm(meta=Meta(name=name, **meta), spec=VmSpec(image="tiny", nics=(nic,)))


async def wanted(*documents: Any) -> Wanted:
    store = MemoryStore()
    await store.txn({}, {item.key: item.dump() for item in (LAN, *documents)})
    found = Networks(store, Path("/nowhere")).rules.wanted()
    assert found
    return found


async def script(*documents: Any) -> str:
    found = await wanted(*documents)
    assert found.left_out == {}
    return found.script


def judged(text: str, number: int, way: str = "arrives4") -> list[str]:
    """The rules of the chain that judges a server's connections."""
    (name,) = set(
        re.findall(
            rf'"vb1" \. 10\.1\.0\.{number} : goto (\w+)',
            text.partition(f"map {way} {{")[2].partition("\n    }\n")[0],
        )
    )
    return [
        line.strip()
        for line in text.partition(f"chain {name} {{\n")[2].partition("    }")[0].splitlines()
    ]


def group(name: str, rules: list[Any]) -> Firewall:
    return Firewall(meta=Meta(name=name), spec=FirewallSpec.model_validate({"rules": rules}))


async def test_the_groups_of_a_card_are_its_rules_in_order_and_then_the_networks_default() -> None:
    more = group(
        "more", [{"direction": "in", "action": "reject", "protocol": "tcp", "ports": ["22"]}]
    )
    text = await script(
        group("web", WEB),
        more,
        server("a", 2, "web", "more"),
        server("b", 3, "more", "web"),
        server("c", 4),
    )
    let = [
        "ip saddr 10.1.0.2/31 tcp dport 80 accept",
        "ip6 saddr fd00:1::2/127 tcp dport 80 accept",
    ]
    assert judged(text, 2) == [*let, "tcp dport 22 goto refuse", "drop"]
    assert judged(text, 3) == ["tcp dport 22 goto refuse", *let, "drop"]
    assert judged(text, 2, "leaves4") == ["meta l4proto udp drop", "goto refuse"]
    assert judged(text, 4) == ["drop"] and judged(text, 4, "leaves4") == ["goto refuse"]


async def test_peers_are_who_is_there_now() -> None:
    gone = server("db", 9, "web", id="db-id", deleted=utcnow())
    text = await script(group("web", WEB), server("a", 2, "web"), gone)
    assert judged(text, 2)[0] == "ip saddr 10.1.0.2 tcp dport 80 accept", "the trash is nobody"
    text = await script(group("web", WEB), server("a", 2, "web"), server("db", 9, id="db-id"))
    assert judged(text, 2)[0] == "ip saddr { 10.1.0.2, 10.1.0.9 } tcp dport 80 accept"


async def test_a_server_that_takes_the_name_of_one_that_rules_mean_is_nobody_to_them() -> None:
    text = await script(group("web", WEB), server("a", 2, "web"), server("db", 9, id="another-id"))
    assert judged(text, 2)[0] == "ip saddr 10.1.0.2 tcp dport 80 accept"


@pytest.mark.parametrize("peer", ["server:db", "group:web"])
async def test_a_peer_that_is_nobody_lets_nobody_in(peer: str) -> None:
    rules = [{"direction": "in", "peers": [peer]}]
    assert judged(
        await script(group("web", []), group("other", rules), server("a", 2, "other")), 2
    ) == ["drop"]


# ---- documents that contradict each other


def runs(vm: Vm, *publish: int) -> Vm:
    published = tuple(Publish(host=port, guest=7) for port in publish)
    return vm.but(spec=vm.spec.but(publish=published), status=vm.status.but(runtime=runtime()))


def elements(text: str, name: str) -> str:
    """What stands in a set or map of both tables."""
    return "".join(part.partition("\n    }\n")[0] for part in text.split(f" {name} {{\n")[1:])


async def test_a_server_with_an_address_twice_is_shut_off_and_the_others_have_their_rules() -> None:
    first, second, third = (
        server(name, number, created=moment(age))
        for age, name, number in ((1, "a", 2), (2, "b", 2), (3, "c", 4))
    )
    found = await wanted(group("web", WEB), third, runs(second, 8080), first)
    assert (
        list(found.left_out) == [tap_of(second.id, 0)]
        and "10.1.0.2 on vb1 is given twice" in found.left_out[tap_of(second.id, 0)]
    )
    assert judged(found.script, 2) == judged(found.script, 4) == ["drop"]
    assert all(
        tap_of(vm.id, 0) in elements(found.script, "taps") for vm in (first, second, third)
    ), "its frames are still looked at"
    assert tap_of(first.id, 0) in elements(found.script, "four") and tap_of(
        second.id, 0
    ) not in elements(found.script, "four")
    assert "8080" not in found.script, "what it publishes does not lead to the other"


async def test_of_two_networks_on_one_bridge_the_older_one_stays() -> None:
    office, desk = (
        Network(
            meta=Meta(name=name, created=moment(age)), spec=NetworkSpec(kind="bridge",
            interface="br0"),
            status=NetworkStatus(state="ready", bridge="br0"),
        ) for age, name in ((1, "office"), (2, "desk"))
    )  # fmt: skip
    inside = Network(
        meta=Meta(name="inside", created=moment(0)),
        spec=NetworkSpec(kind="bridge", interface="vb1"),
        status=NetworkStatus(bridge="vb1"),
    )
    free = Nic(network="inside", network_id=inside.id, unguarded=("mac",))
    spy = Vm(meta=Meta(name="spy"), spec=VmSpec(image="tiny", nics=(free,)))
    found = await wanted(office, desk, inside, spy, server("a", 2))
    assert found.left_out == {
        desk.id: "the bridge br0 of the network desk is that of office already",
        inside.id: "the bridge vb1 of the network inside is that of lan already",
    }
    assert judged(found.script, 2) == ["drop"]
    assert tap_of(spy.id, 0) in elements(found.script, "taps") and tap_of(
        spy.id, 0
    ) not in elements(found.script, "free_mac")


async def test_a_port_or_an_address_outside_that_two_have_leads_to_the_older_one() -> None:
    def led(name: str, age: int, number: int) -> Vm:
        vm = runs(server(name, number, created=moment(age)), 8080)
        return vm.but(spec=vm.spec.but(nics=(vm.spec.nics[0].but(external=("203.0.113.7",)),)))

    found = await wanted(led("b", 2, 3), led("a", 1, 2))
    assert list(found.left_out) == [
        "published port 127.0.0.1 tcp 8080",
        "external address 203.0.113.7",
    ]
    assert "10.1.0.2 . 7" in elements(found.script, "exact4") and "10.1.0.3" not in elements(
        found.script, "exact4"
    )
    assert "203.0.113.7 : 10.1.0.2" in elements(found.script, "outer4")


# ---- a user's own networks


async def own_wanted(folder: Path, *documents: Any) -> Wanted:
    store = MemoryStore()
    await store.txn({}, {item.key: item.dump() for item in (LAN, *documents)})
    found = Networks(store, folder, Private(folder)).rules.wanted()
    assert found
    return found


async def test_what_is_published_of_a_users_own_networks_is_led_in_by_the_way_out(
    tmp_path: Path,
) -> None:
    vm = runs(server("a", 2), 8080)
    vm = vm.but(
        status=VmStatus(
            runtime=runtime(network="tap", ssh_host="127.0.0.1", ssh_port=40022, nics=vm.spec.nics)
        )
    )
    found = await own_wanted(tmp_path, vm)
    assert found.published == (
        Held("tcp", "127.0.0.1", 8080, 8080),
        Held("tcp", "127.0.0.1", 40022, 40022),
    ), "with our own way in"
    exact = elements(found.script, "exact4")
    assert (
        f"{ADDRESS} . tcp . 8080 : 10.1.0.2 . 7" in exact
        and f"{ADDRESS} . tcp . 40022 : 10.1.0.2 . 22" in exact
    )
    assert "127.0.0.1" not in exact
    assert (await wanted(vm)).published == (), "of the host's, nothing is"
    assert " . 22" not in elements((await wanted(vm)).script, "exact4")


async def test_a_users_own_networks_publish_nothing_by_ipv6_and_say_so(tmp_path: Path) -> None:
    vm = runs(server("a", 2), 8080)
    vm = vm.but(spec=vm.spec.but(publish=(Publish(address="::", host=8081, guest=7),)))
    found = await own_wanted(tmp_path, vm)
    assert found.published == () and "IPv6" in found.left_out["what a publishes"]


# ---- a server that runs is known as it was plugged


async def members(*documents: Any) -> dict[str, list[Member]]:
    """The NICs on each network, by the network's name."""
    store = MemoryStore()
    await store.txn({}, {item.key: item.dump() for item in documents})
    networks = Networks(store, Path("/nowhere"))
    return {network.name: networks.members(network.id) for network in networks.all()}


BACK = Network(
    meta=Meta(name="back"),
    spec=NetworkSpec(kind="isolated", ipv4="10.2.0.0/24"),
    status=NetworkStatus(state="ready", bridge="vb2"),
)


def moved(**began: Any) -> Vm:
    """A server whose two NICs changed places, its first being in a group now; both lead where they
    did when it was started.
    """
    first = Nic(network="lan", network_id=LAN.id, ipv4="10.1.0.2", mac="52:54:00:00:00:01")
    second = Nic(number=1, network="back", network_id=BACK.id, ipv4="10.2.0.2")
    wished = (
        Nic(
            network="back",
            network_id=BACK.id,
            ipv4="10.2.0.9",
            groups=("web",),
            external=("203.0.113.7",),
        ),
        Nic(number=1, network="lan", network_id=LAN.id, ipv4="10.1.0.9"),
    )
    status = VmStatus(runtime=runtime(network="tap", nics=(first, second), **began))
    return Vm(
        meta=Meta(name="a"),
        spec=VmSpec(image="tiny", nics=wished, publish=(Publish(host=8080, guest=7),)),
        status=status,
    )


async def test_a_nic_is_where_it_was_plugged_and_its_groups_are_as_wished() -> None:
    vm = moved()
    found = await members(LAN, BACK, vm)
    ((_, first),), ((_, second),) = found["lan"], found["back"]
    assert (first.number, first.ipv4, first.mac) == (0, "10.1.0.2", "52:54:00:00:00:01")
    assert (first.groups, first.external) == (("web",), ("203.0.113.7",))
    assert (second.number, second.ipv4) == (1, "10.2.0.2")
    text = (await wanted(group("web", WEB), BACK, vm)).script
    assert (
        "10.1.0.2" in elements(text, "four") and "10.1.0.9" not in text and "10.2.0.9" not in text
    )
    assert "10.1.0.2 . 7" in elements(text, "exact4"), (
        "what is published leads to the address that the guest has"
    )


async def test_with_the_next_start_it_is_where_it_is_wished() -> None:
    vm = moved()
    found = await members(LAN, BACK, vm.but(status=VmStatus()))
    assert [member.nic for member in (*found["back"], *found["lan"])] == list(vm.spec.nics)


async def test_a_nic_that_is_to_be_taken_out_is_guarded_until_it_is_and_leads_nowhere_from_outside() -> (
    None
):
    vm = moved()
    vm = vm.but(spec=vm.spec.but(nics=vm.spec.nics[:1], publish=()))
    (leaving,) = (await members(LAN, BACK, vm))["back"]
    assert (leaving.nic.number, leaving.nic.external) == (1, ())
    assert leaving.tap in elements((await wanted(BACK, vm)).script, "taps")


async def test_a_nic_that_is_to_be_plugged_has_its_rules_before() -> None:
    vm = moved()
    runs = vm.but(
        status=vm.status.but(
            runtime=runtime(
                network="tap", nics=vm.status.runtime.nics[:1] if vm.status.runtime else ()
            )
        )
    )
    (_, coming) = (await members(LAN, BACK, runs))["lan"]
    assert coming.nic == vm.spec.nics[1]


# ---- a host with another firewall on it


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    for made in lab_of(False):
        chain = "{ type filter hook forward priority 10; policy drop; }"
        made.run("h", "nft add table inet theirs", f"nft 'add chain inet theirs f {chain}'")
        yield made


OFFICE = Network(
    meta=Meta(name="office"), spec=NetworkSpec(kind="bridge", interface="vbr4"),
    status=NetworkStatus(state="ready", bridge="vbr4")
)  # fmt: skip


async def follow(folder: Path, *documents: Any) -> None:
    """What a daemon that has just begun makes of these documents."""
    store = MemoryStore()
    await store.txn({}, {item.key: item.dump() for item in documents})
    rules = Networks(store, folder).rules
    await rules.apply()
    await rules.pass_obstacles()


@pytest.mark.host
@pytest.mark.slow
def test_nothing_is_left_in_others_chains_when_only_bridged_networks_remain(
    lab: Lab, tmp_path: Path
) -> None:
    lab.on_host(follow, tmp_path, LAN, OFFICE)
    assert "virtuary:vb1:0" in lab.run("h", "nft list table inet theirs")
    lab.on_host(follow, tmp_path, OFFICE)
    assert "virtuary:" not in lab.run("h", "nft list table inet theirs") and "vbr4" in lab.run(
        "h", "nft list ruleset"
    )
    lab.on_host(follow, tmp_path)


@pytest.mark.host
@pytest.mark.slow
def test_a_daemon_removes_what_one_before_it_did_not_come_to_remove_and_nothing_of_another_instance(
    lab: Lab, tmp_path: Path
) -> None:
    lab.on_host(follow, tmp_path, LAN)
    lab.on_host(follow, tmp_path / "another")
    assert "virtuary:vb1:0" in lab.run("h", "nft list ruleset") and "inet virtuary" in lab.run(
        "h", "nft list tables"
    )
    lab.on_host(follow, tmp_path)
    assert "virtuary" not in lab.run("h", "nft list ruleset") and not list(tmp_path.iterdir())


async def follow_beside(folder: Path, notes: Path, name: str, *documents: Any) -> None:
    """The same of one of several instances that know of each other."""
    store = MemoryStore()
    await store.txn({}, {item.key: item.dump() for item in documents})
    networks = Networks(store, folder)
    networks.claim = claim(notes, "networks", folder / name, folder)
    await networks.rules.apply()


@pytest.mark.host
@pytest.mark.slow
def test_of_two_instances_with_networks_the_second_neither_changes_nor_removes_rules(
    lab: Lab, tmp_path: Path
) -> None:
    one, two, notes = tmp_path / "one", tmp_path / "two", tmp_path / "notes"
    lab.on_host(follow_beside, one, notes, "state", LAN)
    before = lab.run("h", "nft list ruleset")
    lab.on_host(follow_beside, two, notes, "state", OFFICE)
    two.mkdir(exist_ok=True)
    (two / "ruled").touch()  # as one has it that was here before instances knew of each other
    lab.on_host(follow_beside, two, notes, "state")
    assert lab.run("h", "nft list ruleset") == before and not list(two.iterdir())
    lab.on_host(follow_beside, one, notes, "state")
    lab.on_host(follow_beside, two, notes, "state", OFFICE)
    assert "vbr4" in lab.run("h", "nft list ruleset"), "what is free is taken"
    lab.on_host(follow_beside, two, notes, "state")
