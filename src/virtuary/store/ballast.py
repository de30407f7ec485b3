"""Space that the store keeps for itself: on a disk that guests have filled, what runs can still be
told and what is there removed.

It is a file of nothing. When a write finds no space a piece of it is given back and the write is
repeated; only a piece, because guests that write take what they find. It is filled again once there
is plenty.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

from virtuary.base.log import say
from virtuary.base.units import MIB

logger = logging.getLogger("virtuary.store")
SIZE, PIECE = 16 * MIB, MIB
PLENTY = 8 * SIZE
"""Bytes that have to be free for it to be filled."""
AGAIN = 30.0
"""Seconds between two looks at whether there is plenty again."""


class Ballast:
    def __init__(self, path: Path) -> None:
        """At `path`, which need not be there."""
        self._path = path
        self._left = 0
        self._looked = 0.0
        self.fill()

    def fill(self) -> None:
        """Take the space, where there is plenty. Called often, it seldom looks. A disk without any
        is no error.
        """
        now = time.monotonic()
        if self._left == SIZE or (self._looked and now - self._looked < AGAIN):
            return
        self._looked = now
        with contextlib.suppress(OSError):
            facts = os.statvfs(self._path.parent)
            handle = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                self._left = min(os.fstat(handle).st_size, SIZE)
                if self._left < SIZE and facts.f_bavail * facts.f_frsize > PLENTY:
                    os.posix_fallocate(handle, 0, SIZE)
                    self._left = SIZE
            finally:
                os.close(handle)

    def give(self) -> bool:
        """Give a piece of it back to the disk; whether there was one."""
        left = max(self._left - PIECE, 0)
        try:
            os.truncate(self._path, left)
        except OSError:
            return False
        there, self._left = self._left > left, left
        if there:
            say(
                logger,
                "the disk is full: space kept for the store is given up",
                logging.WARNING,
                left=left,
            )
        return there
