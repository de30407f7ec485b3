"""Which tracked connections the rules of now would not let begin, and their end.

The packet filter judges a connection by its first packet, so one that is open outlives what allowed
it, and the translation that was chosen for it. After rules became narrower each connection is
judged once more, from the same values as the rules are made of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from socket import socket

from virtuary.model.firewall import Address, Direction
from virtuary.network import conntrack
from virtuary.network.conntrack import Flow, Glance
from virtuary.network.filtered import External, Forward, Net
from virtuary.network.guard import Port
from virtuary.network.routes import find_own

SERVED = {("udp", 53), ("udp", 67), ("udp", 547), ("tcp", 53)}


@dataclass(frozen=True)
class World:
    """What the rules are made of."""

    nets: tuple[Net, ...] = ()
    ports: tuple[Port, ...] = ()
    forwards: tuple[Forward, ...] = ()
    externals: tuple[External, ...] = ()
    left: tuple[Address, ...] = field(default=(), compare=False)
    """Addresses outside that led to servers before, and do no more."""

    def narrows(self, before: World) -> bool:
        """Whether something that was there is not there any more, or not as it was."""
        pairs = (
            (before.nets, self.nets),
            (before.forwards, self.forwards),
            (before.externals, self.externals),
        )
        if any(item not in there for was, now in pairs for there in (set(now),) for item in was):
            return True
        cards, same = {port.interface: port for port in self.ports}, dict[tuple[int, int], bool]()
        return any(not _is_alike(port, cards.get(port.interface), same) for port in before.ports)

    def after(self, before: World) -> World:
        """The same, knowing what it follows."""
        lead = {item.address for item in self.externals}
        left = tuple(item.address for item in before.externals if item.address not in lead)
        return World(self.nets, self.ports, self.forwards, self.externals, left)

    @cached_property
    def _cards(self) -> dict[Address, tuple[Net, Port]]:
        nets = {net.bridge: net for net in self._own}
        return {
            address: (nets[port.bridge], port)
            for port in self.ports
            if port.bridge in nets
            for address in port.addresses
        }

    @cached_property
    def _own(self) -> tuple[Net, ...]:
        return tuple(net for net in self.nets if net.kind != "bridge")

    @cached_property
    def _ways(self) -> dict[tuple[Address, str, int | None], tuple[Address, int | None]]:
        """Where published ports lead."""
        return {
            (item.address, item.protocol, item.port): (item.guest, item.guest_port)
            for item in self.forwards
        }

    @cached_property
    def _outer(self) -> dict[Address, Address]:
        return {item.address: item.guest for item in self.externals}

    @cached_property
    def _seen(self) -> dict[Address, Address]:
        """As which address outside a server is seen there."""
        return {item.guest: item.address for item in reversed(self.externals)}

    def concerned(self, own: Collection[Address]) -> Callable[[Glance], bool]:
        """Which connections have to do with servers, by a glance: all others are none of ours."""
        nets = [
            (subnet.version, int(subnet.network_address), int(subnet.netmask))
            for net in self._own
            for subnet in net.subnets
        ]
        led = {
            address.packed
            for address in (*self._outer, *self.left, *(item.address for item in self.forwards))
        }
        hosts, ports = {address.packed for address in own}, {item.port for item in self.forwards}
        known: dict[bytes, bool] = {}

        def is_ours(address: bytes) -> bool:
            if address not in known:
                number, version = int.from_bytes(address, "big"), 4 if len(address) == 4 else 6
                known[address] = address in led or any(
                    version == kind and number & mask == net for kind, net, mask in nets
                )
            return known[address]

        return lambda seen: (
            is_ours(seen.source) or is_ours(seen.answers)
            or is_ours(seen.target) or is_ours(seen.answered)
            or (seen.port in ports and seen.target in hosts)
        )  # fmt: skip

    def net_of(self, address: Address) -> Net | None:
        return next(
            (net for net in self._own for subnet in net.subnets if _within(address, subnet)), None
        )

    def translated(
        self, address: Address, protocol: str, port: int | None
    ) -> tuple[Address, int | None] | None:
        """To whom a call of an address of this host leads; None where it is the host's own."""
        everywhere = ip_address("0.0.0.0" if address.version == 4 else "::")  # noqa: S104
        if exact := self._ways.get((address, protocol, port)):
            return exact
        if guest := self._outer.get(address):
            return guest, port
        return self._ways.get((everywhere, protocol, port))

    def is_over(self, flow: Flow, own: frozenset[Address] | set[Address]) -> bool:
        """Whether this connection would not begin so any more. `own`: the addresses of this
        host.
        """
        caller, called = flow.original.source, flow.reply.source
        here, there = (
            None if address in own else self.net_of(address) for address in (caller, called)
        )
        if self._is_led_wrongly(flow, there, own) or self._is_masked_wrongly(flow, here, there):
            return True
        if here is None and there is None:
            return False
        if here is None and caller in own:
            return False  # the host reaches its servers always
        if here is not None and there is None and called in own:
            return not self._reaches_host(flow, here)
        return not self._passes(flow, here, there)

    def _is_led_wrongly(
        self, flow: Flow, there: Net | None, own: frozenset[Address] | set[Address]
    ) -> bool:
        """Whether it goes to somebody else than a new one would."""
        original = flow.original
        if flow.translated:
            if there is None and original.target not in self._outer:
                return False  # translated by somebody else
            return self.translated(original.target, flow.protocol, original.port) != (
                flow.reply.source,
                flow.reply.from_port,
            )
        if original.target not in own or self._is_served(flow):
            return False
        return self.translated(original.target, flow.protocol, original.port) is not None

    def _is_served(self, flow: Flow) -> bool:
        here = self.net_of(flow.original.source)
        return (
            here is not None
            and flow.original.target in here.gateways
            and flow.original.port in (53, 67, 547)
        )

    def _is_masked_wrongly(self, flow: Flow, here: Net | None, there: Net | None) -> bool:
        """Whether it is seen outside under an address that is not its server's any more."""
        if not flow.masked or here is None or there is not None:
            return False
        seen = flow.reply.target
        lent = seen in self._outer or seen in self.left
        return lent and self._seen.get(flow.original.source) != seen

    def _reaches_host(self, flow: Flow, here: Net) -> bool:
        protocol, port, target = flow.protocol, flow.reply.from_port, flow.reply.source
        if protocol == "icmp" or ((protocol, port) in SERVED and target in here.gateways):
            return True
        return here.host_access and self._allows("out", flow, here)

    def _passes(self, flow: Flow, here: Net | None, there: Net | None) -> bool:
        if here is not there:
            if here is not None and here.kind == "isolated":
                return False
            if there is not None and not flow.translated:
                return False
        if here is not None and not self._allows("out", flow, here):
            return False
        return there is None or self._allows("in", flow, there)

    def _allows(self, direction: Direction, flow: Flow, net: Net) -> bool:
        own, peer = flow.original.source, flow.reply.source
        if direction == "in":
            own, peer = peer, own
        default = net.default_out if direction == "out" else net.default_in
        if own not in self._cards:
            free = f"ipv{own.version}"
            return default == "allow" and any(
                port.bridge == net.bridge and free in port.unguarded for port in self.ports
            )
        for rule in self._cards[own][1].rules:
            if rule.direction == direction and rule.fits(flow.protocol, flow.reply.from_port, peer):
                return rule.action == "allow"
        return default == "allow"


def _is_alike(was: Port, now: Port | None, same: dict[tuple[int, int], bool]) -> bool:
    """Whether a card is what it was. `same`: rules that were compared already, by identity: many
    cards share them, and they may be long.
    """
    if now is None or (was.bridge, was.addresses, was.unguarded) != (
        now.bridge,
        now.addresses,
        now.unguarded,
    ):
        return False
    key = id(was.rules), id(now.rules)
    if key not in same:
        same[key] = was.rules == now.rules
    return same[key]


def _within(address: Address, subnet: object) -> bool:
    return address.version == subnet.version and address in subnet  # type: ignore[attr-defined, operator]


async def end_those_over(world: World) -> int:
    """Forget the tracked connections that would not begin any more; how many those were. Raises
    OSError where the kernel lets nobody ask.
    """
    own = {ip_address(text) for text in find_own(Path("/proc/thread-self/net"))}
    with conntrack.open_socket() as sock:  # here: in this network namespace
        return await asyncio.to_thread(_end, sock, world, own)


def _end(sock: socket, world: World, own: set[Address]) -> int:
    return conntrack.remove(
        sock, conntrack.find(sock, world.concerned(own), lambda flow: world.is_over(flow, own))
    )
