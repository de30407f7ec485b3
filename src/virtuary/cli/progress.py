"""How far a copy is: one live line on a terminal, nothing elsewhere, nothing for what takes no
time.
"""

from __future__ import annotations

import shutil
import sys
import time
from typing import BinaryIO

from virtuary.base.text import shown
from virtuary.base.units import format_rate, format_size
from virtuary.cli.output import colours

BEGINS, EACH = 0.7, 0.2
"""Seconds after which it is shown, and between two changes of the line."""


class Progress:
    def __init__(self, quiet: bool) -> None:
        self._live = not quiet and sys.stderr.isatty() and colours(sys.stderr)
        self._began = time.monotonic()
        self._next = self._began + BEGINS
        self._bytes = 0
        self._drawn = False

    def tell(self, name: str, size: int) -> None:
        """So many bytes more of this went."""
        self._bytes += size
        now = time.monotonic()
        if self._live and now >= self._next:
            self._next = now + EACH
            self._drawn = True
            text = (
                f"{format_size(self._bytes)}, "
                f"{format_rate(self._bytes / (now - self._began))}  {shown(name)}"
            )
            sys.stderr.write(f"\r\033[K{text[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()

    def pause(self) -> None:
        """Make room for a line of something else."""
        if self._drawn:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
        self._drawn = False

    def close(self) -> None:
        self.pause()
        self._live = False


class Watched:
    """A stream of which all that is read counts."""

    def __init__(self, stream: BinaryIO, name: str, progress: Progress) -> None:
        self._stream, self._name, self._progress = stream, name, progress

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._progress.tell(self._name, len(data))
        return data
