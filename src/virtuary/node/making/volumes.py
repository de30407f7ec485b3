"""A volume of this host, made true: its file is made, grown while no machine has it, and removed.

Whoever has it running grows it by its machine (`node/volumes`).
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import VirtuaryError, of_system
from virtuary.base.log import say
from virtuary.model.vm import Vm
from virtuary.model.volume import Volume
from virtuary.node import operations, pools
from virtuary.node.loop import FOR_EVER, Loop
from virtuary.node.site import Site
from virtuary.storage import directory
from virtuary.storage.own import UNTOUCHED, Damaged
from virtuary.store import documents, servers

logger = logging.getLogger("virtuary.volumes")
AGAIN = 5.0
"""Seconds until a removal that failed is tried again."""
declare("volume.after_make", "volume.after_grow", "volume.after_remove")


class VolumeWorker(Loop[Volume]):
    def __init__(self, site: Site, volume_id: str) -> None:
        super().__init__(site, Volume, volume_id)

    async def step(self, document: Volume) -> float:
        if document.spec.owner != self.site.host_id:
            return FOR_EVER
        if document.meta.purge:
            await self._forget(document)
        elif document.status.state == "creating":
            await self._make(document)
        elif document.status.state == "ready" and self._is_to_grow(document):
            await self._grow(document)
        else:
            await self._settle(document)
            return FOR_EVER
        return 0

    def _is_to_grow(self, volume: Volume) -> bool:
        """Whether it is smaller than wished, and no machine has it that would grow it itself."""
        machines = servers.with_volume(self.site.store, volume.id)
        larger = volume.spec.size > (volume.status.size or 0)
        return larger and not any(vm.status.runtime for vm in machines)

    async def _make(self, volume: Volume) -> None:
        file = self._file(volume)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        await directory.ensure_empty(file, volume.spec.size, pools.kept_in(self.site, volume))
        crashpoint("volume.after_make")
        await self.write(ends=self._operation(), state="ready", reason=None, size=volume.spec.size)
        say(logger, "disk ready", disk=volume.name)

    async def _grow(self, volume: Volume) -> None:
        file = self._file(volume)
        if not file.exists():
            raise Damaged(f"the file of the disk {volume.name} is gone", UNTOUCHED)
        await directory.grow(file, (), volume.spec.size, pools.kept_in(self.site, volume))
        crashpoint("volume.after_grow")
        await self.write(ends=self._operation(), size=volume.spec.size)

    async def _settle(self, volume: Volume) -> None:
        """Nothing is left to do: what waits for it is told, and nobody holds it who is gone."""
        store = self.site.store
        for held in volume.spec.attached:
            if documents.get(store, Vm, held.server) is None:
                left = volume.let_go(held.server)
                await store.txn({self.key: volume.meta.revision}, {self.key: left.dump()})
                return
        if volume.usable and (operation := self._operation()):
            await self.write(ends=operation, reason=volume.status.reason)

    async def _forget(self, volume: Volume) -> None:
        shutil.rmtree(self._file(volume).parent, ignore_errors=True)
        crashpoint("volume.after_remove")
        puts = {
            item.key: operations.finished(item).dump()
            for item in operations.open_operations(self.site.store, self.key)
        }
        expect, gone = documents.removed(self.site.store, volume)
        await self.site.store.txn(expect, puts, gone)

    async def failed(self, document: Volume, error: VirtuaryError | OSError) -> float:
        """What was asked for ends with the reason. A disk that could not be made is failed; one
        that could not be grown is wished as large as it is.
        """
        why = error if isinstance(error, VirtuaryError) else of_system(error)
        say(logger, "disk failed", logging.WARNING, disk=document.name, why=why.sentence)
        current = self.load()
        if current is None or current.meta.purge or why.retry:
            return AGAIN
        operation = self._operation()
        found = operations.load(self.site.store, operation) if operation else None
        puts = {found.key: operations.finished(found, why).dump()} if found else {}
        if current.status.state == "creating":
            changed = current.seen(state="failed", reason=why.sentence)
        else:
            changed = current.but(spec=current.spec.but(size=current.status.size))
        await self.site.store.txn(
            {self.key: current.meta.revision}, {self.key: changed.dump(), **puts}
        )
        return 0

    def _file(self, volume: Volume) -> Path:
        """Where it lies. Raises PeerAway while its pool is not there."""
        pools.check(self.site, volume)
        return pools.file_of(self.site, volume)

    def _operation(self) -> str | None:
        active = operations.open_operations(self.site.store, self.key)
        return active[0].key if active else None
