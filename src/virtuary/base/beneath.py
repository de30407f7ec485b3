"""A folder into which files go whose names somebody else chose: nothing outside it is ever opened,
written, changed or replaced.

Each name is opened component by component with O_NOFOLLOW, relative to the folder before it, so no
link is ever followed, also none that an earlier copy brought or that appears meanwhile. A file is
written beside its place and renamed over what is a file or a link; what stands in the way otherwise
is refused, with its name. Modes are those of the user's umask, and no set-user-ID bit or owner is
taken over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from types import TracebackType

from virtuary.base.errors import Refused

Path = tuple[bytes, ...]
"""Names of folders and a file, none of them empty, `.` or `..`."""
PATH_CAP, DEPTH_CAP = 4096, 256
"""Bytes of a path, and folders in folders; what lies deeper could hardly be removed again."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_IN_THE_WAY = (errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EEXIST)
_IMPOSSIBLE = (
    errno.ENAMETOOLONG,
    errno.EINVAL,
    errno.EILSEQ,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.EMLINK,
    errno.EXDEV,
)


def split(name: bytes) -> Path:
    """The parts of a relative name. Raises Refused for one that could lead anywhere else, or lies
    too deep.
    """
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if (
        name.startswith(b"/")
        or b".." in parts
        or b"\0" in name
        or len(name) > PATH_CAP
        or len(parts) > DEPTH_CAP
    ):
        raise Refused(f"{named(name)} is no name of a file beneath the folder that is copied")
    return parts


def named(name: bytes | Path) -> str:
    """A name as people may see it: whatever it holds, it moves no cursor."""
    whole = name if isinstance(name, bytes) else b"/".join(name)
    return repr(os.fsdecode(whole[:200])) + ("..." if len(whole) > 200 else "")


class Beneath:
    """An open folder of this machine. Paths are relative to it; a path that can't be had is a
    Refused, a full disk an OSError.
    """

    def __init__(self, root: str) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._at: tuple[Path, int] = ((), self._root)

    def __enter__(self) -> Beneath:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()
        os.close(self._root)

    def make_folder(self, path: Path, mode: int) -> int | None:
        """Have a folder there that can be written into; the mode it is to have once that is over,
        None where it has it already.
        """
        with _refusing(path):
            at = self._enter(path[:-1])
            try:
                os.mkdir(path[-1], mode & 0o777 | 0o700, dir_fd=at)
                return mode
            except FileExistsError:
                if not stat.S_ISDIR(_facts(at, path[-1]).st_mode):
                    raise _no_folder(path) from None
                return self._unlock(path)

    def _unlock(self, path: Path) -> int | None:
        """Let its owner write into a folder that is there; its mode if that was changed."""
        at = self._enter(path, make=False)
        facts = os.fstat(at)
        if facts.st_mode & stat.S_IWUSR or facts.st_uid != os.geteuid():
            return None
        os.fchmod(at, stat.S_IMODE(facts.st_mode) | stat.S_IWUSR)
        return stat.S_IMODE(facts.st_mode)

    def settle_folder(self, path: Path, mode: int | None, modified: int) -> None:
        """What a folder is to be once nothing more is written into it: `mode` takes rights away,
        and gives none.
        """
        with _refusing(path):
            at = self._enter(path, make=False)
            if mode is not None:
                os.fchmod(at, stat.S_IMODE(os.fstat(at).st_mode) & (mode | 0o7000))
            with contextlib.suppress(PermissionError):  # it was there, and is somebody else's
                os.utime(at, (modified, modified))

    def write(self, path: Path, mode: int, modified: int, content: Iterable[bytes]) -> int:
        """Write a file, whole or not at all, over a file or a link that is there; its inode. What
        fails or is interrupted leaves nothing.
        """
        with self._replacing(path) as (at, name):
            handle = os.open(name, _NEW, mode & 0o777, dir_fd=at)
            try:
                for piece in content:
                    write_all(handle, piece)
                os.utime(handle, (modified, modified))
                return os.fstat(handle).st_ino
            finally:
                os.close(handle)

    def link(self, path: Path, target: bytes, modified: int) -> None:
        """Make a symbolic link, over a file or a link that is there. Nothing here ever follows
        it.
        """
        if b"\0" in target:
            raise Refused(f"{named(path)} leads to {named(target)}, which is no name")
        with self._replacing(path) as (at, name):
            os.symlink(target, name, dir_fd=at)
            os.utime(name, (modified, modified), dir_fd=at, follow_symlinks=False)

    def hard_link(self, path: Path, source: Path, inodes: set[int]) -> None:
        """Give `source`, if it is a file with one of these inodes, another name."""
        with self._replacing(path) as (at, name):
            origin = self._enter(source[:-1], make=False)
            facts = _facts(origin, source[-1])
            if not stat.S_ISREG(facts.st_mode) or facts.st_ino not in inodes:
                raise Refused(
                    f"{named(path)} is to be the same file as {named(source)}, which was not "
                    "copied before it"
                )
            os.link(source[-1], name, src_dir_fd=origin, dst_dir_fd=at, follow_symlinks=False)

    @contextlib.contextmanager
    def _replacing(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Where something new is made, and under which name, to be renamed to `path` if that goes
        well.
        """
        with _refusing(path):
            at = os.dup(self._enter(path[:-1]))
        name = b".virtuary-" + secrets.token_hex(8).encode()
        try:
            with _refusing(path):
                _check_replaceable(at, path)
                yield at, name
                os.replace(name, path[-1], src_dir_fd=at, dst_dir_fd=at)
        finally:
            # it failed, or both are names of one file, and the rename did nothing
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=at)
            os.close(at)

    def _enter(self, path: Path, make: bool = True) -> int:
        """This folder, opened and made where it is not there; open until the next is entered."""
        if self._at[0] != path:
            self._leave()
            at = self._root
            for depth in range(1, len(path) + 1):
                below = _open_folder(at, path[:depth], make)
                self._leave()
                self._at = (path[:depth], below)
                at = below
        return self._at[1]

    def _leave(self) -> None:
        if self._at[1] != self._root:
            os.close(self._at[1])
        self._at = ((), self._root)


def write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _open_folder(at: int, path: Path, make: bool) -> int:
    """The folder `path`, whose parent is open."""
    try:
        try:
            return os.open(path[-1], _FOLDER, dir_fd=at)
        except FileNotFoundError:
            if not make:
                raise
            os.mkdir(path[-1], dir_fd=at)
            return os.open(path[-1], _FOLDER, dir_fd=at)
    except OSError as error:
        if error.errno in _IN_THE_WAY:
            raise _no_folder(path) from error
        raise


def _no_folder(path: Path) -> Refused:
    return Refused(f"{named(path)} is in the way: it is no folder, and no link is followed")


def _facts(at: int, name: bytes) -> os.stat_result:
    return os.stat(name, dir_fd=at, follow_symlinks=False)


def _check_replaceable(at: int, path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        mode = _facts(at, path[-1]).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise Refused(
                f"{named(path)} is in the way: it is "
                f"{'a folder' if stat.S_ISDIR(mode) else 'no plain file'}"
            )


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """What this path can't be is a Refused that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in _IN_THE_WAY:
            raise Refused(f"{named(path)} is in the way: it is something else") from error
        if error.errno in _IMPOSSIBLE:
            raise Refused(f"{named(path)} can't be written: {error.strerror}") from error
        raise
