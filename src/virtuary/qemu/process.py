"""Start QEMU jailed in its own cgroup, find it again after a daemon restart, end it.

The daemon opens every file and socket afresh for each launch, hands them over, and closes its own copies at once: a kept or
shared descriptor would defeat QEMU's image lock. QEMU is nobody's child that matters.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from virtuary.base.errors import Failed
from virtuary.base.proc import Identity, bury, identify, last_line
from virtuary.qemu.launching import LAUNCHER
from virtuary.qemu.parts import Grant

SUBREAPER = 36


@dataclass(frozen=True)
class Jail:
    """How a machine is kept apart; made by `choose_jail`, shown to people as `level` and `gaps`."""

    level: Literal["L0", "L1", "L2", "L3"]
    uid: int
    gid: int
    own_user_namespace: bool
    namespaces: tuple[str, ...]
    empty_root: bool
    landlock: bool
    gaps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Capabilities:
    """What this host allows a jail to use; found once per daemon by `find_capabilities`."""

    root: bool
    namespaces: bool
    landlock_abi: int
    reason: str = ""


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


def become_subreaper() -> None:
    """Make orphaned QEMUs this process's children, so that their end can be read while it lives."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def landlock_abi() -> int:
    return max(0, int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)))


async def find_capabilities() -> Capabilities:
    """Try, in a child, to make the namespaces a jail needs."""
    root = os.getuid() == 0
    flags = 0x20000 | 0x4000000 | 0x8000000 | 0x20000000 | 0x40000000 | (0 if root else 0x10000000)
    code = (
        f"import ctypes,os,sys;l=ctypes.CDLL(None,use_errno=True);r=l.unshare({flags});"
        "r=r or (l.mount(None,b'/',None,(1<<14)|(1<<18),None) if os.getuid()==0 else 0);"
        "sys.exit(os.strerror(ctypes.get_errno()) if r else 0)"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-S", "-c", code, stderr=asyncio.subprocess.PIPE)
    _, err = await process.communicate()
    return Capabilities(root, process.returncode == 0, landlock_abi(), last_line(err))


def choose_jail(host: Capabilities, uid: int, *, host_network: bool = False) -> Jail:
    """The strongest jail this host allows, with what is missing said in words. Pure.

    `host_network`: for the helper that opens the guest's connections, which can't be cut off from the host's network.
    """
    gaps: list[str] = []
    if not host.namespaces:
        gaps.append(f"no namespaces ({host.reason or 'refused by the kernel'})")
    if host.landlock_abi < 1:
        gaps.append("no Landlock (the kernel is too old or has it off)")
    wanted = ("mnt", "pid", "ipc", "uts") if host_network else ("mnt", "pid", "ipc", "uts", "net")
    namespaces = wanted if host.namespaces else ()
    level: Literal["L0", "L1", "L2", "L3"]
    if not host.namespaces:
        level = "L0"
    elif not host.root:
        level = "L1"
    else:
        level = "L3" if host.landlock_abi >= 1 else "L2"
    return Jail(
        level=level,
        uid=uid,
        gid=uid if host.root else os.getgid(),
        own_user_namespace=bool(namespaces) and not host.root,
        namespaces=namespaces,
        empty_root=bool(namespaces) and not host_network,
        landlock=host.landlock_abi >= 1,
        gaps=tuple(gaps),
    )


@dataclass(frozen=True)
class Started:
    identity: Identity
    gaps: tuple[str, ...]
    errors: int
    """Descriptor of what QEMU writes to stderr, for `read_errors`; the caller's to close."""


async def start(launch: Launch) -> Started:
    """Start one machine, paused; raises Failed with QEMU's own words, or HostLacks. Nothing of ours stays open.

    Returns once the jailed program is running; whether QEMU likes its arguments shows when its monitor answers.
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
    try:
        for grant in (grant for grant in launch.grants if grant.mode != "given"):
            opened.append((_open(grant, launch.jail), grant.number))
        order = {
            "argv": launch.argv,
            "fds": [there for _, there in (*opened, *launch.links)],
            "stderr": str(fifo),
            "uid": launch.jail.uid,
            "gid": launch.jail.gid,
            "own_user_namespace": launch.jail.own_user_namespace,
            "namespaces": launch.jail.namespaces,
            "root": str(root) if launch.jail.empty_root else None,
            "groups": list(launch.groups),
            "readable": [str(path) for path in launch.readable],
            "writable": [str(path) for path in launch.writable],
            "landlock": launch.jail.landlock,
            "cgroups": [str(path) for path in launch.cgroups],
            "max_files": 1024,
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
        return _listening_socket(grant.path)
    try:
        return os.open(grant.path, grant.flags | os.O_NOFOLLOW)
    except OSError as error:
        raise Failed(f"{grant.role} can't be opened: {error.strerror}", path=str(grant.path)) from error


def _listening_socket(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    sock.bind(str(path))
    os.chmod(path, 0o600)
    sock.listen(1)
    return sock.detach()


def open_errors(runtime: Path) -> int:
    """A descriptor to read QEMU's stderr by: held from before the start on, for a pipe forgets when nobody has it open."""
    return os.open(runtime / "stderr", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def read_errors(errors: int) -> str:
    """What QEMU has written to stderr since the last call, at most 64 KiB, control characters removed; never blocks."""
    try:
        text = os.read(errors, 65536).decode(errors="replace")
    except OSError:
        return ""
    return "\n".join("".join(char for char in line if char.isprintable()) for line in text.splitlines())
