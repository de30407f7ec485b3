"""What the first NIC of a server leads to, started with its machine; where its SSH is reached."""

from __future__ import annotations

from virtuary.model.network import NONE, USER
from virtuary.model.vm import Vm
from virtuary.network import passt
from virtuary.node.machine.launch import Plugged, Served
from virtuary.node.machine.resolve import forwards_of, ssh_forward
from virtuary.node.site import Site


def way_in(site: Site, vm: Vm) -> tuple[str, int | None]:
    """Where the guest's SSH will be reached; no port where nobody knows."""
    if vm.spec.nics[0].network == USER:
        return "127.0.0.1", passt.free_port()
    address = next((nic.ipv4 or nic.ipv6 for nic in vm.spec.nics if nic.ipv4 or nic.ipv6), None)
    if address and site.networks.netns.private:
        return "127.0.0.1", passt.free_port()  # forwarded as what is published is
    return (address, 22) if address else ("127.0.0.1", None)


def kind_of(site: Site, vm: Vm) -> str:
    """Who serves the first NIC."""
    name = vm.spec.nics[0].network
    return site.network if name == USER else "none" if name == NONE else "tap"


def behind(site: Site, vm: Vm, way: tuple[str, int | None]) -> Served | Plugged | None:
    """What the first NIC leads to, to be started with the machine."""
    nic = vm.spec.nics[0]
    if nic.network == USER:
        return Served((*forwards_of(vm), ssh_forward(way[1] or 0)))
    return None if nic.network == NONE else Plugged(lambda: site.networks.open_tap(vm, nic))
