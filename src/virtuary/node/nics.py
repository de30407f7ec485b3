"""What a server's NICs lead to, and the steps by which those besides the first are plugged in and
out while it runs.
"""

from __future__ import annotations

import os

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import PeerAway, VirtuaryError
from virtuary.model.network import NONE, USER, Nic, own_mac
from virtuary.model.vm import Vm
from virtuary.network import passt
from virtuary.node.describe import forwards_of, ssh_forward
from virtuary.node.effects import Effect, monitor_of
from virtuary.node.launch import Plugged, Served
from virtuary.node.server import Server
from virtuary.node.site import Site
from virtuary.node.world import Step, World
from virtuary.qemu import plug

declare("nic.after_plug", "nic.after_record", "nic.after_unplug")


def way_in(site: Site, vm: Vm) -> tuple[str, int | None]:
    """Where the guest's SSH will be reached; no port where nobody knows."""
    if vm.spec.nics[0].network == USER:
        return "127.0.0.1", passt.free_port()
    address = next((nic.ipv4 or nic.ipv6 for nic in vm.spec.nics if nic.ipv4 or nic.ipv6), None)
    if address and site.networks.ground.private:
        return "127.0.0.1", passt.free_port()  # led in as what is published is
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


def plugging(world: World) -> Step | None:
    """A NIC that is wished and not there, or there and not so wished: those besides the first.
    Pure.

    All that go are taken out before any is plugged in, which may be given an address that one of
    them had.
    """
    runtime = world.vm.status.runtime
    if world.process != "alive" or runtime is None or not world.connected or runtime.end:
        return None
    if world.qemu in (None, "inmigrate") or world.vm.spec.power == "stopped" or world.restart_due:
        return None
    wished = {nic.number: nic for nic in world.vm.spec.nics}
    there = {nic.number: nic for nic in runtime.nics}
    for number, nic in there.items():
        if number and (number not in wished or wished[number].wiring != nic.wiring):
            return Step("unplug_nic", number)
    for number, nic in wished.items():
        if number and number not in there:
            return Step("plug_nic", nic)
    return None


async def plug_nic(worker: Server, world: World, nic: Nic) -> None:
    """Give the machine one more NIC; its guest sees it appear. What fails is tried again: a server
    is not stopped for it.
    """
    try:
        await _plug(worker, world.vm, nic)
    except OSError as error:
        raise PeerAway(f"NIC {nic.number} can't be plugged: {error.strerror}") from error
    except VirtuaryError as error:
        raise (
            error
            if error.retry
            else PeerAway(f"NIC {nic.number} can't be plugged: {error.sentence}")
        ) from error


async def _plug(worker: Server, vm: Vm, nic: Nic) -> None:
    monitor = monitor_of(worker)
    assert vm.status.runtime
    await plug.unplug_nic(monitor, nic.number)  # what a plugging that was cut off left
    handle = None if nic.network == NONE else await worker.site.networks.open_tap(vm, nic)
    try:
        await plug.plug_nic(monitor, nic.number, own_mac(vm.id, nic), handle)
    finally:
        if handle is not None:
            os.close(handle)
    crashpoint("nic.after_plug")
    await worker.write(vm, runtime=vm.status.runtime.but(nics=(*vm.status.runtime.nics, nic)))
    crashpoint("nic.after_record")


async def unplug_nic(worker: Server, world: World, number: int) -> None:
    """Take a NIC from the machine, when its guest lets go of it. Raises GuestSilent when it does
    not.
    """
    vm = world.vm
    assert vm.status.runtime
    try:
        await plug.unplug_nic(monitor_of(worker), number)
        crashpoint("nic.after_unplug")
    except OSError as error:
        raise PeerAway(f"NIC {number} can't be taken out: {error.strerror}") from error
    left = tuple(other for other in vm.status.runtime.nics if other.number != number)
    await worker.write(vm, runtime=vm.status.runtime.but(nics=left))


STEPS: dict[str, Effect] = {effect.__name__: effect for effect in (plug_nic, unplug_nic)}
