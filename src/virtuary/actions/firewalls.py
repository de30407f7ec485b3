"""What a user may ask of firewall groups. Each function checks everything first, tells all
blockers, and makes one transaction.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from virtuary.actions import peers
from virtuary.actions.context import Context, all_vms, decides, find_vm, raise_all, turn
from virtuary.base.errors import Conflict, Exists, Invalid, NotFound, Stale, VirtuaryError
from virtuary.model.firewall import (
    Address,
    Firewall,
    FirewallChange,
    FirewallSpec,
    FirewallWish,
    Group,
    Verdict,
)
from virtuary.model.meta import Meta
from virtuary.model.network import Network
from virtuary.model.reach import Scene, plain_address
from virtuary.model.vm import Vm
from virtuary.store import documents
from virtuary.store.api import Store
from virtuary.store.documents import every


def find(store: Store, name: str) -> Firewall:
    """The firewall group of this name or id; raises NotFound."""
    found = documents.find(store, Firewall, name)
    if found is None:
        raise NotFound(
            f"there is no firewall group named {name[:80]!r}", "virtuary firewall list shows them"
        )
    return found


def find_named(store: Store, name: str) -> Firewall:
    """The firewall group of this name; raises NotFound. Documents that refer to groups hold names,
    never ids.
    """
    group = find(store, name)
    if group.name != name:
        raise NotFound(
            f"there is no firewall group named {name[:80]!r}", f"its name is {group.name}"
        )
    return group


def all_firewalls(store: Store) -> list[Firewall]:
    return every(store, Firewall)


@decides
async def create(context: Context, wish: FirewallWish) -> Firewall:
    """Have a firewall group, as it is kept. Its rules may name itself. Raises Exists, NotFound for
    peers that are not there.
    """
    if context.store.get(Firewall.name_key(wish.name)):
        raise Exists(f"a firewall group named {wish.name} is there already", "choose another name")
    waits, takes = turn(context)
    rules = peers.kept(context.store, wish.name, wish.rules)
    group = Firewall(
        meta=Meta(name=wish.name, labels=wish.labels),
        spec=FirewallSpec(rules=rules, description=wish.description),
    )
    expect = {group.named: 0, **waits}
    puts = {group.key: group.dump(), group.named: group.id.encode(), **takes}
    revision = await context.commit(expect, puts)
    return group.but(meta=group.meta.but(revision=revision))


@decides
async def change(
    context: Context, name: str, wish: FirewallChange, revision: int | None = None
) -> Firewall:
    """Change a firewall group while servers are attached to it; open connections that it allows no
    more end. Raises NotFound for peers that are not there, Stale when `revision` is not current.
    """
    waits, takes = turn(context)
    group = find(context.store, name)
    if revision is not None and revision != group.meta.revision:
        raise Stale(f"{group.name} changed meanwhile", "look again and repeat")
    rules = group.spec.rules
    if wish.rules is not None:
        rules = peers.kept(context.store, group.name, wish.rules, group.status.purged)
    description = group.spec.description if wish.description is None else wish.description
    meta = group.meta if wish.labels is None else group.meta.but(labels=wish.labels)
    changed = peers.tidied(
        group.but(spec=group.spec.but(rules=rules, description=description), meta=meta)
    )
    if changed == group:
        return group
    revision = await context.commit(
        {group.key: group.meta.revision, **waits}, {group.key: changed.dump(), **takes}
    )
    return changed.but(meta=changed.meta.but(revision=revision))


@decides
async def delete(context: Context, name: str) -> Firewall:
    """Remove a firewall group that nothing uses. Raises Conflict naming the servers attached to it
    and the groups whose rules name it.
    """
    # whoever attaches a server or names it in a rule meanwhile takes a turn too
    waits, takes = turn(context)
    group = find(context.store, name)
    servers = [
        vm.name + (" (in the trash)" if vm.meta.deleted else "")
        for vm in users_of(context.store, group)
    ]
    others = [
        other.name
        for other in all_firewalls(context.store)
        if other.id != group.id and names_it(other, group)
    ]
    blockers: list[VirtuaryError] = []
    if servers:
        blockers.append(
            Conflict(
                f"the firewall group {group.name} is attached to {', '.join(servers[:10])}",
                "virtuary set NAME --network NETWORK without firewall= detaches it",
            )
        )
    if others:
        what = f"rules of {', '.join(others[:10])} name the firewall group {group.name}"
        blockers.append(Conflict(what, "virtuary firewall set replaces their rules"))
    raise_all(blockers)
    await context.commit({group.key: group.meta.revision, **waits}, takes, [group.key, group.named])
    return group


def users_of(store: Store, group: Firewall) -> list[Vm]:
    """The servers with a NIC attached to it, those in the trash too."""
    return [vm for vm in all_vms(store) if any(group.name in nic.groups for nic in vm.spec.nics)]


def names_it(other: Firewall, group: Firewall) -> bool:
    """Whether a rule of another group has this one for a peer."""
    return any(f"group:{group.name}" in rule.peers for rule in other.spec.rules)


# ---- asking


def test(
    context: Context, source: str, destination: str, protocol: str, port: int | None = None
) -> Verdict:
    """What would become of a new connection, and who decides: answered from documents as the packet
    filter is made from them.

    Source and destination are servers or addresses. Between servers it is their NICs on a network
    they share that count, else the first with an address. A port of the host's that is published is
    followed to its server. Raises NotFound and Invalid.
    """
    if protocol not in ("tcp", "udp", "icmp"):
        raise Invalid(f"{protocol[:40]!r} is no protocol that can be tested", "tcp, udp or icmp")
    if (port is None) != (protocol == "icmp") or not (port is None or 1 <= port <= 65535):
        raise Invalid(
            "a tcp or udp connection has a port from 1 to 65535, and icmp has none",
            "for example tcp/5432, or icmp",
        )
    scene = look(context.store)
    return scene.judge(
        _end(context.store, source), _end(context.store, destination), protocol, port
    )


def look(store: Store) -> Scene:
    """Everything that decides about connections, as the documents say it now."""
    networks = every(store, Network)
    return Scene(
        vms=tuple(vm for vm in all_vms(store) if not vm.meta.deleted and not vm.meta.purge),
        networks={network.id: network for network in networks if not network.meta.purge},
        groups={group.name: Group(group.name, group.spec.rules) for group in all_firewalls(store)},
        is_own=_is_hosts_own,
    )


def judge_of(store: Store, vm: Vm) -> Callable[[Address, str, int | None], Verdict]:
    """What is said of a server's calls to an address, by protocol and port, as the documents are
    now.
    """
    scene = look(store)
    return lambda address, protocol, port: scene.judge(vm, address, protocol, port)


def _end(store: Store, text: str) -> Vm | Address:
    if address := plain_address(text):
        return address
    vm = find_vm(store, text)
    if vm.meta.deleted:
        raise Conflict(f"{vm.name} lies in the trash", f"virtuary undelete {vm.name}")
    return vm


def _is_hosts_own(address: Address) -> bool:
    """Whether this host has the address: only then may a socket have it."""
    with socket.socket(
        socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM
    ) as sock:
        try:
            sock.bind((str(address), 0))
        except OSError:
            return False
    return True
