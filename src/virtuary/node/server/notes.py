"""What a step tells whoever waits for it."""

from __future__ import annotations

from typing import Any

from virtuary.base.text import shown
from virtuary.node import operations
from virtuary.node.server.server import Server
from virtuary.node.server.world import World


async def note_on(server: Server, world: World, *texts: str, **changes: Any) -> None:
    """Note something on the operation, where one waits."""
    if world.operation:
        await operations.note(server.site.store, world.operation.key, *texts, **changes)


def printable(text: bytes) -> str:
    """The end of what a guest said, as it may be shown."""
    return shown(text[-1200:], 300) or "it gives no reason"


STAGE_TEXT = {
    "firmware": "firmware and kernel are starting",
    "kernel": "the guest's system is starting",
    "agent": "the guest agent is up",
    "network": "waiting for the guest's network",
    "ssh": "waiting for the guest's SSH",
}
