"""Ports of the host that servers publish: whose they are, and whether a program of the host has
one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from virtuary.actions.context import Context, own_vms
from virtuary.base import ports
from virtuary.base.errors import Conflict, Invalid, VirtuaryError
from virtuary.model.publish import Publish
from virtuary.model.vm import Vm

ENDING = 0.3
"""Seconds after which whoever listened for a server that was stopped does so no more."""


def taken(
    context: Context, publish: tuple[Publish, ...], own: Vm | None, *, starting: bool = False
) -> list[VirtuaryError]:
    """Published ports that another server or another program holds; what `own` publishes already is
    its own.

    `starting`: of those that run or shall run alone, and whoever came since the wish. One that
    comes back from the trash may find that another has its ports meanwhile, and whichever of them
    is started first has them.
    """
    others = (
        [vm for vm in own_vms(context) if not (own and vm.id == own.id) and not vm.meta.deleted]
        if publish
        else []
    )
    if starting:
        others = [vm for vm in others if vm.wanted != "stopped" or vm.status.runtime is not None]
    blockers: list[VirtuaryError] = []
    for port in publish:
        blockers += _held(port, others, own if starting else None) or _unfit(
            context, port, own, starting=starting
        )
    return blockers


async def settle(context: Context, own: Vm) -> None:
    """Wait a moment where a port of a server that is to be started is taken: who served it before
    may be ending just now.
    """
    if taken(context, own.spec.publish, own, starting=True):
        await asyncio.sleep(ENDING)


def _held(port: Publish, others: list[Vm], starting: Vm | None) -> list[VirtuaryError]:
    for vm in others:
        if any(port.meets(other) for other in vm.spec.publish):
            free = (
                f"virtuary set {starting.name} publishes another, virtuary stop {vm.name} frees it"
                if starting
                else ""
            )
            return [
                Conflict(
                    f"port {port.host}/{port.protocol} is published by {vm.name} already",
                    free or "choose another port",
                )
            ]
    return []


def _unfit(
    context: Context, port: Publish, own: Vm | None, *, starting: bool
) -> Iterator[VirtuaryError]:
    """Why the host can't give this port. What we hold ourselves is one of a server's, and documents
    have told whose.
    """
    if not starting and own is not None and any(port.meets(other) for other in own.spec.publish):
        return
    if any(
        port.meets(Publish(protocol=protocol, address=address, host=host, guest=1))
        for protocol, address, host in context.held()
    ):
        return
    try:
        ports.take(port.protocol, port.address, port.host).close()
    except OSError as error:
        why, hint = ports.why_not(error, port.address, port.host)
        kind = Invalid if "address of this host" in why else Conflict
        yield kind(f"port {port.host}/{port.protocol} {why}", hint)
