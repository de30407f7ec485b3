"""A network of this host, made true: its bridge, its dnsmasq, its way out; and made again when
somebody took them away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Conflict, Failed, HostLacks, VirtuaryError
from virtuary.base.log import say
from virtuary.base.proc import identify
from virtuary.model.network import MAX_MTU, MIN_MTU, USUAL_MTU, Network, name_of, tap_of
from virtuary.network import bridge, changes, dhcp, external, link, physical, shaping
from virtuary.network.routes import find_mtu
from virtuary.node.loop import Loop
from virtuary.node.networks import hindrances
from virtuary.node.networks.bandwidth import Shaper
from virtuary.node.networks.members import Member
from virtuary.node.networks.networks import Networks
from virtuary.node.networks.serving import Serving
from virtuary.node.site import Site
from virtuary.store import documents

logger = logging.getLogger("virtuary.networks")
LOOK, BLIND_LOOK = 300.0, 10.0
"""Seconds between two looks at bridges and dnsmasq where changes of them are heard, and where they
are not.
"""
NO_IPV6 = (
    "IPv6 is switched off on this host (sysctl net.ipv6.conf.all.disable_ipv6): "
    "servers have IPv4 alone"
)
SETTLE = 0.1
"""Seconds after a change until it is looked at: more follow it at once."""
declare(
    "network.after_bridge",
    "network.after_external",
    "network.after_record",
    "network.after_remove",
)


class NetworkWorker(Loop[Network]):
    """Makes one network true, and writes what became of it: the only writer of its status."""

    def __init__(self, site: Site, network_id: str) -> None:
        super().__init__(site, Network, network_id)
        self.networks, self.netns = site.networks, site.networks.netns
        self.folder = site.networks.folder(network_id)
        self._serving = Serving(self.folder, self.netns, self.wake)
        self._shaper = Shaper(self.netns)
        self._looked, self._heard = 0.0, 0
        self._in_the_way: tuple[str, ...] = ()
        self._six: str | None = None
        """Its IPv6 subnet, as far as this host had IPv6 when it was looked at last."""
        self._pace = BLIND_LOOK if self.netns.private else LOOK
        self._failures = 0

    async def step(self, document: Network) -> float:
        if document.meta.purge:
            await self._forget(document)
            return 0
        await self._make(document)
        self._failures = 0
        self.networks.failing.pop(self.identity, None)
        return float(self._pace)

    async def failed(self, document: Network, error: VirtuaryError | OSError) -> float:
        """The network says so, and its servers wait for it."""
        why = error.sentence if isinstance(error, VirtuaryError) else str(error)
        say(logger, "network failed", logging.WARNING, network=document.name, why=why)
        self.networks.failing.setdefault(self.identity, self.site.clock.now())
        with contextlib.suppress(Conflict):
            await self._record(state="failed", reason=why)
        self._failures = min(self._failures + 1, 10)
        return float(min(0.25 * 2**self._failures, BLIND_LOOK))

    async def close(self) -> None:
        self._serving.let_go()
        self.networks.failing.pop(self.identity, None)

    async def _make(self, network: Network) -> None:
        """Everything as it shall be; repeats harmlessly, and costs little when it is. Raises
        HostLacks while another instance has the networks.
        """
        if other := self.networks.take():
            raise HostLacks(
                f"{other} has the networks of this host", "--network user needs none of them"
            )
        spec, name, here = network.spec, network.bridge, network
        now, heard = self.site.clock.now(), self.networks.changes
        look = (
            now - self._looked >= self._pace
            or heard != self._heard
            or network.status.state != "ready"
            or not self._looked
        )
        if spec.kind == "bridge":
            name = await self._join(network)
            here = network.seen(mtu=bridge.read_mtu(name))
        else:
            here = await self._as_here(network)
            look, self._six = look or here.spec.ipv6 != self._six, here.spec.ipv6
            lengths = (here.spec.ipv4, here.spec.ipv6)
            own = zip(here.gateways, (net.partition("/")[2] for net in lengths if net), strict=True)
            addresses = [f"{address}/{length}" for address, length in own]
            await self.netns.call(
                bridge.ensure_bridge, name, addresses, look=look, mtu=here.status.mtu
            )
        await self._keep_taps(here, name)
        crashpoint("network.after_bridge")
        await self._place_external(network)
        started = (
            None
            if spec.kind == "bridge"
            else await self._serving.keep(here, self._reservations(here), self.site.boot)
        )
        if network.status.state != "ready" or network.status.bridge != name:
            await self.networks.rules.apply()
        speed = link.measure_link(name) if spec.kind == "bridge" else None
        network = network.seen(speed=speed, mtu=here.status.mtu)
        members = self.networks.members(network.id)
        gaps = (
            *await self._shaper.apply(network, name, members, look=look),
            *self._cut_off(members),
            *self._unpublished(members),
            *await self._hindered(network, members, look=look),
            *([NO_IPV6] if here.spec.ipv6 != spec.ipv6 else []),
        )
        self._looked, self._heard = (now, heard) if look else (self._looked, self._heard)
        await self._record(
            state="ready",
            reason=None,
            bridge=name,
            boot_id=self.site.boot,
            speed=speed,
            mtu=here.status.mtu,
            gaps=gaps,
            **(started or {}),
        )
        crashpoint("network.after_record")

    async def _hindered(
        self, network: Network, members: list[Member], *, look: bool
    ) -> tuple[str, ...]:
        """What on this host is in the way of it, as it was looked at last."""
        if look:
            own = [address for _, nic in members for address in (nic.ipv4, nic.ipv6) if address]
            self._in_the_way = await hindrances.survey(self.networks, network, own)
        return self._in_the_way

    async def _as_here(self, network: Network) -> Network:
        """The network as this host can have it: with packets that pass its way out, and without
        IPv6 where that is switched off.
        """
        out = (
            await self.netns.call(find_mtu)
            if network.spec.kind == "nat" and not network.spec.mtu
            else None
        )
        mtu = network.spec.mtu or min(max(out or USUAL_MTU, MIN_MTU), MAX_MTU)
        has_six = network.spec.ipv6 is None or await self.netns.call(bridge.has_ipv6)
        spec = network.spec if has_six else network.spec.but(ipv6=None)
        return network.but(spec=spec, status=network.status.but(mtu=mtu))

    async def _join(self, network: Network) -> str:
        """The bridge of the physical network; how its interface was before is written down
        first.
        """
        interface = physical.real_name(network.spec.interface or "")
        if network.status.was_up is None or network.status.boot_id != self.site.boot:
            if fault := physical.find_fault(
                interface, network.bridge, tagged=network.spec.vlan is not None
            ):
                raise Failed(*fault)
            if physical.master_of(interface) != network.bridge:
                await self._record(was_up=physical.is_up(interface))
        return await physical.join(interface, network.bridge, network.spec.vlan, vlan_of(network))

    def _reservations(self, network: Network) -> list[dhcp.Reservation]:
        return [
            dhcp.Reservation(
                name_of(item.vm.name, item.nic.number),
                item.mac,
                item.nic.ipv4,
                item.nic.ipv6 if network.spec.ipv6 else None,
            )
            for item in self.networks.members(network.id)
        ]

    async def _keep_taps(self, network: Network, name: str) -> None:
        """Every tap that is there on the bridge, as it shall be; one whose machine ends meanwhile
        is no failure of the network.
        """
        taps = [
            member.tap
            for member in self.networks.members(network.id)
            if bridge.is_there(member.tap, self.netns.net)
        ]
        if taps:
            await self.netns.call(
                bridge.keep_taps,
                name,
                taps,
                apart=network.spec.kind != "bridge",
                trunk=network.spec.trunk,
                mtu=network.status.mtu,
            )

    def _cut_off(self, members: Iterable[Member]) -> Iterator[str]:
        """Servers that run on a namespace which was lost, with all that served it: nothing leads
        there any more.
        """
        for vm, nic in members if self.netns.private else ():
            runtime = vm.status.runtime
            if runtime is None or nic.number not in {plugged.number for plugged in runtime.nics}:
                continue
            alive = identify(runtime.pid) == (runtime.pid, runtime.start)
            if alive and not bridge.is_there(tap_of(vm.id, nic.number), self.netns.net):
                yield f"{vm.name} is cut off since its network was lost: virtuary restart {vm.name}"

    def _unpublished(self, members: Iterable[Member]) -> Iterator[str]:
        """Ports that could not be forwarded."""
        faults = (
            self.networks.uplink.faults if self.networks.uplink else self.networks.rules.unpublished
        )
        for vm in {member.vm.id: member.vm for member in members}.values() if faults else ():
            places = (f"{port.protocol}:{port.address}:{port.host}" for port in vm.spec.publish)
            yield from (
                f"{place} of {vm.name} is not published: {faults[place]}"
                for place in places
                if place in faults
            )

    async def _place_external(self, network: Network) -> None:
        """The addresses outside that lead to its servers: written down before they are there, so
        that none is ever left.
        """
        wanted = [
            address
            for member in self.networks.members(network.id)
            for address in member.nic.external
        ]
        known = network.status.external
        if not wanted and not known:
            return
        placed = await external.plan(wanted, known)
        gone = [item for item in known if item not in placed]
        if set(placed) - set(known):
            await self._record(external=tuple(sorted({*placed, *known})))
            crashpoint("network.after_external")
        await external.place(placed)
        await external.take_away(gone)
        await self._record(external=placed)

    async def _record(self, **changes: Any) -> None:
        before = self.load()
        if before and before.seen(**changes) != before:
            after = await self.write(**changes)
            state, name = after.status.state, after.status.bridge
            say(logger, "network", network=after.name, state=state, bridge=name)

    async def _forget(self, network: Network) -> None:
        """Remove every trace of it; its document last."""
        await self._serving.end()
        spec = network.spec
        await self.netns.call(shaping.remove, network.status.bridge or network.bridge)
        if spec.interface:
            await physical.leave(
                physical.real_name(spec.interface),
                network.bridge,
                vlan_of(network),
                was_up=network.status.was_up is not False,
            )
        await external.take_away(network.status.external)
        await self.netns.call(bridge.remove_bridge, network.bridge)
        shutil.rmtree(self.folder, ignore_errors=True)
        await self.networks.rules.apply()
        crashpoint("network.after_remove")
        expect, gone = documents.removed(self.site.store, network)
        await self.site.store.txn(expect, {}, gone)


def vlan_of(network: Network) -> str:
    return f"vl{network.id.replace('-', '')[:10]}"


async def keep_listening(networks: Networks, wake: Callable[[], None]) -> None:
    """Have everything looked at when somebody took something away."""
    if networks.netns.private:
        return
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    with changes.open_listener() as listener:
        loop.add_reader(listener, lambda: told.set() if changes.hear(listener) else None)
        try:
            while True:
                await told.wait()
                await asyncio.sleep(SETTLE)
                told.clear()
                networks.changes += 1
                wake()
        finally:
            loop.remove_reader(listener)
