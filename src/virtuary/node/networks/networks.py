"""The networks of this host, made true: bridges, addresses and names, the rules between them. Their
only owner.

`Membership` knows how things are to be, from the documents; a `NetworkWorker` a network
(node/making/networks.py) makes its bridge and its dnsmasq, and makes them again when somebody took
them away. The rules of all networks are one text, applied whole or not at all.
"""

from __future__ import annotations

import os
from pathlib import Path

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed, PeerAway
from virtuary.model.network import Nic, tap_of
from virtuary.model.vm import Vm
from virtuary.network import bridge
from virtuary.network.netns import Netns
from virtuary.node.networks.addresses import Addresses
from virtuary.node.networks.members import Membership
from virtuary.node.networks.rules import Rules
from virtuary.node.networks.uplink import Uplink
from virtuary.store.api import Store

declare("tap.after_open")


class Networks(Membership):
    def __init__(
        self, store: Store, folder: Path, netns: Netns | None = None, uplink: Uplink | None = None
    ) -> None:
        super().__init__(store, folder, netns, uplink)
        self.rules = Rules(self)
        if uplink:
            uplink.on_end = self.rules.look_again
        self.addresses = Addresses(self, store, folder)
        self.failing: dict[str, float] = {}
        """Since when (monotonic) a network fails, by id: as long as its worker can't make it."""
        self.changes = 0
        """How often something was heard to be taken away."""

    def failing_since(self, vm: Vm) -> float | None:
        """Since when one of the networks of this server fails; None where none does."""
        there = (self.failing.get(nic.network_id) for nic in vm.spec.nics)
        return min((since for since in there if since is not None), default=None)

    def held(self) -> set[tuple[str, str, int]]:
        """Ports of the host that are held because servers publish them: protocol, address,
        number.
        """
        return {*self.rules.holder.places, *(self.uplink.held if self.uplink else ())}

    async def close_taps(self, vm: Vm) -> None:
        """Nothing is left of the taps of a server that is over. Raises PeerAway."""
        runtime = vm.status.runtime.nics if vm.status.runtime else ()
        for number in {nic.number for nic in (*vm.spec.nics, *runtime)}:
            if bridge.is_there(tap_of(vm.id, number), self.netns.net):
                try:
                    await self.netns.call(bridge.remove_tap, tap_of(vm.id, number))
                except OSError as error:
                    raise PeerAway(
                        f"the tap of NIC {number} can't be removed: {error.strerror}"
                    ) from error

    async def open_tap(self, vm: Vm, nic: Nic) -> int:
        """The descriptor of a new tap of this NIC, on its network's bridge and guarded; the
        caller's to hand over and close.

        Raises PeerAway where the network is not there: somebody took it away, and its worker makes
        it again. Raises Failed where the network or the NIC contradicts another one, and so has no
        rules.
        """
        network = self.load(nic.network_id)
        if network is None or network.meta.purge:
            raise Failed(f"the network {nic.network} is gone")
        await self.rules.apply()  # before its first frame can come
        if why := self.rules.left_out.get(network.id) or self.rules.left_out.get(
            tap_of(vm.id, nic.number)
        ):
            raise Failed(
                f"NIC {nic.number} can't join the network {nic.network}: {why}",
                f"virtuary set {vm.name} --network ...",
            )
        try:
            apart = network.spec.kind != "bridge"
            mtu = network.status.mtu
            handle = await self.netns.open(
                bridge.open_tap,
                tap_of(vm.id, nic.number),
                network.status.bridge,
                apart=apart,
                mtu=mtu,
            )
        except Failed as error:
            self.on_missing(network.key)
            raise PeerAway(error.sentence) from error
        try:
            crashpoint("tap.after_open")
            await self.netns.call(
                bridge.allow_tags,
                tap_of(vm.id, nic.number),
                network.status.bridge,
                network.spec.trunk,
            )
        except BaseException:
            os.close(handle)
            raise
        return handle
