"""One server as its steps see it: where it is, what is known of its process, its document to read
and write. Nothing here decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import Any

from virtuary.base.errors import Conflict
from virtuary.guest.seed import HostKey
from virtuary.model.vm import Vm
from virtuary.node.run import Run
from virtuary.node.site import Site
from virtuary.node.world import Tuning

AGAIN = 600.0
"""Seconds after which a guest that refused is asked again, where its server is still wished
otherwise.
"""


class Server:
    def __init__(self, site: Site, vm_id: str) -> None:
        self.site = site
        self.key = f"vm/{vm_id}"
        self.paths = site.paths.vm(vm_id)
        self.vm_id = vm_id
        self.run: Run | None = None
        self.asked_to_stop: float | None = None
        self.asked_last = 0.0
        self.network_failed: float | None = None
        """Monotonic time since which a network that it needs is seen failed."""
        self.last_words = ""
        self.explained = -math.inf
        """Monotonic time at which it was looked last into why its start takes so long."""
        self.host_key: asyncio.Task[HostKey] | None = None
        """The host key of a copy, made while the copy comes up."""
        self.tuned: Tuning | None = None
        """Limits and shares its process was given; None when another daemon gave them."""
        self.refused: dict[str, tuple[object, float]] = {}
        """What its guest would not take of cpus, memory and disk, and until when it is not asked
        again.
        """
        self._wake = asyncio.Event()
        self._known: Vm | None = None
        """Its document as it was read last."""

    def wake(self) -> None:
        self._wake.set()

    def refuse(self, field: str, wish: object) -> None:
        """Its guest would not have so much of cpus, memory or disk: it is not asked again for a
        while.
        """
        self.refused[field] = (wish, self.site.clock.now() + AGAIN)

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
