"""Notes on an operation: begun, stage, progress, log line, end. Each is one small transaction on
its own document.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from virtuary.base.errors import Conflict, VirtuaryError
from virtuary.model.keys import id_of
from virtuary.model.meta import utcnow
from virtuary.model.operation import LINE, LOG_LINES, LogLine, Operation
from virtuary.model.vm import Vm
from virtuary.store import documents
from virtuary.store.api import Store


def load(store: Store, key: str) -> Operation | None:
    return documents.at(store, Operation, key)


def open_operations(store: Store, target: str | None = None) -> list[Operation]:
    """Operations that have not ended, oldest first; those on `target` only, if named."""
    found = documents.open_operations(store)
    return [item for item in found if target is None or item.spec.target == target]


def open_about(store: Store, key: str) -> tuple[list[Operation], list[Operation]]:
    """Operations on this server that have not ended, and those that copy it; each oldest first."""
    found, server = documents.open_operations(store), id_of(key)
    on = [item for item in found if item.spec.target == key]
    return on, [item for item in found if item.copies == server]


def failed_start(store: Store, vm: Vm) -> str | None:
    """Why the start failed by which a server's machine is there; None where none did, or another
    one is under way.
    """
    runtime = vm.status.runtime
    found = (item for item in documents.every(store, Operation) if item.spec.target == vm.key)
    starts = [item for item in found if item.spec.deed.starts]
    last = max(starts, key=lambda item: item.meta.created, default=None)
    if last is None or last.status.phase != "failed" or runtime is None:
        return None
    if last.status.ended and last.status.ended < runtime.started:
        return None  # what runs now was started after that one
    return str((last.status.error or {}).get("detail", "nobody noted why"))


def noted(operation: Operation, text: str | None = None, **changes: Any) -> Operation:
    """The operation with a log line and changed status fields. Pure."""
    if operation.status.phase == "pending" and "phase" not in changes:
        changes["phase"] = "running"
    if operation.status.started is None:
        changes["started"] = utcnow()
    text = text[:LINE] if text else None
    if text and (not operation.status.log or operation.status.log[-1].text != text):
        changes["log"] = (*operation.status.log, LogLine(text=text))[-LOG_LINES:]
    return operation.seen(**changes)


def finished(
    operation: Operation, error: VirtuaryError | None = None, cancelled: bool = False
) -> Operation:
    """The operation at its end. Pure."""
    phase = "cancelled" if cancelled else "failed" if error else "done"
    problem = error.problem() if error else None
    why = operation.status.why if error else ""
    return noted(
        operation,
        error.sentence if error else None,
        phase=phase,
        error=problem,
        ended=utcnow(),
        progress=None,
        why=why,
    )


async def write(store: Store, key: str, change: Any) -> Operation | None:
    """Apply `change(operation)` to the stored operation, again after a conflict; None when it is
    gone or has ended.
    """
    while True:
        operation = load(store, key)
        if operation is None or operation.ended:
            return operation
        changed: Operation = change(operation)
        if changed == operation:
            return operation
        try:
            revision = await store.txn({key: operation.meta.revision}, {key: changed.dump()})
        except Conflict:
            continue
        return changed.but(meta=changed.meta.but(revision=revision))


async def note(store: Store, key: str, *texts: str, **changes: Any) -> None:
    """Log lines and changed status fields, in one transaction."""

    def change(operation: Operation) -> Operation:
        for text in texts:
            operation = noted(operation, text)
        return noted(operation, **changes)

    await write(store, key, change)


def reporter(store: Store, key: str | None) -> Callable[[str, float | None], None]:
    """Notes a text and a share on the operation, at most four times a second; it never waits. For
    nobody when there is none.
    """
    loop = asyncio.get_running_loop()
    last: dict[str, Any] = {"at": 0.0, "task": None}

    def report(text: str, fraction: float | None) -> None:
        now = loop.time()
        if key is None or (text == last.get("text") and now - last["at"] < 0.25):
            return
        if last["task"] is not None and not last["task"].done():
            return
        last.update(at=now, text=text)
        progress = None if fraction is None else round(min(max(fraction, 0.0), 1.0), 3)
        last["task"] = loop.create_task(note(store, key, text, stage=text, progress=progress))

    return report


async def finish(
    store: Store, key: str, error: VirtuaryError | None = None, cancelled: bool = False
) -> None:
    await write(store, key, lambda operation: finished(operation, error, cancelled))
