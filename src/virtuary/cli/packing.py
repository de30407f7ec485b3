"""What goes into a server: an archive of the user's own files, made while it is sent.

By hand and not by `tar`, for what people expect of a copy: a link that is named itself is followed,
links in folders stay links, files of /proc and /sys have the size that is read and not the one they
show, owners are nobody's (whoever unpacks it owns it), set-user-ID bits are left out, and what
can't be read or is neither file nor folder nor link is told while the rest goes on.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from typing import BinaryIO

from virtuary.base.errors import NotFound, Refused

SMALL = 1024 * 1024
"""Bytes up to which a file is read before its size is told: in /proc and /sys that is another one
than is shown.
"""
PIECE = 256 * 1024
_KINDS = {
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def leads_out(name: str, target: str) -> bool:
    """Whether the link `name`, a path in a folder, leads to something outside of that folder; by
    its words alone. Pure.
    """
    return (
        target.startswith("/")
        or os.path.normpath(os.path.join(os.path.dirname(name), target)).split("/")[0] == ".."
    )


class Packing:
    """Writes sources one after another into a stream; `tell` hears each file and how many bytes of
    it went.
    """

    def __init__(self, stream: BinaryIO, tell: Callable[[str, int], None]) -> None:
        self._tell = tell
        self._tar = tarfile.open(  # noqa: SIM115
            fileobj=stream,
            mode="w|",
            format=tarfile.GNU_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
            bufsize=PIECE,
        )
        self._names: dict[tuple[int, int], str] = {}
        self.special: list[str] = []
        """What was left out because it is neither file nor folder nor link, with its kind."""
        self.leading_out: list[str] = []
        self.refused: list[str] = []
        """Sentences about what could not be read."""

    def close(self) -> None:
        self._tar.close()

    def add(self, source: str) -> None:
        """A file or folder, under its own name. Raises NotFound or Refused where there is no such
        thing.
        """
        try:
            facts = os.stat(source)
        except OSError as error:
            why = (
                "is a link that leads nowhere"
                if os.path.islink(source)
                else f"can't be had: {error.strerror}"
            )
            raise NotFound(f"{source!r} {why}") from None
        if kind := _KINDS.get(stat.S_IFMT(facts.st_mode)):
            raise Refused(f"{source!r} is a {kind}, and only files and folders are copied")
        self._put(source, own_name(source), facts)

    def _put(self, path: str, name: str, facts: os.stat_result) -> None:
        try:
            if stat.S_ISDIR(facts.st_mode):
                self._folder(path, name)
            elif stat.S_ISLNK(facts.st_mode):
                self._link(path, name)
            elif stat.S_ISREG(facts.st_mode):
                self._file(path, name, facts)
            else:
                self.special.append(f"{path} ({_KINDS.get(stat.S_IFMT(facts.st_mode), 'special')})")
        except BrokenPipeError:
            raise
        except OSError as error:
            self.refused.append(f"{path}: {error.strerror}")

    def _folder(self, path: str, name: str) -> None:
        names = sorted(os.listdir(path))
        self._tar.addfile(self._entry(path, name, os.stat(path)))
        for each in names:
            below = os.path.join(path, each)
            try:
                facts = os.lstat(below)
            except OSError as error:  # it went meanwhile
                self.refused.append(f"{below}: {error.strerror}")
                continue
            self._put(below, f"{name}/{each}", facts)

    def _link(self, path: str, name: str) -> None:
        entry = self._tar.gettarinfo(path, arcname=name)
        top, _, rest = name.partition("/")
        if leads_out(rest or top, entry.linkname):
            self.leading_out.append(path)
        self._tar.addfile(self._owned(entry))

    def _entry(self, path: str, name: str, facts: os.stat_result) -> tarfile.TarInfo:
        entry = tarfile.TarInfo(name)
        entry.type = tarfile.DIRTYPE if stat.S_ISDIR(facts.st_mode) else tarfile.REGTYPE
        entry.mode, entry.mtime = facts.st_mode & 0o777, int(facts.st_mtime)
        return entry

    def _owned(self, entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mode &= 0o777
        entry.mtime = int(entry.mtime)
        return entry

    def _file(self, path: str, name: str, facts: os.stat_result) -> None:
        inode = (facts.st_ino, facts.st_dev)
        if facts.st_nlink > 1 and inode in self._names and self._names[inode] != name:
            entry = self._entry(path, name, facts)
            entry.type, entry.linkname = tarfile.LNKTYPE, self._names[inode]
            self._tar.addfile(entry)
            return
        with open(path, "rb") as handle:
            entry = self._entry(path, name, facts)
            if facts.st_size > SMALL:
                entry.size = facts.st_size
                self._tar.addfile(entry, _Whole(handle, entry.size, path, self._tell, self.refused))  # type: ignore[arg-type]
            else:
                content = handle.read()
                entry.size = len(content)
                self._tar.addfile(entry, io.BytesIO(content))
                self._tell(path, len(content))
        self._names[inode] = name


class _Whole:
    """A file as long as it was when it was opened: where it became shorter meanwhile zeros follow,
    and that is told.
    """

    def __init__(
        self,
        handle: BinaryIO,
        size: int,
        path: str,
        tell: Callable[[str, int], None],
        refused: list[str],
    ) -> None:
        self._handle, self._left, self._path, self._tell, self._refused = (
            handle,
            size,
            path,
            tell,
            refused,
        )
        self._cut = False

    def read(self, size: int) -> bytes:
        wanted = min(size, self._left)
        data = self._handle.read(wanted) if not self._cut else b""
        if len(data) < wanted:
            if not self._cut:
                self._refused.append(f"{self._path}: became shorter while it was read")
            self._cut = True
            data += bytes(wanted - len(data))
        self._left -= wanted
        self._tell(self._path, len(data))
        return data


def own_name(path: str) -> str:
    """The name that a copy of this has, `.` for a folder of which the content is meant. Pure."""
    name = os.path.basename(path.rstrip("/"))
    return "." if name in ("", ".", "..") else name
