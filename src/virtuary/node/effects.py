"""What the effects of steps share: their type, the machine's monitor, notes on the operation that
waits for them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from virtuary.base.errors import GuestSilent
from virtuary.base.text import shown
from virtuary.node import operations
from virtuary.node.server import Server
from virtuary.node.world import World
from virtuary.qemu.qmp import Monitor

Effect = Callable[[Server, World, Any], Awaitable[None]]


def monitor_of(worker: Server) -> Monitor:
    """The machine's monitor; raises GuestSilent where it is not connected."""
    if worker.run is None or worker.run.monitor is None:
        raise GuestSilent("QEMU's monitor is not connected")
    return worker.run.monitor


async def note_on(worker: Server, world: World, *texts: str, **changes: Any) -> None:
    """Note something on the operation, where one waits."""
    if world.operation:
        await operations.note(worker.site.store, world.operation.key, *texts, **changes)


def printable(text: bytes) -> str:
    """The end of what a guest said, as it may be shown."""
    return shown(text[-1200:], 300) or "it gives no reason"
