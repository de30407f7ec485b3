"""A control group per machine: version 2 where the host has it, the version 1 controllers else; what can't be had is said.

For now a group keeps a machine's processes together and apart from the daemon's; shares and limits come with resources.
"""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS_V1 = ("cpu", "cpuacct", "memory", "pids", "freezer", "blkio")


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
            return root / inner.removesuffix("/daemon")
    return root


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


def remove_group(vm_id: str, root: Path = ROOT) -> None:
    """Remove the group once its processes are gone; harmless when it is not there or not empty yet."""
    for path in group_paths(vm_id, root):
        with contextlib.suppress(OSError):
            os.rmdir(path)
