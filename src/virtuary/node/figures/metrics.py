"""What servers and their host use, looked at once a second: newest figures in memory, the past in
files. A task beside the workers.

A look reads counters of the kernel and waits for nobody. Only machines that run are looked at; a
paused one once, and when none runs the host is looked at more seldom. What only QEMU and the guest
know is asked beside it (`node/figures/asking.py`). Answers are what was last seen, with its age.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from virtuary.base.log import say
from virtuary.base.paths import VmPaths
from virtuary.host.cgroups import VCPUS, group_paths
from virtuary.host.history import History, open_history, read_history
from virtuary.host.metrics import (
    HostFiles,
    HostSample,
    Meter,
    Process,
    Sample,
    glance,
    open_process,
    throttled,
)
from virtuary.model.network import Nic, mac_of, tap_of
from virtuary.model.usage import (
    HOST_SERIES,
    VM_SERIES,
    DiskUsage,
    GuestMemory,
    HostTotals,
    HostUsage,
    NetworkUsage,
    NicShare,
    Point,
    Totals,
    Usage,
)
from virtuary.model.vm import Vm
from virtuary.network.bridge import read_traffic
from virtuary.network.netns import Netns
from virtuary.node.figures.asking import Memory, Told, begin
from virtuary.node.machine.run import Run
from virtuary.node.site import Site

logger = logging.getLogger("virtuary.metrics")
PERIOD, IDLE_PERIOD = 1.0, 5.0
"""Seconds between two looks: while something runs or somebody watches, and else."""
SLOW = 10
"""What costs more is read at every so manieth look, not at all machines at once."""
WATCH_LASTS = 15.0
"""Seconds for which one question of a user counts as watching."""
COVER_CAP = 10
"""A look stands for the time since the one before, at most so many seconds: while the daemon was
stopped nobody looked.
"""


class Machine:
    """One machine that is looked at."""

    def __init__(self, vm_id: str, run: Run, paths: VmPaths, turn: int, netns: Netns) -> None:
        self.run, self.paths, self._turn, self._netns = run, paths, turn, netns
        self.told = Told(run, mac_of(vm_id))
        self._vm_id = vm_id
        self.process: Process | None = None
        self.history: History | None = None
        self.seen: Sample | None = None
        self.at: float | None = None
        self.cpu, self.read, self.written = Meter(), Meter(), Meter()
        self.waited, self.throttled, self.helper = Meter(), Meter(), Meter()
        self.helper_resident = 0
        self._limited = [group / VCPUS for group in group_paths(vm_id)]

    def open(self, now: float) -> None:
        """Begin to look at its process; harmless when that has ended."""
        runtime = self.run.runtime
        self.process = open_process(runtime.pid, runtime.start)
        self._slow(now)

    def look(self, now: float, wall: int) -> None:
        """Read the counters. Costs tens of microseconds."""
        if self.process is None or (sample := self.process.sample()) is None:
            return
        covered = min(COVER_CAP, max(1, round(now - self.at))) if self.at is not None else 1
        self.seen, self.at = sample, now
        self.read.read(sample.read, now)
        self.written.read(sample.written, now)
        self._count_traffic(now)
        self._turn += 1
        if self._turn % SLOW == 0:
            self._slow(now)
        if self.cpu.read(sample.cpu, now) is not None:
            self._remember(wall, covered)

    def _count_traffic(self, now: float) -> None:
        """What passed the taps, where it has any: nobody need be asked for it."""
        runtime = self.run.runtime
        taps = [
            tap_of(self._vm_id, nic.number)
            for nic in runtime.nics
            if nic.number or runtime.network == "tap"
        ]
        found = [counters for tap in taps if (counters := read_traffic(tap, self._netns.net))]
        if found:
            self.told.count_traffic(
                sum(came for came, _ in found), sum(went for _, went in found), now
            )

    def _slow(self, now: float) -> None:
        """What costs more: how long its threads waited for a processor, how long a limit held them,
        what its network's helper takes.
        """
        if self.process is None:
            return
        self.waited.read(self.process.waited(), now)
        self.throttled.read(throttled(self._limited), now)
        pid, start = self.run.runtime.network_pid, self.run.runtime.network_start
        if pid is None or (seen := glance(pid, start)) is None:
            self.helper.rest()
            self.helper_resident = 0
        else:
            self.helper.read(seen[0], now)
            self.helper_resident = seen[1]

    def rest(self) -> None:
        """It does not run: its last figures stay, what moved stands still, its files are closed."""
        for meter in (self.cpu, self.read, self.written, self.waited, self.throttled, self.helper):
            meter.rest()
        self.told.rest()
        self.close()

    def close(self) -> None:
        for thing in (self.process, self.history):
            if thing:
                thing.close()
        self.process = self.history = None

    # ---- what was seen

    @property
    def cpu_rate(self) -> float | None:
        return None if self.cpu.rate is None else self.cpu.rate + (self.helper.rate or 0.0)

    @property
    def resident(self) -> int | None:
        return self.seen.resident + self.helper_resident if self.seen else None

    def _remember(self, wall: int, covered: int) -> None:
        told, now = self.told, self.at or 0.0
        memory = told.memory if told.fresh("memory", now) else None
        blocks = (told.reads.rate, told.writes.rate) if told.fresh("blocks", now) else (None, None)
        traffic = (
            (told.received.rate, told.sent.rate) if told.fresh("traffic", now) else (None, None)
        )
        total = memory and self._total(memory)
        values = (
            self.cpu_rate, self.waited.rate, self.throttled.rate, self.resident,
            memory and total and max(total - memory.available, 0),
            total, memory and told.swap.rate, self.read.rate, self.written.rate, *blocks, *traffic,
        )  # fmt: skip
        if self.history is None:
            self.history = open_history(self.paths.history, VM_SERIES)
        self.history.append(
            wall, covered, [math.nan if value is None else value for value in values]
        )

    def usage(self, now: float, wall: float) -> dict[str, Any]:
        """Its figures as fields of `Usage`."""
        told = self.told
        totals = Totals(
            cpu_seconds=self.seen.cpu if self.seen else None,
            waited_seconds=self.waited.total,
            throttled_seconds=self.throttled.total,
            disk_read=self.seen.read if self.seen else None,
            disk_written=self.seen.written if self.seen else None,
            disk_reads=_whole(told.reads.total),
            disk_writes=_whole(told.writes.total),
            disk_read_seconds=_scaled(told.read_time.total, 1e-9),
            disk_write_seconds=_scaled(told.write_time.total, 1e-9),
            network_received=_whole(told.received.total),
            network_sent=_whole(told.sent.total),
        )
        return {
            "age": None if self.at is None else now - self.at,
            "cpu": self.cpu_rate,
            "steal": self.waited.rate,
            "throttled": self.throttled.rate,
            "resident": self.resident,
            "guest": self._guest(wall),
            "disk": self._disk(now),
            "network": self._network(now),
            "totals": totals,
        }

    def _total(self, memory: Memory) -> int:
        """What the guest's system manages, without what it gave back: that lies in a balloon, which
        Linux counts as used.
        """
        given = self.run.size.given if self.run.size else 0
        return memory.total - min(given, memory.total)

    def _guest(self, wall: float) -> GuestMemory | None:
        memory = self.told.memory
        if memory is None:
            return None
        total = self._total(memory)
        return GuestMemory(
            total=total,
            used=max(total - memory.available, 0),
            available=memory.available,
            free=memory.free,
            cached=memory.cached,
            swap=self.told.swap.rate,
            age=max(0.0, wall - memory.at),
        )

    def _disk(self, now: float) -> DiskUsage:
        told = self.told
        return DiskUsage(
            read=self.read.rate,
            written=self.written.rate,
            reads=told.reads.rate,
            writes=told.writes.rate,
            read_latency=_latency(told.read_time, told.reads),
            write_latency=_latency(told.write_time, told.writes),
            age=now - told.answered["blocks"] if "blocks" in told.answered else None,
        )

    def _network(self, now: float) -> NetworkUsage | None:
        if "traffic" not in self.told.answered:
            return None
        return NetworkUsage(
            received=self.told.received.rate,
            sent=self.told.sent.rate,
            age=now - self.told.answered["traffic"],
        )


class HostWatch:
    """The host that is looked at."""

    def __init__(self) -> None:
        self.files: HostFiles | None = None
        self.history: History | None = None
        self.seen: HostSample | None = None
        self.at: float | None = None
        self.meters = {name: Meter() for name in HOST_SERIES}

    def look(self, now: float, wall: int, running: int, path: Path, pool: Path) -> None:
        self.files = self.files or HostFiles()
        sample = self.files.sample()
        if sample is None:
            return
        covered = min(COVER_CAP, max(1, round(now - self.at))) if self.at is not None else 1
        self.seen, self.at = sample, now
        counters: dict[str, float | None] = {
            "cpu": sample.cpu,
            "steal": sample.steal,
            "iowait": sample.iowait,
        }
        names = ("disk_read", "disk_written", "disk_reads", "disk_writes")
        counters |= dict(zip(names, sample.disk or (None,) * 4, strict=True))
        counters |= dict(
            zip(
                ("network_received", "network_sent"),
                (sample.network or (None,) * 4)[:2],
                strict=True,
            )
        )
        counters |= {f"pressure_{name}": seconds for name, seconds in sample.pressure.items()}
        rates = {name: self.meters[name].read(total, now) for name, total in counters.items()}
        if rates["cpu"] is None:
            return
        values = {
            **rates,
            "memory_used": sample.memory - sample.available,
            "swap_used": sample.swap_used,
            "vms": running,
        }
        values["pool_used"] = pool_used(pool)
        if self.history is None:
            self.history = open_history(path, HOST_SERIES)
        self.history.append(
            wall,
            covered,
            [math.nan if (value := values.get(name)) is None else value for name in HOST_SERIES],
        )

    def usage(self, now: float, sampling: float) -> HostUsage:
        seen, rate = self.seen, {name: meter.rate for name, meter in self.meters.items()}
        if seen is None:
            return HostUsage(cpus=os.cpu_count() or 1, memory=_memory())
        totals = HostTotals(
            cpu_seconds=seen.cpu,
            steal_seconds=seen.steal,
            iowait_seconds=seen.iowait,
            disk_read=seen.disk.came if seen.disk else None,
            disk_written=seen.disk.went if seen.disk else None,
            network_received=seen.network.came if seen.network else None,
            network_sent=seen.network.went if seen.network else None,
            pressure_seconds=seen.pressure,
            sampling_seconds=sampling,
        )
        names = ("cpu", "memory", "io")
        age = now - (self.at or now)
        return HostUsage(
            cpus=os.cpu_count() or 1,
            memory=seen.memory,
            age=age,
            cpu=rate["cpu"],
            steal=rate["steal"],
            iowait=rate["iowait"],
            available=seen.available,
            swap_used=seen.swap_used,
            disk=DiskUsage(
                read=rate["disk_read"],
                written=rate["disk_written"],
                reads=rate["disk_reads"],
                writes=rate["disk_writes"],
                age=age,
            ),
            network=NetworkUsage(
                received=rate["network_received"], sent=rate["network_sent"], age=age
            )
            if seen.network
            else None,
            pressure={
                name: value for name in names if (value := rate[f"pressure_{name}"]) is not None
            },
            totals=totals,
        )

    def close(self) -> None:
        for thing in (self.files, self.history):
            if thing:
                thing.close()
        self.files = self.history = None


class Metrics:
    """The figures of all machines of this host. `runs`: the machines there are just now, by their
    servers' ids.
    """

    def __init__(self, site: Site, runs: Callable[[], Iterable[tuple[str, Run]]]) -> None:
        self.site, self._runs = site, runs
        self.machines: dict[str, Machine] = {}
        self.host = HostWatch()
        self.cost = 0.0
        self._watched_until = -1.0
        self._wake = asyncio.Event()
        self._troubles: set[str] = set()

    # ---- looking

    async def run(self) -> None:
        """Look until cancelled; never fails."""
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    runs_any = self._look_safely()
                    begin(
                        group,
                        [machine.told for machine in self._active()],
                        self.watched,
                        self.site.clock,
                    )
                    await self._pause(PERIOD if runs_any or self.watched else IDLE_PERIOD)
        finally:
            self.close()

    def close(self) -> None:
        for machine in self.machines.values():
            machine.close()
        self.machines.clear()
        self.host.close()

    async def _pause(self, seconds: float) -> None:
        """Until the next whole second of that many, or until somebody begins to watch."""
        self._wake.clear()
        left = seconds - self.site.clock.now() % PERIOD
        # a timer that came too early is no reason to look twice
        left += PERIOD if left < PERIOD / 5 else 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left):
                await self._wake.wait()

    def _look_safely(self) -> bool:
        began = time.thread_time()
        try:
            return self.look()
        except Exception:
            self._complain("looking failed", logging.ERROR, exc_info=True)
            return bool(self.machines)
        finally:
            self.cost += time.thread_time() - began

    def look(self) -> bool:
        """One look at the host and every machine that runs; waits for nobody. Says whether any
        runs.
        """
        now, wall = self.site.clock.now(), int(self.site.clock.wall().timestamp())
        runs = dict(self._runs())
        for vm_id in [
            vm_id
            for vm_id, machine in self.machines.items()
            if runs.get(vm_id) is not machine.run or machine.run.ended
        ]:
            self.machines.pop(vm_id).close()
        active = 0
        for vm_id, run in runs.items():
            active += self._look_at(vm_id, run, now, wall)
        self._kept(
            "the host",
            lambda: self.host.look(now, wall, active, self.site.paths.history, self.site.paths.vms),
        )
        return active > 0

    def _look_at(self, vm_id: str, run: Run, now: float, wall: int) -> bool:
        if run.ended or run.qemu_status is None:
            return False
        machine = self.machines.get(vm_id)
        runs = run.qemu_status == "running"
        if machine is None:
            machine = self.machines[vm_id] = Machine(
                vm_id, run, self.site.paths.vm(vm_id), len(self.machines), self.site.networks.netns
            )
            machine.open(now)
        elif machine.process is None:
            if not runs:
                return False  # it rests
            machine.open(now)
        self._kept(vm_id, lambda: machine.look(now, wall))
        if not runs:
            machine.rest()
        return runs

    def _kept(self, whose: str, work: Callable[[], None]) -> None:
        """Look at one; that its past can't be written is said once and disturbs nobody else."""
        try:
            work()
        except FileNotFoundError:
            pass  # it is being removed
        except OSError as error:
            self._complain(f"history of {whose} can't be written: {error}")

    def _complain(self, what: str, level: int = logging.WARNING, **options: Any) -> None:
        if what not in self._troubles:
            self._troubles = {*list(self._troubles)[-100:], what}
            say(logger, what, level) if not options else logger.log(level, "%s", what, **options)

    def _active(self) -> Iterable[Machine]:
        return (machine for machine in self.machines.values() if machine.process is not None)

    # ---- telling

    @property
    def watched(self) -> bool:
        return self.site.clock.now() < self._watched_until

    def watch(self) -> None:
        """Somebody looks: for a while more is asked, more often."""
        if not self.watched:
            self._wake.set()
        self._watched_until = self.site.clock.now() + WATCH_LASTS

    def usage(self, vm: Vm) -> Usage:
        """What a server uses, as last seen. Waits for nobody."""
        machine = self.machines.get(vm.id)
        figures: dict[str, Any] = {}
        if machine and not machine.run.ended:
            figures = machine.usage(self.site.clock.now(), self.site.clock.wall().timestamp())
        shares = tuple(_share(nic) for nic in vm.spec.nics if nic.network_id)
        return Usage(
            id=vm.id, name=vm.name, state=vm.status.state, cpus=vm.spec.cpu.count,
            memory=vm.spec.memory.size, nics=shares, **figures,
        )  # fmt: skip

    def host_usage(self) -> HostUsage:
        return self.host.usage(self.site.clock.now(), self.cost)

    async def history(self, vm_id: str | None, resolution: str, since: int = 0) -> list[Point]:
        """The past of a server, or of the host (None), oldest first. Read in a thread: months of it
        take milliseconds.
        """
        path, series = (
            (self.site.paths.vm(vm_id).history, VM_SERIES)
            if vm_id
            else (self.site.paths.history, HOST_SERIES)
        )
        now = int(self.site.clock.wall().timestamp())
        return await asyncio.to_thread(read_history, path, series, resolution, since, now)


def pool_used(folder: Path) -> float | None:
    """Bytes in use where the disks lie."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return float((found.f_blocks - found.f_bfree) * found.f_frsize)


def _share(nic: Nic) -> NicShare:
    """What a NIC is given."""
    both = ((nic.bandwidth.inbound, "received"), (nic.bandwidth.outbound, "sent"))
    rates = {
        f"{what}_{word}": bits / 8
        for rate, word in both
        for what, bits in (("limit", rate.limit), ("floor", rate.floor))
        if bits
    }
    return NicShare(number=nic.number, network=nic.network, **rates)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _latency(spent: Meter, times: Meter) -> float | None:
    """Seconds an operation took, from how long all of them took a second and how many they were."""
    return spent.rate / times.rate * 1e-9 if spent.rate is not None and times.rate else None


def _memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
