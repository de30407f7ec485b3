"""A small cage for one run of an image tool: limits on memory, CPU and file size, and Landlock where the kernel has it.

With Landlock the tool can open the files it was given and the system's libraries, and nothing else: even an image that
makes it follow a name to another file gains nothing. Where the kernel has no Landlock the limits still hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from virtuary.base import proc

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every architecture
_NO_NEW_PRIVS = 38
_RULE_PATH_BENEATH = 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1, 2, 4, 8, 1 << 14
_HANDLED_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}
_NET_BIND_CONNECT = 3
SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom", "/proc/sys/vm", "/sys/devices/system/cpu")


class Limits(NamedTuple):
    """What one run may use at most."""

    memory: int  # bytes of address space
    cpu: int  # seconds
    file_size: int  # bytes of any file it writes


def landlock_version() -> int:
    """Version of the kernel's Landlock interface; below 1 where it has none or has it switched off."""
    return int(ctypes.CDLL(None, use_errno=True).syscall(_CREATE, None, 0, 1))


@contextlib.contextmanager
def cage(limits: Limits, files: Mapping[int, int]) -> Iterator[Callable[[], None]]:
    """A `preexec` for base.proc that puts the child in the cage; `files` maps descriptors it may open again to their rights.

    The ruleset is made here, in the parent; the child makes three system calls between fork and exec.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    ruleset = _ruleset(libc, files)
    values = {
        resource.RLIMIT_AS: limits.memory,
        resource.RLIMIT_CPU: limits.cpu,
        resource.RLIMIT_FSIZE: limits.file_size,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }

    def enter() -> None:
        proc.die_with_parent()
        for which, most in values.items():
            hard = resource.getrlimit(which)[1]
            value = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(which, (value, value))
        if ruleset is not None:
            libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
            if libc.syscall(_RESTRICT, ruleset, 0) != 0:
                raise OSError(ctypes.get_errno(), "landlock_restrict_self")

    try:
        yield enter
    finally:
        if ruleset is not None:
            os.close(ruleset)


def _ruleset(libc: ctypes.CDLL, files: Mapping[int, int]) -> int | None:
    """Descriptor of a Landlock ruleset that allows `SYSTEM` for reading and `files`; None where there is no Landlock."""
    abi = landlock_version()
    if abi < 1:
        return None
    handled = _HANDLED_BY_ABI[min(abi, 3)]
    attributes = struct.pack("=QQ", handled, _NET_BIND_CONNECT) if abi >= 4 else struct.pack("=Q", handled)
    ruleset = libc.syscall(_CREATE, attributes, len(attributes), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    try:
        for path in SYSTEM:
            with contextlib.suppress(FileNotFoundError):
                _allow_path(libc, ruleset, path, handled)
        for descriptor, rights in files.items():
            _allow(libc, ruleset, descriptor, rights & handled)
    except BaseException:
        os.close(ruleset)
        raise
    return int(ruleset)


def _allow_path(libc: ctypes.CDLL, ruleset: int, path: str, handled: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        folder = (os.fstat(descriptor).st_mode & 0o170000) == 0o040000
        _allow(libc, ruleset, descriptor, (EXECUTE | READ_FILE | (READ_DIR if folder else 0)) & handled)
    finally:
        os.close(descriptor)


def _allow(libc: ctypes.CDLL, ruleset: int, descriptor: int, rights: int) -> None:
    if libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0) != 0:
        raise OSError(ctypes.get_errno(), "landlock_add_rule")
