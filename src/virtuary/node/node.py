"""What one host does: a worker for each of its servers and images, woken by the store's changes;
housekeeping beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Protocol

from virtuary.base.errors import Conflict, NotFound, VirtuaryError
from virtuary.base.proc import run
from virtuary.images.partial import drop_abandoned
from virtuary.jail.resolver import RESOLVER
from virtuary.model.firewall import Firewall
from virtuary.model.image import Image
from virtuary.model.keys import id_of, key_of, kind_of
from virtuary.model.meta import Document
from virtuary.model.network import Network
from virtuary.model.operation import Operation
from virtuary.model.template import Template
from virtuary.model.vm import Vm
from virtuary.model.volume import Volume
from virtuary.node import housekeeping, turns
from virtuary.node.copies import steps
from virtuary.node.figures.metrics import Metrics
from virtuary.node.machine.run import Run
from virtuary.node.making.images import ImageWorker
from virtuary.node.making.networks import NetworkWorker, keep_listening
from virtuary.node.making.volumes import VolumeWorker
from virtuary.node.memory.keeper import Keeper
from virtuary.node.networks.addresses import keep_addresses
from virtuary.node.site import Site, describe_host
from virtuary.node.warm import budget
from virtuary.node.warm.templates import TemplateWorker
from virtuary.node.worker import Worker
from virtuary.qemu.process import become_subreaper
from virtuary.store import documents, servers, volumes
from virtuary.store.api import Change

logger = logging.getLogger("virtuary.node")
PARTIAL_LIFE = timedelta(days=1)
SETTLING = 2.0
"""Seconds after its start in which the daemon answers whoever waited for it, and tidies nothing."""
HOUSEKEEPING = 600.0


class _Work(Protocol):
    def wake(self) -> None: ...
    async def work(self) -> None: ...


WORKERS: dict[str, Callable[[Site, str], _Work]] = {
    Vm.prefix: Worker,
    Image.prefix: ImageWorker,
    Template.prefix: TemplateWorker,
    Network.prefix: NetworkWorker,
    Volume.prefix: VolumeWorker,
}
KINDS = tuple(key_of(prefix, "") for prefix in WORKERS)


class Node:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.workers: dict[str, _Work] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.metrics = Metrics(site, self._runs)
        self.keeper = Keeper(
            site,
            lambda: (worker for worker in self.workers.values() if isinstance(worker, Worker)),
            self.metrics,
        )

    async def start(self) -> None:
        """Make what the host needs, then a worker for every document there is."""
        become_subreaper()
        RESOLVER.begin(self.site.paths.resolvers)
        self.site.networks.on_missing = self._wake
        await ensure_key(self.site)
        for folder in (self.site.paths.images, self.site.paths.templates):
            for leftover in folder.glob(".making-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        self._drop_uploads()
        steps.drop_layers(self.site)
        await turns.after_boot(self.site)

    def _drop_uploads(self) -> None:
        """Remove uploads that no image waits for: their sender is gone."""
        images = documents.every(self.site.store, Image)
        waiting = {image.spec.source.path for image in images}
        for upload in self.site.paths.downloads.glob("upload-*"):
            if upload.name not in waiting:
                upload.unlink(missing_ok=True)

    async def run(self) -> None:
        """Follow the store and keep house, until cancelled; every machine runs on."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow())
                group.create_task(turns.bring_up(self.site, self._wake))
                group.create_task(self._keep_house())
                group.create_task(self.metrics.run())
                group.create_task(self.keeper.run())
                group.create_task(self.site.networks.rules.keep())
                group.create_task(keep_addresses(self.site.networks.addresses, self._wake))
                group.create_task(RESOLVER.keep())
                group.create_task(
                    keep_listening(self.site.networks, lambda: self._wake_all(Network))
                )
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def worker(self, vm_id: str) -> Worker:
        """The worker of a server of this host; raises NotFound."""
        worker = self.workers.get(Vm.key_of(vm_id))
        if not isinstance(worker, Worker):
            raise NotFound("this host does not run that server")
        return worker

    def _runs(self) -> Iterator[tuple[str, Run]]:
        """The machines there are, by their servers' ids."""
        return (
            (worker.identity, worker.run)
            for worker in self.workers.values()
            if isinstance(worker, Worker) and worker.run
        )

    async def _follow(self) -> None:
        store = self.site.store
        while True:
            since = store.revision
            for prefix in KINDS:
                for record in store.list(prefix).records:
                    self._wake(record.key)
            try:
                async for change in store.watch("", since):
                    self._on_change(change)
                return
            except Conflict:
                continue  # the log was compacted below us: list again

    def _on_change(self, change: Change) -> None:
        key = documents.home(self.site.store, change.key)
        kind = kind_of(key)
        if kind in WORKERS:
            self._wake(key)
        if kind == Image.prefix:
            self._wake_all(Vm)
        elif kind == Volume.prefix:
            self._on_volume(id_of(key))
        elif kind == Network.prefix:
            self.site.networks.rules.wake()
            self._wake_all(Vm)
        elif kind == Vm.prefix:
            self._on_server(key)
        elif kind == Firewall.prefix:
            self.site.networks.rules.wake()
        elif kind == Operation.prefix and (operation := documents.read(Operation, change)):
            self._wake(operation.spec.target)
            if operation.copies:
                self._wake(Vm.key_of(operation.copies))

    def _on_server(self, key: str) -> None:
        """A server changed, or is gone; what becomes of it later is told too."""
        vm = documents.at(self.site.store, Vm, key)
        for volume in volumes.held_by(self.site.store, id_of(key)):
            self._wake(volume.key)  # which its machine may have left to it
        if vm is None or servers.is_networked(vm):
            self.site.networks.rules.wake()
            self._wake_all(Network)
        if vm is None:
            self._wake_all(Template)  # one that waited for its last copy to go
            steps.drop_layers(self.site)

    def _on_volume(self, volume_id: str) -> None:
        """A volume changed: whoever has it, or held it, may have something to do."""
        store = self.site.store
        volume = documents.get(store, Volume, volume_id)
        holding = {item.server for item in volume.spec.attached} if volume else set()
        for vm_id in {vm.id for vm in servers.with_volume(store, volume_id)} | holding:
            self._wake(Vm.key_of(vm_id))

    def _wake_all(self, kind: type[Document]) -> None:
        for key in [name for name in self.workers if name.startswith(kind.place())]:
            self._wake(key)

    def _wake(self, key: str) -> None:
        if not key.startswith(KINDS):
            return
        self.keeper.wake(key)
        if key not in self.workers:
            if self.site.store.get(key) is None:
                return
            worker: _Work = WORKERS[kind_of(key)](self.site, id_of(key))
            self.workers[key] = worker
            task = asyncio.create_task(worker.work(), name=key)
            task.add_done_callback(lambda done: self._ended(key, done))
            self._tasks[key] = task
        self.workers[key].wake()

    def _ended(self, key: str, task: asyncio.Task[None]) -> None:
        self.workers.pop(key, None)
        self._tasks.pop(key, None)
        if not task.cancelled() and (error := task.exception()):
            logger.error("the worker of %s ended", key, exc_info=error)
            asyncio.get_running_loop().call_later(5, self._wake, key)

    async def shut_down(self, tell: Callable[[str], None]) -> None:
        """The host goes down: shut the servers down, in order. While `run` runs."""
        await turns.shut_down(self.site, self._wake, tell)

    async def _keep_house(self) -> None:
        """Empty the trash after seven days; forget old operations and idempotency keys; keep
        templates current and few; remove layers nobody needs and downloads nobody goes on with.
        """
        await self.site.clock.sleep(SETTLING)
        while True:
            with contextlib.suppress(VirtuaryError):
                await describe_host(self.site)
                await budget.renew(self.site)
                await budget.keep_budget(self.site)
                steps.drop_layers(self.site)
                drop_abandoned(
                    self.site.paths.downloads, (self.site.clock.wall() - PARTIAL_LIFE).timestamp()
                )
                await housekeeping.tidy(self.site)
            await self.site.clock.sleep(HOUSEKEEPING)


async def ensure_key(site: Site) -> None:
    """The SSH key Virtuary logs in with; made once."""
    key = site.paths.key
    if key.exists() and key.with_suffix(".pub").exists():
        return
    partial = key.with_name(".making")
    for path in (partial, partial.with_suffix(".pub")):
        path.unlink(missing_ok=True)
    await run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "virtuary", "-f", str(partial))
    partial.with_suffix(".pub").rename(key.with_suffix(".pub"))
    partial.rename(key)
