"""Processes that outlive the daemon, found again for certain.

A process is known by its pid and the moment it was started, as written down in a file of ours
before its program began; what it is to be adopted as also by its user. Its command line proves
nothing: the process can rewrite its own, and anybody can start a program with the same words. A
record names the boot of the host too, since pids of another boot mean nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from virtuary.base.proc import Identity, boot_id, bury, end, identify, start_time, wait_end

RECORD = "processes"
"""Name of the file in a runtime folder that names the processes that were started for it."""
LONGEST = 65536
PATIENCE = 5.0
"""Seconds that a killed process is given to be gone."""
_SHELL = (
    "read -r boot </proc/sys/kernel/random/boot_id && read -r stat </proc/self/stat && echo "
    '"$boot $stat" >"$0" && exec "$@"'
)
_USER = re.compile(rb"^Uid:\t(\d+)\t(\d+)\t(\d+)\t(\d+)$", re.MULTILINE)


def recording(record: Path, *command: str) -> list[str]:
    """Words that write down who they become, in place of what stood in `record`, and become
    `command`, an absolute path first.
    """
    return ["/bin/sh", "-c", _SHELL, str(record), *command]


def recorded(record: Path) -> list[Identity]:
    """The living processes that a record names. What is no line of one is passed over."""
    try:
        with record.open("rb") as file:
            lines = file.read(LONGEST).decode(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        boot, _, stat = line.partition(" ")
        with contextlib.suppress(ValueError, IndexError):
            known = Identity(int(stat.split()[0]), int(stat.rpartition(")")[2].split()[19]))
            if boot == boot_id() and identify(known.pid) == known:
                found.append(known)
    return found


def adopt(identity: Identity, uid: int | None = None) -> int | None:
    """A pidfd of the process `identity` if it still lives, as this user where that is given; else
    None.

    The pidfd is opened first and the facts are compared afterwards, so a pid reused in between is
    noticed.
    """
    try:
        handle = os.pidfd_open(identity.pid)
    except OSError:
        return None
    if start_time(identity.pid) == identity.start and (
        uid is None or users_of(identity.pid) == {uid}
    ):
        return handle
    os.close(handle)
    return None


def users_of(pid: int | str) -> set[int]:
    """Real, effective, saved and file-system user of a process; none when it is gone."""
    try:
        handle = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return set()
    try:
        found = _USER.search(os.read(handle, 4096))
    except OSError:
        return set()
    finally:
        os.close(handle)
    return set(map(int, found.groups())) if found else set()


def of_user(uid: int) -> list[Identity]:
    """The living processes of one user, which has them for one purpose only."""
    names = [name for name in os.listdir("/proc") if name.isdigit() and uid in users_of(name)]
    return [identity for name in names if (identity := identify(int(name)))]


async def end_each(identities: Iterable[Identity]) -> None:
    """End these processes, and wait until they are gone, for a while."""
    for identity in identities:
        handle = adopt(identity)
        if handle is None:
            continue
        end(handle)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await wait_end(handle)
        bury(handle)


async def end_recorded(record: Path) -> None:
    """End every process that a record names."""
    await end_each(recorded(record))
