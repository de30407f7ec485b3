"""The loop about one server keeps its pace, whatever its machine says."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from virtuary.base.paths import Paths
from virtuary.model.firewall import Firewall, FirewallSpec
from virtuary.model.meta import Meta
from virtuary.model.vm import Vm
from virtuary.node import worker as working
from virtuary.node.power.plan import Forget
from virtuary.node.power.steps import forget
from virtuary.node.server.process import Process
from virtuary.node.server.server import Server
from virtuary.node.server.world import World
from virtuary.node.site import Site
from virtuary.node.worker import Worker
from virtuary.store.documents import every
from virtuary.store.memory import MemoryStore

sys.path.insert(0, str(Path(__file__).parent))
from worlds import ID, ME, WALL, alive, at_rest


async def test_a_server_that_goes_leaves_its_name_with_the_rules_that_mean_it(
    paths: Paths,
) -> None:
    store = MemoryStore()
    gone = at_rest({"power": "stopped"}, {"purge": True, "deleted": WALL})
    rules: Any = [{"direction": "in", "peers": [f"server:{ID}"]}, {"direction": "in"}]
    naming = Firewall(meta=Meta(name="web"), spec=FirewallSpec(rules=rules))
    other = Firewall(meta=Meta(name="db"), spec=FirewallSpec(rules=rules[1:]))
    documents = (gone.vm, naming, other)
    revision = await store.txn({}, {item.key: item.dump() for item in documents})
    worker = Server(Site(paths, store, ME), ID)
    worker.paths.home.mkdir(parents=True)
    kept = gone.vm.but(meta=gone.vm.meta.but(revision=revision))
    await forget(worker, replace(gone, vm=kept), Forget())
    assert store.get(gone.vm.key) is None
    after = {group.name: group for group in every(store, Firewall)}
    assert after["web"].status.purged == {ID: "web1"} and after["web"].spec == naming.spec
    assert after["db"].meta.revision == revision


async def test_a_server_that_many_rules_name_goes_all_the_same(paths: Paths) -> None:
    store = MemoryStore()
    gone = at_rest({"power": "stopped"}, {"purge": True, "deleted": WALL})
    peers = [f"server:{ID}", *(f"192.0.2.{number}" for number in range(60))]
    rules: Any = [{"direction": "in", "peers": peers}] * 30
    for number in range(150):
        group = Firewall(meta=Meta(name=f"g{number}"), spec=FirewallSpec(rules=rules))
        await store.txn({}, {group.key: group.dump()})
    revision = await store.txn({}, {gone.vm.key: gone.vm.dump()})
    worker = Server(Site(paths, store, ME), ID)
    worker.paths.home.mkdir(parents=True)
    kept = gone.vm.but(meta=gone.vm.meta.but(revision=revision))
    await forget(worker, replace(gone, vm=kept), Forget())
    assert store.get(gone.vm.key) is None
    assert all(group.status.purged == {ID: "web1"} for group in every(store, Firewall))


async def test_a_machine_that_runs_on_however_often_it_is_paused_does_not_keep_the_daemon_busy(
    paths: Paths,
) -> None:
    paused: list[str] = []

    class Stubborn(Worker):
        """Its machine says that it runs, after each step."""

        def load(self) -> Vm:
            return self.look().vm

        def look(self) -> World:
            return alive({"power": "paused"})

    async def obey(command: str, *_: Any) -> object:
        paused.append(command)
        return {}

    async def refresh() -> None: ...

    async def close() -> None: ...

    stubborn = Stubborn(Site(paths, MemoryStore(), ME), ID)
    run: Any = SimpleNamespace(monitor=SimpleNamespace(run=obey), refresh=refresh, close=close)
    stubborn.process = Process(run)
    task = asyncio.create_task(stubborn.work())
    await asyncio.sleep(1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (
        set(paused) == {"stop"}
        and len(paused) <= working.STEPS_AT_ONCE + 2 * working.STEPS_A_SECOND
    )
