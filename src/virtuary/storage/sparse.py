"""Large files that are mostly holes: their digest, whatever is hole and whatever is zero, and holes
in place of zeroes.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from virtuary.base.files import remove

BLOCK = 64 * 1024
_CHUNK = 16 * BLOCK
_ZERO = bytes(BLOCK)
_PUNCH_HOLE, _KEEP_SIZE = 2, 1


def digest(path: Path) -> str:
    """SHA-256 of the size, and of each 64 KiB block that is not zero with its place. Holes and
    zeroes are the same.
    """
    found = hashlib.sha256()
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        found.update(os.fstat(handle).st_size.to_bytes(8, "little"))
        for offset, chunk in _data(handle):
            view = memoryview(chunk)
            for start in range(0, len(chunk), BLOCK):
                block = view[start : start + BLOCK]
                if block != _ZERO[: len(block)]:
                    found.update((offset + start).to_bytes(8, "little"))
                    found.update(block)
    finally:
        os.close(handle)
    return found.hexdigest()


def punch(path: Path) -> int:
    """Make holes of blocks that are zero; bytes given back. Content stays the same; harmless where
    holes can't be made.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    saved = 0
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for offset, chunk in _data(handle):
            for start in range(0, len(chunk), BLOCK):
                block = chunk[start : start + BLOCK]
                if len(block) == BLOCK and block == _ZERO:
                    where = ctypes.c_long(offset + start)
                    if (
                        libc.fallocate(
                            handle, _PUNCH_HOLE | _KEEP_SIZE, where, ctypes.c_long(BLOCK)
                        )
                        < 0
                    ):
                        if ctypes.get_errno() in (errno.EOPNOTSUPP, errno.ENOSYS):
                            return saved
                        raise OSError(
                            ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path)
                        )
                    saved += BLOCK
    finally:
        os.close(handle)
    return saved


def detach(path: Path) -> None:
    """Put the same content, with the same holes and mode, into a file of its own in place of this
    one: nobody has that open.
    """
    partial = path.with_name(f".{path.name}.partial")
    remove(partial)
    with open(path, "rb") as source, open(partial, "xb") as target:
        os.fchmod(target.fileno(), os.fstat(source.fileno()).st_mode & 0o777)
        os.ftruncate(target.fileno(), os.fstat(source.fileno()).st_size)
        for offset, chunk in _data(source.fileno()):
            for start in range(0, len(chunk), BLOCK):
                block = chunk[start : start + BLOCK]
                if block != _ZERO[: len(block)]:
                    os.pwrite(target.fileno(), block, offset + start)
    os.replace(partial, path)


def _data(handle: int) -> Iterator[tuple[int, bytes]]:
    """The parts of a file that are not holes, in chunks that begin at whole blocks."""
    size = os.fstat(handle).st_size
    offset = 0
    while offset < size:
        try:
            start = os.lseek(handle, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(handle, start, os.SEEK_HOLE)
        offset = start - start % BLOCK
        while offset < end:
            chunk = os.pread(handle, _CHUNK, offset)
            if not chunk:
                return
            yield offset, chunk
            offset += len(chunk)
