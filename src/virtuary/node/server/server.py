"""One server as its steps see it: where it is, its process, its document to read and write. Nothing
here decides.
"""

from __future__ import annotations

from virtuary.model.vm import Vm
from virtuary.node.loop import Loop
from virtuary.node.machine.run import Run
from virtuary.node.server.process import Process
from virtuary.node.site import Site


class Server(Loop[Vm]):
    def __init__(self, site: Site, vm_id: str) -> None:
        super().__init__(site, Vm, vm_id)
        self.paths = site.paths.vm(vm_id)
        self.process: Process | None = None

    @property
    def run(self) -> Run | None:
        """The live side of its process, where it has one."""
        return self.process.run if self.process else None

    async def drop_process(self) -> None:
        """Forget the process and all that was true of it."""
        process, self.process = self.process, None
        if process:
            await process.close()

    async def close(self) -> None:
        await self.drop_process()
