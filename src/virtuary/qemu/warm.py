"""Templates: save a booted, paused machine without its memory, which lies in a file; resume copies of it; let them grow.

The memory file is never part of the stream (`x-ignore-shared`): the template writes to it as it runs, a copy has a private view
of it, so both directions take the time of the devices' state only, whatever the size of the memory.
"""

from __future__ import annotations

import asyncio
from typing import Any

from virtuary.base.errors import Failed, GuestSilent
from virtuary.base.units import MIB
from virtuary.qemu.parts import Parts
from virtuary.qemu.qmp import Monitor

GROWTH = "/machine/peripheral/growth0-device"
STEP = 2 * MIB
"""Memory is plugged in blocks of this size."""
LOAD_LIMIT = 30.0
"""Seconds for a state of less than a megabyte."""


def state_address(parts: Parts) -> str:
    """Where the machine described by `parts` writes or reads its device state, as an address of `migrate`."""
    return "file:" + next(grant.fdset for grant in parts.grants if grant.role == "state")


async def save(monitor: Monitor, address: str) -> None:
    """Stop the machine and write its device state; afterwards it may only end. Raises Failed or GuestSilent."""
    await monitor.run("stop")
    await _move(monitor, "migrate", address)


async def load(monitor: Monitor, address: str) -> None:
    """Read the device state into a machine that waits for it; it is paused then. Raises Failed or GuestSilent."""
    await _move(monitor, "migrate-incoming", address)


async def _move(monitor: Monitor, command: str, address: str) -> None:
    await monitor.run("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])
    await monitor.run(command, uri=address)
    until = asyncio.get_running_loop().time() + LOAD_LIMIT
    while True:
        answer = await monitor.run("query-migrate", LOAD_LIMIT)
        match answer.get("status"):
            case "completed":
                return
            case "failed" | "cancelled":
                raise Failed(f"the machine's state can't be moved: {answer.get('error-desc', 'QEMU gives no reason')}")
        if asyncio.get_running_loop().time() > until:
            raise GuestSilent("the machine's state was not moved in time")
        await asyncio.sleep(0.002)


async def plug(monitor: Monitor, cpus: int, memory: int) -> None:
    """Plug CPUs until there are `cpus`, and ask for `memory` bytes besides the base; what is there already stays. Repeats harmlessly."""
    if cpus > 1:
        places = await monitor.run("query-hotpluggable-cpus")
        missing = cpus - sum("qom-path" in place for place in places)
        free = sorted((place for place in places if "qom-path" not in place), key=_order)
        for place in free[: max(missing, 0)]:
            number = place["props"].get("core-id", 0)
            await monitor.run("device_add", driver=place["type"], id=f"cpu{number}", **place["props"])
    if memory:
        await monitor.run("qom-set", path=GROWTH, property="requested-size", value=memory)


def _order(place: dict[str, Any]) -> tuple[int, ...]:
    props = place["props"]
    return tuple(int(props.get(name, 0)) for name in ("socket-id", "die-id", "core-id", "thread-id"))


async def wait_plugged(monitor: Monitor, memory: int, limit: float) -> None:
    """Wait until the guest has taken all the memory it was offered; raises GuestSilent at the limit (seconds)."""
    until = asyncio.get_running_loop().time() + limit
    while (taken := int(await monitor.run("qom-get", path=GROWTH, property="size"))) < memory:
        if asyncio.get_running_loop().time() > until:
            raise GuestSilent(f"the guest took {taken} of {memory} bytes of memory it was offered")
        await asyncio.sleep(0.02)


async def resize_disk(monitor: Monitor, size: int) -> None:
    """Make the root disk `size` bytes large while the machine has it; the guest is told."""
    where: dict[str, Any] = {"node-name": "disk0", "size": size}
    await monitor.run("block_resize", **where)
