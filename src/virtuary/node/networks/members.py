"""The networks of this host as the documents have them, who is on them, and the netns that they
stand on. Makes and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

from virtuary.host.neighbours import Claim, Owner
from virtuary.model.firewall import Firewall, Group
from virtuary.model.network import Lease, Network, Nic, own_mac, tap_of
from virtuary.model.vm import Vm
from virtuary.network import leases
from virtuary.network.netns import Host, Netns
from virtuary.node.networks.uplink import Uplink
from virtuary.store import documents, servers
from virtuary.store.api import Store
from virtuary.store.documents import every


class Member(NamedTuple):
    """A server's NIC on a network of the host's."""

    vm: Vm
    nic: Nic

    @property
    def mac(self) -> str:
        return own_mac(self.vm.id, self.nic)

    @property
    def tap(self) -> str:
        return tap_of(self.vm.id, self.nic.number)


class Membership:
    def __init__(
        self, store: Store, folder: Path, netns: Netns | None = None, uplink: Uplink | None = None
    ) -> None:
        self._store, self._folder = store, folder
        self.netns: Netns = netns or Host()
        self.uplink = uplink
        """The way out, where these are a user's own."""
        self.claim: Claim | None = None
        """Of what only one instance in a network namespace can have; None where nobody else can
        want it.
        """
        self.on_missing: Callable[[str], None] = lambda key: None
        """Called with the key of a network that should be there and is not."""

    def take(self) -> Owner | None:
        """Have the bridges and the packet filter of the host, unless another instance has them:
        that one.
        """
        return self.claim.take() if self.claim else None

    def give_back(self) -> None:
        """Nothing of ours is left on the host."""
        if self.claim and self.claim.is_mine():
            self.claim.give_back()

    def find_fault(self) -> str | None:
        """Why the networks of this host are not ours, in words."""
        other = self.claim.find_other() if self.claim else None
        return f"{other} has the networks of this host" if other else None

    def folder(self, network_id: str) -> Path:
        return self._folder / network_id

    def all(self) -> list[Network]:
        """Every network that is not being removed."""
        found = every(self._store, Network)
        return [network for network in found if not network.meta.purge]

    def any_left(self) -> bool:
        """Whether there is a network, be it one that is being removed."""
        return bool(every(self._store, Network))

    def load(self, network_id: str) -> Network | None:
        return documents.get(self._store, Network, network_id)

    def groups(self) -> dict[str, Group]:
        """Every firewall group, by name."""
        found = every(self._store, Firewall)
        return {group.name: Group(group.name, group.spec.rules) for group in found}

    def members(self, network_id: str | None = None) -> list[Member]:
        """The NICs on one of this host's networks, or on all of them, of servers that are not in
        the trash: where they are now.
        """
        vms = servers.on_network(self._store, network_id) if network_id else every(self._store, Vm)
        present = (vm for vm in vms if not vm.meta.deleted and not vm.meta.purge)
        found = (Member(vm, nic) for vm in present for nic in vm.nics if nic.network_id)
        return [member for member in found if network_id in (None, member.nic.network_id)]

    def leases(self, network: Network) -> list[Lease]:
        """Who has which address, and whether they asked for it."""
        taken = {item.mac for item in leases.read(self.folder(network.id))}
        return [
            Lease(
                vm=item.vm.name,
                mac=item.mac,
                ipv4=item.nic.ipv4,
                ipv6=item.nic.ipv6,
                taken=item.mac in taken,
            )
            for item in self.members(network.id)
        ]

    def leased(self, network_id: str) -> dict[str, str]:
        """The MAC of who has a lease of an IPv4 address, by address."""
        return {item.address: item.mac for item in leases.read(self.folder(network_id)) if item.mac}

    def readiness(
        self, vm: Vm, boot: str
    ) -> tuple[Literal["ready", "creating", "failed", "gone"], str]:
        """Whether the networks of a server are there, as its NICs need them."""
        for nic in vm.spec.nics:
            if not nic.network_id:
                continue
            network = self.load(nic.network_id)
            if network is None or network.meta.purge:
                return "gone", f"the network {nic.network} is gone"
            if network.status.state == "failed":
                return "failed", f"the network {nic.network} is not there: {network.status.reason}"
            if network.status.state != "ready" or network.status.boot_id != boot:
                return "creating", f"waiting for the network {nic.network}"
        return "ready", ""
