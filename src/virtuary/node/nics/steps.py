"""NICs besides the first are plugged in and out while a server runs."""

from __future__ import annotations

import os
from collections.abc import Callable

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import PeerAway, VirtuaryError
from virtuary.model.network import NONE, Nic, own_mac
from virtuary.model.vm import Vm
from virtuary.node.nics.plan import PlugNic, UnplugNic
from virtuary.node.server.process import Process
from virtuary.node.server.server import Server
from virtuary.node.server.step import capability, does_with
from virtuary.node.server.world import World
from virtuary.qemu import plug

declare("nic.after_plug", "nic.after_record", "nic.after_unplug")


async def plug_nic(server: Server, process: Process, world: World, step: PlugNic) -> None:
    """Give the machine one more NIC; its guest sees it appear. What fails is tried again: a server
    is not stopped for it.
    """
    nic = step.nic
    try:
        await _plug(server, process, world.vm, nic)
    except OSError as error:
        raise PeerAway(f"NIC {nic.number} can't be plugged: {error.strerror}") from error
    except VirtuaryError as error:
        raise (
            error
            if error.retry
            else PeerAway(f"NIC {nic.number} can't be plugged: {error.sentence}")
        ) from error


async def _plug(server: Server, process: Process, vm: Vm, nic: Nic) -> None:
    monitor = process.monitor
    await plug.unplug_nic(monitor, nic.number)  # what a plugging that was cut off left
    handle = None if nic.network == NONE else await server.site.networks.open_tap(vm, nic)
    try:
        await plug.plug_nic(monitor, nic.number, own_mac(vm.id, nic), handle)
    finally:
        if handle is not None:
            os.close(handle)
    crashpoint("nic.after_plug")
    await _record(server, vm, lambda there: (*there, nic))
    crashpoint("nic.after_record")


async def unplug_nic(server: Server, process: Process, world: World, step: UnplugNic) -> None:
    """Take a NIC from the machine, when its guest lets go of it. Raises GuestSilent when it does
    not.
    """
    number = step.number
    try:
        await plug.unplug_nic(process.monitor, number)
        crashpoint("nic.after_unplug")
    except OSError as error:
        raise PeerAway(f"NIC {number} can't be taken out: {error.strerror}") from error
    await _record(
        server, world.vm, lambda there: tuple(nic for nic in there if nic.number != number)
    )


async def _record(
    server: Server, vm: Vm, change: Callable[[tuple[Nic, ...]], tuple[Nic, ...]]
) -> None:
    """Write down which NICs the machine has now."""
    if runtime := vm.status.runtime:
        await server.write(runtime=runtime.but(nics=change(runtime.nics)))


CAPABILITY = capability(
    does_with(PlugNic, plug_nic),
    does_with(UnplugNic, unplug_nic),
)
