"""A machine's share of the processors: weight, floor, limit and pinning of its group, virtual CPUs
apart from the rest of its process.

The weight holds for the whole group; the limit for a child group into which the threads of the
virtual CPUs are moved, so that a machine at its limit still answers its monitor. A machine without
a limit has no such group: moving a thread takes milliseconds. What a host can't do is told in
words, never passed over.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from virtuary.base import proc
from virtuary.base.errors import VirtuaryError
from virtuary.host.cgroups import ROOT, SERVERS, VCPUS, group_paths, servers_unit, version

if TYPE_CHECKING:
    from virtuary.model.cpu import CpuShares

PERIOD = 100_000
"""Microseconds over which a limit holds."""
ORDINARY = 100
HIGHEST, FINE = 10_000, 20
"""The highest weight there is, and the least one that whole numbers follow well enough."""


class Claim(NamedTuple):
    """What one machine is to have of the processors."""

    weight: float
    """In hundredths of an ordinary one."""
    reserve: float = 0
    """Percent of one CPU that it gets whenever it wants them."""


def fair_weights(claims: Mapping[str, Claim], capacity: float) -> dict[str, float]:
    """Weights by which each machine gets its reserve and, of what is left, its weight's part, when
    all of them spin. Pure.

    `capacity`: percent of one CPU that there are. Where nobody has a reserve these are the plain
    weights, and else those who have none keep theirs as far as the numbers allow.
    """
    reserved, total = (
        sum(claim.reserve for claim in claims.values()),
        sum(claim.weight for claim in claims.values()),
    )
    if not reserved:
        return {name: claim.weight for name, claim in claims.items()}
    left = max(capacity - reserved, 0)
    parts = {name: claim.reserve + left * claim.weight / total for name, claim in claims.items()}
    scale = max(total / left, FINE / min(parts.values())) if left else math.inf
    scale = min(scale, HIGHEST / max(parts.values()))
    return {name: part * scale for name, part in parts.items()}


def apply_cpu(
    vm_id: str, threads: Sequence[int], cpu: CpuShares, weight: float, root: Path = ROOT
) -> list[str]:
    """Make the group's share what is wished: `threads` are the host's ids of the virtual CPUs'
    threads, `weight` counts in hundredths of an ordinary one. Returns what could not be done, in
    words. Repeats harmlessly.
    """
    gaps = [gap] if (gap := set_weight(vm_id, weight, root)) and weight != ORDINARY else []
    group = _group(vm_id, root)
    # not where the host's groups are closed to a user
    if cpu.limit is not None or os.path.isdir(group / VCPUS):
        try:
            _move(_child(group, root), threads, root)
            _limit(group / VCPUS, cpu.limit, root)
        except OSError as error:
            gaps.append(f"no limit of processor time ({_why(error, root)})")
    return gaps + _pin(threads, cpu.pin)


def set_weight(vm_id: str, weight: float, root: Path = ROOT) -> str | None:
    """Give the whole group its weight; why that can't be, None when it was done."""
    group = _group(vm_id, root)
    try:
        if version(root) == 2:
            _enable(group.parent, "cpu")
            _write(group / "cpu.weight", _on_v2(weight))
        else:
            _write(group / "cpu.shares", str(min(max(round(weight * 1024 / ORDINARY), 2), 262_144)))
    except OSError as error:
        return f"no weight of processor time ({_why(error, root)})"
    return None


async def weigh_all(weight: float, root: Path = ROOT) -> None:
    """Give all machines together, beside the host's other services, this weight: else they would
    weigh as much as one service, however many they are. Only under systemd with version 2:
    elsewhere everything else is in their place one by one, and would hardly have its turn.
    """
    if version(root) == 2 and servers_unit(root).is_dir():
        with contextlib.suppress(OSError, VirtuaryError):
            for command in total_commands(weight, os.getuid() == 0):
                await proc.run(*command, env=proc.session(), check=False, deadline=30)


def total_commands(weight: float, system: bool) -> list[list[str]]:
    """How systemd is told what its units weigh; what is written into a unit's group itself it would
    undo some time. Pure.

    The daemon's weighs as much as all machines, so that it answers also while all of them spin:
    with a tenth it took ten times as long.
    """
    words = ["systemctl", *([] if system else ["--user"]), "set-property", "--runtime"]
    return [
        [*words, unit, f"CPUWeight={_on_v2(max(weight, ORDINARY))}"]
        for unit in (SERVERS, "virtuary.service")
    ]


def _on_v2(weight: float) -> str:
    return str(min(max(round(weight), 1), HIGHEST))


def set_io_weight(vm_id: str, weight: int, root: Path = ROOT) -> str | None:
    """Give the group its weight of storage traffic; why that can't be, None when it was done."""
    group = next(
        (path for path in group_paths(vm_id, root) if "blkio" in path.parts or version(root) == 2),
        Path("/nowhere"),
    )
    try:
        if version(root) == 2:
            _enable(group.parent, "io")
        bfq = group / (
            "io.bfq.weight" if version(root) == 2 else "blkio.bfq.weight"
        )  # the scheduler's own, there with its module
        _write(bfq, str(min(max(weight, 1), 1000)))
        fault = None
    except OSError as error:
        fault = _why(error, root)
    if not _weighs():
        fault = "no disk of this host has a scheduler that weighs"
    return f"no weight of storage traffic ({fault})" if fault else None


def _weighs(sys: str = "/sys/block") -> bool:
    """Whether any disk's scheduler looks at weights at all. Asked for each server that a daemon
    finds.
    """
    for disk in os.listdir(sys) if os.path.isdir(sys) else ():
        with contextlib.suppress(OSError), open(f"{sys}/{disk}/queue/scheduler", "rb") as file:
            if b"[bfq]" in file.read():
                return True
    return False


def _group(vm_id: str, root: Path) -> Path:
    """The group that counts processor time; a path that is not there when the host has none."""
    paths = group_paths(vm_id, root)
    if version(root) == 2:
        return paths[0]
    return next(
        (path for path in paths if path.parent.parent.name.split(",")[0] in ("cpu", "cpuacct")),
        Path("/nowhere"),
    )


def _child(group: Path, root: Path) -> Path:
    child = group / VCPUS
    with contextlib.suppress(FileExistsError):
        os.mkdir(child)
    # a group of threads: it can't count memory, and needs not; a daemon may have died before it was
    # said
    if version(root) == 2:
        _write(child / "cgroup.type", "threaded")
        _enable(group, "cpu")
    return child


def _move(child: Path, threads: Sequence[int], root: Path) -> None:
    name = "cgroup.threads" if version(root) == 2 else "tasks"
    there = (
        set((child / name).read_text(encoding="ascii").split())
        if (child / name).exists()
        else set()
    )
    for thread in threads:
        if str(thread) not in there:
            _write(child / name, str(thread))


def _limit(child: Path, percent: int | None, root: Path) -> None:
    quota = None if percent is None else percent * PERIOD // 100
    if version(root) == 2:
        _write(child / "cpu.max", f"{'max' if quota is None else quota} {PERIOD}")
        return
    if quota is not None:
        _write(child / "cpu.cfs_period_us", str(PERIOD))
    _write(child / "cpu.cfs_quota_us", str(-1 if quota is None else quota))


def _enable(group: Path, controller: str) -> None:
    """Have the children of a group of version 2 counted by this controller."""
    place = group / "cgroup.subtree_control"
    if controller not in place.read_text(encoding="ascii").split():
        _write(place, f"+{controller}")


def _write(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _why(error: OSError, root: Path) -> str:
    match version(root):
        case 0:
            return "this host has no control groups"
        case 2 if isinstance(error, FileNotFoundError | PermissionError):
            return "the controller is not delegated to this daemon"
    return (error.strerror or str(error)).lower()


def _pin(threads: Sequence[int], cpus: Sequence[int]) -> list[str]:
    wanted = set(cpus) or set(range(os.cpu_count() or 1))
    try:
        for thread in threads:
            os.sched_setaffinity(thread, wanted)
    except ProcessLookupError:
        return []
    except OSError as error:
        return [f"not pinned ({(error.strerror or '').lower()})"] if cpus else []
    return []
