"""Devices plugged into a machine that runs, and out again: the same parts as at its start, through
the monitor.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from virtuary.base.answers import read
from virtuary.base.errors import GuestSilent, VirtuaryError
from virtuary.qemu.devices.disk import Disk
from virtuary.qemu.devices.nic import nic_parts
from virtuary.qemu.devices.ports import behind
from virtuary.qemu.platforms.platform import Platform
from virtuary.qemu.qmp import CommandFailed, Monitor

FDSET = "/dev/fdset/"
LIMIT = 10.0
"""Seconds a guest is given to let go of a device."""


async def plug_nic(monitor: Monitor, number: int, mac: str, tap: int | None) -> None:
    """Plug a NIC into the root port that is kept for it. `tap`: descriptor of what it leads to;
    None: nowhere. Raises Failed.
    """
    name = f"tap{number}"
    if tap is None:
        backend: dict[str, object] = {"type": "hubport", "hubid": number}
    else:
        await monitor.send_descriptor(tap, name)
        backend = {"type": "tap", "fd": name}
    netdev, device = nic_parts(number, backend, mac, behind(number - 1))
    try:
        await monitor.run("netdev_add", **netdev.args)
        await monitor.run("device_add", **device.args)
    except BaseException:
        with contextlib.suppress(CommandFailed):
            await monitor.run("netdev_del", id=f"net{number}")
        raise


async def unplug_nic(monitor: Monitor, number: int) -> None:
    """Take a NIC out; returns when the guest has let go of it, at once when it is not there. Raises
    GuestSilent.
    """
    await _take_out(monitor, f"net{number}-device", f"NIC {number}")
    with contextlib.suppress(CommandFailed):
        await monitor.run("netdev_del", id=f"net{number}")


async def plug_disk(monitor: Monitor, disk: Disk, platform: Platform, handle: int) -> None:
    """Plug a disk into the root port that is kept for it. `handle`: its file, open as the disk is
    to be used. Raises Failed, and leaves nothing of it then.
    """
    number = await monitor.give(handle, disk.name)
    try:
        for node in disk.nodes(f"/dev/fdset/{number}"):
            await monitor.run("blockdev-add", **node.args)
        await monitor.run("device_add", **disk.device(platform).args)
    except BaseException:
        with contextlib.suppress(VirtuaryError):
            await _drop_nodes(monitor, disk.name)
            await _forget(monitor, number)
        raise


async def unplug_disk(monitor: Monitor, name: str) -> None:
    """Take a disk out; returns when the guest has let go of it, at once when it is not there.
    Raises GuestSilent.
    """
    await _take_out(monitor, f"{name}-device", f"disk {name.removeprefix('disk')}")
    places = await _files(monitor)
    await _drop_nodes(monitor, name)
    place = places.get(f"{name}-file")
    if place is not None:
        await _forget(monitor, place)


async def _drop_nodes(monitor: Monitor, name: str) -> None:
    for node in (name, f"{name}-file"):
        named: dict[str, Any] = {"node-name": node}
        with contextlib.suppress(CommandFailed):
            await monitor.run("blockdev-del", **named)


async def _forget(monitor: Monitor, number: int) -> None:
    """Have QEMU close a set of descriptors, and with it the locks on its file."""
    named: dict[str, Any] = {"fdset-id": number}
    with contextlib.suppress(CommandFailed):
        await monitor.run("remove-fd", **named)


async def _files(monitor: Monitor) -> dict[str, int]:
    """The set of descriptors in which the file of each node lies."""
    found = read(await monitor.run("query-named-block-nodes", flat=True)).items()
    places = {node.text("node-name"): node.text("file") for node in found}
    return {
        node: int(file.removeprefix(FDSET))
        for node, file in places.items()
        if file.startswith(FDSET) and file.removeprefix(FDSET).isdecimal()
    }


async def _take_out(monitor: Monitor, device: str, what: str) -> None:
    until = asyncio.get_running_loop().time() + LIMIT
    while await _has(monitor, device):
        with contextlib.suppress(CommandFailed):  # asked already
            await monitor.run("device_del", id=device)
        for _ in range(20):
            await asyncio.sleep(0.05)
            if not await _has(monitor, device):
                break
        else:
            if asyncio.get_running_loop().time() > until:
                raise GuestSilent(f"the guest does not let go of {what}")


async def find_devices(monitor: Monitor) -> frozenset[str]:
    """The names of the devices that the machine has now."""
    found = read(await monitor.run("qom-list", path="/machine/peripheral")).items()
    return frozenset(item.text("name") for item in found)


async def _has(monitor: Monitor, device: str) -> bool:
    return device in await find_devices(monitor)
