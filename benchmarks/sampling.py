"""The row about looking: U1, what the figures of 50 machines cost.

The machines are real QEMUs, paused, so that they do not compete with what is measured; to the
sampler they are said to run. A look reads the same files either way. What a question to a monitor
costs is measured on the same machines, and a question to a guest's agent is taken to cost the same
here.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

from harness import Row

from virtuary.base.paths import find_paths
from virtuary.base.proc import boot_id
from virtuary.node.figures.asking import BUDGET, UNWATCHED, WATCHED, ask_blocks, ask_memory
from virtuary.node.figures.metrics import Metrics
from virtuary.node.machine.run import Run
from virtuary.node.site import Site
from virtuary.qemu.qmp import open_monitor
from virtuary.store.memory import MemoryStore


def u1(bench: Any, count: int = 50, looks: int = 300) -> None:
    """One look at 50 machines and the host, in processor time; and at one a second the share of a
    core.
    """
    row = Row(
        "U1",
        f"processor time of a look at {count} machines and the host",
        "ms",
        targets=["<= 0.5 % of a core, at one look a second"],
    )
    for number in range(count):
        bench.client.launch("tiny", f"seen-{number}", power="paused")
    paths = find_paths({"VIRTUARY_ROOT": str(bench.ours.root)})
    runs = asyncio.run(_measure(row, paths, bench, looks))
    share = statistics.mean(row.samples["ours, a look"]) / 10
    row.facts["share of a core, looks alone, %"] = round(share, 3)
    each = statistics.mean(row.samples["ours, a question"]) / 10
    for name, pace in (("nobody watches", UNWATCHED), ("somebody watches", WATCHED)):
        asked = min(BUDGET, sum(runs / seconds for seconds in pace.values()))
        row.facts[f"share of a core with the questions while {name}, %"] = round(
            share + asked * each, 3
        )
    for number in range(count):
        bench.client.delete(f"seen-{number}", now=True, force=True)
    row.finish()


async def _measure(row: Row, paths: Any, bench: Any, looks: int) -> int:
    site = Site(paths, MemoryStore(), "bench", boot=boot_id())
    runs: dict[str, Run] = {}
    for vm in bench.client.vms():
        if vm.status.runtime and vm.name.startswith("seen-"):
            run = Run(paths.vm(vm.id), vm.status.runtime, -1, None, site.clock, lambda: None)
            run.qemu_status = "running"
            runs[vm.id] = run
    metrics = Metrics(site, lambda: runs.items())
    metrics.look()
    try:
        row.samples["ours, a look"] = [await _cost(metrics.look, 0.02) for _ in range(looks)]
        row.samples["ours, a question"] = await _questions(metrics)
    finally:
        metrics.close()
    return len(runs)


async def _cost(work: Callable[[], Any], pause: float) -> float:
    """Processor time in milliseconds; other work comes between, as in life."""
    await asyncio.sleep(pause)
    began = time.thread_time()
    work()
    return (time.thread_time() - began) * 1000


async def _questions(metrics: Metrics, rounds: int = 20) -> list[float]:
    """Processor time of a question to a monitor, the loop's own included, in milliseconds."""
    found = []
    for machine in list(metrics.machines.values())[:10]:
        monitor = machine.run.monitor = await open_monitor(machine.paths.socket("rescue"))
        machine.told.polls = True
        began = time.process_time()
        for _ in range(rounds):
            await ask_memory(machine.told, metrics.site.clock)
            await ask_blocks(machine.told, metrics.site.clock)
        found.append((time.process_time() - began) * 1000 / rounds / 2)
        await monitor.close()
    return found


ROWS: dict[str, Callable[[Any], None]] = {"U1": u1}
