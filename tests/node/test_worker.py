"""The loop about one server keeps its pace, whatever its machine says."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from virtuary.base.paths import Paths
from virtuary.node import worker as working
from virtuary.node.site import Site
from virtuary.node.worker import Worker
from virtuary.node.world import World
from virtuary.store.memory import MemoryStore

sys.path.insert(0, str(Path(__file__).parent))
from worlds import ID, ME, alive


async def test_a_machine_that_runs_on_however_often_it_is_paused_does_not_keep_the_daemon_busy(
    paths: Paths,
) -> None:
    paused: list[str] = []

    class Stubborn(Worker):
        """Its machine says that it runs, after each step."""

        def look(self) -> World:
            return alive({"power": "paused"})

    async def obey(command: str, *_: Any) -> object:
        paused.append(command)
        return {}

    async def refresh() -> None: ...

    async def close() -> None: ...

    stubborn = Stubborn(Site(paths, MemoryStore(), ME), ID)
    run: Any = SimpleNamespace(monitor=SimpleNamespace(run=obey), refresh=refresh, close=close)
    stubborn.run = run
    task = asyncio.create_task(stubborn.work())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (
        set(paused) == {"stop"}
        and len(paused) <= working.STEPS_AT_ONCE + 2 * working.STEPS_A_SECOND
    )
