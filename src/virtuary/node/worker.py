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
from virtuary.model.image import Image
from virtuary.model.vm import Vm
from virtuary.node import copies, identity, live, nics, operations, slow, steps, tuning
from virtuary.node.birth import never_handed_out
from virtuary.node.effects import Effect
from virtuary.node.plan import plan
from virtuary.node.run import open_run
from virtuary.node.server import Server
from virtuary.node.site import Site
from virtuary.node.world import Process, Step, World

logger = logging.getLogger("virtuary.worker")
IDLE_LOOK, BUSY_LOOK = 30.0, 1.0
"""Seconds after which the worker looks again unasked."""
STEPS_AT_ONCE, STEPS_A_SECOND = 100, 10
"""A machine that says that nothing has changed after each step is not to keep the daemon busy."""
MAX_BACKOFF = 30.0
STEPS: dict[str, Effect] = {
    **steps.STEPS,
    **identity.STEPS,
    **copies.STEPS,
    **live.STEPS,
    **tuning.STEPS,
    **nics.STEPS,
    **slow.STEPS,
}


class Worker(Server):
    def __init__(self, site: Site, vm_id: str) -> None:
        super().__init__(site, vm_id)
        self._looked = False
        self._pace = Bucket(STEPS_AT_ONCE, STEPS_A_SECOND)

    async def work(self) -> None:
        """Until the document is gone, or for ever."""
        pause = 0.5
        try:
            while True:
                self._wake.clear()
                world = self.look()
                if world is None:
                    return
                step = plan(self.site.host_id, world)
                if step is None:
                    await self.sleep(BUSY_LOOK if self._busy(world) else IDLE_LOOK)
                    continue
                await asyncio.sleep(self._pace.take(1))
                done = await self._do(step, world)
                pause = 0.5 if done else min(pause * 2, MAX_BACKOFF)
                if not done:
                    await self.sleep(pause)
        finally:
            if self.run:
                await self.run.close()

    def _busy(self, world: World) -> bool:
        settled = world.vm.status.state in ("running", "paused", "stopped", "crashed", "trashed")
        return (
            world.operation is not None
            or bool(world.copies)
            or not settled
            or world.qemu == "io-error"
        )

    async def _do(self, step: Step, world: World) -> bool:
        """One step and the line that tells of it; says whether it went well."""
        state = world.vm.status.state
        if step.name not in ("report", "note"):
            say(
                logger,
                "step",
                vm=world.vm.name,
                wanted=world.vm.spec.power,
                found=state,
                step=step.name,
            )
        try:
            await STEPS[step.name](self, world, step.value)
            return True
        except Conflict:
            return True  # somebody wrote meanwhile: look again
        except VirtuaryError as error:
            say(
                logger,
                "step failed",
                logging.WARNING,
                vm=world.vm.name,
                step=step.name,
                error=error.sentence,
            )
            if error.retry:
                return False
            return await self._give_up(world, step, error)
        except OSError as error:
            say(
                logger,
                "step failed",
                logging.WARNING,
                vm=world.vm.name,
                step=step.name,
                error=error,
            )
            return await self._give_up(world, step, of_system(error))
        except Exception as error:
            logger.exception("step=%s vm=%s: a defect", step.name, world.vm.name)
            return await self._give_up(world, step, Bug(f"{step.name} met a defect: {error!r}"))

    async def _give_up(self, world: World, step: Step, error: VirtuaryError) -> bool:
        try:
            await (tuning if step.name in tuning.STEPS else steps).give_up(self, world, step, error)
        except VirtuaryError as second:
            say(
                logger, "giving up failed", logging.WARNING, vm=world.vm.name, error=second.sentence
            )
        return False

    # ---- looking

    def look(self) -> World | None:
        """The world as it is now; None when the document is gone. Never waits for QEMU."""
        vm = self.load()
        if vm is None:
            return None
        store = self.site.store
        record = store.get(f"image/{vm.spec.image_id}")
        process = self._find_process(vm)
        run = self.run
        active, copying = operations.open_about(store, self.key)
        making = operations.open_operations(store, f"image/{vm.spec.image_id}") if active else []
        network = self.site.networks.readiness(vm, self.site.boot)
        now = self.site.clock.now()
        self.network_failed = (self.network_failed or now) if network[0] == "failed" else None
        if run and run.ended:
            self.last_words = (self.last_words + run.words())[-4000:]
        return World(
            vm=vm,
            wall=self.site.clock.wall(),
            now=now,
            image=Image.load(record.value, record.revision) if record else None,
            operation=active[0] if active else None,
            image_operation=making[0] if making else None,
            process=process,
            connected=bool(run and run.monitor),
            qemu=run.qemu_status if run and process == "alive" else None,
            wakes=bool(run and run.wakes),
            silent=bool(run and run.silent),
            exit_status=run.exit_status if run else None,
            last_words=self.last_words,
            network_alive=bool(run and run.network_alive),
            network=network,
            network_failing=now - self.network_failed if self.network_failed is not None else 0.0,
            signals=dict(run.signals) if run else {},
            addresses=tuple(dict.fromkeys((*self.site.networks.addresses.of(vm), *run.addresses)))
            if run
            else (),
            files=copies.find_files(self.paths, vm),
            copies=copies.waiting(self.site, vm, copying),
            source=copies.source_of(self.site, vm),
            held=vm.id in self.site.held,
            asked_to_stop=self.asked_to_stop,
            asked_last=self.asked_last,
            space=steps.has_space(self.site),
            tuned=self.tuned,
            cpus=run.size.cpus if run and run.size else None,
            memory=run.size.memory if run and run.size else None,
            refused={
                field: wish
                for field, (wish, until) in self.refused.items()
                if self.site.clock.now() < until
            },
            age=run.age if run else 0.0,
            leaving=vm.id in self.site.turns.leaving,
            waits=self.site.turns.why_not(vm.id),
            usual=self.site.usual.of(vm) if active and run else {},
            explained=self.explained,
            cloud_init=run.cloud_init if run else None,
            behind=run.behind if run else 0.0,
            clock_fault=run.clock_fault if run else None,
            reclaimed=vm.status.reclaimed,
        )

    def _find_process(self, vm: Vm) -> Process:
        runtime = vm.status.runtime
        if runtime is None:
            return "stray" if not self.run and self.paths.socket("qmp").exists() else "absent"
        if self.run is None and not self._looked:
            self.run = open_run(
                self.paths, runtime, self.site, self.wake, quiet=never_handed_out(vm)
            )
            if self.run and vm.awaits_user_data:
                self.run.follow_cloud_init()
        self._looked = True
        return "alive" if self.run and not self.run.ended else "absent"
