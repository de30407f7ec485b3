"""Firewall groups: what is refused leaves nothing, what is used stays, and a verdict says who
decides, before rules and by them.
"""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_network
from typing import Any

import pytest

from virtuary.actions import copies, firewalls, networks, peers, trash, vms
from virtuary.actions.context import Context, all_vms, find_vm
from virtuary.base.errors import Conflict, Exists, Invalid, NotFound, Stale, VirtuaryError
from virtuary.base.units import GIB, MIB
from virtuary.model.firewall import FirewallChange, FirewallWish, Verdict, resolve
from virtuary.model.host import Host, HostStatus
from virtuary.model.image import Image, ImageSource, ImageSpec, ImageStatus
from virtuary.model.meta import Meta, utcnow
from virtuary.model.network import NetworkChange, NetworkWish
from virtuary.model.reach import members_of
from virtuary.model.vm import Vm, VmChange, VmCopy, VmWish
from virtuary.store.memory import MemoryStore


class Nothing:
    """A catalogue that knows no image but those that are there."""

    def canonical(self, name: str) -> str:
        return name

    def find_source(self, name: str) -> ImageSource:
        raise NotFound("no such image")


@pytest.fixture
async def ctx() -> Context:
    """A host with four networks: `lan` and `other` lead outside, `back` does not, `office` is a
    bridge of the physical network.
    """
    status = HostStatus(
        mode="system", version="1", cpus=8, memory=64 * GIB, memory_available=60 * GIB,
        disk=200 * GIB, disk_free=200 * GIB,
        accel="tcg",
    )  # fmt: skip
    host = Host(meta=Meta(id="here", name="here"), status=status)
    image = Image(
        meta=Meta(name="tiny"), spec=ImageSpec(source=ImageSource(kind="build", recipe="tiny")),
        status=ImageStatus(state="ready", virtual_size=256 * MIB, agent=True),
    )  # fmt: skip
    store = MemoryStore()
    await store.txn(
        {}, {host.key: host.dump(), image.key: image.dump(), "image-name/tiny": image.id.encode()}
    )
    context = Context(store, "tester", "here", Nothing())
    for name, fields in {
        "lan": {"ipv4": "10.1.0.0/24", "ipv6": "fd00:1::/64"},
        "other": {"ipv4": "10.2.0.0/24", "ipv6": "fd00:2::/64"},
        "back": {"ipv4": "10.3.0.0/24", "ipv6": "fd00:3::/64", "kind": "isolated"},
        "office": {"kind": "bridge", "interface": "br0"},
    }.items():
        await networks.create(context, NetworkWish.model_validate({"name": name, **fields}))
    return context


async def server(ctx: Context, name: str, *nics: Any, **wish: Any) -> Vm:
    """A server with these NICs: names of networks, or wishes."""
    wished = [{"network": nic} if isinstance(nic, str) else nic for nic in nics]
    fields = {
        "image": "tiny",
        "name": name,
        "memory": 64 * MIB,
        "power": "stopped",
        "nics": wished,
        **wish,
    }
    vm, _ = await vms.create(ctx, VmWish.model_validate(fields))
    await settle(ctx)
    return vm


async def settle(ctx: Context) -> None:
    """Whoever carries out operations has done so."""
    await ctx.store.txn({}, {}, [record.key for record in ctx.store.list("operation/").records])


async def group(ctx: Context, name: str, *rules: dict[str, Any]) -> None:
    await firewalls.create(ctx, FirewallWish.model_validate({"name": name, "rules": rules}))


def everything(ctx: Context) -> dict[str, bytes]:
    return {record.key: record.value for record in ctx.store.list("").records}


def on(network: str, *groups: str) -> dict[str, Any]:
    return {"network": network, "groups": groups}


def rule(direction: str, action: str = "allow", **fields: Any) -> dict[str, Any]:
    return {"direction": direction, "action": action, **fields}


# ---- groups


async def test_a_group_is_created_found_changed_and_deleted(ctx: Context) -> None:
    made = await firewalls.create(
        ctx,
        FirewallWish.model_validate({"name": "web", "rules": [rule("in")], "labels": {"a": "b"}}),
    )
    assert firewalls.find(ctx.store, "WEB") == firewalls.find(ctx.store, made.id) == made
    changed = await firewalls.change(ctx, "web", FirewallChange(description="for the web"))
    assert (changed.spec.rules, changed.meta.labels) == (made.spec.rules, {"a": "b"}), (
        "what is left out stays"
    )
    again = await firewalls.change(ctx, "web", FirewallChange(rules=()), changed.meta.revision)
    assert again.spec.rules == () and again.spec.description == "for the web"
    before = everything(ctx)
    assert (
        await firewalls.change(ctx, "web", FirewallChange(rules=())) == again
        and everything(ctx) == before
    )
    await firewalls.delete(ctx, "web")
    assert not [key for key in everything(ctx) if key.startswith("firewall")]


REFUSED: dict[str, tuple[Any, type[VirtuaryError], str]] = {
    "a taken name": (lambda ctx: group(ctx, "web"), Exists, "web is there already"),
    "an unknown group": (lambda ctx: group(ctx, "db", rule("in", peers=["group:lost"])), NotFound,
    "no firewall group named lost"),
    "an unknown server": (lambda ctx: group(ctx, "db", rule("in", peers=["server:lost"])), NotFound,
    "no server named lost"),
    "both at once": (lambda ctx: group(ctx, "db", rule("in", peers=["server:lost", "group:lost"])),
    NotFound, "lost; there is no firewall"),
    "a stale change": (lambda ctx: firewalls.change(ctx, "web", FirewallChange(description="x"), 1),
    Stale, "changed meanwhile"),
    "a change of nothing": (lambda ctx: firewalls.change(ctx, "lost", FirewallChange()), NotFound,
    "no firewall group named 'lost'"),
    "a change to strangers": (lambda ctx: firewalls.change(ctx, "web",
    FirewallChange.model_validate({"rules": [rule("in", peers=["group:lost"])]})), NotFound,
    "group named lost"),
    "deletion while attached": (lambda ctx: firewalls.delete(ctx, "web"), Conflict,
    "attached to one; rules of named name"),
    "deletion of nothing": (lambda ctx: firewalls.delete(ctx, "lost"), NotFound,
    "no firewall group"),
    "an unknown group of a NIC": (lambda ctx: server(ctx, "two", on("lan", "lost")), NotFound,
    "no firewall group named 'lost'"),
    "a group by its id": (lambda ctx: server(ctx, "two", on("lan", firewalls.find(ctx.store,
    "web").id)), NotFound, "no firewall group named"),
    "a group on a bridge": (lambda ctx: server(ctx, "two", on("office", "web")), Invalid,
    "office, a bridge of the physical network"),
    "a group on user": (lambda ctx: server(ctx, "two", on("user", "web")), Invalid,
    "do nothing on the network `user`"),
    "a group without a cable": (lambda ctx: server(ctx, "two", on("none", "web")), Invalid,
    "do nothing on the network `none`"),
    "a change to an unknown group": (lambda ctx: vms.change(ctx, "one",
    VmChange.model_validate({"nics": [on("lan", "lost")]})), NotFound, "lost"),
    "a default of a bridge": (lambda ctx: networks.create(ctx, NetworkWish(name="desk",
    kind="bridge", interface="br1", default_in="deny")), Invalid, "packet filter"),
    "a new default of a bridge": (lambda ctx: networks.change(ctx, "office",
    NetworkChange(default_out="reject")), Invalid, "packet filter"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_refused_leaves_nothing(ctx: Context, case: str) -> None:
    deed, kind, words = REFUSED[case]
    await group(ctx, "web", rule("in"))
    await group(ctx, "named", rule("in", peers=["group:web"]))
    await server(ctx, "one", on("lan", "web"))
    before = everything(ctx)
    with pytest.raises(kind) as raised:
        await deed(ctx)
    assert (
        words in raised.value.sentence and raised.value.hint
    ) or "packet filter" in raised.value.sentence
    assert everything(ctx) == before


def test_a_group_is_named_once() -> None:
    with pytest.raises(ValueError, match="web is named twice"):
        VmWish.model_validate({"image": "tiny", "nics": [on("lan", "web", "db", "WEB")]})


async def test_a_rule_may_name_its_own_group_which_can_then_be_deleted(ctx: Context) -> None:
    await group(ctx, "web", rule("in", peers=["group:web"]))
    await firewalls.delete(ctx, "web")


def seen(ctx: Context, name: str) -> list[tuple[str, ...]]:
    """The peers of a group's rules as people and the API see them."""
    shown = peers.show(ctx.store, firewalls.find(ctx.store, name))
    return [rule.peers for rule in shown.spec.rules]


async def to_trash(ctx: Context, name: str) -> Vm:
    found = find_vm(ctx.store, name)
    gone = found.but(meta=found.meta.but(deleted=utcnow()))
    await ctx.store.txn({}, {gone.key: gone.dump()}, [f"vm-name/{name}"])
    return gone


async def test_rules_mean_the_same_server_when_it_has_another_name(ctx: Context) -> None:
    one, two = await server(ctx, "one", "lan"), await server(ctx, "two", "lan")
    await group(
        ctx,
        "web",
        rule("in", "deny", peers=["server:one", "server:two"]),
        rule("out", peers=["10.0.0.0/8"]),
        rule("in", peers=["server:one"]),
    )
    kept = firewalls.find(ctx.store, "web")
    assert kept.servers() == {one.id, two.id}
    await vms.rename(ctx, "one", "uno")
    assert firewalls.find(ctx.store, "web") == kept, "a new name is nothing to write down"
    assert seen(ctx, "web") == [("server:uno", "server:two"), ("10.0.0.0/8",), ("server:uno",)]
    await to_trash(ctx, "two")
    shown = peers.show(ctx.store, kept)
    assert shown.spec.rules[0].peers == ("server:uno", f"server:{two.id}")
    assert shown.status.trashed == {two.id: "two"} and not shown.status.purged
    await server(ctx, "two", "lan")
    assert seen(ctx, "web")[0] == ("server:uno", f"server:{two.id}"), "which is not the new one"
    await trash.undelete(ctx, "two", "due")
    assert seen(ctx, "web")[0] == ("server:uno", "server:due")
    assert firewalls.find(ctx.store, "web") == kept


async def test_a_rule_whose_server_is_gone_never_means_the_next_one_of_its_name(
    ctx: Context,
) -> None:
    one = await server(ctx, "one", "lan")
    await group(ctx, "web", rule("in", peers=["server:one", "10.0.0.0/8"]))
    kept = firewalls.find(ctx.store, "web").without(one.id, "one")
    await ctx.store.txn({}, {kept.key: kept.dump()}, [one.key, "vm-name/one"])
    again = await server(ctx, "one", "lan")
    shown = peers.show(ctx.store, firewalls.find(ctx.store, "web"))
    assert shown.status.purged == {one.id: "one"}
    assert shown.spec.rules[0].peers == (f"server:{one.id}", "10.0.0.0/8")
    met = [(vm, nic) for vm in all_vms(ctx.store) for nic in vm.nics]
    assert resolve(kept.spec.rules[0], members_of(met)).peers == (ip_network("10.0.0.0/8"),)
    # what is shown can be written back, and means the same
    wish = FirewallChange(rules=shown.spec.rules, description="x")
    assert (await firewalls.change(ctx, "web", wish)).status.purged == {one.id: "one"}
    wish = FirewallChange.model_validate({"rules": [rule("in", peers=["server:one"])]})
    changed = await firewalls.change(ctx, "web", wish)
    assert changed.servers() == {again.id} and not changed.status.purged, "nobody names it now"
    with pytest.raises(NotFound, match="no server named"):
        await group(ctx, "db", rule("in", peers=[f"server:{one.id}"]))


async def test_a_server_is_named_by_its_id_too_also_in_the_trash(ctx: Context) -> None:
    one = await server(ctx, "one", "lan")
    await group(ctx, "web", rule("in", peers=[f"server:{one.id}"]))
    assert seen(ctx, "web") == [("server:one",)]
    await to_trash(ctx, "one")
    await group(ctx, "db", rule("in", peers=[f"server:{one.id}"]))
    assert firewalls.find(ctx.store, "db").servers() == {one.id}


async def test_rules_of_before_which_held_names_mean_the_server_that_had_the_name(
    ctx: Context,
) -> None:
    one, two = await server(ctx, "one", "lan"), await server(ctx, "two", "lan")
    await to_trash(ctx, "two")
    await server(ctx, "two", "lan")
    newer = await to_trash(ctx, "two")
    named = ["server:one", "server:two", "server:lost", "group:web", "10.0.0.0/8"]
    before = {
        "meta": {"id": "old-id", "name": "web", "created": "2026-01-01T00:00:00Z"},
        "spec": {"rules": [rule("in", peers=named), rule("in", "deny")], "description": "x"},
    }
    key = "firewall/old-id"
    await ctx.store.txn({}, {key: json.dumps(before).encode(), "firewall-name/web": b"old-id"})
    await peers.bring_over(ctx.store)
    kept = firewalls.find(ctx.store, "web")
    (lost,) = kept.status.purged
    ids = [f"server:{item}" for item in (one.id, newer.id, lost)]
    assert kept.status.purged == {lost: "lost"} and two.id not in kept.servers()
    assert [item.peers for item in kept.spec.rules] == [(*ids, "group:web", "10.0.0.0/8"), ()]
    assert kept.spec.description == "x" and kept.spec.rules[1].action == "deny"
    written = everything(ctx)
    await peers.bring_over(ctx.store)
    assert everything(ctx) == written
    await server(ctx, "lost", "lan")
    assert seen(ctx, "web")[0][2] == f"server:{lost}", "nobody, as long as nobody says otherwise"


async def test_a_group_in_the_trash_is_still_used(ctx: Context) -> None:
    await group(ctx, "web")
    vm = await server(ctx, "one", on("lan", "web"))
    there = find_vm(ctx.store, "one")
    await ctx.store.txn({}, {vm.key: there.seen(disks={0: {"ready": True}}).dump()})
    await trash.delete(ctx, "one")
    with pytest.raises(Conflict, match="in the trash"):
        await firewalls.delete(ctx, "web")


@pytest.mark.parametrize("seed", range(4))
async def test_who_attaches_and_who_deletes_at_once_never_leave_a_group_that_is_gone(
    ctx: Context, seed: int
) -> None:
    await group(ctx, "web")
    await group(ctx, "db")
    deeds = [
        firewalls.delete(ctx, "web"),
        server(ctx, "one", on("lan", "web")),
        firewalls.change(
            ctx, "db", FirewallChange.model_validate({"rules": [rule("in", peers=["group:web"])]})
        ),
    ]
    results = await asyncio.gather(*deeds[seed % 3 :], *deeds[: seed % 3], return_exceptions=True)
    assert all(
        not isinstance(one, BaseException) or isinstance(one, Conflict | NotFound)
        for one in results
    )
    kept = bool(ctx.store.get("firewall-name/web"))
    rules = firewalls.find(ctx.store, "db").spec.rules
    assert kept == bool(ctx.store.get("vm-name/one")) or (kept and rules)
    assert kept or not rules


# ---- servers


async def test_a_change_of_groups_waits_for_no_start_and_keeps_the_address(ctx: Context) -> None:
    await group(ctx, "web")
    before = await server(ctx, "one", "lan")
    after, operation = await vms.change(
        ctx, "one", VmChange.model_validate({"nics": [on("lan", "web")]})
    )
    assert operation is None and after.meta.generation == before.meta.generation
    assert after.spec.nics[0] == before.spec.nics[0].but(groups=("web",))
    moved, _ = await vms.change(ctx, "one", VmChange.model_validate({"nics": [on("other", "web")]}))
    assert moved.meta.generation == before.meta.generation + 1


async def test_a_copy_is_attached_to_the_groups_of_its_source(ctx: Context) -> None:
    await group(ctx, "web")
    vm = await server(ctx, "one", on("lan", "web"))
    there = find_vm(ctx.store, "one")
    await ctx.store.txn({}, {vm.key: there.seen(disks={0: {"ready": True, "size": GIB}}).dump()})
    assert copies.draft(ctx, "one", VmCopy(name="two")).vm.spec.nics[0].groups == ("web",)


async def test_peers_are_the_addresses_of_all_nics(ctx: Context) -> None:
    await group(ctx, "web")
    one = await server(ctx, "one", on("lan", "web"), "back")
    two = await server(ctx, "two", on("lan", "web"))
    own = [
        tuple(ip_network(text or "") for text in (nic.ipv4, nic.ipv6))
        for vm in (one, two)
        for nic in vm.spec.nics
    ]
    found = members_of((vm, nic) for vm in (one, two) for nic in vm.spec.nics)
    assert found == {
        f"server:{one.id}": own[0] + own[1],
        f"server:{two.id}": own[2],
        "group:web": own[0] + own[2],
    }
    assert {net.prefixlen for nets in found.values() for net in nets} == {32, 128}


# ---- asking


async def story(ctx: Context) -> None:
    await group(ctx, "web")
    await group(
        ctx,
        "db",
        rule("in", protocol="tcp", ports=["5432"], peers=["group:web"]),
        rule("in", "reject"),
    )
    await networks.change(ctx, "other", NetworkChange(default_in="deny", host_access=True))
    await server(ctx, "web1", on("lan", "web"), "back", publish=[{"host": 5433, "guest": 5432}])
    await server(
        ctx, "web2", on("lan", "web"), publish=[{"host": 8080, "guest": 80, "address": "0.0.0.0"}]
    )
    await server(ctx, "db1", "back", on("lan", "db"))
    rules = [rule("out", "deny", protocol="tcp", ports=["25"]), rule("in", peers=["server:db1"])]
    await firewalls.change(ctx, "web", FirewallChange.model_validate({"rules": rules}))
    await server(ctx, "far", "other", publish=[{"host": 8443, "guest": 443, "address": "0.0.0.0"}])
    await server(ctx, "alone", "back")
    await server(ctx, "private", "user")
    await server(ctx, "mute", "none")
    await server(ctx, "desk", "office")


OUT = "192.0.2.7"
PUBLISHED = "reached from elsewhere by published ports"
STORY: dict[str, tuple[str, str, str, str]] = {
    "by the NICs on the network both share first": ("web1", "db1", "tcp/5432",
    "allowed by rule 1 of group db, on the inbound side of db1"),
    "on the only network both share": ("web1", "alone", "tcp/25",
    "allowed by the inbound default of network back, on the inbound side of alone"),
    "by a rule of a group": ("web2", "db1", "tcp/5432",
    "allowed by rule 1 of group db, on the inbound side of db1"),
    "by the rule after it": ("web2", "db1", "tcp/22",
    "rejected by rule 2 of group db, on the inbound side of db1"),
    "outbound first": ("web2", "db1", "tcp/25",
    "denied by rule 1 of group web, on the outbound side of web2"),
    "by what comes back": ("db1", "web2", "icmp",
    "allowed by rule 2 of group web, on the inbound side of web2"),
    "to the outside": ("web2", OUT, "tcp/443",
    "allowed by the outbound default of network lan, on the outbound side of web2"),
    "to the outside by IPv6": ("web2", "2001:db8::7", "tcp/25",
    "denied by rule 1 of group web, on the outbound side of web2"),
    "to the outside by the NIC that is first": ("alone", OUT, "tcp/443",
    "rejected: servers on the isolated network back reach only each other"),
    "from an isolated network to another": ("alone", "web2", "tcp/80",
    "rejected: servers on the isolated network back reach only each other"),
    "to an isolated network": ("web2", "alone", "tcp/80",
    "rejected: servers on the network back are reached from elsewhere by published ports"),
    "from outside to an isolated one": (OUT, "alone", "tcp/80",
    "denied: servers on the network back are reached from elsewhere by published ports"),
    "from outside": (OUT, "web2", "tcp/22",
    f"denied: servers on the network lan are {PUBLISHED}, and tcp port 22 of web2 is not "
    "published"),
    "from outside by IPv6, where it is published by IPv4": ("2001:db8::7", "web2", "tcp/80",
    f"denied: servers on the network lan are {PUBLISHED}, and tcp port 80 of web2 is not"),
    "from another network": ("far", "web2", "icmp",
    f"rejected: servers on the network lan are {PUBLISHED}, and icmp of web2 is not published"),
    "from outside by a published port": (OUT, "web2", "tcp/80",
    "allowed by the inbound default of network lan, on the inbound side of web2"),
    "from outside past the default": (OUT, "far", "tcp/443",
    "denied by the inbound default of network other, on the inbound side of far"),
    "by a port published on loopback only": (OUT, "web1", "tcp/5432",
    f"denied: servers on the network lan are {PUBLISHED}, and tcp port 5432 of web1 is published "
    "to this host"),
    "to a published port of the host": (OUT, "10.1.0.1", "tcp/8080",
    "allowed by the inbound default of network lan, on the inbound side of web2"),
    "to the host": ("web2", "10.1.0.1", "tcp/22",
    "rejected: the network lan lets no server reach the services of this host"),
    "to the host, which is let": ("far", "10.2.0.1", "tcp/22",
    "allowed by the outbound default of network other, on the outbound side of far"),
    "names": ("alone", "10.3.0.1", "udp/53", "allowed: this host answers its servers' pings"),
    "names of another network": ("web2", "10.2.0.1", "udp/53",
    "rejected: the network lan lets no server reach the services of this host"),
    "names of another network, where the host is open": ("far", "10.1.0.1", "udp/53",
    "allowed by the outbound default of network other"),
    "a ping to the host": ("web2", "10.1.0.1", "icmp", "allowed: this host answers"),
    "from the host": ("10.1.0.1", "db1", "tcp/1", "allowed: this host reaches its servers always"),
    "to nobody": ("web2", "10.1.0.255", "tcp/1",
    "denied: 10.1.0.255 is no server's address on the network lan"),
    "to nobody elsewhere": ("web2", "10.2.0.255", "tcp/1",
    "rejected: 10.2.0.255 is no server's address on the network other"),
    "to itself": ("db1", "db1", "tcp/22", "allowed: what db1 says to itself does not leave it"),
    "between strangers": (OUT, "198.51.100.1", "tcp/22",
    "allowed: neither side is a server's network card"),
    "on the network user": ("private", "web2", "tcp/22",
    "allowed: private is on the network `user`"),
    "to the network user": ("web2", "private", "tcp/22",
    "denied: private is on the network `user`"),
    "without a cable": ("web2", "mute", "tcp/22", "denied: mute has no cable"),
}  # fmt: skip


def ask(ctx: Context, source: str, destination: str, service: str) -> Verdict:
    protocol, _, port = service.partition("/")
    return firewalls.test(ctx, source, destination, protocol, int(port) if port else None)


async def test_the_verdict_names_who_decides(ctx: Context) -> None:
    await story(ctx)
    wrong = {}
    for case, (source, destination, service, words) in STORY.items():
        if words not in (said := ask(ctx, source, destination, service).sentence):
            wrong[case] = said
    assert not wrong


async def test_an_address_of_a_server_is_that_server(ctx: Context) -> None:
    await story(ctx)
    web2, db1 = find_vm(ctx.store, "web2").spec.nics[0], find_vm(ctx.store, "db1").spec.nics[1]
    expected = ask(ctx, "web2", "db1", "tcp/22")
    for source in (web2.ipv4, web2.ipv6):
        assert ask(ctx, source or "", "db1", "tcp/22") == expected
    assert ask(ctx, "web2", db1.ipv6 or "", "tcp/22") == expected
    assert ask(ctx, OUT, "web2", "tcp/80").action == "allow", "by its published port"
    assert "not by their own addresses" in ask(ctx, OUT, web2.ipv4 or "", "tcp/80").sentence, (
        "nobody can route to it"
    )


ODD: dict[str, tuple[str, str, str, type[VirtuaryError], str]] = {
    "an unknown server": ("lost", "web2", "tcp/1", NotFound, "no server named"),
    "no protocol": ("web1", "web2", "sctp/1", Invalid, "no protocol that can be tested"),
    "no port": ("web1", "web2", "tcp", Invalid, "icmp has none"),
    "a port of icmp": ("web1", "web2", "icmp/1", Invalid, "icmp has none"),
    "an impossible port": ("web1", "web2", "tcp/65536", Invalid, "from 1 to 65535"),
    "loopback": ("web1", "127.0.0.1", "tcp/1", Invalid, "is no address by which"),
    "everybody": ("web1", "255.255.255.255", "udp/1", Invalid, "is no address by which"),
    "a scope": ("web1", "fe80::1%eth0", "udp/1", Invalid, "is no address by which"),
    "two families": (OUT, "2001:db8::7", "tcp/1", Invalid, "different address families"),
    "a bridge": (
        "desk",
        "web2",
        "tcp/1",
        Invalid,
        "desk has no IPv4 address of this host's networks",
    ),
}


@pytest.mark.parametrize("case", ODD)
async def test_what_can_not_be_answered_is_refused(ctx: Context, case: str) -> None:
    await story(ctx)
    source, destination, service, kind, words = ODD[case]
    with pytest.raises(kind, match=words):
        ask(ctx, source, destination, service)
