"""A directory that is a pool: known by a mark in it, so that one whose file system is not mounted
is never taken for an empty one.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from virtuary.base.errors import Failed, Invalid, PeerAway
from virtuary.base.files import write_whole
from virtuary.base.space import reserve

MARK = ".virtuary-pool"
HARMLESS = {MARK, "lost+found"}
"""What may lie in a directory that becomes a pool."""
ELSEWHERE = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs"}
"""File systems whose files are another machine's: their locks and caches have rules that are not
kept here yet.
"""
_ESCAPED = re.compile(r"\\([0-7]{3})")
"""How mountinfo writes blanks and backslashes; all else is as it is, in UTF-8."""


class Space(NamedTuple):
    size: int
    free: int
    kept: int
    """Bytes that stay free."""


def mark(path: Path, identity: str) -> None:
    """Make a directory the pool of this id. Raises Invalid where it can't be one."""
    _check(path)
    write_whole(path / MARK, identity.encode(), mode=0o600)


def _check(path: Path) -> None:
    if not path.is_absolute():
        raise Invalid(f"{path} is not absolute", "write the whole path, for example /srv/fast")
    try:
        there = {entry.name for entry in os.scandir(path)}
    except FileNotFoundError:
        raise Invalid(f"{path} is not there", f"mkdir {path}, or mount it") from None
    except NotADirectoryError:
        raise Invalid(f"{path} is no directory") from None
    except OSError as error:
        raise Invalid(f"{path} can't be read: {error.strerror}") from None
    if MARK in there:
        raise Invalid(f"{path} is a pool already", "virtuary pool list shows them")
    if others := sorted(there - HARMLESS):
        raise Invalid(
            f"{path} is not empty: {others[0][:60]!r} lies in it", "make a folder of its own"
        )
    if (kind := kind_of(path)) in ELSEWHERE:
        raise Invalid(f"{path} lies on {kind}, and pools on other machines are not supported yet")


def check_there(path: Path, identity: str, name: str) -> None:
    """Raise PeerAway where the directory is not the pool of this id now."""
    try:
        found = (path / MARK).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        found = ""
    if found != identity:
        raise PeerAway(
            f"the pool {name} is not there: {path} does not hold it", f"mount it at {path}"
        )


def unmark(path: Path, identity: str) -> None:
    """A directory is no pool any more. Raises Failed where it can't be written to."""
    try:
        if (path / MARK).read_text(encoding="utf-8", errors="replace").strip() == identity:
            (path / MARK).unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise Failed(f"the mark in {path} can't be removed: {error.strerror}") from error


def space_of(path: Path, kept: int | None) -> Space:
    usage = shutil.disk_usage(path)
    return Space(usage.total, usage.free, reserve(usage.total, kept))


def kind_of(path: Path) -> str:
    """The type of the file system that a path lies on; empty where it is not known."""
    best, kind = "", ""
    real = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as handle:
        for line in handle:
            before, _, after = line.partition(" - ")
            place = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), before.split()[4])
            inside = real == place or real.startswith(place.rstrip("/") + "/")
            if inside and len(place) >= len(best):
                best, kind = place, after.split()[0]
    return kind
