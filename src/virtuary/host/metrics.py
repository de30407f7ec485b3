"""Figures of processes and of the host, read from /proc as counters. Knows no servers and waits for
nobody.

Files that are read each second stay open; a process that ends is an ordinary answer (None), never
an error. Counters are what the kernel says; `Meter` makes rates of them.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

PROC, SYS = Path("/proc"), Path("/sys")
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SECTOR = 512
CHUNK = 65536
UNREAL_DISKS = ("loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd")


class Meter:
    """A counter that is read now and then, and its rate a second. One that went back began anew and
    has no rate until the next reading.
    """

    __slots__ = ("at", "rate", "total")

    def __init__(self) -> None:
        self.total: float | None = None
        self.rate: float | None = None
        self.at: float | None = None

    def read(self, total: float | None, now: float, within: float = math.inf) -> float | None:
        """Note what the counter says at `now` (seconds); the rate since the last reading, None when
        there was none `within` so long.
        """
        before, at = self.total, self.at
        if total is None or before is None or at is None or total < before or now - at > within:
            self.rate = None
        elif now > at:
            self.rate = (total - before) / (now - at)
        self.total, self.at = total, now
        return self.rate

    def rest(self) -> None:
        """Nothing is counted for a while: the rate is none, and the next reading begins anew."""
        if self.rate is not None:
            self.rate = 0.0
        self.at = None


# ---- a process


class Sample(NamedTuple):
    """Counters of a process."""

    cpu: float
    """Processor time in seconds."""
    resident: int
    read: int | None
    """Bytes that storage gave and took; None where the kernel does not tell us."""
    written: int | None


class Process:
    """A process whose files stay open; made by `open_process`, closed with `close`."""

    def __init__(self, pid: int, stat: int, io: int | None, proc: Path) -> None:
        self._stat, self._io = stat, io
        self._threads = f"{proc}/{pid}/task"
        self._delays: dict[str, int] | None = None
        self._waited = 0

    def sample(self) -> Sample | None:
        """Its counters now; None once it has ended."""
        try:
            cpu, _, resident = parse_stat(os.pread(self._stat, 1024, 0))
        except (OSError, ValueError, IndexError):
            return None
        return Sample(cpu, resident, *self._storage())

    def _storage(self) -> tuple[int | None, int | None]:
        if self._io is None:
            return None, None
        try:
            return parse_io(os.pread(self._io, 1024, 0))
        except (OSError, ValueError, IndexError):
            return None, None

    def waited(self) -> float | None:
        """Seconds its threads stood ready and waited for a processor, since the first call; None
        where the kernel does not tell.

        Costs an open file a thread: for every few seconds.
        """
        found: dict[str, int] = {}
        try:
            for thread in os.listdir(self._threads):
                # a thread that ended meanwhile
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    found[thread] = int(_read(f"{self._threads}/{thread}/schedstat").split()[1])
        except (OSError, ValueError, IndexError):
            return None
        if self._delays is not None:
            self._waited += sum(
                max(0, delay - self._delays.get(thread, 0)) for thread, delay in found.items()
            )
        self._delays = found
        return self._waited / 1e9 if found else None

    def close(self) -> None:
        os.close(self._stat)
        if self._io is not None:
            os.close(self._io)


def open_process(pid: int, start: int | None = None, proc: Path = PROC) -> Process | None:
    """Begin to look at a process; None when there is none of this pid that began at `start` (clock
    ticks since boot).
    """
    try:
        stat = os.open(f"{proc}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if start is not None and parse_stat(os.pread(stat, 1024, 0))[1] != start:
            raise ProcessLookupError
    except (OSError, ValueError, IndexError):
        os.close(stat)
        return None
    io = None
    with contextlib.suppress(OSError):  # another user's: the kernel keeps it to itself
        io = os.open(f"{proc}/{pid}/io", os.O_RDONLY | os.O_CLOEXEC)
    return Process(pid, stat, io, proc)


def glance(pid: int, start: int | None, proc: Path = PROC) -> tuple[float, int] | None:
    """Processor seconds and resident bytes of a process that is looked at now and then; None when
    it is gone.
    """
    try:
        cpu, began, resident = parse_stat(_read(f"{proc}/{pid}/stat"))
    except (OSError, ValueError, IndexError):
        return None
    return (cpu, resident) if start in (None, began) else None


def parse_stat(text: bytes) -> tuple[float, int, int]:
    """Processor seconds, start time in ticks and resident bytes from /proc/PID/stat; the name in it
    may hold anything.
    """
    fields = text[text.rindex(b")") + 2 :].split(b" ", 22)
    return (int(fields[11]) + int(fields[12])) / TICK, int(fields[19]), int(fields[21]) * PAGE


def parse_io(text: bytes) -> tuple[int, int]:
    """Bytes storage gave and took, from /proc/PID/io."""
    words = text.split()
    if words[8] != b"read_bytes:" or words[10] != b"write_bytes:":
        raise ValueError("not /proc/PID/io")
    return int(words[9]), int(words[11])


def throttled(groups: Iterable[Path]) -> float | None:
    """Seconds the first of these control groups that has a limit was held back by it; None where
    nobody counts them.
    """
    for group in groups:
        with contextlib.suppress(OSError):  # it has no such group, or it is another user's
            words = _read(f"{group}/cpu.stat").split()
            facts = dict(zip(words[::2], words[1::2], strict=False))
            for name, unit in ((b"throttled_usec", 1e6), (b"throttled_time", 1e9)):
                if name in facts and facts[name].isdigit():
                    return int(facts[name]) / unit
    return None


# ---- the host


class HostSample(NamedTuple):
    """Counters of the host; None for what its kernel does not tell."""

    cpu: float
    steal: float
    iowait: float
    memory: int
    available: int
    swap_used: int
    disk: Traffic | None
    network: Traffic | None
    pressure: dict[str, float]
    """Seconds in which something waited for cpu, memory or io."""


class Traffic(NamedTuple):
    """Bytes that came in (read, received) and went out, and how many operations or packets they
    were.
    """

    came: int
    went: int
    times_in: int
    times_out: int


class HostFiles:
    """The host's own files, kept open; closed with `close`."""

    REAL_AGAIN = 60
    """After so many samples it is found out again which disks and links are real ones."""

    def __init__(self, proc: Path = PROC, sys: Path = SYS) -> None:
        self._sys = sys
        self._handles: dict[str, int] = {}
        for name in (
            "stat",
            "meminfo",
            "diskstats",
            "net/dev",
            "pressure/cpu",
            "pressure/memory",
            "pressure/io",
        ):
            with contextlib.suppress(OSError):
                self._handles[name] = os.open(proc / name, os.O_RDONLY | os.O_CLOEXEC)
        self._samples = 0
        self._disks: frozenset[str] = frozenset()
        self._links: frozenset[str] = frozenset()

    def sample(self) -> HostSample | None:
        """The host's counters now; None where it does not tell its processors' and memory's."""
        if self._samples % self.REAL_AGAIN == 0:
            self._disks, self._links = find_disks(self._sys), find_links(self._sys)
        self._samples += 1
        try:
            cpu = parse_cpu(os.pread(self._handles["stat"], 512, 0))
            memory = parse_memory(os.pread(self._handles["meminfo"], CHUNK, 0))
        except (KeyError, OSError, ValueError, IndexError):
            return None
        return HostSample(*cpu, *memory, self._disk(), self._network(), self._pressure())

    def _disk(self) -> Traffic | None:
        try:
            return parse_disks(_whole(self._handles["diskstats"]), self._disks)
        except (KeyError, OSError, ValueError, IndexError):
            return None

    def _network(self) -> Traffic | None:
        try:
            return parse_links(_whole(self._handles["net/dev"]), self._links)
        except (KeyError, OSError, ValueError, IndexError):
            return None

    def _pressure(self) -> dict[str, float]:
        found = {}
        for name in ("cpu", "memory", "io"):
            with contextlib.suppress(KeyError, OSError, ValueError, IndexError):
                found[name] = parse_pressure(os.pread(self._handles[f"pressure/{name}"], 512, 0))
        return found

    def close(self) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()


def find_disks(sys: Path = SYS) -> frozenset[str]:
    """The disks on which others are not counted again: those with a device; where there are none,
    whatever looks like one.
    """
    names = _names(sys / "block")
    real = [name for name in names if (sys / "block" / name / "device").exists()]
    return frozenset(real or [name for name in names if not name.startswith(UNREAL_DISKS)])


def find_links(sys: Path = SYS) -> frozenset[str]:
    """The links that lead out: those with a device; where there are none (in a container), all but
    the loopback.
    """
    names = _names(sys / "class/net")
    real = [name for name in names if (sys / "class/net" / name / "device").exists()]
    return frozenset(real or [name for name in names if name != "lo"])


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def parse_cpu(text: bytes) -> tuple[float, float, float]:
    """Seconds busy, stolen and waiting for storage, of all processors, from /proc/stat. Guests'
    time is in `user` already.
    """
    words = text.split(b"\n", 1)[0].split()
    if words[0] != b"cpu":
        raise ValueError("not /proc/stat")
    user, nice, system, _, iowait, irq, softirq, steal = (int(word) / TICK for word in words[1:9])
    return user + nice + system + irq + softirq, steal, iowait


def parse_memory(text: bytes) -> tuple[int, int, int]:
    """Bytes in all, available, and in use of the swap, from /proc/meminfo."""
    facts = {}
    for line in text.splitlines()[:40]:
        name, _, rest = line.partition(b":")
        if name in (b"MemTotal", b"MemAvailable", b"SwapTotal", b"SwapFree"):
            facts[name] = int(rest.split()[0]) * 1024
    swap = facts.get(b"SwapTotal", 0) - facts.get(b"SwapFree", 0)
    return facts[b"MemTotal"], facts[b"MemAvailable"], swap


def parse_disks(text: bytes, chosen: frozenset[str]) -> Traffic:
    """What these disks read and wrote together, from /proc/diskstats."""
    found = [0, 0, 0, 0]
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 10 and words[2].decode(errors="replace") in chosen:
            for index, word in enumerate((5, 9, 3, 7)):
                found[index] += int(words[word])
    return Traffic(found[0] * SECTOR, found[1] * SECTOR, found[2], found[3])


def parse_links(text: bytes, chosen: frozenset[str]) -> Traffic:
    """What these links received and sent together, from /proc/net/dev."""
    found = [0, 0, 0, 0]
    for line in text.splitlines():
        name, colon, rest = line.partition(b":")
        if colon and name.strip().decode(errors="replace") in chosen:
            words = rest.split()
            for index, word in enumerate((0, 8, 1, 9)):
                found[index] += int(words[word])
    return Traffic(*found)


def parse_pressure(text: bytes) -> float:
    """Seconds in which at least one waited, from a file in /proc/pressure."""
    return int(text.split(b"\n", 1)[0].rpartition(b"total=")[2]) / 1e6


def _whole(handle: int) -> bytes:
    """A file that the kernel gives in pieces."""
    parts, size = [], 0
    while part := os.pread(handle, CHUNK, size):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _read(path: str) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(handle, CHUNK)
    finally:
        os.close(handle)
