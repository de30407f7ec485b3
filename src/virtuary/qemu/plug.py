"""Devices plugged into a machine that runs, and out again: the same parts as at its start, through
the monitor.
"""

from __future__ import annotations

import asyncio
import contextlib

from virtuary.base.answers import read
from virtuary.base.errors import GuestSilent
from virtuary.qemu.devices.nic import nic_parts
from virtuary.qemu.devices.ports import behind
from virtuary.qemu.qmp import CommandFailed, Monitor

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
    until = asyncio.get_running_loop().time() + LIMIT
    while await _has(monitor, f"net{number}-device"):
        with contextlib.suppress(CommandFailed):  # asked already
            await monitor.run("device_del", id=f"net{number}-device")
        for _ in range(20):
            await asyncio.sleep(0.05)
            if not await _has(monitor, f"net{number}-device"):
                break
        else:
            if asyncio.get_running_loop().time() > until:
                raise GuestSilent(f"the guest does not let go of NIC {number}")
    with contextlib.suppress(CommandFailed):
        await monitor.run("netdev_del", id=f"net{number}")


async def _has(monitor: Monitor, device: str) -> bool:
    found = read(await monitor.run("qom-list", path="/machine/peripheral")).items()
    return any(item.text("name") == device for item in found)
