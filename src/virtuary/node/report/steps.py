"""What was seen is written down, and whoever waits is told."""

from __future__ import annotations

import logging

from virtuary.base.errors import Bug, Failed, VirtuaryError
from virtuary.base.log import say
from virtuary.model.deeds import Launch
from virtuary.node import operations
from virtuary.node.power.plan import Fail
from virtuary.node.report.plan import Finish, Note, Report
from virtuary.node.server import parts
from virtuary.node.server.notes import STAGE_TEXT, note_on
from virtuary.node.server.server import Server
from virtuary.node.server.step import Step, capability, does
from virtuary.node.server.world import World
from virtuary.node.warm import budget

logger = logging.getLogger("virtuary.steps")


async def report(server: Server, world: World, step: Report) -> None:
    """Write what was seen."""
    seen = step.values()
    if step.state != world.vm.status.state:
        seen["since"] = world.wall
        say(
            logger,
            "state",
            vm=world.vm.name,
            was=world.vm.status.state,
            now=step.state,
            why=step.reason or "-",
        )
    await server.write(**seen)


async def note(server: Server, world: World, step: Note) -> None:
    await note_on(server, world, STAGE_TEXT.get(step.stage, step.stage), stage=step.stage)


async def finish(server: Server, world: World, step: Finish) -> None:
    operation = step.operation
    await operations.finish(server.site.store, operation.key)
    if operation.spec.deed.starts:
        server.site.usual.learn(world.vm)
    runtime = world.vm.status.runtime
    launched = isinstance(operation.spec.deed, Launch)
    if launched and runtime and runtime.template is None and world.image:
        await budget.consider(server.site, world.vm, world.image)


async def fail(server: Server, world: World, step: Fail) -> None:
    await give_up(server, world, step, Failed(step.sentence, step.hint))


async def give_up(server: Server, world: World, _: Step, error: VirtuaryError) -> None:
    """A step failed for good: the operation ends with the reason. What never had a disk is removed,
    nothing half-made stays.
    """
    current = server.load()
    if current is None:
        return
    if world.operation:
        await operations.finish(server.site.store, world.operation.key, error)
    if isinstance(error, Bug) and world.alive:
        return
    never_was = not current.status.disk.ready and world.absent
    never_ran = current.status.state == "starting" and current.status.runtime is None
    state = "stopped" if never_ran else current.status.state
    changed = current.but(
        status=current.status.but(
            state=state,
            reason=error.sentence,
            since=world.wall,
            **parts.halts(world.vm, error.sentence, world.wall),
        ),
        meta=current.meta.but(purge=current.meta.purge or never_was),
    )
    await server.site.store.txn({server.key: current.meta.revision}, {server.key: changed.dump()})


CAPABILITY = capability(
    does(Report, report),
    does(Note, note),
    does(Finish, finish),
    does(Fail, fail),
)
