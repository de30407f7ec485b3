"""Templates: save a booted, paused machine without its memory, which lies in a file; resume copies
of it; let them grow.

The memory file is never part of the stream (`x-ignore-shared`): the template writes to it as it
runs, a copy has a private view of it, so both directions take the time of the devices' state only,
whatever the size of the memory.
"""

from __future__ import annotations

import asyncio
from typing import Any

from virtuary.base.answers import Answer, read
from virtuary.base.errors import Failed, GuestSilent
from virtuary.base.units import MIB
from virtuary.qemu.parts import Parts
from virtuary.qemu.qmp import Monitor

GROWTH = "/machine/peripheral/growth0-device"
MOST_MEMORY = 2**52
"""Bytes: more has no machine."""
STEP = 2 * MIB
"""Memory is plugged in blocks of this size."""
LOAD_LIMIT = 30.0
"""Seconds for a state of less than a megabyte."""
NO_REASON = "QEMU gives no reason"
PROPERTIES = (
    "node-id",
    "drawer-id",
    "book-id",
    "socket-id",
    "die-id",
    "cluster-id",
    "module-id",
    "core-id",
    "thread-id",
)
"""What may say where a CPU is plugged."""


def state_address(parts: Parts) -> str:
    """Where the machine described by `parts` writes or reads its device state, as an address of
    `migrate`.
    """
    return "file:" + next(grant.fdset for grant in parts.grants if grant.role == "state")


async def save(monitor: Monitor, address: str) -> None:
    """Stop the machine and write its device state; afterwards it may only end. Raises Failed or
    GuestSilent.
    """
    await monitor.run("stop")
    await _move(monitor, "migrate", address)


async def load(monitor: Monitor, address: str) -> None:
    """Read the device state into a machine that waits for it; it is paused then. Raises Failed or
    GuestSilent.
    """
    await _move(monitor, "migrate-incoming", address)


async def _move(monitor: Monitor, command: str, address: str) -> None:
    await monitor.run(
        "migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}]
    )
    await monitor.run(command, uri=address)
    until = asyncio.get_running_loop().time() + LOAD_LIMIT
    while True:
        answer = await find_migration(monitor)
        match answer.text("status", None):
            case "completed":
                return
            case "failed" | "cancelled":
                raise Failed(f"the machine's state can't be moved: {why_not(answer)}")
        if asyncio.get_running_loop().time() > until:
            raise GuestSilent("the machine's state was not moved in time")
        await asyncio.sleep(0.002)


async def find_migration(monitor: Monitor) -> Answer:
    """What QEMU says of the state that is on its way, or was; it may say nothing."""
    return read(await monitor.run("query-migrate", LOAD_LIMIT)).inner()


def why_not(answer: Answer) -> str:
    """Why a state did not arrive. Pure."""
    return answer.words("error-desc", NO_REASON)


async def plug(monitor: Monitor, cpus: int, memory: int) -> None:
    """Plug CPUs until there are `cpus`, and ask for `memory` bytes besides the base; what is there
    already stays. Repeats harmlessly.
    """
    if cpus > 1:
        places = await find_places(monitor)
        missing = cpus - sum("qom-path" in place for place in places)
        free = sorted((place for place in places if "qom-path" not in place), key=_order)
        for place in free[: max(missing, 0)]:
            where = _where(place)
            await monitor.run(
                "device_add", driver=place.text("type"), id=f"cpu{where.get('core-id', 0)}", **where
            )
    if memory:
        await monitor.run("qom-set", path=GROWTH, property="requested-size", value=memory)


async def find_places(monitor: Monitor) -> list[Answer]:
    """Where CPUs can be plugged; what has a `qom-path` is one that is."""
    return read(await monitor.run("query-hotpluggable-cpus")).items()


def _where(place: Answer) -> dict[str, int]:
    props = place.inner("props")
    return {name: props.number(name) for name in PROPERTIES if name in props}


def _order(place: Answer) -> tuple[int, ...]:
    where = _where(place)
    return tuple(where.get(name, 0) for name in ("socket-id", "die-id", "core-id", "thread-id"))


async def find_plugged(monitor: Monitor) -> int:
    """Bytes of memory that the guest has taken besides the base. Raises CommandFailed where it
    can't.
    """
    return read(await monitor.run("qom-get", path=GROWTH, property="size")).number(most=MOST_MEMORY)


async def wait_plugged(monitor: Monitor, memory: int, limit: float) -> None:
    """Wait until the guest has taken all the memory it was offered; raises GuestSilent at the limit
    (seconds).
    """
    until = asyncio.get_running_loop().time() + limit
    while (taken := await find_plugged(monitor)) < memory:
        if asyncio.get_running_loop().time() > until:
            raise GuestSilent(f"the guest took {taken} of {memory} bytes of memory it was offered")
        await asyncio.sleep(0.02)


async def resize_disk(monitor: Monitor, size: int, name: str = "disk0") -> None:
    """Make a disk `size` bytes large while the machine has it; the guest is told."""
    where: dict[str, Any] = {"node-name": name, "size": size}
    await monitor.run("block_resize", **where)
