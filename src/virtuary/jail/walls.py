"""How a program is kept apart: chosen from what the host allows, with what is missing said in
words.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from virtuary.base.proc import last_line
from virtuary.jail.syscalls import Grants, Reach, program

Level = Literal["L0", "L1", "L2", "L3"]
KEYCTL = {"x86_64": 250, "aarch64": 219}
"""Number of the system call, by which a program is given a keyring of its own."""
NAMESPACES = ("mnt", "pid", "ipc", "uts", "net")


@dataclass(frozen=True)
class Capabilities:
    """What this host allows a jail to use; found once per daemon by `find_capabilities`."""

    root: bool
    namespaces: bool
    landlock_abi: int
    reason: str = ""


@dataclass(frozen=True)
class Jail:
    """How a program is kept apart; made by `choose_jail`, shown to people as `level` and `gaps`."""

    uid: int
    gid: int
    own_user_namespace: bool
    namespaces: tuple[str, ...]
    empty_root: bool
    landlock: bool
    gaps: tuple[str, ...] = ()
    grants: Grants = Grants()  # noqa: RUF009  (immutable)

    @property
    def level(self) -> Level:
        """What holds, in one word: told by the walls that there are, not by what was wished for."""
        needed = set(NAMESPACES) - ({"net"} if self.grants.reach != "nothing" else set())
        if not self.empty_root or not needed <= set(self.namespaces):
            return "L0"
        if self.own_user_namespace:
            return "L1"
        return "L3" if self.landlock else "L2"

    def order(self) -> dict[str, object]:
        """The walls as the launcher takes them."""
        return {
            "uid": self.uid,
            "gid": self.gid,
            "own_user_namespace": self.own_user_namespace,
            "namespaces": self.namespaces,
            "landlock": self.landlock,
            "filter": program(self.grants),
            "keyring": KEYCTL.get(os.uname().machine),
        }


@dataclass(frozen=True)
class Bounds:
    """What a process may use at most, enforced by the kernel wherever there is no control group;
    None: no bound of ours.
    """

    file_size: int | None = None
    """Bytes of each file it writes to."""
    processes: int = 64
    """Threads and processes of its user."""
    files: int = 1024
    memory: int | None = None
    """Bytes of its address space."""
    cpu: int | None = None
    """Seconds of processor time."""
    growing: bool = False
    """Whether the largest file may have to grow while the program runs."""

    def order(self, jail: Jail) -> dict[int, tuple[int, int]]:
        """The limits, soft and hard, as the launcher takes them. Before Linux 5.14 a user namespace
        counts all processes of its user.
        """
        counted = jail.namespaces and (not jail.own_user_namespace or _release() >= (5, 14))
        wanted = {
            resource.RLIMIT_NPROC: self.processes if counted else None,
            resource.RLIMIT_NOFILE: self.files,
            resource.RLIMIT_AS: self.memory,
            resource.RLIMIT_CPU: self.cpu,
        }
        limits = {which: (most, most) for which, most in wanted.items() if most is not None}
        return (
            limits
            if self.file_size is None
            else limits | self.file_limit(self.file_size, jail, may_raise())
        )

    def file_limit(self, most: int, jail: Jail, raised: bool) -> dict[int, tuple[int, int]]:
        """The bound of its files. Pure. `raised`: whether the daemon may raise the limits of other
        users' processes.

        One that grows is raised by root; an ordinary user can only raise the soft limit, as could
        whoever took the program over; and a root that may not (as in many containers) sets none.
        """
        if self.growing and jail.own_user_namespace:
            return {resource.RLIMIT_FSIZE: (most, resource.RLIM_INFINITY)}
        return {} if self.growing and not raised else {resource.RLIMIT_FSIZE: (most, most)}


@functools.cache
def may_raise() -> bool:
    """Whether this process has CAP_SYS_RESOURCE."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    return bool(int(re.findall(r"CapEff:\s*([0-9a-f]+)", status)[0], 16) >> 24 & 1)


def _release() -> tuple[int, ...]:
    return tuple(int(word) for word in re.findall(r"\d+", os.uname().release)[:2])


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
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", code, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    return Capabilities(root, process.returncode == 0, landlock_abi(), last_line(err))


def choose_jail(
    host: Capabilities, uid: int, *, reach: Reach = "nothing", userfaults: bool = False
) -> Jail:
    """The strongest jail this host allows, with what is missing said in words. Pure.

    `reach`: for who opens connections for others or looks names up, and so can't be cut off from
    the host's network. `userfaults`: for a QEMU that is to handle page faults of its guest's
    memory; it has to be given /dev/userfaultfd as a writable file as well.
    """
    gaps: list[str] = []
    if not host.namespaces:
        gaps.append(f"no namespaces ({host.reason or 'refused by the kernel'})")
    if host.landlock_abi < 1:
        gaps.append("no Landlock (the kernel is too old or has it off)")
    if not program():
        gaps.append(f"no filter of system calls for {os.uname().machine}")
    if userfaults:
        gaps.append("it handles page faults of its own memory (/dev/userfaultfd)")
    wanted = NAMESPACES if reach == "nothing" else NAMESPACES[:-1]
    namespaces = wanted if host.namespaces else ()
    return Jail(
        uid=uid,
        gid=uid if host.root else os.getgid(),
        own_user_namespace=bool(namespaces) and not host.root,
        namespaces=namespaces,
        empty_root=bool(namespaces),
        landlock=host.landlock_abi >= 1,
        gaps=tuple(gaps),
        grants=Grants(reach, userfaults),
    )
