"""Networks and NICs: what only one can have is refused to a second one, whoever it is, and before
anything is written.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from virtuary.actions import networks, power, trash, vms
from virtuary.actions.context import Context, all_vms, find_host, find_vm
from virtuary.base.errors import (
    Conflict,
    Exists,
    HostLacks,
    Invalid,
    NoRoom,
    NotFound,
    Refused,
    VirtuaryError,
)
from virtuary.base.units import GIB, MIB, parse_bandwidth
from virtuary.model.deeds import Start, Stop
from virtuary.model.host import Host, HostStatus, Link
from virtuary.model.image import Image, ImageSource, ImageSpec, ImageStatus
from virtuary.model.meta import Meta, utcnow
from virtuary.model.network import Network, NetworkChange, NetworkWish, mac_of
from virtuary.model.runtime import Runtime
from virtuary.model.vm import Vm, VmChange, VmWish
from virtuary.store.memory import MemoryStore

MAC, OUTSIDE = "52:54:00:aa:bb:cc", "203.0.113.7"


class Nothing:
    """A catalogue that knows no image but those that are there."""

    def canonical(self, name: str) -> str:
        return name

    def find_source(self, name: str) -> ImageSource:
        raise NotFound("no such image")


@pytest.fixture
async def ctx() -> Context:
    """A host with a network `lan` that leads outside, one `back` that does not, and `office` on its
    bridge br0.
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
    await network(context, "lan", ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
    await network(context, "back", ipv4="10.3.0.0/24", ipv6="fd00:3::/64", kind="isolated")
    await network(context, "office", kind="bridge", interface="br0")
    return context


async def network(ctx: Context, name: str, **fields: Any) -> Network:
    return await networks.create(ctx, NetworkWish.model_validate({"name": name, **fields}))


async def server(ctx: Context, name: str, *nics: dict[str, Any], **wish: Any) -> Vm:
    fields = {
        "image": "tiny",
        "name": name,
        "memory": 64 * MIB,
        "power": "stopped",
        "nics": nics,
        **wish,
    }
    vm, _ = await vms.create(ctx, VmWish.model_validate(fields))
    await settle(ctx)
    return vm


async def change(ctx: Context, name: str, *nics: dict[str, Any]) -> Vm:
    vm, _ = await vms.change(ctx, name, VmChange.model_validate({"nics": nics}))
    return vm


async def settle(ctx: Context) -> None:
    """Whoever carries out operations has done so."""
    await ctx.store.txn({}, {}, [record.key for record in ctx.store.list("operation/").records])


async def to_trash(ctx: Context, name: str) -> None:
    """Its disk was made, so it can come back."""
    vm = find_vm(ctx.store, name)
    await ctx.store.txn({}, {vm.key: vm.seen(disks={0: {"ready": True}}).dump()})
    await trash.delete(ctx, name)
    await settle(ctx)


def everything(ctx: Context) -> dict[str, bytes]:
    return {record.key: record.value for record in ctx.store.list("").records}


LAN, BACK = {"network": "lan"}, {"network": "back"}


def its_mac(ctx: Context) -> str:
    """The MAC address that the server `plain` has from its id."""
    return mac_of(find_vm(ctx.store, "plain").id)


REFUSED: dict[str, tuple[Callable[[Context], Awaitable[Any]], str]] = {
    "a MAC of another server": (lambda ctx: server(ctx, "two", {**LAN, "mac": MAC}),
    f"{MAC} is the MAC address of one on lan already"),
    "a MAC that another has from its id": (lambda ctx: server(ctx, "two", {**LAN,
    "mac": its_mac(ctx)}), "is the MAC address of plain"),
    "a MAC of one in the trash": (lambda ctx: server(ctx, "two", {**BACK, "mac": MAC}),
    "is the MAC address of gone on back"),
    "a MAC of another of its own": (lambda ctx: server(ctx, "two", *[{**LAN,
    "mac": "52:54:00:00:00:01"}] * 2), "of this server on lan"),
    "a change to a taken MAC": (lambda ctx: change(ctx, "plain", {**LAN, "mac": MAC}),
    "is the MAC address of one"),
    "a MAC twice on a bridge": (lambda ctx: server(ctx, "two", *[{"network": "office",
    "mac": MAC}] * 2), "of this server on office"),
    "an address outside of another": (lambda ctx: server(ctx, "two", {**LAN,
    "external": [OUTSIDE]}), f"{OUTSIDE} leads to one already"),
    "an address outside on two of its NICs": (
        lambda ctx: change(ctx, "plain", *[{**LAN, "external": ["203.0.113.8"]}] * 2),
        "203.0.113.8 leads to this server already",
    ),
    "a bridge that is joined": (lambda ctx: network(ctx, "desk", kind="bridge", interface="br0"),
    "br0 is joined by the network office"),
    "a VLAN that is joined": (lambda ctx: network(ctx, "desk", kind="bridge", interface="eth1",
    vlan=7), "VLAN 7 of eth1 is joined by the network seven"),
    "a bridge of ours": (
        lambda ctx: network(ctx, "desk", kind="bridge", interface=networks.find(ctx.store,
        "lan").bridge), "is one of Virtuary's own",
    ),
}  # fmt: skip


OF_A_USER: dict[str, tuple[Callable[[Context], Awaitable[Any]], str]] = {
    "the physical network": (lambda ctx: network(ctx, "desk", kind="bridge", interface="eth1"),
    "only root can join servers"),
    "an address outside": (lambda ctx: server(ctx, "two", {**LAN, "external": [OUTSIDE]}),
    "only root can have addresses"),
    "a port by IPv6": (
        lambda ctx: server(ctx, "two", LAN, publish=[{"address": "::", "host": 8080, "guest": 80}]),
        "publish on IPv4 alone",
    ),
    "where the way out is": (lambda ctx: network(ctx, "low", ipv4="10.0.2.0/25"),
    "10.0.2.0/25 meets 10.0.2.0/24"),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_A_USER)
async def test_what_an_ordinary_user_may_not_is_refused_and_root_may(
    ctx: Context, case: str
) -> None:
    deed, words = OF_A_USER[case]
    here = find_host(ctx.store, ctx.host_id)
    assert here.status
    await ctx.store.txn({}, {here.key: here.but(status=here.status.but(mode="user")).dump()})
    before = everything(ctx)
    with pytest.raises((Refused, Conflict)) as raised:
        await deed(ctx)
    assert words in raised.value.sentence and raised.value.hint
    assert everything(ctx) == before
    await ctx.store.txn({}, {here.key: here.dump()})
    await deed(ctx)


async def test_a_prefix_that_the_host_routes_twice_is_told_once(ctx: Context) -> None:
    twice = replace(ctx, routed=lambda: ["10.0.2.0/24", "10.0.2.0/24"])
    with pytest.raises(Conflict, match=r"10\.0\.2\.0/25 meets 10\.0\.2\.0/24, which"):
        await network(twice, "low", ipv4="10.0.2.0/25")


@pytest.mark.parametrize("case", REFUSED)
async def test_what_somebody_has_is_refused_to_a_second_one(ctx: Context, case: str) -> None:
    deed, words = REFUSED[case]
    await network(ctx, "seven", kind="bridge", interface="eth1", vlan=7)
    await server(ctx, "one", {**LAN, "mac": MAC, "external": [OUTSIDE]})
    await server(ctx, "plain", LAN)
    await server(ctx, "gone", {**BACK, "mac": MAC})
    await to_trash(ctx, "gone")
    before = everything(ctx)
    with pytest.raises(Conflict) as raised:
        await deed(ctx)
    assert words in raised.value.sentence and raised.value.hint
    assert everything(ctx) == before


async def test_one_mac_is_used_on_networks_apart_and_kept_by_its_own_server(ctx: Context) -> None:
    await server(ctx, "one", {**LAN, "mac": MAC}, {**BACK, "mac": MAC})
    assert (
        await change(ctx, "one", {**LAN, "mac": MAC, "external": [OUTSIDE]}, {**BACK, "mac": MAC})
    ).spec.nics[1].mac == MAC
    for name, fields in {"desk": {"vlan": 7}, "lab": {"vlan": 8}, "floor": {}}.items():
        await network(ctx, name, kind="bridge", interface="eth1", **fields)


NAMES: dict[str, tuple[Callable[[Context], Awaitable[Any]], str]] = {
    "that of a second NIC": (lambda ctx: server(ctx, "app-1", LAN),
    "app-1 is the name of NIC 1 of app on the network lan already"),
    "a second NIC's that is a server's": (
        lambda ctx: server(ctx, "web", BACK, LAN),
        "web-1 is another server's name on the network lan already",
    ),
    "by a NIC that is added": (lambda ctx: change(ctx, "web", BACK, LAN),
    "web-1 is another server's name"),
    "by another name": (lambda ctx: vms.rename(ctx, "other", "web"),
    "web-1 is another server's name"),
    "by coming back": (lambda ctx: trash.undelete(ctx, "web"), "web-1 is another server's name"),
    "the host's": (lambda ctx: server(ctx, "host", LAN), "host is the host's own name"),
    "everybody's": (lambda ctx: vms.rename(ctx, "app", "localhost"),
    "localhost is everybody's name for itself"),
    "the domain": (lambda ctx: server(ctx, "virtuary", LAN),
    "virtuary is the domain of the network lan"),
    "one that is too long": (lambda ctx: server(ctx, "a" * 62, BACK, LAN),
    "is too long for a name on the network lan"),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
async def test_a_name_on_a_network_is_one_nics_alone(ctx: Context, case: str) -> None:
    await server(ctx, "app", BACK, LAN)
    await server(ctx, "web-1", LAN)
    if case == "by another name":
        await server(ctx, "other", BACK, LAN)
    if case == "by a NIC that is added":
        await server(ctx, "web", BACK)
    if case == "by coming back":
        await ctx.store.txn({}, {}, ["vm-name/web-1"])
        (away,) = (vm for vm in all_vms(ctx.store) if vm.name == "web-1")
        await ctx.store.txn({}, {away.key: away.but(meta=away.meta.but(deleted=utcnow())).dump()})
        await server(ctx, "web", BACK, LAN)
        await to_trash(ctx, "web")
        await trash.undelete(ctx, "web-1")
    act, why = NAMES[case]
    before = everything(ctx)
    with pytest.raises((Exists, Invalid), match=why):
        await act(ctx)
    assert everything(ctx) == before


async def test_a_name_may_be_used_on_networks_apart(ctx: Context) -> None:
    await server(ctx, "app", LAN, BACK)
    await server(ctx, "app-1", LAN)


async def test_an_address_that_somebody_has_a_lease_of_is_chosen_last(ctx: Context) -> None:
    await network(ctx, "small", ipv4="10.9.0.0/29")
    leased = {f"10.9.0.{number}": MAC for number in range(2, 6)}
    ctx = replace(ctx, leased=lambda network_id: leased)
    found = [
        (await server(ctx, f"s{number}", {"network": "small"})).spec.nics[0].ipv4
        for number in range(5)
    ]
    assert found[0] == "10.9.0.6" and set(found[1:]) == set(leased), (
        "before somebody is refused it is"
    )


async def test_a_full_subnet_names_the_servers_in_the_trash_that_hold_addresses(
    ctx: Context,
) -> None:
    await network(ctx, "small", ipv4="10.9.0.0/29")
    for number in range(5):
        await server(ctx, f"s{number}", {"network": "small"})
    with pytest.raises(NoRoom, match=r"every address of small is taken$"):
        await server(ctx, "more", {"network": "small"})
    await to_trash(ctx, "s1")
    await to_trash(ctx, "s3")
    with pytest.raises(
        NoRoom, match=r"taken, some by servers in the trash: (s1, s3|s3, s1)"
    ) as told:
        await server(ctx, "more", {"network": "small"})
    assert told.value.hint and told.value.hint.startswith("virtuary purge s")


async def test_what_this_host_can_not_have_is_refused_at_once(ctx: Context) -> None:
    others = replace(ctx, network_fault=lambda: "another Virtuary has the networks of this host")
    before = everything(ctx)
    for act in (
        lambda: network(others, "mine"),
        lambda: server(others, "one", LAN),
        lambda: server(others, "one", {"network": "default"}),
    ):
        with pytest.raises(HostLacks, match="another Virtuary has the networks of this host"):
            await act()
    taken = replace(
        ctx, interface_fault=lambda name, tagged: (f"{name} is a part of bond0", "name bond0")
    )
    with pytest.raises(Conflict, match="eth1 is a part of bond0"):
        await network(taken, "desk", kind="bridge", interface="eth1")
    assert everything(ctx) == before


async def test_of_those_who_ask_at_once_for_the_same_one_gets_it(ctx: Context) -> None:
    asked = [network(ctx, name, kind="bridge", interface="eth2") for name in "abc"]
    asked += [server(ctx, name, {**LAN, "mac": MAC}) for name in "abc"]  # type: ignore[misc]
    said = await asyncio.gather(*asked, return_exceptions=True)
    assert (
        sum(isinstance(one, Network) for one in said)
        == sum(isinstance(one, Vm) for one in said)
        == 1
    )
    assert all(isinstance(one, Conflict) for one in said if isinstance(one, Exception))


def published(address: str, host: int = 8080) -> dict[str, Any]:
    return {"publish": [{"address": address, "host": host, "guest": 80}]}


async def test_a_port_is_one_servers_on_each_address(ctx: Context) -> None:
    with socket.socket() as program:
        program.bind(("0.0.0.0", 0))
        number = program.getsockname()[1]
    await server(ctx, "one", LAN, **published("127.0.0.1", number))
    await server(ctx, "two", LAN, **published("127.0.0.2", number))
    for address in ("127.0.0.1", "0.0.0.0"):
        with pytest.raises(Conflict, match=f"port {number}/tcp is published by (one|two) already"):
            await server(ctx, "three", LAN, **published(address, number))
    await server(ctx, "six", LAN, **published("::", number))


async def test_a_port_that_a_program_of_the_host_has_is_refused_at_each_start(ctx: Context) -> None:
    with socket.socket() as program:
        program.bind(("127.0.0.1", 0))
        number = program.getsockname()[1]
        program.close()
        await server(ctx, "one", LAN, **published("127.0.0.1", number))
    with socket.socket() as program:
        program.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        program.bind(("127.0.0.1", number))
        program.listen()
        with pytest.raises(
            Conflict, match=f"port {number}/tcp is in use on this host by another program"
        ):
            await power.power(ctx, "one", Start())
        ours = replace(ctx, held=lambda: {("tcp", "127.0.0.1", number)})
        await power.power(ours, "one", Start())


async def test_an_address_that_is_not_the_hosts_is_refused(ctx: Context) -> None:
    with pytest.raises(
        Invalid, match=r"8080/tcp can't be had: 192\.0\.2\.77 is no address of this host"
    ):
        await server(ctx, "one", LAN, **published("192.0.2.77"))


async def test_who_comes_back_from_the_trash_starts_only_with_ports_that_nobody_took(
    ctx: Context,
) -> None:
    port = {"publish": [{"host": 8007, "guest": 7}]}
    await server(ctx, "one", LAN, **port)
    await to_trash(ctx, "one")
    await server(ctx, "two", LAN, **port)
    await trash.undelete(ctx, "one")
    await power.power(ctx, "two", Start())
    await settle(ctx)
    before = everything(ctx)
    with pytest.raises(Conflict, match="port 8007/tcp is published by two already") as raised:
        await power.power(ctx, "one", Start())
    assert (
        raised.value.hint and "virtuary stop two" in raised.value.hint and everything(ctx) == before
    )
    await power.power(ctx, "two", Stop())
    await settle(ctx)
    vm, _ = await power.power(ctx, "one", Start())
    assert vm.spec.power == "running", "whichever is started first has the port"
    with pytest.raises(VirtuaryError, match="published by one already"):
        await power.power(ctx, "two", Start())


# ---- while it runs


async def begin(ctx: Context, name: str) -> Vm:
    """A server that was started as it is wished now."""
    vm = find_vm(ctx.store, name)
    runtime = Runtime(
        generation=vm.meta.generation, restarts=0, boot_id="b", pid=7, start=7, uid=7, accel="tcg",
        level="L1", network="tap",
        nics=vm.spec.nics, started=utcnow(),
    )  # fmt: skip
    vm = vm.but(
        spec=vm.spec.but(power="running"),
        status=vm.status.but(runtime=runtime, power={"applied": vm.meta.generation}),
    )
    await ctx.store.txn({}, {vm.key: vm.dump()})
    return vm


async def test_the_first_nic_waits_for_the_next_start_and_the_others_do_not(ctx: Context) -> None:
    await server(ctx, "one", LAN, BACK)
    before = await begin(ctx, "one")
    later = await change(ctx, "one", LAN, LAN)
    assert later.meta.generation == before.meta.generation and later.nics[1].network == "back", (
        "until it is plugged anew"
    )
    first = await change(ctx, "one", BACK, LAN)
    assert (
        first.meta.generation == before.meta.generation + 1 and first.nics[0] == before.spec.nics[0]
    )


async def test_what_a_server_runs_with_is_given_to_nobody_until_it_is_started_again(
    ctx: Context,
) -> None:
    await server(ctx, "one", {**LAN, "mac": MAC, "ipv4": "10.1.0.5"})
    await begin(ctx, "one")
    vm = await change(ctx, "one", BACK)
    for nic in ({**LAN, "mac": MAC}, {**LAN, "ipv4": "10.1.0.5"}):
        with pytest.raises(Conflict, match="one"):
            await server(ctx, "two", nic)
    with pytest.raises(Conflict, match="lan is used by one"):
        await networks.delete(ctx, "lan")
    await ctx.store.txn({}, {vm.key: vm.but(status=vm.status.but(runtime=None)).dump()})
    await server(ctx, "two", {**LAN, "mac": MAC, "ipv4": "10.1.0.5"})


def addresses(vm: Vm) -> list[str | None]:
    return [nic.ipv4 for nic in vm.spec.nics]


async def test_an_address_is_chosen_beside_those_that_the_servers_other_nics_are_to_have(
    ctx: Context,
) -> None:
    chosen = addresses(await server(ctx, "one", LAN))[0]
    assert addresses(await change(ctx, "one", BACK)) != [chosen]
    assert addresses(await change(ctx, "one", LAN)) == [chosen], "the same one again"
    await change(ctx, "one", BACK)
    first, second = addresses(await change(ctx, "one", LAN, {**LAN, "ipv4": chosen}))
    assert second == chosen and first not in (None, chosen), (
        "what is stated comes before what is chosen"
    )
    await change(ctx, "one", BACK, {**LAN, "ipv4": chosen})
    assert addresses(await change(ctx, "one", LAN, LAN)) == [first, chosen], (
        "and so does what a NIC has"
    )
    third = addresses(await change(ctx, "one", LAN, {**LAN, "ipv4": first}))
    assert third[1] == first and third[0] not in (None, first), (
        "a chosen address gives way to a stated one"
    )
    with pytest.raises(Conflict, match="is kept for this server"):
        await change(ctx, "one", {**LAN, "ipv4": first}, {**LAN, "ipv4": first})


async def test_what_the_first_nic_was_started_with_is_not_given_to_another_one_that_is_plugged_at_once(
    ctx: Context,
) -> None:
    await server(ctx, "one", {**LAN, "mac": MAC, "ipv4": "10.1.0.5"}, BACK)
    await begin(ctx, "one")
    for nic in ({**LAN, "mac": MAC}, {**LAN, "ipv4": "10.1.0.5"}):
        with pytest.raises(Conflict, match="this server"):
            await change(ctx, "one", BACK, nic)
    assert addresses(await change(ctx, "one", BACK, LAN))[1] not in (None, "10.1.0.5")


# ---- bandwidth


def floor(rate: str, **nic: Any) -> dict[str, Any]:
    return {**LAN, "bandwidth": {"inbound": {"floor": parse_bandwidth(rate)}}, **nic}


async def speed(ctx: Context, rate: str | None, name: str = "lan") -> Network:
    return await networks.change(
        ctx, name, NetworkChange(speed=parse_bandwidth(rate) if rate else None)
    )


async def test_the_floors_of_one_servers_nics_are_counted_together(ctx: Context) -> None:
    await speed(ctx, "100Mbit")
    with pytest.raises(NoRoom, match="25 Mbit/s are missing, of 95 Mbit/s others have 60 Mbit/s"):
        await server(ctx, "one", floor("60Mbit"), floor("60Mbit"))
    await server(ctx, "one", floor("60Mbit"), floor("35Mbit"))
    assert (await change(ctx, "one", floor("35Mbit"), floor("60Mbit"))).spec.nics[
        1
    ].bandwidth.inbound.floor == 60_000_000


async def test_what_was_promised_meanwhile_is_not_promised_again_to_who_comes_back_from_the_trash(
    ctx: Context,
) -> None:
    await speed(ctx, "100Mbit")
    await server(ctx, "one", floor("30Mbit"), floor("30Mbit"))
    await to_trash(ctx, "one")
    await server(ctx, "two", floor("50Mbit"))
    before = everything(ctx)
    with pytest.raises(NoRoom, match="15 Mbit/s are missing"):
        await trash.undelete(ctx, "one")
    assert everything(ctx) == before
    await change(ctx, "two", floor("35Mbit"))
    assert (await trash.undelete(ctx, "one")).name == "one"


async def test_a_link_does_not_become_slower_than_what_is_promised_of_it(ctx: Context) -> None:
    await speed(ctx, "1Gbit")
    await server(ctx, "one", floor("190Mbit"))
    for rate, words in {
        "100Mbit": "190 Mbit/s inbound, and 95 Mbit/s can be of one of 100 Mbit/s",
        None: "speed is not known",
    }.items():
        with pytest.raises(NoRoom, match=words) as raised:
            await speed(ctx, rate)
        assert raised.value.hint and "200 Mbit/s at least" in raised.value.hint
    assert (await speed(ctx, "200Mbit")).spec.speed == 200_000_000


async def test_a_speed_that_was_stated_can_be_taken_back(ctx: Context) -> None:
    await speed(ctx, "1Gbit")
    assert (
        await networks.change(ctx, "lan", NetworkChange(host_access=True))
    ).spec.speed == 10**9, "what is left out stays"
    assert (await speed(ctx, None)).spec.speed is None


async def test_a_bridge_promises_what_its_own_way_out_has(ctx: Context) -> None:
    host = find_host(ctx.store, "here")
    assert host.status
    host = host.but(
        status=host.status.but(
            links=(Link(name="eth0", speed=10**10), Link(name="eth1", speed=10**8))
        )
    )
    await ctx.store.txn({}, {host.key: host.dump()})
    await server(ctx, "fast", floor("2Gbit"))
    with pytest.raises(NoRoom, match="the speed of the network's link is not known"):
        await server(ctx, "one", floor("2Gbit", network="office"))
    office = networks.find(ctx.store, "office")
    await ctx.store.txn({}, {office.key: office.but(status=office.status.but(speed=10**8)).dump()})
    with pytest.raises(NoRoom, match="of 95 Mbit/s others have"):
        await server(ctx, "one", floor("2Gbit", network="office"))
    await server(ctx, "one", floor("90Mbit", network="office"))


# ---- addresses outside


async def test_an_address_of_the_host_is_not_given_away_but_what_was_placed_for_a_server_is_no_such(
    ctx: Context,
) -> None:
    there = replace(ctx, own_addresses=lambda: {"192.0.2.1", "192.0.2.40", OUTSIDE})
    with pytest.raises(Conflict, match="40 is an address of this host itself"):
        await server(there, "one", {**LAN, "external": ["192.0.2.40"]})
    lan = networks.find(ctx.store, "lan")
    await ctx.store.txn(
        {}, {lan.key: lan.but(status=lan.status.but(external=(("eth0", OUTSIDE),))).dump()}
    )
    await server(there, "one", {**LAN, "external": [OUTSIDE]})
    await server(ctx, "two", {**LAN, "external": ["192.0.2.40"]})
    assert (await change(there, "two", {**LAN, "external": ["192.0.2.40"]})).name == "two", (
        "what leads to it goes on to"
    )
