"""One server as its steps see it: where it is, its process, its document to read and write. Nothing
here decides.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from virtuary.base.errors import Conflict
from virtuary.model.vm import Vm
from virtuary.node.machine.run import Run
from virtuary.node.server.process import Process
from virtuary.node.site import Site


class Server:
    def __init__(self, site: Site, vm_id: str) -> None:
        self.site = site
        self.key = f"vm/{vm_id}"
        self.paths = site.paths.vm(vm_id)
        self.vm_id = vm_id
        self.process: Process | None = None
        self._wake = asyncio.Event()
        self._known: Vm | None = None
        """Its document as it was read last."""

    @property
    def run(self) -> Run | None:
        """The live side of its process, where it has one."""
        return self.process.run if self.process else None

    def wake(self) -> None:
        self._wake.set()

    async def drop_process(self) -> None:
        """Forget the process and all that was true of it."""
        process, self.process = self.process, None
        if process:
            await process.close()

    async def sleep(self, seconds: float) -> None:
        """Until something happens, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def load(self) -> Vm | None:
        record = self.site.store.get(self.key)
        if record is None:
            return None
        if self._known is None or self._known.meta.revision != record.revision:
            self._known = Vm.load(record.value, record.revision)
        return self._known

    async def write(self, vm: Vm, expect: dict[str, int] | None = None, **changes: Any) -> Vm:
        """Change status fields of the stored document, over whatever others changed in its spec
        meanwhile.

        `expect`: other documents that must not have changed; raises Conflict when one has.
        """
        while True:
            current = self.load()
            if current is None:
                raise Conflict(f"{vm.name} is gone")
            changed = current.but(status=current.status.but(**changes))
            try:
                await self.site.store.txn(
                    {self.key: current.meta.revision, **(expect or {})}, {self.key: changed.dump()}
                )
            except Conflict:
                if expect:
                    raise
                continue
            return changed
