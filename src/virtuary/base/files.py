"""Files that survive a power cut: written beside, synced, renamed, directory synced."""

from __future__ import annotations

import os
from pathlib import Path


def sync_dir(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(partial: Path, final: Path, mode: int | None = None) -> None:
    """Turn the finished file `partial` into `final`, durably and at once; both lie in one
    folder.
    """
    if mode is not None:
        os.chmod(partial, mode)
    sync_file(partial)
    os.replace(partial, final)
    sync_dir(final.parent)


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write `path` whole or not at all, durably; its mode is set before any byte is in it."""
    partial = path.with_name(f".{path.name}.partial")
    handle = os.open(
        partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode
    )
    try:
        os.fchmod(handle, mode)  # what a crash left behind may have another one
        view = memoryview(content)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    except BaseException:
        os.unlink(partial)
        raise
    finally:
        os.close(handle)
    os.replace(partial, path)
    sync_dir(path.parent)


def remove(path: Path) -> bool:
    """Remove the file `path` if it is there; says whether it was."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True
