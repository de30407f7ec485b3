"""A control group per machine: version 2 where the host has it, the version 1 controllers else;
what can't be had is said.

A group keeps a machine's processes together and apart from the daemon's; `shares.py` gives it its
part of the processors.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import subprocess
import time
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
    """The daemon's own group of version 2: delegated to it, or the root's child it may write."""
    for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
        if line.startswith("0::"):
            inner = line[3:].strip("/")
            return root / inner.removesuffix(f"/{OWN}")
    return root


CONTROLLERS_V2 = ("cpu", "cpuset", "io", "memory", "pids")
OWN = "daemon"
"""Child of the delegated group in which the daemon itself is: of version 2 only groups without
processes may share out.
"""
SERVERS = "virtuary-servers.scope"
"""The unit of systemd that machines are in. Not the daemon's: as long as machines are in a group of
version 2 that is shared out systemd can start nothing in it, so a daemon that was stopped, or died,
could not be started again.
"""
HELPERS = "helpers"
"""Child of that unit with the one process that keeps it, also while no machine runs, and with all
else that outlives the daemon.
"""
SYSTEMD = Path("/run/systemd/system")
BUILDS = "builds"
"""Child of that unit for the making of images: it weighs as much as one machine."""


def prepare(root: Path = ROOT, systemd: Path = SYSTEMD) -> str | None:
    """Make ready for machines' groups. Under systemd with version 2 they have a unit of their own;
    without systemd the daemon moves into a child of its own group; in both what controllers there
    are is passed on. To be called once, before anything else is in the group; repeats harmlessly.
    Why it can't be, None when there is nothing to do or it is done.
    """
    if version(root) != 2:
        return None
    try:
        if systemd.is_dir():
            if why := _ensure_unit(root):
                return f"no control groups for machines: {why}"
            _gather(servers_unit(root), HELPERS)
            (servers_unit(root) / BUILDS).mkdir(exist_ok=True)
            _pass_on(servers_unit(root))
        else:
            own = _own_group(root)
            (own / OWN).mkdir(exist_ok=True)
            # itself; whoever else is there is nobody's to move
            (own / OWN / "cgroup.procs").write_text("0", encoding="ascii")
            _pass_on(own, own / "virtuary")
    except OSError as error:
        others = error.errno == errno.EBUSY
        return (
            "the daemon's control group can't be shared out "
            f"({'other programs are in it' if others else error.strerror})"
        )
    return None


def servers_unit(root: Path = ROOT, uid: int | None = None) -> Path:
    """The group of the unit that machines of this user are in, where there is one."""
    uid = os.getuid() if uid is None else uid
    if uid == 0:
        return root / "system.slice" / SERVERS
    return root / f"user.slice/user-{uid}.slice/user@{uid}.service/app.slice" / SERVERS


def unit_command(system: bool) -> list[str]:
    """How the unit is made. It is delegated, so its inside is ours. Pure."""
    scope = ["--slice=system.slice"] if system else ["--user", "--slice=app.slice"]
    properties = ("Delegate=yes", "TasksMax=infinity")
    return [
        "systemd-run", *scope, "--scope", "--quiet", "--collect", f"--unit={SERVERS}",
        "--description=Virtuary's servers",
        *(f"--property={text}" for text in properties), "--", "sleep", "infinity",
    ]  # fmt: skip


def _ensure_unit(root: Path, patience: float = 30.0) -> str | None:
    """Have systemd make the unit, if it is not there; why it would not. systemd-run becomes the
    process that holds the unit.
    """
    group = servers_unit(root)
    if group.is_dir():
        return None
    try:
        process = subprocess.Popen(
            unit_command(os.getuid() == 0), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True, cwd="/",
        )  # fmt: skip
    except OSError as error:
        return f"systemd-run: {error.strerror}"
    assert process.stderr
    # held open by sleep as well, so it is read only when that has ended
    with process.stderr as words:
        until = time.monotonic() + patience
        while str(process.pid) not in _processes(group):
            if process.poll() is not None:
                if group.is_dir():
                    return None
                said = words.read().decode(errors="replace").strip()
                return f"systemd-run: {said or 'it failed'}"
            if time.monotonic() > until:
                process.kill()
                return f"systemd made no unit {SERVERS} within {patience:.0f} s"
            time.sleep(0.01)
    return None


def _gather(group: Path, name: str) -> None:
    """Move the processes of a group into a child of it."""
    (group / name).mkdir(exist_ok=True)
    for pid in _processes(group):
        with contextlib.suppress(ProcessLookupError):
            (group / name / "cgroup.procs").write_text(pid, encoding="ascii")


def builds_group(root: Path = ROOT) -> Path | None:
    """Where long programs are to run; None where they have no group of their own."""
    group = servers_unit(root) / BUILDS
    return group if group.is_dir() else None


def outlive(pid: int, root: Path = ROOT) -> None:
    """Move a helper that is to outlive the daemon out of the daemon's unit, which systemd would
    keep else when the daemon is stopped.
    """
    with contextlib.suppress(OSError):
        (servers_unit(root) / HELPERS / "cgroup.procs").write_text(str(pid), encoding="ascii")


def _processes(group: Path) -> list[str]:
    try:
        return (group / "cgroup.procs").read_text(encoding="ascii").split()
    except FileNotFoundError:
        return []


def _pass_on(group: Path, *below: Path) -> None:
    """Have the children of these groups counted by all controllers that the first one has."""
    given = (group / "cgroup.controllers").read_text(encoding="ascii").split()
    for folder in (group, *below):
        folder.mkdir(exist_ok=True)
        for name in set(given) & set(CONTROLLERS_V2):
            (folder / "cgroup.subtree_control").write_text(f"+{name}", encoding="ascii")


@functools.cache
def _parents(root: Path) -> tuple[Path, ...]:
    """The folders machines' groups are made in; a host does not change them while a daemon
    lives.
    """
    match version(root):
        case 2:
            unit = servers_unit(root)
            return (unit if unit.is_dir() else _own_group(root) / "virtuary",)
        case 1:
            found = [root / name for name in CONTROLLERS_V1 if (root / name).is_dir()]
            # cpu,cpuacct is one with two names
            return tuple({path.resolve(): path / "virtuary" for path in found}.values())
    return ()


def find_gap(root: Path = ROOT) -> str | None:
    """Why machines can have no groups of their own here, None when they can."""
    parents = _parents(root)
    if not parents:
        return "this host has no control groups"
    if all(
        os.access(next(path for path in (parent, *parent.parents) if path.exists()), os.W_OK)
        for parent in parents
    ):
        return None
    return "this user has no control groups of its own"


def find_missing(root: Path = ROOT) -> tuple[str, ...]:
    """Of what weighs and limits, the controllers that machines' groups are not given."""
    if version(root) == 2:
        given = [_read(parent / "cgroup.subtree_control").split() for parent in _parents(root)]
        return tuple(name for name in ("cpu", "io") if not all(name in found for found in given))
    found = {path.parent.name for path in _parents(root)}
    return tuple(
        name
        for name, v1 in (("cpu", "cpu"), ("io", "blkio"))
        if not any(v1 in names.split(",") for names in found)
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""


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


def members_of(vm_id: str, root: Path = ROOT) -> set[int]:
    """Pids of all that is in the group."""
    folders = [folder for path in group_paths(vm_id, root) for folder in (path, path / VCPUS)]
    pids: set[int] = set()
    for folder in folders:
        # a group of threads can't list processes; they are its parent's
        with contextlib.suppress(OSError):
            pids.update(map(int, _processes(folder)))
    return pids


def set_bounds(vm_id: str, memory: int, processes: int, root: Path = ROOT) -> str | None:
    """Let the group have at most so many bytes of memory and so many threads; why that can't be,
    None when it was done.

    Memory of the kernel and cached parts of files count; those are given up before anything is
    refused.
    """
    bounds = {
        "memory": (memory, ("memory.max", "memory.limit_in_bytes")),
        "pids": (processes, ("pids.max",)),
    }
    missing = [
        name
        for name, (most, files) in bounds.items()
        if not _bound(group_paths(vm_id, root), files, most)
    ]
    return (
        f"no bound of {' and '.join(missing)} (this host gives no controller for it)"
        if missing
        else None
    )


def _bound(groups: list[Path], names: tuple[str, ...], most: int) -> bool:
    places = (group / name for group in groups for name in names)
    for place in places:
        with contextlib.suppress(OSError):
            handle = os.open(place, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(handle, str(most).encode())
            finally:
                os.close(handle)
            return True
    return False


def _make(path: Path) -> None:
    try:
        os.mkdir(path)
    except FileExistsError:
        pass
    except FileNotFoundError:
        os.makedirs(path, exist_ok=True)


def remove_group(vm_id: str, root: Path = ROOT) -> bool:
    """Remove the group; whether nothing of it is left. A process that has just ended may hold it
    for a moment: some kernels tell the end before the group knows of it.
    """
    for path in group_paths(vm_id, root):
        for folder in (path / VCPUS, path):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
    # none, where they are not to be seen
    return not any(os.path.exists(path) for path in group_paths(vm_id, root))
