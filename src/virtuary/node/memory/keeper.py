"""Keeps what servers share in order: the host's memory when it is short of it, the processors'
weights, and the kernel's order of victims.

A task beside the workers. While nothing runs it sleeps; else it looks at the host every second or
two, which costs a tenth of a millisecond. What it knows of guests is what the metrics saw last: it
waits for no guest, and one that does not answer delays nobody. It decides by `pressure.py`. Memory
it moves itself; who is to be paused it writes down, and the server's worker makes that true, so
that a new daemon finds it as it was left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virtuary.base.errors import VirtuaryError
from virtuary.base.log import say
from virtuary.base.units import format_size
from virtuary.host import oom, shares
from virtuary.host.pressure import read_memory
from virtuary.model.keys import id_of
from virtuary.model.status import MemoryHold
from virtuary.model.vm import Vm
from virtuary.node.figures.asking import Told
from virtuary.node.figures.metrics import Machine, Metrics
from virtuary.node.memory.pressure import (
    SLACK,
    Act,
    Guest,
    Level,
    Move,
    Past,
    Pause,
    Release,
    Said,
    decide,
    floor_of,
    limits_of,
)
from virtuary.node.server.pre_identity import never_handed_out
from virtuary.node.site import Site
from virtuary.node.tuning.plan import near
from virtuary.node.worker import Worker
from virtuary.qemu import tune

logger = logging.getLogger("virtuary.keeper")
PROC = Path("/proc")
"""Where the host tells of its memory."""
PERIOD, SOON, LONG = 2.0, 1.0, 3600.0
"""Seconds between two looks: while all is well, while it is not, and while nothing runs."""
GATHER = 0.1
"""Seconds for which changes are gathered that come one after the other."""
DEADLINE = 3.0
"""Seconds QEMU is given to pass on what is asked of its guest."""
PATIENCE = 30.0
"""Seconds a guest is given to do what was asked of it; then what it has is what counts."""
REFUSAL = 120.0
"""Seconds for which nothing is asked of one that did not, or could not be asked."""
HEARD_AGAIN = 10.0
"""Seconds after which a guest's statistics are asked for again while they matter."""
IDLE_PART = 0.25
"""A guest that uses less of its processors counts as idle."""
FAULTS = 50.0
"""Pages a second that a guest has to read from its disk again, from which on it is short of memory.
"""


@dataclass
class Ledger:
    """What is remembered of one machine, for as long as it runs."""

    started: object
    """Which of the server's machines this is about."""
    asked: int | None = None
    asked_at: float = 0.0
    followed: bool = True
    refuses_until: float = 0.0
    busy: bool = False
    """Whether something is being asked of it or written about it."""
    held: bool = False
    """Whether it is paused because we said so."""
    exempt: bool = False
    """Whether its owner let it go on though the host was short: it is not paused again in this
    shortage.
    """
    had: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=64))
    """What it had, each from when on by the wall's clock."""
    score: int | None = None

    def note(self, has: int | None, now: float, wall: float) -> None:
        """See what it has now, and judge by it whether it did what was asked."""
        if has is None:
            return
        if not self.had or self.had[-1][1] != has:
            self.had.append((wall, has))
        if self.asked is None:
            return
        if abs(has - self.asked) <= SLACK:
            self.followed = True
        elif self.followed and has > self.asked:
            self.asked = has  # out of memory, its driver took some back by itself
        elif not self.followed and now - self.asked_at > PATIENCE:
            self.asked, self.followed, self.refuses_until = has, True, now + REFUSAL

    def had_at(self, wall: float) -> int | None:
        """The most it had around then: what it said is dated by whole seconds."""
        ends = [*[since for since, _ in self.had][1:], math.inf]
        found = [
            has
            for (since, has), end in zip(self.had, ends, strict=False)
            if since <= wall + 1 and end >= wall - 1
        ]
        return max(found, default=self.had[0][1] if self.had else None)


class Keeper:
    """One for a host. `workers`: those of its servers; `wake` tells which document changed."""

    def __init__(
        self, site: Site, workers: Callable[[], Iterable[Worker]], metrics: Metrics
    ) -> None:
        self.site, self._workers, self.metrics = site, workers, metrics
        self.vms: dict[str, Vm] = {}
        self.ledgers: dict[str, Ledger] = {}
        self.past = Past()
        self.cost = 0.0
        """Processor seconds that looking took."""
        self._weights: dict[str, float] = {}
        self._total, self._weighed, self._weighing = 0.0, 0.0, False
        self._changed: set[str] = set()
        self._wake = asyncio.Event()
        self._failed = ""

    def wake(self, key: str) -> None:
        """A document changed."""
        if key.startswith(Vm.place()):
            self._changed.add(id_of(key))
            self._wake.set()

    async def run(self) -> None:
        """Look until cancelled; never fails."""
        oom.protect_self()
        async with asyncio.TaskGroup() as group:
            while True:
                await self._pause(self._look_safely(group))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()
                await asyncio.sleep(GATHER)
        self._wake.clear()

    def _look_safely(self, group: asyncio.TaskGroup) -> float:
        began = time.thread_time()
        try:
            return self.look(group)
        except Exception as error:
            if self._failed != repr(error):
                self._failed = repr(error)
                logger.exception("keeping the host's memory failed")
            return PERIOD
        finally:
            self.cost += time.thread_time() - began

    def look(self, group: asyncio.TaskGroup) -> float:
        """One look, and what follows from it, begun in tasks of the group; seconds until the next
        look.
        """
        live = {
            worker.identity: worker
            for worker in self._workers()
            if worker.run and not worker.run.ended
        }
        self._read(live)
        if not live:
            self.past, self.site.claims, self._weights = Past(), {}, {}
            return LONG
        self._tend(live, group)
        host = read_memory(PROC)
        if host is None:
            return LONG
        limits = limits_of(host.total, self.site.settings.resources.memory_kept(host.total))
        guests = []
        if self._matters(host.available < 2 * limits.calm):
            guests = [self._guest(live[vm_id], vm) for vm_id, vm in self.vms.items()]
        before = self.past.level
        acts, self.past = decide(self.site.clock.now(), host, limits, guests, self.past)
        if self.past.level is not before:
            say(
                logger,
                "memory",
                was=before.name.lower(),
                now=self.past.level.name.lower(),
                available=format_size(host.available),
                waiting=f"{host.some:.0f}%",
            )
        for guest in guests:
            self._follow_up(group, live[guest.id], guest)
        for act in acts:
            self._begin(group, live[act.id], act)
        return SOON if guests else PERIOD

    def _matters(self, scarce: bool) -> bool:
        """Whether guests have to be looked at."""
        pressed = (vm.status.pressure for vm in self.vms.values())
        marked = any(pressure.reclaimed or pressure.held for pressure in pressed)
        return scarce or marked or self.past.level is not Level.CALM

    # ---- what is known

    def _read(self, live: dict[str, Worker]) -> None:
        """Documents of the machines that run, again when they changed; and what is remembered of
        those.
        """
        missing = live.keys() - self.vms.keys()
        for vm_id in (self._changed & live.keys()) | missing:
            vm = live[vm_id].load()
            if vm is None or vm.status.runtime is None:
                self.vms.pop(vm_id, None)
            else:
                self._remember(vm)
        self._changed.clear()
        for kept in (self.vms, self.ledgers):
            for gone in kept.keys() - live.keys():
                del kept[gone]

    def _remember(self, vm: Vm) -> None:
        assert vm.status.runtime
        ledger = self.ledgers.get(vm.id)
        if ledger is None or ledger.started != vm.status.runtime.started:
            ledger = self.ledgers[vm.id] = Ledger(
                vm.status.runtime.started, held=vm.status.pressure.held is not None
            )
        if ledger.held and vm.status.pressure.held is None and not ledger.busy:
            ledger.held, ledger.exempt = False, vm.wanted == "running"
        self.vms[vm.id] = vm

    def _guest(self, worker: Worker, vm: Vm) -> Guest:
        """A server that runs as the decisions need it."""
        run, runtime, ledger = worker.run, vm.status.runtime, self.ledgers[vm.id]
        assert run and runtime
        now, wall = self.site.clock.now(), self.site.clock.wall().timestamp()
        has = run.size.memory if run.size else None
        ledger.note(has, now, wall)
        machine = self.metrics.machines.get(vm.id)
        if machine:
            _ask_again(machine.told, now)
        shape, hold = runtime.shape, vm.status.pressure.held
        goes = (
            vm.wanted == "running" and runtime.restarts >= vm.spec.restarts and runtime.end is None
        )
        settled = has is not None and (
            vm.status.pressure.reclaimed or near(has, vm.spec.memory.size)
        )
        answers = run.monitor is not None and not run.silent and run.may_be_asked
        ready = settled and answers and goes and shape is not None and vm.status.state == "running"
        return Guest(
            id=vm.id,
            name=vm.name,
            priority=vm.spec.memory.priority,
            weight=vm.spec.cpu.weight,
            wished=vm.spec.memory.size,
            floor=floor_of(vm.spec, shape, self.site.settings.resources.memory_overcommit)
            if shape
            else vm.spec.memory.size,
            has=has,
            asked=ledger.asked,
            said=_said(machine, ledger, wall),
            idle=_is_idle(machine, vm),
            ready=ready and not ledger.busy and now >= ledger.refuses_until,
            runs=run.qemu_status == "running" and goes and not never_handed_out(vm),
            exempt=ledger.exempt,
            taken=vm.status.pressure.reclaimed,
            waits=hold.room if hold and goes else None,
        )

    # ---- shares of the processors, and the kernel's order

    def _tend(self, live: dict[str, Worker], group: asyncio.TaskGroup) -> None:
        """See that weights and scores are those that the servers which run now are to have."""
        claims = {
            vm.id: shares.Claim(vm.spec.cpu.weight, vm.spec.cpu.reserve) for vm in self.vms.values()
        }
        if claims != self.site.claims:
            floors = any(claim.reserve for claim in (*claims.values(), *self.site.claims.values()))
            self.site.claims, before = claims, self._weights
            self._weights = shares.fair_weights(claims, self.site.capacity)
            for vm_id, weight in self._weights.items():
                if floors and weight != before.get(vm_id):
                    shares.set_weight(vm_id, weight)  # where that can't be, its worker has said so
            self._total = sum(claim.weight for claim in claims.values())
            if self._total != self._weighed and not self._weighing:
                group.create_task(self._weigh_all())
        for vm_id, vm in self.vms.items():
            run, ledger, score = (
                live[vm_id].run,
                self.ledgers[vm_id],
                oom.score_of(vm.spec.memory.priority),
            )
            if ledger.score != score and run:
                oom.set_score(run.runtime.pid, score)
                ledger.score = score

    async def _weigh_all(self) -> None:
        """Have all servers together weigh what they weigh one by one. One at a time, and the latest
        wish is the last.
        """
        self._weighing = True
        try:
            while self._weighed != (wanted := self._total):
                await shares.weigh_all(wanted)
                self._weighed = wanted
        finally:
            self._weighing = False

    # ---- doing

    def _follow_up(self, group: asyncio.TaskGroup, worker: Worker, guest: Guest) -> None:
        """A guest that has all of its own again is told so; one is spared no longer than the
        shortage lasts.
        """
        ledger = self.ledgers[guest.id]
        if self.past.level is Level.CALM:
            ledger.exempt = False
        if guest.taken and guest.has is not None and not ledger.busy:
            given = guest.target >= guest.wished - SLACK and (
                near(guest.has, guest.wished) or guest.has > guest.wished
            )
            if given:
                self._spawn(group, ledger, self._end_taking(worker, ledger))

    def _begin(self, group: asyncio.TaskGroup, worker: Worker, act: Act) -> None:
        ledger = self.ledgers[act.id]
        match act:
            case Move():
                self._spawn(group, ledger, self._move(worker, ledger, act))
            case Pause():
                self._spawn(group, ledger, self._hold(worker, ledger, act))
            case Release():
                self._spawn(group, ledger, self._release(worker, ledger))

    def _spawn(
        self, group: asyncio.TaskGroup, ledger: Ledger, work: Coroutine[Any, Any, None]
    ) -> None:
        """Do one thing about a machine, beside the looking."""
        ledger.busy = True
        group.create_task(self._guarded(ledger, work))

    async def _guarded(self, ledger: Ledger, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except VirtuaryError as error:
            say(logger, "not done", logging.WARNING, why=error.sentence)
            ledger.refuses_until = self.site.clock.now() + REFUSAL
        except Exception:
            logger.exception("keeping the host's memory failed")
            ledger.refuses_until = self.site.clock.now() + REFUSAL
        finally:
            ledger.busy = False

    async def _end_taking(self, worker: Worker, ledger: Ledger) -> None:
        """Nothing is taken from it any more: from here on its worker alone sees to its memory."""
        vm = self.vms[worker.identity]
        say(logger, "all memory given back", vm=vm.name)
        ledger.asked = None
        self.vms[vm.id] = await worker.write(pressure={"reclaimed": False})

    async def _move(self, worker: Worker, ledger: Ledger, act: Move) -> None:
        """Ask the guest to have so much; that something is taken is durable before it is, so that
        nobody gives it back at once.
        """
        run, vm = worker.run, self.vms[worker.identity]
        if run is None or run.monitor is None:
            return
        had = ledger.asked if ledger.asked is not None else run.size and run.size.memory
        if not vm.status.pressure.reclaimed:
            self.vms[vm.id] = await worker.write(pressure={"reclaimed": True})
        ledger.asked, ledger.asked_at, ledger.followed = act.target, self.site.clock.now(), False
        say(
            logger,
            "memory moved",
            vm=vm.name,
            had=format_size(had or 0),
            asked=format_size(act.target),
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE):
                await tune.offer_memory(run.monitor, run.base, act.target)

    async def _hold(self, worker: Worker, ledger: Ledger, act: Pause) -> None:
        vm = self.vms[worker.identity]
        say(logger, "paused for memory", logging.WARNING, vm=vm.name, why=act.why)
        hold = MemoryHold(room=act.room, why=act.why, since=self.site.clock.wall())
        self.vms[vm.id] = await worker.write(pressure={"held": hold})
        ledger.held = True

    async def _release(self, worker: Worker, ledger: Ledger) -> None:
        vm = self.vms[worker.identity]
        say(logger, "goes on, there is memory again", vm=vm.name)
        ledger.held = False
        self.vms[vm.id] = await worker.write(pressure={"held": None})


def _ask_again(told: Told, now: float) -> None:
    """Have the metrics ask a guest's balloon soon, when its last answer is old; they do it beside
    their looking.
    """
    if (
        told.polls
        and "memory" not in told.next
        and now - told.asked.get("memory", -HEARD_AGAIN) >= HEARD_AGAIN
    ):
        told.next["memory"] = now


def _said(machine: Machine | None, ledger: Ledger, wall: float) -> Said | None:
    memory = machine.told.memory if machine else None
    if machine is None or memory is None or (had := ledger.had_at(memory.at)) is None:
        return None
    struggles = (machine.told.swap.rate or 0) > 0 or (machine.told.faults.rate or 0) > FAULTS
    return Said(memory.available, memory.free, had, max(wall - memory.at, 0.0), struggles)


def _is_idle(machine: Machine | None, vm: Vm) -> bool:
    used = machine.cpu_rate if machine else None
    return used is not None and used < IDLE_PART * (vm.status.cpus or vm.spec.cpu.count)
