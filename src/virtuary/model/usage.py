"""What servers and their host use, as it was last seen: figures with their age, and the points of a
history.

Shares of time are seconds a second: a `cpu` of 1.5 is one processor and a half. Sizes are bytes,
rates are bytes or operations a second. None means that nobody could tell.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import Field

from virtuary.model.meta import Model

Resolution = Literal["second", "minute", "hour"]
STEPS: dict[str, int] = {"second": 1, "minute": 60, "hour": 3600}
"""Seconds that a point of each resolution stands for."""

VM_SERIES = (
    "cpu", "steal", "throttled", "resident", "guest_used", "guest_total", "swap", "disk_read",
    "disk_written", "disk_reads",
    "disk_writes", "network_received", "network_sent",
)  # fmt: skip
HOST_SERIES = (
    "cpu", "steal", "iowait", "memory_used", "swap_used", "disk_read", "disk_written", "disk_reads",
    "disk_writes",
    "network_received", "network_sent", "pressure_cpu", "pressure_memory", "pressure_io", "vms",
    "pool_used",
)  # fmt: skip


class Point(NamedTuple):
    """What was seen in one second, minute or hour; a series nobody could tell is left out."""

    at: int
    """When it begins, in seconds since 1970."""
    covered: int
    """Seconds of it in which somebody looked."""
    mean: dict[str, float]
    peak: dict[str, float]
    """The highest second; empty where the point is a second itself."""

    def body(self) -> dict[str, Any]:
        """As JSON, with as many digits as make sense."""
        mean, peak = (
            {name: round(value, 4) for name, value in part.items()}
            for part in (self.mean, self.peak)
        )
        return {"at": self.at, "covered": self.covered, "mean": mean, "peak": peak}


class GuestMemory(Model):
    """What the guest says of its memory, by its balloon."""

    total: int
    """What its system manages."""
    used: int
    available: int
    """What programs could get without swapping."""
    free: int | None = None
    cached: int | None = None
    swap: float | None = None
    """Bytes a second that go to and come from its swap."""
    age: float


class DiskUsage(Model):
    read: float | None = None
    """What the host's storage really gave; what its page cache answers is not in it."""
    written: float | None = None
    reads: float | None = None
    """Operations of the guest; asked for while somebody looks."""
    writes: float | None = None
    read_latency: float | None = None
    """Seconds an operation took."""
    write_latency: float | None = None
    age: float | None = None
    """Of the operations and their latency."""


class NetworkUsage(Model):
    """What the guest counted on its own network card; asked for while somebody looks."""

    received: float | None = None
    sent: float | None = None
    age: float


class NicShare(Model):
    """What a NIC is given of its network, bytes a second; None: no limit, no floor."""

    number: int
    network: str
    limit_received: float | None = None
    limit_sent: float | None = None
    floor_received: float | None = None
    floor_sent: float | None = None


class Totals(Model):
    """Counters since the server's process began."""

    cpu_seconds: float | None = None
    waited_seconds: float | None = None
    throttled_seconds: float | None = None
    disk_read: int | None = None
    disk_written: int | None = None
    disk_reads: int | None = None
    disk_writes: int | None = None
    disk_read_seconds: float | None = None
    disk_write_seconds: float | None = None
    network_received: int | None = None
    network_sent: int | None = None


class Usage(Model):
    """What one server uses."""

    id: str
    name: str
    state: str
    cpus: int
    memory: int
    """What it has, as its document says."""
    age: float | None = None
    """Seconds since it was looked at; None when it was not since the daemon began."""
    cpu: float | None = None
    """Processor time of the host that it takes, its network's helper included."""
    steal: float | None = None
    """Time its threads stood ready and waited for a processor of the host."""
    throttled: float | None = None
    """Time a limit kept it from running."""
    resident: int | None = None
    """Memory of the host that it occupies, its network's helper included."""
    promised: int | None = None
    """Memory of the host that is promised to it, with what its emulation is reckoned to need: what
    `resident` is to be held against.
    """
    guest: GuestMemory | None = None
    disk: DiskUsage = Field(default_factory=DiskUsage)
    network: NetworkUsage | None = None
    nics: tuple[NicShare, ...] = ()
    """Its NICs on networks of the host."""
    totals: Totals = Field(default_factory=Totals)


class HostTotals(Model):
    """Counters since the host was started."""

    cpu_seconds: float | None = None
    steal_seconds: float | None = None
    iowait_seconds: float | None = None
    disk_read: int | None = None
    disk_written: int | None = None
    network_received: int | None = None
    network_sent: int | None = None
    pressure_seconds: dict[str, float] = Field(default_factory=dict)
    sampling_seconds: float = 0.0
    """Processor time that looking cost, since the daemon began."""


class HostUsage(Model):
    """What the whole host uses, whoever uses it."""

    cpus: int
    memory: int
    age: float | None = None
    cpu: float | None = None
    steal: float | None = None
    """Time another machine took that this host, itself a guest, wanted."""
    iowait: float | None = None
    available: int | None = None
    swap_used: int | None = None
    disk: DiskUsage = Field(default_factory=DiskUsage)
    network: NetworkUsage | None = None
    pressure: dict[str, float] = Field(default_factory=dict)
    """Share of time in which somebody waited for cpu, memory or io."""
    totals: HostTotals = Field(default_factory=HostTotals)


class Overview(Model):
    """The host and its servers at one moment."""

    host: HostUsage
    vms: tuple[Usage, ...] = ()
