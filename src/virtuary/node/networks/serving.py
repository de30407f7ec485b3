"""The dnsmasq of one network, kept alive, with the newest lists, and without leases of NICs that
are gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from virtuary.base.crash import crashpoint, declare
from virtuary.base.known import RECORD, end_recorded
from virtuary.base.proc import Identity
from virtuary.base.watched import Watched, watch
from virtuary.host.cgroups import outlive
from virtuary.jail.resolver import RESOLVER
from virtuary.model.network import USUAL_MTU, Network
from virtuary.network import dhcp, leases, passt
from virtuary.network.netns import Netns

declare("network.after_dhcp")


def service_of(network: Network, *, private: bool = False) -> dhcp.Service:
    spec, resolver = network.spec, passt.NAMESERVER if private else None
    return dhcp.Service(
        network.bridge, spec.domain, spec.ipv4, spec.ipv6, outside=spec.kind == "nat",
        resolver=resolver, resolvers=RESOLVER.file,
        mtu=network.status.mtu or USUAL_MTU,
    )  # fmt: skip


class Serving:
    def __init__(self, folder: Path, netns: Netns, wake: Callable[[], None]) -> None:
        """`wake` is called when dnsmasq ends."""
        self._folder, self._netns, self._wake = folder, netns, wake
        self._process: Watched | None = None
        self._looked: tuple[int, int] | None = None
        """When the leases were written that were looked at last."""

    async def keep(
        self, network: Network, reservations: Sequence[dhcp.Reservation], boot: str
    ) -> dict[str, int] | None:
        """Have it serve these NICs and no others; what is to be recorded of one that was started.
        Raises Failed.
        """
        service = service_of(network, private=self._netns.private)
        configured, listed = await asyncio.to_thread(
            dhcp.write, self._folder, service, network.gateways, reservations
        )
        if self._process is None and network.status.pid and network.status.boot_id == boot:
            self._watch(Identity(network.status.pid, network.status.start or 0))
        if self._process is not None and not configured:
            if listed and network.status.pid:
                # first, or who is gone might be given the same again
                dhcp.read_again(network.status.pid)
            if await self._release(network, reservations, listed):
                return None
        await self.end()
        leases.strike(self._folder, leases.outlived(leases.read(self._folder), reservations))
        identity = await self._netns.call(dhcp.start, self._folder)
        outlive(identity.pid)
        crashpoint("network.after_dhcp")
        self._watch(identity)
        return {"pid": identity.pid, "start": identity.start}

    async def _release(
        self, network: Network, reservations: Sequence[dhcp.Reservation], listed: bool
    ) -> bool:
        """Have it forget the leases whose NIC is gone; whether it did."""
        if not listed and leases.written(self._folder) == self._looked:
            return True
        gone = leases.outlived(await leases.settled(self._folder), reservations)
        gateway = next((address for address in network.gateways if ":" not in address), None)
        if gone and not await self._netns.call(
            leases.release, str(self._folder), network.bridge, gateway, gone
        ):
            return False
        self._looked = leases.written(self._folder)
        return True

    def _watch(self, identity: Identity) -> None:
        self._process = watch(identity, self._on_end)

    def _on_end(self) -> None:
        self._process = None
        self._wake()

    def let_go(self) -> None:
        """Look after it no more; it goes on."""
        if self._process:
            self._process.let_go()
        self._process = None

    async def end(self) -> None:
        self.let_go()
        await end_recorded(self._folder / RECORD)
