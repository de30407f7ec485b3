"""The packet filter of this host, kept true: one ruleset from all documents, put back when somebody
takes it away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Invalid, VirtuaryError
from virtuary.base.log import say
from virtuary.model.firewall import Match, resolve_all
from virtuary.model.network import Network
from virtuary.model.reach import card_of, members_of
from virtuary.network import filtered, flows, obstacles, ruleset, uplink
from virtuary.network.holder import Holder, Place
from virtuary.node.networks.members import Member, Membership

logger = logging.getLogger("virtuary.rules")
LOOK = 60.0
"""Seconds between two looks at whether the rules are there, where nothing told that they changed.
"""
SETTLE = 1.0
"""Seconds after which they are looked at again when something changed meanwhile: by us, or by
somebody who is not done yet.
"""
SSH = 22
declare("rules.after_apply", "rules.after_pass", "rules.after_remove", "rules.after_restore")
NETFILTER, SOL_NETLINK, ADD_MEMBERSHIP, NFTABLES_GROUP = 12, 270, 1, 7


class Wanted(NamedTuple):
    """A ruleset, and what of the documents is not in it because it contradicts another one, with
    the reason.
    """

    script: str
    left_out: dict[str, str]
    published: tuple[uplink.Held, ...] = ()
    """Ports of the host that are led into a user's own networks, and by the ruleset from there to
    servers.
    """
    world: flows.World = flows.World()
    """What the ruleset is made of."""


class Rules:
    def __init__(self, networks: Membership) -> None:
        self._networks = networks
        self._lock = asyncio.Lock()
        self._passing = asyncio.Lock()
        self._applied: str | None = None
        """Mark of the ruleset that is known to be there; None when that has to be looked at."""
        self._facts: tuple[object, ...] = ()
        """What that ruleset was made of."""
        self._passed: list[str] | None = None
        """Bridges in whose way no other firewall is; None when that has to be looked at."""
        self.left_out: dict[str, str] = {}
        """Why something is not as its document wants it, by what: the id of a network, the tap of a
        NIC, something published.
        """
        self._world: flows.World | None = None
        """What the rules are made of by which tracked connections were judged last."""
        self.holder = Holder()
        self.unpublished: dict[str, str] = {}
        """Ports that a program of the host has, and why they are not published."""
        self._published: tuple[uplink.Held, ...] | None = None
        """None where there is no network that needs a way out."""
        self._wake = asyncio.Event()
        self._look_due = False
        """Whether the packet filter changed while we changed it."""
        self._note = networks.folder("ruled")
        """Is there while rules of ours may be on this host, whichever daemon brought them."""

    def wake(self) -> None:
        self._wake.set()

    def look_again(self) -> None:
        """What was there may be gone."""
        self._applied = self._passed = None
        self.wake()

    async def keep(self) -> None:
        """Make the rules follow the documents, and put them back when somebody else took them away;
        until cancelled.
        """
        with _listener() as listener:
            loop = asyncio.get_running_loop()
            loop.add_reader(listener, lambda: self._on_change(listener))
            look_at = loop.time() + LOOK
            try:
                while True:
                    self._wake.clear()
                    try:
                        await self.apply()
                        if self._networks.uplink and self._published is not None:
                            await self._networks.uplink.keep(self._published)
                        elif not self._networks.uplink:
                            await self.pass_obstacles()
                    except VirtuaryError as error:
                        say(logger, "rules failed", logging.WARNING, why=error.sentence)
                    except Exception:
                        logger.exception("keeping the rules met a defect")
                    if _drain(listener) or self._look_due:
                        self._look_due, look_at = False, min(look_at, loop.time() + SETTLE)
                    try:
                        async with asyncio.timeout_at(look_at):
                            await self._wake.wait()
                    except TimeoutError:
                        self._applied, self._passed, look_at = None, None, loop.time() + LOOK
            finally:
                loop.remove_reader(listener)

    def _on_change(self, listener: socket.socket) -> None:
        _drain(listener)
        if self._lock.locked():
            self._look_due = True
        else:
            self.look_again()

    async def apply(self) -> None:
        """Have the rules be what the documents say; returns at once where they are. Raises
        Failed.
        """
        async with self._lock:
            facts = self._look()
            if self._applied and facts == self._facts:
                return
            self._hold()
            wanted = self.wanted()
            if wanted is None:
                if self._networks.uplink and self._networks.any_left():
                    return  # one is being removed, in the namespace that goes with the last one
                await self._take_away()
                self._networks.give_back()
                self._applied, self._facts, self.left_out, self._published = None, (), {}, None
                return
            if self._networks.take():
                # another instance's: there is no bridge of ours, and the packet filter is theirs
                return
            for what, why in wanted.left_out.items() - self.left_out.items():
                say(logger, "left out of the rules", logging.WARNING, of=what, why=why)
            self.left_out = wanted.left_out
            mark = ruleset.fingerprint(wanted.script)
            if mark != self._applied and (
                self._applied is not None or not await self.is_applied(mark)
            ):
                await self._load(wanted.script)
                say(logger, "rules", mark=mark)
            await self._end_flows(wanted.world)
            self._applied, self._facts, self._published = mark, facts, wanted.published

    async def _load(self, script: str) -> None:
        fresh = not self._note.exists()
        if fresh:
            self._note.parent.mkdir(parents=True, exist_ok=True)
            self._note.touch()
        try:
            await self._networks.netns.call(ruleset.apply, script)
        except VirtuaryError:
            if fresh:
                self._note.unlink(missing_ok=True)
            raise
        crashpoint("rules.after_apply")

    def _hold(self) -> None:
        """Hold the ports of the host that servers publish; those of an ordinary user are QEMU's to
        listen at.
        """
        if self._networks.netns.private:
            return
        members = self._networks.members()
        self.holder.keep(
            [place_of(item) for member in members for item in _quietly(forwards_of, member)]
        )
        found = {
            f"{place.protocol}:{place.address}:{place.port}": why
            for place, why in self.holder.refused.items()
        }
        for place in found.keys() - self.unpublished.keys():
            say(logger, "a port can't be published", logging.WARNING, port=place, why=found[place])
        if found != self.unpublished:
            self.unpublished = found
            for network in self._networks.all():
                self._networks.on_missing(network.key)

    async def _end_flows(self, world: flows.World) -> None:
        """End the connections that are open and would not begin any more, where rules became
        narrower, or nobody knows whether they did.
        """
        before, self._world = self._world, world
        if before and not world.narrows(before):
            return
        try:
            count = await self._networks.netns.call(
                flows.end_those_over, world.after(before or flows.World())
            )
        except OSError as error:
            say(logger, "tracked connections can't be ended", logging.WARNING, why=error.strerror)
            return
        if count:
            say(logger, "connections ended that the rules allow no more", count=count)

    async def _take_away(self) -> None:
        """Remove all that is ours from the packet filter, also what a daemon before this one did
        not come to remove.
        """
        if not self._note.exists():
            return
        if self._networks.take():
            self._note.unlink()
            return
        if self._networks.uplink:
            await self._networks.uplink.end()
            await self._networks.netns.leave()
        else:
            await ruleset.remove()
        crashpoint("rules.after_remove")
        if not self._networks.uplink:
            await obstacles.restore()
        crashpoint("rules.after_restore")
        self._note.unlink(missing_ok=True)

    async def is_applied(self, mark: str) -> bool:
        """Whether the ruleset of this fingerprint is there."""
        return await self._networks.netns.call(ruleset.is_applied, mark)

    def _look(self) -> tuple[object, ...]:
        """Everything that the ruleset follows from: a server's progress is written often, and
        changes none of it.
        """
        networks = [(network.id, network.meta.revision) for network in self._networks.all()]
        members = [
            (vm.id, vm.name, nic, vm.spec.publish, vm.status.runtime is None)
            for vm, nic in self._networks.members()
        ]
        return networks, members, self._networks.groups()

    async def pass_obstacles(self) -> None:
        """Let our traffic through where another firewall would stop what it does not know; raises
        Failed where one can't be told so.

        An accept of ours can't overrule a drop of theirs: the least rule is put into their chain,
        and goes with the network.
        """
        async with self._passing:
            await self._pass_obstacles()

    async def _pass_obstacles(self) -> None:
        bridges = [
            bridge_of(network)
            for network in self._networks.all()
            if network.spec.kind != "bridge" and bridge_of(network)
        ]
        if bridges == self._passed or not (bridges or self._note.exists()):
            return
        await obstacles.restore(keep=bridges)
        failures = []
        for obstacle in await obstacles.find_obstacles(bridges) if bridges else ():
            try:
                await obstacles.clear(obstacle)
                crashpoint("rules.after_pass")
                say(logger, "passed another firewall", owner=obstacle.owner, chain=obstacle.chain)
            except VirtuaryError as error:  # the next one may let itself be cleared
                failures.append(error)
        if failures:
            raise failures[0]
        self._passed = bridges

    def wanted(self) -> Wanted | None:
        """The ruleset as the documents want it; None where there is no network."""
        networks = {network.id: network for network in self._networks.all()}
        if not networks:
            return None
        nets, faults = choose_nets(networks.values())
        members = [
            member for member in self._networks.members() if member.nic.network_id in networks
        ]
        members = sorted(
            (it for it in members if bridge_of(networks[it.nic.network_id])),
            key=lambda it: it.vm.meta.created,
        )
        rules = self._rules_of(members, networks)
        ports: dict[str, ruleset.Port] = {}
        for member in members:
            network = networks[member.nic.network_id]
            with _noting(faults, member.tap):
                port = port_of(member, network, rules[member.nic.groups])
                ports[member.tap] = filtered.closed(port) if network.id in faults else port
        cards, closed = filtered.sift_ports(nets, ports.values())
        faults |= closed
        whole = [it for it in members if it.tap not in faults and it.nic.network_id not in faults]
        forwards: list[filtered.Forward] = []
        for member in whole:
            with _noting(faults, f"what {member.vm.name} publishes"):
                found = forwards_of(member, private=self._networks.netns.private)
                forwards += [item for item in found if place_of(item) not in self.holder.refused]
        published: tuple[uplink.Held, ...] = ()
        if self._networks.netns.private and forwards:
            pairs = uplink.lead(forwards)
            published, forwards = (
                tuple(held for held, _ in pairs),
                [forward for _, forward in pairs],
            )
        led = filtered.sift_translations(
            nets, cards, forwards, [item for member in whole for item in externals_of(member)]
        )
        world = flows.World(tuple(nets), tuple(cards), tuple(led.forwards), tuple(led.externals))
        return Wanted(
            ruleset.render(nets, cards, led.forwards, led.externals),
            {**faults, **led.faults},
            published,
            world,
        )

    def _rules_of(
        self, members: list[Member], networks: Mapping[str, Network]
    ) -> dict[tuple[str, ...], tuple[Match, ...]]:
        """The rules of every list of groups that a NIC is attached to, resolved once however many
        share it.
        """
        groups, peers = self._networks.groups(), members_of(self._networks.members())
        found: dict[tuple[str, ...], tuple[Match, ...]] = {(): ()}
        for vm, nic in members:
            if nic.groups not in found:
                found[nic.groups] = resolve_all(
                    card_of(vm, nic, networks[nic.network_id], groups), peers
                )
        return found


def choose_nets(networks: Iterable[Network]) -> tuple[list[filtered.Net], dict[str, str]]:
    """The networks as the packet filter knows them, one a bridge, and by id, why others are left
    out. Pure.

    A bridge belongs to the network it was made for, then to the one that is there longest.
    """
    found: dict[str, filtered.Net] = {}
    names: dict[str, str] = {}
    faults: dict[str, str] = {}
    for network in sorted(
        networks, key=lambda item: (item.spec.kind == "bridge", item.meta.created)
    ):
        bridge = bridge_of(network)
        if bridge in found:
            faults[network.id] = (
                f"the bridge {bridge} of the network {network.name} is that of {names[bridge]} "
                "already"
            )
        elif bridge:
            with _noting(faults, network.id):
                found[bridge], names[bridge] = net_of(network), network.name
    return list(found.values()), faults


@contextlib.contextmanager
def _noting(faults: dict[str, str], what: str) -> Iterator[None]:
    """Go on without what makes no sense."""
    try:
        yield
    except Invalid as error:
        faults[what] = error.sentence


def bridge_of(network: Network) -> str:
    return network.status.bridge or (network.bridge if network.spec.kind != "bridge" else "")


def net_of(network: Network) -> filtered.Net:
    spec = network.spec
    families = {4, *(() if spec.routed6 else (6,))} if spec.kind == "nat" else set()
    return filtered.Net(
        bridge=bridge_of(network),
        kind=spec.kind,
        subnets=tuple(ipaddress.ip_network(net) for net in (spec.ipv4, spec.ipv6) if net),
        gateways=tuple(ipaddress.ip_address(address) for address in network.gateways),
        masquerade=frozenset(families),
        host_access=spec.host_access,
        default_in=spec.default_in,
        default_out=spec.default_out,
    )


def port_of(member: Member, network: Network, rules: tuple[Match, ...] = ()) -> ruleset.Port:
    nic = member.nic
    return ruleset.Port(
        interface=member.tap,
        bridge=bridge_of(network),
        mac=member.mac,
        addresses=tuple(
            ipaddress.ip_address(address) for address in (nic.ipv4, nic.ipv6) if address
        ),
        unguarded=frozenset(nic.unguarded)
        | (frozenset(("ipv4", "ipv6", "arp")) if network.spec.kind == "bridge" else frozenset()),
        rules=rules,
        trunk=network.spec.trunk,
    )


def forwards_of(member: Member, *, private: bool = False) -> list[filtered.Forward]:
    """The published ports of a server that runs, which lead to its first NIC with an address.

    `private`: from a user's own networks, where Virtuary's own way in is one of them. Raises
    Invalid for what can't be published.
    """
    vm, nic, runtime = member.vm, member.nic, member.vm.status.runtime
    first = next((other for other in vm.nics if other.ipv4), None)
    if (
        first is None
        or first.number != nic.number
        or runtime is None
        or vm.nics[0].network == "user"
    ):
        return []
    found = []
    for port in vm.spec.publish:
        address = ipaddress.ip_address(port.address)
        if private and address.version == 6:
            raise Invalid(
                f"{port.address} is IPv6: networks of an ordinary user publish on IPv4 addresses"
            )
        if guest := nic.inside(port.address):
            found.append(
                filtered.Forward(
                    port.protocol, address, port.host, ipaddress.ip_address(guest), port.guest
                )
            )
    if private and runtime.ssh_port and nic.ipv4:
        loopback = ipaddress.ip_address(runtime.ssh_host)
        found.append(
            filtered.Forward("tcp", loopback, runtime.ssh_port, ipaddress.ip_address(nic.ipv4), SSH)
        )
    return found


def place_of(forward: filtered.Forward) -> Place:
    return Place(forward.protocol, str(forward.address), forward.port)


def _quietly(
    find: Callable[[Member], list[filtered.Forward]], member: Member
) -> list[filtered.Forward]:
    """What makes no sense is nothing here; it is told where the rules are made."""
    with contextlib.suppress(Invalid):
        return find(member)
    return []


def externals_of(member: Member) -> list[filtered.External]:
    """The addresses outside that lead to a NIC, whether its server runs or not: in no case do they
    lead to the host.
    """
    return [
        filtered.External(ipaddress.ip_address(address), ipaddress.ip_address(own))
        for address in member.nic.external
        if (own := member.nic.inside(address))
    ]


def _listener() -> socket.socket:
    """Hears of every change of the packet filter, by whomever."""
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETFILTER
    )
    with contextlib.suppress(OSError):  # a user's daemon hears nothing, and has no rules
        sock.bind((0, 0))
        sock.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, NFTABLES_GROUP)
    return sock


def _drain(listener: socket.socket) -> bool:
    """Forget what was heard; whether that was something."""
    heard = False
    while True:
        try:
            listener.recv(65536)
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # that is: more than the kernel kept for us
                return heard
        heard = True
