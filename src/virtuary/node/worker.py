"""The loop about one server: look, plan, one step, say it. It is the only writer of the server's
status.

It sleeps on its document, QEMU's events, the end of the process, and a timer. A step that fails
with a kind that means *again* is repeated with backoff; any other failure becomes the end of the
operation and a reason on the document. An unknown exception is logged and noted, and the loop goes
on.
"""

from __future__ import annotations

import asyncio
import logging

from virtuary.base.errors import Bug, Conflict, VirtuaryError, of_system
from virtuary.base.log import say
from virtuary.base.pace import Bucket
from virtuary.model.vm import Vm
from virtuary.node.copies import live
from virtuary.node.copies import steps as copies
from virtuary.node.disks import steps as disks
from virtuary.node.identity import steps as identity
from virtuary.node.look import look
from virtuary.node.nics import steps as nics
from virtuary.node.plan import plan
from virtuary.node.power import steps as power
from virtuary.node.power.facts import find_process
from virtuary.node.report import steps as report
from virtuary.node.report.plan import Note, Report
from virtuary.node.server.server import Server
from virtuary.node.server.step import Capability, Step
from virtuary.node.server.world import World
from virtuary.node.site import Site
from virtuary.node.slow import steps as slow
from virtuary.node.tuning import steps as tuning
from virtuary.node.volumes import steps as volumes
from virtuary.node.warm import steps as warm

logger = logging.getLogger("virtuary.worker")
IDLE_LOOK, BUSY_LOOK = 30.0, 1.0
"""Seconds after which the worker looks again unasked."""
STEPS_AT_ONCE, STEPS_A_SECOND = 100, 10
"""A machine that says that nothing has changed after each step is not to keep the daemon busy."""
LEAST_BACKOFF, MAX_BACKOFF = 0.5, 30.0
"""Seconds until a step that failed is tried again, twice as many each time."""
CAPABILITIES = (
    power.CAPABILITY,
    disks.CAPABILITY,
    report.CAPABILITY,
    identity.CAPABILITY,
    warm.CAPABILITY,
    copies.CAPABILITY,
    live.CAPABILITY,
    tuning.CAPABILITY,
    nics.CAPABILITY,
    volumes.CAPABILITY,
    slow.CAPABILITY,
)
DOES: dict[type[Step], Capability] = {
    step: capability for capability in CAPABILITIES for step in capability.effects
}
"""Which capability each step is of."""


class Worker(Server):
    def __init__(self, site: Site, vm_id: str) -> None:
        super().__init__(site, vm_id)
        self._pace = Bucket(STEPS_AT_ONCE, STEPS_A_SECOND)
        self._pause = LEAST_BACKOFF

    async def work(self) -> None:
        if self.process is None and (vm := self.load()):
            self.process = find_process(self, vm)
        await super().work()

    async def step(self, document: Vm) -> float:
        """Look, plan, and do what was planned."""
        world = self.look()
        if world is None:
            return 0
        step = plan(world)
        if step is None:
            return BUSY_LOOK if self._busy(world) else IDLE_LOOK
        await asyncio.sleep(self._pace.take(1))
        done = await self._do(step, world)
        self._pause = LEAST_BACKOFF if done else min(self._pause * 2, MAX_BACKOFF)
        return 0 if done else self._pause

    async def failed(self, document: Vm, error: VirtuaryError | OSError) -> float:
        say(logger, "not looked at", logging.WARNING, vm=document.name, error=error)
        return LEAST_BACKOFF

    def look(self) -> World | None:
        """The world as it is now; None when the document is gone."""
        return look(self)

    def _busy(self, world: World) -> bool:
        settled = world.vm.status.state in ("running", "paused", "stopped", "crashed", "trashed")
        waited_for = world.operation is not None or bool(world.copies.waiting)
        return waited_for or not settled or world.process.qemu == "io-error"

    async def _do(self, step: Step, world: World) -> bool:
        """One step and the line that tells of it; says whether it went well."""
        name = world.vm.name
        if not isinstance(step, (Report, Note)):
            wanted, found = world.vm.wanted, world.vm.status.state
            say(logger, "step", vm=name, wanted=wanted, found=found, step=step.name)
        try:
            await DOES[type(step)].effects[type(step)](self, world, step)
            return True
        except Conflict:
            return True  # somebody wrote meanwhile: look again
        except VirtuaryError as error:
            sentence = error.sentence
            say(logger, "step failed", logging.WARNING, vm=name, step=step.name, error=sentence)
            return False if error.retry else await self._give_up(world, step, error)
        except OSError as error:
            say(logger, "step failed", logging.WARNING, vm=name, step=step.name, error=error)
            return await self._give_up(world, step, of_system(error))
        except Exception as error:
            logger.exception("step=%s vm=%s: a defect", step.name, name)
            return await self._give_up(world, step, Bug(f"{step.name} met a defect: {error!r}"))

    async def _give_up(self, world: World, step: Step, error: VirtuaryError) -> bool:
        try:
            await (DOES[type(step)].fails or report.give_up)(self, world, step, error)
        except VirtuaryError as second:
            sentence = second.sentence
            say(logger, "giving up failed", logging.WARNING, vm=world.vm.name, error=sentence)
        return False
