"""What a user may ask of operations."""

from __future__ import annotations

from virtuary.actions.context import Context, decides, find_operation
from virtuary.base.errors import Conflict
from virtuary.model.operation import Operation


@decides
async def cancel(context: Context, identity: str) -> Operation:
    """Wish that an operation ends; whoever carries it out undoes what it began. Raises Conflict
    when it has ended.
    """
    operation = find_operation(context.store, identity)
    if operation.ended:
        raise Conflict(
            f"the operation {operation.id[:8]} has ended already: {operation.status.phase}"
        )
    changed = operation.but(spec=operation.spec.but(cancel=True))
    revision = await context.store.txn(
        {operation.key: operation.meta.revision}, {operation.key: changed.dump()}
    )
    return changed.but(meta=changed.meta.but(revision=revision))
