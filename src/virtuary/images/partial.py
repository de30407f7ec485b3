"""A file on its way from the network: what came so far, and a note that says what it is a part of.

`NAME.partial` holds the bytes, `NAME.partial.json` the URL and the validator (ETag or date) they
were sent under. The note is written before any byte it describes, so that a crash can leave too
little, never something wrong. One process at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from virtuary.base.errors import Busy, NoRoom
from virtuary.base.files import remove, write_whole

AGAIN = "repeat the command: it continues where it stopped"
MAX_NOTE = 8192


class Partial:
    """The two files beside `target`; made by `open_partial`."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".partial")
        self.note = target.with_name(target.name + ".partial.json")
        self.discarded = False
        try:
            self.descriptor = self._open()
        except PermissionError:
            # ended between chmod and rename: it is whole, but nobody may write to it any more
            remove(self.path)
            self.descriptor = self._open()

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def lock(self) -> None:
        """Raise Busy unless the file is ours alone, and still is the one under its name."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours, named = os.fstat(self.descriptor), os.stat(self.path, follow_symlinks=False)
        except (BlockingIOError, FileNotFoundError) as error:
            raise Busy(f"{self.path.stem} is being fetched already", "wait for it") from error
        if ours.st_ino != named.st_ino:  # another one finished it between our open and our lock
            raise Busy(f"{self.path.stem} is being fetched already", "wait for it")

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def validator(self, url: str) -> str | None:
        """The ETag or date under which the bytes here were sent, if they are of `url` and may be
        continued.
        """
        try:
            with self.note.open("rb") as handle:
                note = json.loads(handle.read(MAX_NOTE))
        except (OSError, ValueError):
            return None
        fits = isinstance(note, dict) and note.get("url") == url and self.size > 0
        validator = note.get("validator") if fits else None
        return validator if isinstance(validator, str) and validator else None

    def restart(self, url: str, validator: str | None) -> None:
        """Begin from nothing."""
        os.ftruncate(self.descriptor, 0)
        remove(self.note)
        if validator:
            write_whole(self.note, json.dumps({"url": url, "validator": validator}).encode())

    def append(self, piece: bytes) -> None:
        """Write behind what is there; raises NoRoom when the disk is full."""
        offset = self.size
        view = memoryview(piece)
        try:
            while view:
                written = os.pwrite(self.descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoRoom(
                    "the disk is full: the file does not fit", "free some space; " + AGAIN
                ) from error
            raise

    def discard(self) -> None:
        """Keep nothing."""
        self.discarded = True
        remove(self.path)
        remove(self.note)


def drop_abandoned(folder: Path, before: float) -> None:
    """Remove what nobody has gone on with since `before` (seconds since 1970), and nobody is
    fetching now.
    """
    for path in folder.glob("*.partial"):
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(handle).st_mtime < before:
                    remove(path)
                    remove(path.with_name(path.name + ".json"))
            finally:
                os.close(handle)


@contextlib.contextmanager
def open_partial(target: Path) -> Iterator[Partial]:
    """What is there of `target`, locked; raises Busy when another task or process has it."""
    partial = Partial(target)
    try:
        partial.lock()
        yield partial
    finally:
        os.close(partial.descriptor)
