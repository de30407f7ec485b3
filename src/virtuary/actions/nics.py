"""The NICs of a server as they will be: which networks they join, and the addresses that are kept
for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from virtuary.actions import firewalls, networks
from virtuary.actions.context import Context, all_vms, find_host, own_vms
from virtuary.base.errors import Conflict, Invalid, NoRoom, NotFound, Refused, VirtuaryError
from virtuary.model.bandwidth import Bandwidth, admit, refusal
from virtuary.model.firewall import Firewall
from virtuary.model.network import (
    NONE,
    USER,
    Network,
    Nic,
    NicWish,
    choose_ipv4,
    eui64,
    link_speed,
    own_mac,
)
from virtuary.model.publish import Publish
from virtuary.model.vm import Vm
from virtuary.store import documents
from virtuary.store.api import Store


@dataclass
class Joined:
    """NICs with their addresses, the network that has to be made for them, and everything that
    stands against them.
    """

    nics: tuple[Nic, ...] = ()
    networks: dict[str, Network] = field(default_factory=dict)
    """Those they join, by name; one without a revision is to be made."""
    groups: dict[str, Firewall] = field(default_factory=dict)
    """The firewall groups they are attached to, by name."""
    blockers: list[VirtuaryError] = field(default_factory=list)


@dataclass
class Taken:
    """What only one NIC can have, and whose it is: by address, by network's id and MAC, by address
    outside.
    """

    addresses: dict[str, str] = field(default_factory=dict)
    macs: dict[tuple[str, str], str] = field(default_factory=dict)
    external: dict[str, str] = field(default_factory=dict)

    def add(self, nic: Nic, mac: str, whose: str) -> None:
        if nic.ipv4:
            self.addresses[nic.ipv4] = whose
        if nic.network_id:
            self.macs[nic.network_id, mac] = whose
        self.external |= dict.fromkeys(nic.external, whose)


def find_taken(context: Context, vm_id: str) -> Taken:
    """What the NICs of other servers hold, those in the trash too; of one that runs also what it
    was started with.
    """
    taken = Taken()
    for vm in all_vms(context.store):
        for nic in (*vm.spec.nics, *vm.nics) if vm.id != vm_id else ():
            taken.add(nic, own_mac(vm.id, nic), vm.name)
    return taken


def join(
    context: Context, vm_id: str, wishes: Sequence[NicWish] | None, before: Vm | None = None
) -> Joined:
    """Work out the NICs of a server. `before`: the server as it is; a wish for the network of one
    of its NICs in the same place keeps that as it is, unless another one is to have its address.
    """
    found = Joined()
    if wishes is None:
        wishes = (NicWish(network=default_of(context)),)
    kept = before.spec.nics if before else ()
    claims = _claims(wishes, kept)
    taken = find_taken(context, vm_id)
    nics: list[Nic] = []
    for number, wish in enumerate(wishes):
        # the first NIC runs on as it was, others are plugged now
        if number == 1 and before and before.status.runtime:
            taken.add(
                before.nics[0].but(external=()), own_mac(vm_id, before.nics[0]), "this server"
            )
        if number and wish.network == USER:
            found.blockers.append(
                Invalid("only the first NIC can be on the network `user`", "name it first")
            )
            continue
        if wish.network in (USER, NONE):
            found.blockers += ungrouped(wish, f"the network `{wish.network}`")
            found.blockers += unshaped(wish)
            if wish.external:
                found.blockers.append(
                    Invalid(f"no address leads to a NIC on the network `{wish.network}`", NAT_ONLY)
                )
            nics.append(Nic(number=number, network=wish.network, mac=wish.mac))
            continue
        try:
            network = found.networks.get(wish.network) or networks.find_or_draft(
                context, wish.network
            )
        except VirtuaryError as error:
            found.blockers.append(error)
            continue
        if network.meta.revision and wish.network not in found.networks:
            # of one that is to be made it was asked already
            found.blockers += networks.absent(context)
        found.networks[wish.network] = network
        found.blockers += _promised(context, vm_id, wish.bandwidth, network, nics)
        nics.append(_place(found, context, vm_id, number, wish, network, taken, kept, claims))
    found.nics = tuple(nics) or (Nic(network=NONE),)
    return found


def _claims(wishes: Sequence[NicWish], kept: Sequence[Nic]) -> dict[int, str]:
    """The IPv4 addresses that are settled before one is chosen for anybody, by the NIC's number.
    Pure.
    """
    stated = {number: wish.ipv4 for number, wish in enumerate(wishes) if wish.ipv4}
    stays = [
        old
        for old in kept
        if old.number < len(wishes) and wishes[old.number].network == old.network
    ]
    return {
        old.number: old.ipv4 for old in stays if old.ipv4 and old.ipv4 not in stated.values()
    } | stated


def _place(
    found: Joined, context: Context, vm_id: str, number: int, wish: NicWish, network: Network,
    taken: Taken, kept: Sequence[Nic],
    claims: Mapping[int, str],
) -> Nic:  # fmt: skip
    nic = Nic(
        number=number, network=network.name, network_id=network.id, mac=wish.mac,
        unguarded=wish.unguarded, groups=wish.groups,
        bandwidth=wish.bandwidth, external=wish.external,
    )  # fmt: skip
    _attach(found, context, wish, network)
    found.blockers += _external(context, wish, network, taken.external, kept)
    mac = own_mac(vm_id, nic)
    found.blockers += _twice(network, mac, taken.macs)
    taken.add(nic, mac, "this server")
    if network.spec.ipv4 is None and wish.ipv4:
        found.blockers.append(
            Invalid(f"the addresses of {network.name} are the physical network's", "leave out ip=")
        )
    if network.spec.ipv4 is None:
        return nic
    address = claims.get(number) or _choose(
        context, network, network.spec.ipv4, mac, {*taken.addresses, *claims.values()}
    )
    if address is None:
        found.blockers.append(_full(context, network))
        return nic
    if wish.ipv4:
        found.blockers += networks.unfit(network, address, taken.addresses)
    taken.addresses[address] = "this server"
    return nic.but(ipv4=address, ipv6=eui64(network.spec.ipv6, mac) if network.spec.ipv6 else None)


def _choose(
    context: Context, network: Network, subnet: str, mac: str, busy: set[str]
) -> str | None:
    """A free address, one that nobody has a lease of where there is one: a lease that its NIC
    outlived is released in a moment.
    """
    leased = {address for address, whose in context.leased(network.id).items() if whose != mac}
    return choose_ipv4(subnet, mac, busy | leased) or choose_ipv4(subnet, mac, busy)


def _full(context: Context, network: Network) -> NoRoom:
    trashed = [vm for vm in networks.users_of(context.store, network) if vm.meta.deleted]
    if not trashed:
        return NoRoom(
            f"every address of {network.name} is taken", "virtuary network create makes another one"
        )
    names = ", ".join(vm.name for vm in trashed[:10]) + (
        f" and {len(trashed) - 10} more" if len(trashed) > 10 else ""
    )
    what = f"every address of {network.name} is taken, some by servers in the trash: {names}"
    return NoRoom(what, f"virtuary purge {trashed[0].name} gives its addresses back")


def _attach(found: Joined, context: Context, wish: NicWish, network: Network) -> None:
    """Look up the firewall groups of a NIC, and what stands against them."""
    if network.spec.kind == "bridge":
        found.blockers += ungrouped(wish, f"{network.name}, a bridge of the physical network,")
        return
    for name in wish.groups:
        try:
            found.groups[name] = firewalls.find_named(context.store, name)
        except NotFound as error:
            found.blockers.append(error)


def _promised(
    context: Context, vm_id: str, bandwidth: Bandwidth, network: Network, before: Sequence[Nic]
) -> list[VirtuaryError]:
    """Floors that the network's link can't give besides those of the server's NICs `before`, and
    those of others, stopped ones too.
    """
    vms = [vm for vm in own_vms(context) if vm.id != vm_id and not vm.meta.deleted]
    there = (nic for nics in (before, *(vm.spec.nics for vm in vms)) for nic in nics)
    others = [nic.bandwidth for nic in there if nic.network_id == network.id]
    short = refusal(admit(bandwidth, others, link_speed(network, networks.links_of(context))))
    return [short] if short else []


def unpromised(context: Context, vm: Vm) -> list[VirtuaryError]:
    """Floors of a server that comes back from the trash, where they were nobody's, which its
    networks can't give it any more.
    """
    known = {network.id: network for network in networks.all_networks(context.store)}
    return [
        error
        for place, nic in enumerate(vm.spec.nics)
        if nic.network_id in known
        for error in _promised(
            context, vm.id, nic.bandwidth, known[nic.network_id], vm.spec.nics[:place]
        )
    ]


def _twice(network: Network, mac: str, held: Mapping[tuple[str, str], str]) -> list[VirtuaryError]:
    """Why a NIC can't have this MAC: its IPv6 address follows from it, and what is sent to it would
    go to either.
    """
    if whose := held.get((network.id, mac)):
        return [
            Conflict(
                f"{mac} is the MAC address of {whose} on {network.name} already",
                "leave out mac=, or name another one",
            )
        ]
    return []


NAT_ONLY = "join a network of kind nat"


def _external(
    context: Context, wish: NicWish, network: Network, held: Mapping[str, str], kept: Sequence[Nic]
) -> list[VirtuaryError]:
    """Why addresses outside can't lead to this NIC. Those that led to its server before may."""
    if not wish.external:
        return []
    if network.spec.kind != "nat":
        return [
            Invalid(
                f"no address outside leads to a server on {network.name}, which is of kind "
                f"{network.spec.kind}",
                NAT_ONLY,
            )
        ]
    if networks.is_users(context):
        return [
            Refused(
                "only root can have addresses of the physical network lead to a server",
                "publish single ports instead",
            )
        ]
    there = networks.all_networks(context.store)
    subnets = [
        ip_network(net) for other in there for net in (other.spec.ipv4, other.spec.ipv6) if net
    ]
    placed = {address for other in there for _, address in other.status.external}
    own = (
        set(context.own_addresses())
        - placed
        - {address for nic in kept for address in nic.external}
    )
    blockers: list[VirtuaryError] = []
    for address in wish.external:
        if address in held:
            blockers.append(
                Conflict(f"{address} leads to {held[address]} already", "choose another address")
            )
        elif address in own:
            why = f"{address} is an address of this host itself, which could be reached no more"
            blockers.append(Conflict(why, f"publish single ports: --publish {address}:8080:80"))
        elif met := [net for net in subnets if ip_address(address) in net]:
            blockers.append(
                Invalid(
                    f"{address} lies in {met[0]}, a network of servers",
                    "name an address outside of it",
                )
            )
        elif ip_address(address).version == 6 and not network.spec.ipv6:
            blockers.append(
                Invalid(
                    f"{network.name} has no IPv6 addresses that {address} could lead to",
                    "name an IPv4 address",
                )
            )
    return blockers


def unshaped(wish: NicWish) -> list[VirtuaryError]:
    """Why a NIC that this host's kernel does not see can't have a bandwidth."""
    if wish.bandwidth == Bandwidth():
        return []
    return [
        Invalid(
            f"the network `{wish.network}` knows no limits or floors",
            "join a network of kind nat, isolated or bridge",
        )
    ]


def ungrouped(wish: NicWish, where: str) -> list[VirtuaryError]:
    """Why a NIC that is nowhere this host's packet filter sees it can't have firewall groups."""
    if not wish.groups:
        return []
    what = (
        f"firewall groups do nothing on {where}: what a server sends there does not pass this "
        "host's packet filter"
    )
    return [Invalid(what, "leave out firewall=, or join a network of kind nat or isolated")]


def default_of(context: Context) -> str:
    """The network that a server joins when nobody says which."""
    try:
        status = find_host(context.store, context.host_id).status
    except NotFound:
        return USER
    return status.default_network if status else USER


def made(store: Store, found: Joined) -> tuple[dict[str, int], dict[str, bytes]]:
    """What the transaction expects and writes of the networks that are joined, and of the firewall
    groups it relies on.
    """
    expect: dict[str, int] = {}
    puts: dict[str, bytes] = {}
    for network in found.networks.values():
        expect[network.key] = network.meta.revision
        if not network.meta.revision:
            expect[network.named] = 0
            puts[network.named] = network.id.encode()
        if not network.meta.revision or not documents.is_here(store, network):
            puts |= documents.written(store, network)
    expect |= {group.key: group.meta.revision for group in found.groups.values()}
    return expect, puts


def unpublishable(
    context: Context, nics: Sequence[Nic], publish: Sequence[Publish]
) -> list[VirtuaryError]:
    """Why these ports can't lead to this server."""
    six = [port for port in publish if ":" in port.address]
    if six and nics[0].network_id and networks.is_users(context):
        return [
            Refused(
                f"{port} can't be published: networks of an ordinary user publish on IPv4 alone",
                "leave [::] out",
            )
            for port in six
        ]
    if not publish or any(nic.network == USER or nic.ipv4 for nic in nics):
        return [
            Invalid(
                f"{port} can't be published: nothing of the host's own loopback leaves it by IPv6",
                "publish on 127.0.0.1 or ::",
            )
            for port in publish
            if nics[0].network != USER and port.address == "::1"
        ]
    where = (
        "has no cable"
        if nics[0].network == NONE
        else f"has an address of its own on {nics[0].network}"
    )
    return [Invalid(f"nothing can be published of a server that {where}", "leave out --publish")]


def like(nics: Sequence[Nic]) -> list[NicWish]:
    """Wishes for the same networks and firewall groups, by somebody else."""
    return [
        NicWish(
            network=nic.network, unguarded=nic.unguarded, groups=nic.groups, bandwidth=nic.bandwidth
        )
        for nic in nics
    ]
