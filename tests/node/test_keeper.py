"""The keeper of the host's memory with machines that are tables: what it writes, what it asks, whom
it waits for, what it survives.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from virtuary.base.errors import GuestSilent, VirtuaryError
from virtuary.base.paths import Paths
from virtuary.base.units import GIB, MIB
from virtuary.host.shares import Claim
from virtuary.model.meta import Meta
from virtuary.model.runtime import Runtime, Shape
from virtuary.model.settings import ResourceSettings, Settings
from virtuary.model.status import IdentityStatus, VmStatus
from virtuary.model.vm import Vm, VmSpec
from virtuary.node.figures.asking import Memory, Told
from virtuary.node.memory import keeper as module
from virtuary.node.memory.keeper import LONG, PATIENCE, PERIOD, SOON, Keeper, Ledger
from virtuary.node.site import Site
from virtuary.qemu.tune import Size
from virtuary.store.memory import MemoryStore

WALL = datetime(2026, 1, 1, tzinfo=UTC)
TOTAL = 8 * GIB


class Clock:
    def __init__(self) -> None:
        self.passed = 1000.0

    def now(self) -> float:
        return self.passed

    def wall(self) -> datetime:
        return WALL + timedelta(seconds=self.passed)

    def slept(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.passed += seconds


class Monitor:
    """A QEMU whose guest follows at once; or one that does not answer."""

    def __init__(self, worker: Any, deaf: bool = False) -> None:
        self.worker, self.deaf, self.asked = worker, deaf, list[tuple[str, Any]]()

    async def run(self, command: str, deadline: float = 5, **arguments: Any) -> Any:
        self.asked.append((command, arguments.get("value")))
        if self.deaf:
            await asyncio.sleep(3600)
        if command == "balloon":
            self.worker.run.size = Size(1, arguments["value"])
        return {}


class FakeWorker:
    """A server that runs: its document, and a run that can be asked."""

    def __init__(
        self, number: int, spec: dict[str, Any], runs: str = "running", deaf: bool = False
    ) -> None:
        wish = VmSpec(image="tiny", **spec)
        size = wish.memory.size
        shape = Shape(memory=size, max_cpus=4, max_memory=8 * GIB)
        runtime = Runtime(
            generation=1, restarts=0, boot_id="boot", pid=2**22 - 1, start=1, uid=1, accel="tcg",
            level="L1", shape=shape, started=WALL,
        )  # fmt: skip
        self.identity = f"00000000-0000-4000-8000-{number:012}"
        meta = Meta(id=self.identity, name=f"vm{number}", created=WALL)
        status = VmStatus(
            state="running", runtime=runtime, memory=size, cpus=1,
            identity=IdentityStatus(given=meta.name),
        )  # fmt: skip
        self.vm: Vm | None = Vm(meta=meta, spec=wish, status=status)
        self.run: Any = SimpleNamespace(
            ended=False, silent=False, may_be_asked=True, qemu_status=runs, size=Size(1, size),
            base=size, runtime=runtime,
        )  # fmt: skip
        self.run.monitor = self.monitor = Monitor(self, deaf)
        self.written: list[dict[str, Any]] = []
        self.failure: VirtuaryError | None = None

    def load(self) -> Vm | None:
        return self.vm

    async def write(self, **changes: Any) -> Vm:
        if self.failure:
            raise self.failure
        assert self.vm
        self.written.append(changes)
        self.vm = self.vm.but(status=self.vm.status.but(**changes))
        return self.vm


class Bench:
    """A host that says what the test wants, its keeper, and machines."""

    def __init__(self, paths: Paths, proc: Path) -> None:
        self.proc, self.clock, self.workers = proc, Clock(), dict[str, FakeWorker]()
        (proc / "pressure").mkdir(parents=True)
        self.says(4 * GIB)
        resources = ResourceSettings(memory_overcommit=2)
        self.site = Site(paths, MemoryStore(), "host", Settings(resources=resources), self.clock)
        self.metrics: Any = SimpleNamespace(machines={})
        self.together = list[float]()
        """What all servers together were made to weigh."""
        self.keeper = Keeper(self.site, lambda: list(self.workers.values()), self.metrics)  # type: ignore[arg-type]

    def says(self, available: int) -> None:
        (self.proc / "meminfo").write_text(
            f"MemTotal: {TOTAL // 1024} kB\nMemAvailable: {available // 1024} kB\n"
        )

    def add(
        self,
        number: int,
        runs: str = "running",
        deaf: bool = False,
        memory: dict[str, int] | None = None,
        **spec: Any,
    ) -> FakeWorker:
        worker = FakeWorker(number, {"memory": {"size": GIB, **(memory or {})}, **spec}, runs, deaf)
        self.workers[worker.identity] = worker
        told = Told(worker.run, "mac")
        told.polls = True
        self.metrics.machines[worker.identity] = SimpleNamespace(told=told, cpu_rate=0.01)
        self.speak(worker)
        self.keeper.wake(f"vm/{worker.identity}")
        return worker

    def speak(self, worker: FakeWorker) -> None:
        """The guest tells how it is: most of what it has is free."""
        rest = max((worker.run.size.memory if worker.run.size else 0) - 100 * MIB, 0)
        at = int(self.clock.wall().timestamp())
        self.metrics.machines[worker.identity].told.memory = Memory(GIB, rest, rest, 0, at)

    async def live(self, seconds: int, speak: bool = True) -> float:
        """So many looks, a second apart; what the last one said of the next."""
        pause = 0.0
        for _ in range(seconds):
            self.clock.passed += 1
            tasks: set[Any] = set()
            group: Any = SimpleNamespace(
                create_task=lambda work, tasks=tasks: tasks.add(asyncio.create_task(work))
            )
            pause = self.keeper.look(group)
            if tasks:
                await asyncio.wait(tasks, timeout=0.05)
            for worker in self.workers.values():
                if speak and worker.run and int(self.clock.passed) % 5 == 0:
                    self.speak(worker)
                if worker.written:
                    self.keeper.wake(f"vm/{worker.identity}")
        return pause


@pytest.fixture
def bench(paths: Paths, short: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(module, "PROC", short / "proc")
    monkeypatch.setattr(module, "DEADLINE", 0.01)
    bench = Bench(paths, short / "proc")

    async def weigh_all(weight: float) -> None:
        bench.together.append(weight)

    monkeypatch.setattr(module.shares, "weigh_all", weigh_all)
    return bench


async def test_while_nothing_runs_it_sleeps(bench: Bench) -> None:
    assert await bench.live(1) == LONG
    one = bench.add(1)
    assert await bench.live(1) == PERIOD
    one.run.ended = True
    assert await bench.live(1) == LONG and not bench.keeper.vms and not bench.keeper.ledgers


async def test_while_there_is_plenty_nobody_is_looked_at(bench: Bench) -> None:
    one = bench.add(1)
    one.run.size = None
    await bench.live(30)
    assert one.monitor.asked == [] and one.written == []


async def test_memory_is_taken_down_to_the_floor_marked_first_and_given_back(bench: Bench) -> None:
    one, sure = bench.add(1), bench.add(2, memory={"min": GIB})
    bench.says(400 * MIB)
    assert await bench.live(60) == SOON
    assert one.written[0] == {"pressure": {"reclaimed": True}} and one.run.size.memory == GIB // 2
    assert sure.written == [] and sure.monitor.asked == []
    bench.says(4 * GIB)
    await bench.live(60)
    assert (
        one.run.size.memory == GIB
        and one.vm
        and not one.vm.status.pressure.reclaimed
        and bench.keeper.ledgers[one.identity].asked is None
    )


async def test_a_guest_that_is_just_being_resized_is_left_alone(bench: Bench) -> None:
    one = bench.add(1)
    one.run.size = Size(1, 700 * MIB)
    bench.says(400 * MIB)
    await bench.live(10)
    assert one.monitor.asked == []


async def test_a_qemu_that_does_not_answer_delays_nobody(bench: Bench) -> None:
    deaf, one = bench.add(1, deaf=True, memory={"priority": 1}), bench.add(2)
    bench.says(400 * MIB)
    await bench.live(60)
    assert one.run.size.memory == GIB // 2 and 1 <= len(deaf.monitor.asked) <= 4
    assert await bench.live(int(PATIENCE)) == SOON


async def test_a_guest_that_does_not_say_anything_is_not_asked_for_anything(bench: Bench) -> None:
    one = bench.add(1)
    bench.metrics.machines.clear()
    bench.says(400 * MIB)
    await bench.live(5, speak=False)
    assert one.monitor.asked == []


async def test_who_is_paused_is_written_down_and_goes_on(bench: Bench) -> None:
    low, high = (
        bench.add(number, memory={"min": GIB, "priority": priority})
        for number, priority in ((1, 1), (2, 90))
    )
    bench.says(50 * MIB)
    await bench.live(2)
    assert (
        low.vm
        and low.vm.status.pressure.held
        and "its priority (1) is the lowest" in low.vm.status.pressure.held.why
    )
    low.run.qemu_status = "paused"
    bench.says(600 * MIB)
    await bench.live(20)
    assert low.vm.status.pressure.held and high.written == []
    bench.says(4 * GIB)
    await bench.live(15)
    assert low.vm.status.pressure.held is None


async def test_a_new_keeper_goes_on_where_the_last_one_stopped(bench: Bench) -> None:
    low = bench.add(1, memory={"min": GIB})
    bench.says(50 * MIB)
    await bench.live(2)
    low.run.qemu_status = "paused"
    bench.keeper = Keeper(bench.site, lambda: list(bench.workers.values()), bench.metrics)  # type: ignore[arg-type, return-value]
    await bench.live(10)
    assert low.vm and low.vm.status.pressure.held
    bench.says(4 * GIB)
    await bench.live(15)
    assert low.vm.status.pressure.held is None


async def test_one_that_its_owner_let_go_on_is_spared_until_the_shortage_is_over(
    bench: Bench,
) -> None:
    one = bench.add(1, memory={"min": GIB})
    bench.says(50 * MIB)
    await bench.live(2)
    assert one.vm and one.vm.status.pressure.held
    one.vm = one.vm.but(status=one.vm.status.but(pressure={"held": None}))
    bench.keeper.wake(f"vm/{one.identity}")
    await bench.live(20)
    assert one.vm.status.pressure.held is None
    bench.says(4 * GIB)
    await bench.live(2)
    bench.says(50 * MIB)
    await bench.live(2)
    assert one.vm.status.pressure.held, "another shortage"


@pytest.mark.parametrize("spec", [{"power": "paused"}, {"power": "stopped"}, {"restarts": 1}])
async def test_one_that_is_not_wished_running_is_not_paused(
    bench: Bench, spec: dict[str, Any]
) -> None:
    one = bench.add(1, memory={"min": GIB}, **spec)
    bench.says(50 * MIB)
    await bench.live(10)
    assert one.written == []


async def test_a_store_that_is_away_is_tried_again(bench: Bench) -> None:
    one = bench.add(1, memory={"min": GIB})
    one.failure = GuestSilent("away")
    bench.says(50 * MIB)
    await bench.live(2)
    one.failure = None
    await bench.live(10)
    assert one.vm and one.vm.status.pressure.held


async def test_a_host_that_does_not_tell_is_left_alone(bench: Bench) -> None:
    bench.add(1)
    (bench.proc / "meminfo").unlink()
    assert await bench.live(1) == LONG


async def test_its_answers_are_asked_for_again_while_they_matter(bench: Bench) -> None:
    one = bench.add(1)
    told = bench.metrics.machines[one.identity].told
    told.asked["memory"] = bench.clock.now() - 60
    await bench.live(1)
    assert "memory" not in told.next
    bench.says(600 * MIB)
    await bench.live(1)
    assert told.next["memory"] <= bench.clock.now()


async def test_weights_follow_who_runs_and_what_it_is_sure_of(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, float]] = []
    monkeypatch.setattr(
        module.shares, "set_weight", lambda vm_id, weight: given.append((vm_id, round(weight)))
    )
    monkeypatch.setattr(Site, "capacity", 200)
    a, b = bench.add(1), bench.add(2, cpu={"weight": 50})
    await bench.live(2)
    assert given == [], "nobody is sure of anything: what their workers set is right"
    sure = bench.add(3, cpu={"reserve": 100, "weight": 10})
    await bench.live(2)
    assert given == [(sure.identity, 170)] and a.vm and b.vm and sure.vm
    assert [round(bench.site.weight_of(item)) for item in (a.vm, b.vm, sure.vm)] == [100, 50, 170]
    assert bench.site.claims[sure.identity] == Claim(10, 100)
    sure.vm = sure.vm.but(spec=sure.vm.spec.but(cpu=sure.vm.spec.cpu.but(reserve=0)))
    bench.keeper.wake(f"vm/{sure.identity}")
    await bench.live(1)
    assert given[1:] == [(sure.identity, 10)]
    a.run.ended = True
    await bench.live(1)
    assert len(given) == 2 and set(bench.site.claims) == {b.identity, sure.identity}


async def test_all_servers_together_weigh_as_much_as_one_by_one(bench: Bench) -> None:
    first = bench.add(1)
    await bench.live(1)
    bench.add(2, cpu={"weight": 50})
    bench.add(3, cpu={"weight": 250})
    await bench.live(3)
    first.run.ended = True
    await bench.live(2)
    assert bench.together == [100, 400, 300]


async def test_the_kernels_order_follows_the_priority(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: list[int] = []
    monkeypatch.setattr(module.oom, "set_score", lambda pid, score: scores.append(score))
    one = bench.add(1, memory={"priority": 0})
    await bench.live(3)
    assert one.vm and scores == [900]
    one.vm = one.vm.but(spec=one.vm.spec.but(memory=one.vm.spec.memory.but(priority=100)))
    bench.keeper.wake(f"vm/{one.identity}")
    await bench.live(3)
    assert scores == [900, 100]


async def test_a_defect_is_told_once_and_the_keeper_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    one = bench.add(1)
    one.load = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    task = asyncio.create_task(bench.keeper.run())
    for _ in range(3):
        await asyncio.sleep(0.15)
        bench.keeper.wake(f"vm/{one.identity}")
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len([record for record in caplog.records if record.exc_info]) == 1


# ---- what is remembered


def test_one_that_took_some_back_by_itself_has_it() -> None:
    ledger = Ledger(1, asked=512 * MIB, followed=False)
    ledger.note(512 * MIB, 1, 1)
    ledger.note(600 * MIB, 2, 2)
    assert ledger.asked == 600 * MIB


def test_one_that_does_not_follow_is_let_be() -> None:
    ledger = Ledger(1, asked=512 * MIB, asked_at=0, followed=False)
    ledger.note(GIB, PATIENCE, 1)
    assert ledger.asked == 512 * MIB
    ledger.note(GIB, PATIENCE + 1, 2)
    assert ledger.asked == GIB and ledger.refuses_until > PATIENCE + 1


def test_what_it_had_when_it_spoke_is_the_most_it_may_have_had() -> None:
    ledger = Ledger(1)
    assert ledger.had_at(5) is None
    for wall, has in ((10, 8), (20, 6), (21, 4), (30, 5)):
        ledger.note(has, 0, wall)
    assert [ledger.had_at(at) for at in (5, 15, 20, 21, 25, 29, 40)] == [8, 8, 8, 8, 4, 5, 5]
