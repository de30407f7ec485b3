"""One process that is not the daemon's to wait for by number, watched until it ends or is let go.

Its end is heard through a pidfd, so no other process can be taken for it. An ended child is buried,
also one that becomes the daemon's child a moment after its own end. A process that is let go runs
on, and nothing more is heard of it.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Callable

from virtuary.base.known import adopt
from virtuary.base.proc import Identity, bury, end, reap


class Watched:
    def __init__(self, identity: Identity, pidfd: int, on_end: Callable[[], None]) -> None:
        """Watch the process behind `pidfd`, which is taken over. `on_end` is called once, by the
        running loop, when the process has ended and was not let go before.
        """
        self.identity = identity
        self.exit_status: int | None = None
        """Of a child that has ended; negative for a signal."""
        self._pidfd: int | None = pidfd
        self._on_end = on_end
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._hear, pidfd)

    @property
    def ended(self) -> bool:
        """Whether the process has ended, also a moment before `on_end` is called. Of one that was
        let go it is not known.
        """
        if self._pidfd is None:
            return self._over.is_set()
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the process; nothing when it has ended or was let go."""
        if self._pidfd is not None:
            end(self._pidfd, number)

    async def wait(self) -> None:
        """Return once the process has ended."""
        await self._over.wait()

    def let_go(self) -> None:
        """Watch it no more; may be called again, and after its end."""
        if self._pidfd is not None:
            # first, or the loop would watch whatever is given the same number
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        self._pidfd = None

    def _hear(self, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        self._pidfd = None
        self.exit_status = reap(pidfd)
        bury(pidfd)
        self._over.set()
        self._on_end()


def watch(
    identity: Identity, on_end: Callable[[], None] = lambda: None, uid: int | None = None
) -> Watched | None:
    """Watch the process `identity` if it still lives, as this user where that is given; else
    None.
    """
    pidfd = adopt(identity, uid)
    return None if pidfd is None else Watched(identity, pidfd, on_end)
