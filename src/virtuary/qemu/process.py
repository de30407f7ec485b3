"""Start QEMU jailed in its own cgroup, find it again after a daemon restart, end it.

The daemon opens every file and socket afresh for each launch, hands them over, and closes its own
copies at once: a kept or shared descriptor would defeat QEMU's image lock. QEMU is nobody's child
that matters.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from virtuary.base.errors import Failed
from virtuary.base.known import RECORD
from virtuary.base.proc import Identity, bury, identify
from virtuary.base.text import shown_lines
from virtuary.jail.launching import LAUNCHER
from virtuary.jail.resolver import RESOLVER
from virtuary.jail.walls import Bounds, Jail
from virtuary.qemu.parts import Grant

SUBREAPER = 36


@dataclass(frozen=True)
class Launch:
    argv: list[str]
    grants: list[Grant]
    readable: list[Path]
    jail: Jail
    runtime: Path
    cgroups: list[Path] = field(default_factory=list)
    links: tuple[tuple[int, int], ...] = ()
    """Descriptors of the caller to hand over as they are: (here, there)."""
    writable: list[Path] = field(default_factory=list)
    """Files that QEMU opens itself by path, for reading and writing; their modes must let it."""
    groups: tuple[int, ...] = ()
    """Supplementary groups of the process, where the daemon is root."""
    bounds: Bounds = Bounds()  # noqa: RUF009  (immutable)


def become_subreaper() -> None:
    """Make orphaned QEMUs this process's children, so that their end can be read while it lives."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True)
class Started:
    identity: Identity
    gaps: tuple[str, ...]
    errors: int
    """Descriptor of what QEMU writes to stderr, for `read_errors`; the caller's to close."""


async def start(launch: Launch) -> Started:
    """Start one machine, paused; raises Failed with QEMU's own words, or HostLacks. Nothing of ours
    stays open.

    Returns once the jailed program is running; whether QEMU likes its arguments shows when its
    monitor answers.
    """
    fifo = launch.runtime / "stderr"
    with contextlib.suppress(FileExistsError):
        os.mkfifo(fifo, 0o600)
    errors = open_errors(launch.runtime)
    try:
        return await _start(launch, fifo, errors)
    except BaseException:
        os.close(errors)
        raise


async def _start(launch: Launch, fifo: Path, errors: int) -> Started:
    root = launch.runtime / "root"
    root.mkdir(mode=0o711, exist_ok=True)
    opened: list[tuple[int, int]] = []
    resolver, links = (
        RESOLVER.shown(empty_root=launch.jail.empty_root)
        if launch.jail.grants.reach != "nothing"
        else ([], {})
    )
    try:
        for grant in (grant for grant in launch.grants if grant.mode != "given"):
            opened.append((_open(grant, launch.jail), grant.number))
        order = {
            **launch.jail.order(),
            "argv": launch.argv,
            "environment": {},
            "fds": [there for _, there in (*opened, *launch.links)],
            "stderr": str(fifo),
            "root": str(root) if launch.jail.empty_root else None,
            "groups": list(launch.groups),
            "readable": [str(path) for path in (*launch.readable, *resolver)],
            "links": links,
            "writable": [str(path) for path in launch.writable],
            "cgroups": [str(path) for path in launch.cgroups],
            "limits": launch.bounds.order(launch.jail),
            "record": str(launch.runtime / RECORD),
            "tied": False,
        }
        launched = await LAUNCHER.launch(order, [here for here, _ in (*opened, *launch.links)])
    finally:
        for number, _ in opened:
            os.close(number)
    identity = identify(launched.pid)
    if identity is None:
        bury(launched.pidfd)
        words = read_errors(errors)
        raise Failed(f"QEMU ended at once: {words or 'it said nothing'}")
    os.close(launched.pidfd)
    return Started(identity, launched.gaps, errors)


def _open(grant: Grant, jail: Jail) -> int:
    if grant.mode == "socket":
        return listening_socket(grant.path)
    try:
        return os.open(grant.path, grant.flags | os.O_NOFOLLOW)
    except OSError as error:
        raise Failed(
            f"{grant.role} can't be opened: {error.strerror}", path=str(grant.path)
        ) from error


def listening_socket(path: Path) -> int:
    """A socket at which QEMU is to listen.

    It does not block: while a monitor moves to a thread of its own, both threads of QEMU may see
    the same caller, and whoever comes second would wait for another one for ever.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.bind(str(path))
    os.chmod(path, 0o600)
    sock.listen(1)
    sock.setblocking(False)
    return sock.detach()


def open_errors(runtime: Path) -> int:
    """A descriptor to read QEMU's stderr by: held from before the start on, for a pipe forgets when
    nobody has it open.
    """
    return os.open(runtime / "stderr", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def read_errors(errors: int) -> str:
    """The end of what QEMU has written to stderr since the last call, at most 8 KiB, as it may be
    shown; never blocks.
    """
    try:
        text = os.read(errors, 65536)[-8192:].decode(errors="replace")
    except OSError:
        return ""
    return shown_lines(text).strip()
