"""A control group per machine: version 2 where the host has it, the version 1 controllers else; what can't be had is said.

A group keeps a machine's processes together and apart from the daemon's; `shares.py` gives it its part of the processors.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS_V1 = ("cpu", "cpuacct", "memory", "pids", "freezer", "blkio")
VCPUS = "vcpus"
"""Child group of the virtual CPUs' threads, where they have a limit of their own."""


def version(root: Path = ROOT) -> int:
    """2, 1, or 0 when there are no control groups."""
    if (root / "cgroup.controllers").exists():
        return 2
    return 1 if any((root / name).is_dir() for name in CONTROLLERS_V1) else 0


def _own_group(root: Path) -> Path:
    """The daemon's own group of version 2: delegated to it by systemd, or the root's child it may write."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        if line.startswith("0::"):
            inner = line[3:].strip("/")
            return root / inner.removesuffix(f"/{OWN}")
    return root


CONTROLLERS_V2 = ("cpu", "cpuset", "io", "memory", "pids")
OWN = "daemon"
"""Child of the delegated group in which the daemon itself is: of version 2 only groups without processes may share out."""


def prepare(root: Path = ROOT) -> str | None:
    """Make ready for machines' groups: with version 2 the daemon moves into a child of its own group, and what controllers that was given are
    passed on. To be called once, before anything else is in the group. Why it can't be, None when there is nothing to do or it is done."""
    if version(root) != 2:
        return None
    own = _own_group(root)
    try:
        (own / OWN).mkdir(exist_ok=True)
        (own / OWN / "cgroup.procs").write_text("0", encoding="ascii")  # itself; whoever else is there is nobody's to move
        given = (own / "cgroup.controllers").read_text(encoding="ascii").split()
        (own / "virtuary").mkdir(exist_ok=True)
        for group in (own, own / "virtuary"):
            for name in set(given) & set(CONTROLLERS_V2):
                (group / "cgroup.subtree_control").write_text(f"+{name}", encoding="ascii")
    except OSError as error:
        others = error.errno == errno.EBUSY
        return f"the daemon's control group can't be shared out ({'other programs are in it' if others else error.strerror})"
    return None


@functools.cache
def _parents(root: Path) -> tuple[Path, ...]:
    """The folders machines' groups are made in; a host does not change them while a daemon lives."""
    match version(root):
        case 2:
            return (_own_group(root) / "virtuary",)
        case 1:
            found = [root / name for name in CONTROLLERS_V1 if (root / name).is_dir()]
            return tuple({path.resolve(): path / "virtuary" for path in found}.values())  # cpu,cpuacct is one with two names
    return ()


def group_paths(vm_id: str, root: Path = ROOT) -> list[Path]:
    """The folders that make up this machine's group here."""
    return [parent / vm_id for parent in _parents(root)]


def ensure_group(vm_id: str, root: Path = ROOT) -> tuple[list[Path], str | None]:
    """Make the group; what was made, and what is missing, in words."""
    made: list[Path] = []
    for path in group_paths(vm_id, root):
        try:
            _make(path)
        except OSError as error:
            return made, f"no control group of its own ({error.strerror})"
        made.append(path)
    return made, None if made else "no control group of its own (this host has none)"


def _make(path: Path) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        pass
    except FileNotFoundError:
        os.makedirs(path, exist_ok=True)


def remove_group(vm_id: str, root: Path = ROOT) -> bool:
    """Remove the group; whether nothing of it is left. A process that has just ended may hold it for a moment: some kernels tell
    the end before the group knows of it."""
    for path in group_paths(vm_id, root):
        for folder in (path / VCPUS, path):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
    return not any(os.path.exists(path) for path in group_paths(vm_id, root))  # none, where they are not to be seen
