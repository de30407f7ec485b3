"""The names by which servers are known on their networks: each is one NIC's, and none is a word of
the network itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from virtuary.actions.context import Context, all_vms
from virtuary.base.errors import Exists, Invalid, VirtuaryError
from virtuary.model.network import Network, Nic, name_of
from virtuary.model.vm import Vm
from virtuary.store.documents import every

RESERVED = {
    "host": "the host's own name on its networks",
    "localhost": "everybody's name for itself",
    "wpad": "a name that programs ask for to be told a proxy",
    "isatap": "a name that systems ask for to be told a tunnel",
}
LONGEST = 63
"""Characters of a label in DNS (RFC 1035)."""


def unfit(
    context: Context, vm_id: str, name: str, nics: Sequence[Nic], drafted: Collection[Network] = ()
) -> list[VirtuaryError]:
    """Why a server with these NICs can't have this name. `drafted`: networks that are made with
    it.
    """
    if name in RESERVED:
        return [Invalid(f"{name} is {RESERVED[name]}", "choose another name")]
    networks = {network.id: network for network in (*_networks(context), *drafted)}
    wanted = [
        (networks[nic.network_id], name_of(name, nic.number))
        for nic in nics
        if nic.network_id in networks
    ]
    held = {
        (nic.network_id, name_of(vm.name, nic.number)): (vm, nic)
        for vm in (all_vms(context.store) if wanted else ())
        if vm.id != vm_id and not vm.meta.deleted
        for nic in (*vm.spec.nics, *vm.nics)
    }
    blockers: list[VirtuaryError] = []
    for network, label in dict.fromkeys((network.id, label) for network, label in wanted):
        blockers += _unfit(networks[network], label, held.get((network, label)))
    return blockers


def _unfit(network: Network, label: str, holder: tuple[Vm, Nic] | None) -> Iterator[VirtuaryError]:
    if label == network.spec.domain:
        yield Invalid(f"{label} is the domain of the network {network.name}", "choose another name")
    if len(label) > LONGEST:
        yield Invalid(
            f"{label} is too long for a name on the network {network.name}",
            f"at most {LONGEST} characters",
        )
    if holder:
        vm, nic = holder
        whose = (
            f"the name of NIC {nic.number} of {vm.name}" if nic.number else "another server's name"
        )
        yield Exists(
            f"{label} is {whose} on the network {network.name} already",
            "choose another name, or another network",
        )


def _networks(context: Context) -> list[Network]:
    """Those on which names are served here."""
    found = every(context.store, Network)
    return [network for network in found if network.spec.kind != "bridge"]
