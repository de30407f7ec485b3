"""What a user may ask of networks. Each function checks everything first, tells all blockers, and
makes one transaction.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from virtuary.actions import account
from virtuary.actions.context import Context, decides, find_host, own_vms, raise_all, turn
from virtuary.base.errors import (
    Conflict,
    Exists,
    HostLacks,
    Invalid,
    NoRoom,
    NotFound,
    Refused,
    Stale,
    VirtuaryError,
)
from virtuary.base.units import format_bandwidth
from virtuary.model.bandwidth import RESERVE_PERCENT, usable
from virtuary.model.host import Link
from virtuary.model.meta import Meta, invalid
from virtuary.model.network import (
    DEFAULT,
    NONE,
    UPLINK,
    USER,
    Network,
    NetworkChange,
    NetworkSpec,
    NetworkWish,
    choose_subnets,
    link_speed,
)
from virtuary.model.vm import Vm
from virtuary.store import documents, servers
from virtuary.store.api import Store
from virtuary.store.documents import every


def find(store: Store, name: str) -> Network:
    """The network of this name or id; raises NotFound."""
    found = documents.find(store, Network, name)
    if found is None:
        raise NotFound(
            f"there is no network named {name[:80]!r}", "virtuary network list shows them"
        )
    return found


def find_or_draft(context: Context, name: str) -> Network:
    """The network of this name; the default one is made at its first use. Raises NotFound, or
    Conflict while it is removed.
    """
    try:
        network = find(context.store, name)
    except NotFound:
        if name != DEFAULT:
            raise
        return draft(context, NetworkWish(name=DEFAULT))
    if network.meta.purge:
        raise Conflict(f"the network {name} is being removed", "repeat in a moment")
    return network


def all_networks(store: Store) -> list[Network]:
    return every(store, Network)


def draft(context: Context, wish: NetworkWish) -> Network:
    """A network as it would be made, with subnets that meet nothing; raises Invalid or Conflict
    with what stands against it.
    """
    store, blockers = context.store, absent(context)
    used = [
        net for other in all_networks(store) for net in (other.spec.ipv4, other.spec.ipv6) if net
    ]
    routed = [*used, *context.routed(), *(UPLINK if is_users(context) else ())]
    for wanted in (wish.ipv4, wish.ipv6):
        blockers += _collisions(wanted, routed) if wanted else []
    fields = wish.model_dump(exclude={"name", "labels"})
    if wish.kind != "bridge" and not blockers:
        try:
            ipv4, ipv6 = choose_subnets(f"{context.host_id} {wish.name}", routed)
        except ValueError as error:
            raise Conflict(str(error)) from None
        fields |= {"ipv4": wish.ipv4 or ipv4, "ipv6": wish.ipv6 or ipv6}
    if wish.kind == "bridge" and wish.host_access:
        blockers.append(_nothing_to_open())
    if wish.kind == "bridge" and is_users(context):
        blockers.append(
            Refused(
                "only root can join servers to a physical network",
                "make one of kind nat or isolated",
            )
        )
    if wish.name in (USER, NONE):
        blockers.append(
            Invalid(
                f"{wish.name} is the name of a network that is always there", "choose another name"
            )
        )
    blockers += _joined(context, wish) if wish.interface else []
    raise_all(blockers)
    try:
        return Network(
            meta=Meta(name=wish.name, labels=wish.labels), spec=NetworkSpec.model_validate(fields)
        )
    except ValueError as error:
        raise Invalid(
            str(error).partition("Value error, ")[2].partition(" [")[0] or str(error)
        ) from None


def _collisions(wanted: str, routed: list[str]) -> list[VirtuaryError]:
    own = ipaddress.ip_network(wanted)
    found = (ipaddress.ip_network(text, strict=False) for text in routed)
    # a host may route one prefix several ways
    met = dict.fromkeys(
        str(net)
        for net in found
        if net.version == own.version and net.overlaps(own) and net.prefixlen
    )
    return (
        [
            Conflict(
                f"{wanted} meets {', '.join(met)}, which this host routes already",
                "choose another subnet",
            )
        ]
        if met
        else []
    )


OURS = re.compile(r"v[bl][0-9a-f]{10}(-[io])?|vt[0-9a-f]{10}n[0-9]")
"""Names of the interfaces that are made for networks and servers."""


def _joined(context: Context, wish: NetworkWish) -> list[VirtuaryError]:
    """Why a bridge of the physical network can't be where it is wished: that place has one network
    at most, and is not the host's own.
    """
    if OURS.fullmatch(wish.interface or ""):
        return [
            Conflict(
                f"{wish.interface} is one of Virtuary's own interfaces",
                "name a bridge or interface of the host's",
            )
        ]
    where = f"VLAN {wish.vlan} of {wish.interface}" if wish.vlan else f"{wish.interface}"
    place = wish.interface, wish.vlan
    same = [
        other.name
        for other in all_networks(context.store)
        if (other.spec.interface, other.spec.vlan) == place
    ]
    if same:
        return [
            Conflict(
                f"{where} is joined by the network {same[0]} already",
                f"--network {same[0]}, or another --vlan",
            )
        ]
    fault = context.interface_fault(wish.interface or "", wish.vlan is not None)
    return [Conflict(*fault)] if fault else []


def absent(context: Context) -> list[VirtuaryError]:
    """Why this host has no networks that servers share."""
    fault = context.network_fault()
    return [HostLacks(fault, "--network user needs none of them")] if fault else []


def _nothing_to_open() -> Invalid:
    return Invalid(
        "servers on a bridge reach this host as everybody on the physical network does: host "
        "access is not ours to give",
        "leave --host-access out; the host's own firewall decides",
    )


@decides
async def create(context: Context, wish: NetworkWish) -> Network:
    """Have a network made. Raises Exists, Invalid, Conflict."""
    waits, takes = turn(context)
    if context.store.get(Network.name_key(wish.name)):
        raise Exists(f"a network named {wish.name} is there already", "choose another name")
    network = draft(context, wish)
    expect = {network.named: 0, **waits}
    puts = {
        **documents.written(context.store, network),
        network.named: network.id.encode(),
        **takes,
    }
    revision = await context.commit(expect, puts)
    return network.but(meta=network.meta.but(revision=revision))


def is_users(context: Context) -> bool:
    """Whether these are the networks of an ordinary user, and not the host's."""
    try:
        status = find_host(context.store, context.host_id).status
    except NotFound:
        return False
    return status is not None and status.mode == "user"


def links_of(context: Context) -> Sequence[Link]:
    """The interfaces of this host that lead out of it."""
    try:
        status = find_host(context.store, context.host_id).status
    except NotFound:
        return ()
    return status.links if status else ()


CLEARED = ("speed", "mtu")
"""Fields of a change whose explicit null takes something away."""


def _overpromised(context: Context, network: Network, changed: Network) -> list[VirtuaryError]:
    """Why the link of a network can't become slower: what its servers are promised of it."""
    links, vms = links_of(context), own_vms(context)
    before, after = link_speed(network, links), link_speed(changed, links)
    if before is None or (after is not None and after >= before):
        return []
    promised = account.bandwidths([network], links, vms)[network.name]
    room = 0 if after is None else usable(after)
    over = {
        direction: balance.promised
        for direction, balance in promised.items()
        if balance.promised > room
    }
    if not over:
        return []
    told = " and ".join(f"{format_bandwidth(rate)} {direction}" for direction, rate in over.items())
    link = "one whose speed is not known" if after is None else f"one of {format_bandwidth(after)}"
    least = -(-max(over.values()) * 100 // (100 - RESERVE_PERCENT))
    what = (
        f"the servers of {network.name} are promised {told}, and {format_bandwidth(room)} can "
        f"be of {link}"
    )
    return [
        NoRoom(
            what,
            f"take floors from them, or state {format_bandwidth(least)} at least",
            promised=over,
            room=room,
        )
    ]


@decides
async def change(
    context: Context, name: str, wish: NetworkChange, revision: int | None = None
) -> Network:
    """Change a network while servers are on it. Raises Stale when `revision` is not current,
    Invalid when fields do not fit together, NoRoom when servers are promised more than a slower
    link has.
    """
    waits, takes = turn(context)
    network = find(context.store, name)
    if revision is not None and revision != network.meta.revision:
        raise Stale(f"{network.name} changed meanwhile", "look again and repeat")
    wished = wish.model_dump(exclude_unset=True)
    given = {
        field: value for field, value in wished.items() if value is not None or field in CLEARED
    }
    if network.spec.kind == "bridge" and given.get("host_access"):
        raise _nothing_to_open()
    labels = given.pop("labels", None)
    meta = network.meta if labels is None else network.meta.but(labels=labels)
    try:
        changed = network.but(spec=network.spec.but(**given), meta=meta)
    except ValidationError as error:
        raise invalid(error) from None
    if changed == network:
        return network
    raise_all(_overpromised(context, network, changed))
    revision = await context.commit(
        {network.key: network.meta.revision, **waits},
        {**documents.wished(context.store, changed), **takes},
    )
    return changed.but(meta=changed.meta.but(revision=revision))


@decides
async def delete(context: Context, name: str) -> Network:
    """Remove a network that no server is on. Raises Conflict naming the servers."""
    network = find(context.store, name)
    users = users_of(context.store, network)
    if users:
        names = ", ".join(
            vm.name + (" (in the trash)" if vm.meta.deleted else "") for vm in users[:10]
        )
        raise Conflict(
            f"the network {network.name} is used by {names}",
            "delete and purge these servers first, or set --network",
        )
    changed = network.but(meta=network.meta.but(purge=True))
    waits, _ = turn(context)  # a server that joins it meanwhile expects its revision
    expect = {network.key: network.meta.revision, **waits}
    await context.commit(expect, documents.wished(context.store, changed))
    return changed


def users_of(store: Store, network: Network) -> list[Vm]:
    """The servers with a NIC on it, those in the trash too, and those whose first NIC leaves it at
    their next start.
    """
    return [
        vm
        for vm in servers.on_network(store, network.id)
        if any(nic.network_id == network.id for nic in (*vm.spec.nics, vm.nics[0]))
    ]


def unfit(network: Network, address: str, taken: Mapping[str, str]) -> list[VirtuaryError]:
    """Why this address can't be a server's on the network."""
    assert network.spec.ipv4
    net, own = ipaddress.IPv4Network(network.spec.ipv4), ipaddress.IPv4Address(address)
    if (
        own not in net
        or own in (net.network_address, net.broadcast_address)
        or address in network.gateways
    ):
        return [
            Invalid(
                f"{address} is no address for a server of {network.name} ({net})",
                f"one between {net[2]} and {net[-2]}",
            )
        ]
    if address in taken:
        return [Conflict(f"{address} is kept for {taken[address]}", "choose another address")]
    return []
