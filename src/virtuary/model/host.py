"""A virtualization host: the machine a daemon runs on."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from virtuary.base.space import reserve
from virtuary.model.bandwidth import Direction
from virtuary.model.meta import Document, Model
from virtuary.model.settings import ResourceSettings


class Check(Model):
    """One thing a launch depends on, as `doctor` reports it."""

    name: str
    state: Literal["ok", "note", "missing"]
    """`note`: works, but weaker or slower than it could; `missing`: something can't work."""
    found: str
    remedy: str | None = None


class Balance(Model):
    """One resource: what there is, what of it may be promised, and what is."""

    total: int
    usable: int
    """What may be promised in all: without what is kept for the host, times the overcommit ratio.
    """
    promised: int
    holders: dict[str, int] = Field(default_factory=dict)
    """The servers that hold most of it, the largest first."""

    @property
    def free(self) -> int:
        return self.usable - self.promised


class NumaNode(Model):
    number: int
    cpus: tuple[int, ...]
    memory: int


class HugePages(Model):
    """Pages of one size that were set aside; nothing but what asks for them can use them."""

    size: int
    total: int
    free: int
    default: bool = False
    """Whether servers get these."""


class Link(Model):
    """A network interface that leads out of the host."""

    name: str
    speed: int | None = None
    """Bits a second, where the driver tells."""


class PoolUsage(Model):
    """Storage for disks."""

    name: str
    size: int
    free: int
    promised: int = 0
    """Sizes of the disks in it, as their guests see them."""
    allocated: int = 0
    """What those disks take of it now."""
    full_in: float | None = None
    """Seconds until nothing more is made in it, at the pace of the last week; None when it does not
    fill, or was not watched for long.
    """


class HostStatus(Model):
    mode: Literal["user", "system"]
    version: str
    cpus: int
    memory: int
    memory_available: int
    disk: int
    disk_free: int
    vms: int = 0
    vms_running: int = 0
    memory_promised: int = 0
    """Bytes of memory of the servers that run."""
    accel: str = ""
    accel_reason: str = ""
    qemu: str = ""
    level: str = ""
    kernel: str = ""
    system: str = ""
    cores: int = 0
    """Cores of the processors; `cpus` counts their threads."""
    numa: tuple[NumaNode, ...] = ()
    huge_pages: tuple[HugePages, ...] = ()
    links: tuple[Link, ...] = ()
    pools: tuple[PoolUsage, ...] = ()
    pressure: dict[str, float] = Field(default_factory=dict)
    """Percent of the last ten seconds in which somebody waited for cpu, memory or io; missing where
    the kernel does not tell.
    """
    policy: ResourceSettings = ResourceSettings()
    default_network: str = "user"
    """The network that a server joins when nobody says which."""
    account: dict[str, Balance] = Field(default_factory=dict)
    bandwidth: dict[str, dict[Direction, Balance]] = Field(default_factory=dict)
    """By network: the floors promised of its link, in bits a second; without those whose link's
    speed nobody knows.
    """

    @property
    def ordinary_memory(self) -> int:
        """Bytes of memory that are not set aside as huge pages."""
        return max(self.memory - sum(pages.size * pages.total for pages in self.huge_pages), 0)

    @property
    def huge_memory(self) -> int:
        """Bytes of the huge pages that servers can be given."""
        return sum(pages.size * pages.total for pages in self.huge_pages if pages.default)

    @property
    def reserve_memory(self) -> int:
        """Bytes kept for the host itself."""
        return self.policy.memory_kept(self.memory)

    @property
    def reserve_disk(self) -> int:
        """Free space of the pool below which no disk is made or grown."""
        return reserve(self.disk, self.policy.reserve_disk)


class Host(Document):
    prefix: ClassVar[str] = "host"
    status: HostStatus | None = Field(default=None)
