"""The virtual server: what its owner wishes of it and what its host last saw of it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from virtuary.base import ports
from virtuary.base.units import GIB, MIB, format_size
from virtuary.model.applies import Applies
from virtuary.model.login import SshKey
from virtuary.model.memory import MAX_MEMORY, MIN_MEMORY
from virtuary.model.meta import Document, ImageName, Model
from virtuary.model.network import MAX_NICS, USER, Nic, NicWish
from virtuary.model.patience import STOP_TIMEOUT
from virtuary.model.publish import Publish
from virtuary.model.resources import Cpu, CpuChange, DiskIo, DiskIoChange, Pages
from virtuary.model.status import VmStatus

Power = Literal["running", "paused", "stopped"]
Arch = Literal["x86_64"]
HostShutdown = Literal["shutdown", "off"]
CopyMode = Literal["overlay", "full", "live"]
"""overlay: a stopped server's disk becomes a layer below both. full: a disk of its own. live:
memory and disk of one that runs.
"""
NO_CLOUD_INIT = (
    "the image {image} has no cloud-init, and nobody else in it would read the user data"
)
MAX_DISK = 64 * 1024 * GIB


class Origin(Model):
    """The server that another one is a copy of."""

    id: str
    name: str
    """The name it had when it was copied."""
    mode: CopyMode


class VmSpec(Model):
    image: ImageName
    image_id: str = ""
    """The image's id, pinned at creation."""
    owner: str = ""
    """Id of the host that runs the server; only that host lets its virtual CPUs run."""
    power: Power = "running"
    cpus: Annotated[int, Applies.BY_GUEST] = Field(default=1, ge=1, le=255)
    cpu: Annotated[Cpu, Applies.AT_ONCE] = Cpu()
    memory: Annotated[int, Applies.BY_GUEST] = Field(
        default=1 * GIB, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB
    )
    memory_max: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    """What its memory may be grown to while it runs; None: what the host can give."""
    memory_min: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    """Memory that is never taken from it, however short the host is; None: what the host's
    overcommit leaves it.
    """
    memory_pages: Annotated[Pages, Applies.AT_START] = "normal"
    memory_merge: Annotated[bool, Applies.AT_START] = False
    """Whether pages that equal another server's may be kept once (KSM); slower, and one may learn
    what the other holds.
    """
    priority: int = Field(default=50, ge=0, le=100)
    """When the host runs out of memory, what has the lowest is taken from and paused first."""
    disk: Annotated[int | None, Applies.BY_GUEST] = Field(
        default=None, ge=1 * MIB, le=MAX_DISK, multiple_of=MIB
    )
    """Size of the root disk; the image's own size when not given."""
    disk_io: Annotated[DiskIo, Applies.AT_ONCE] = DiskIo()
    nics: tuple[Nic, ...] = Field(default=(Nic(),), min_length=1, max_length=MAX_NICS)
    """Its network interfaces; the first is there while it lives, the others can be plugged in and
    out.
    """
    publish: tuple[Publish, ...] = Field(default=(), max_length=ports.MOST)
    ssh_keys: tuple[SshKey, ...] = Field(default=(), max_length=64)
    user_data: bool = False
    """Whether cloud-init user data was given; the text itself is kept apart and never shown."""
    arch: Arch = "x86_64"
    accel: Annotated[Literal["auto", "kvm", "tcg"], Applies.AT_START] = "auto"
    firmware: Literal["auto", "bios", "uefi"] = "auto"
    machine: str = ""
    """QEMU machine type, pinned at creation so that an upgrade does not change the hardware."""
    autostart: bool = False
    """Whether it is started when the host has booted."""
    boot_order: int = Field(default=0, ge=0, le=1000)
    """When the host boots lower ones are started first, and those of one order before the next;
    when it goes down the other way round.
    """
    on_host_shutdown: HostShutdown = "shutdown"
    """What becomes of it when the host goes down: its guest is asked to shut down, or the plug is
    pulled at once.
    """
    shutdown_timeout: float = Field(default=STOP_TIMEOUT, ge=0, le=3600)
    """Seconds that its guest has for that."""
    restart_policy: Literal["always", "on-failure", "no"] = "no"
    protect: bool = False
    """While set, deletion is refused."""
    cold: bool = False
    """Whether its first start is a boot in any case, never the resume of a warm template's copy."""
    restarts: int = Field(default=0, ge=0)
    """Counts restarts asked for; a running server started under a smaller count is restarted."""
    origin: Origin | None = None
    """For a copy: of which server, and how."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> VmSpec:
        if self.memory_max is not None and self.memory > self.memory_max:
            raise ValueError(
                f"{format_size(self.memory)} of memory are more than the most it may have, "
                f"{format_size(self.memory_max)}"
            )
        if self.memory_min is not None and self.memory_min > self.memory:
            raise ValueError(
                f"a floor of {format_size(self.memory_min)} lies above the memory, "
                f"{format_size(self.memory)}"
            )
        each = self.cpu.sockets * self.cpu.threads
        if self.cpus % each:
            raise ValueError(
                f"{self.cpus} CPUs can't be {self.cpu.sockets} sockets of cores with "
                f"{self.cpu.threads} threads: use a multiple of {each}"
            )
        return self

    @model_validator(mode="after")
    def _nics_are_distinct(self) -> VmSpec:
        numbers = [nic.number for nic in self.nics]
        if len(set(numbers)) < len(numbers) or numbers[0] != 0:
            raise ValueError("each NIC has a number of its own, the first of them 0")
        if sum(nic.network == USER for nic in self.nics[1:]):
            raise ValueError("only the first NIC can be on the network `user`")
        return self

    @model_validator(mode="after")
    def _ports_are_distinct(self) -> VmSpec:
        numbers: dict[tuple[str, int], list[Publish]] = {}
        for port in self.publish:
            there = numbers.setdefault((port.protocol, port.host), [])
            if any(port.meets(other) for other in there):
                raise ValueError(f"port {port.host}/{port.protocol} of the host is published twice")
            there.append(port)
        return self


class VmWish(Model):
    """What a user may say when creating a server; everything else in the spec is decided by us."""

    name: str | None = None
    image: ImageName
    labels: dict[str, str] = Field(default_factory=dict)
    power: Power = "running"
    cpus: int | None = Field(default=None, ge=1, le=255)
    cpu: Cpu = Cpu()
    memory: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    memory_max: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    memory_min: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    memory_pages: Pages = "normal"
    memory_merge: bool = False
    priority: int = Field(default=50, ge=0, le=100)
    disk: int | None = Field(default=None, ge=1 * MIB, le=MAX_DISK, multiple_of=MIB)
    disk_io: DiskIo = DiskIo()
    nics: tuple[NicWish, ...] | None = Field(default=None, min_length=1, max_length=MAX_NICS)
    """Networks to join; the host's default one when not given."""
    publish: tuple[Publish, ...] = ()
    ssh_keys: tuple[SshKey, ...] = ()
    user_data: str | None = Field(default=None, max_length=256 * 1024)
    arch: Arch = "x86_64"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    firmware: Literal["auto", "bios", "uefi"] = "auto"
    autostart: bool = False
    boot_order: int = Field(default=0, ge=0, le=1000)
    on_host_shutdown: HostShutdown = "shutdown"
    shutdown_timeout: float = Field(default=STOP_TIMEOUT, ge=0, le=3600)
    restart_policy: Literal["always", "on-failure", "no"] = "no"
    protect: bool = False
    cold: bool = False


class VmChange(Model):
    """What a user may change later; fields left out stay as they are, an explicit null takes a
    limit or floor away.
    """

    labels: dict[str, str] | None = None
    cpus: int | None = Field(default=None, ge=1, le=255)
    cpu: CpuChange = CpuChange()
    memory: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    memory_max: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    memory_min: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    memory_pages: Pages | None = None
    memory_merge: bool | None = None
    priority: int | None = Field(default=None, ge=0, le=100)
    disk: int | None = Field(default=None, ge=1 * MIB, le=MAX_DISK, multiple_of=MIB)
    disk_io: DiskIoChange = DiskIoChange()
    nics: tuple[NicWish, ...] | None = Field(default=None, min_length=1, max_length=MAX_NICS)
    publish: tuple[Publish, ...] | None = None
    accel: Literal["auto", "kvm", "tcg"] | None = None
    autostart: bool | None = None
    boot_order: int | None = Field(default=None, ge=0, le=1000)
    on_host_shutdown: HostShutdown | None = None
    shutdown_timeout: float | None = Field(default=None, ge=0, le=3600)
    restart_policy: Literal["always", "on-failure", "no"] | None = None
    protect: bool | None = None


class VmCopy(Model):
    """What a user may say when copying a server; whatever is left out is as its source has it, but
    for published ports: none.
    """

    name: str | None = None
    mode: CopyMode = "overlay"
    start: bool = False
    """Whether the copy of a stopped server is started; a live copy runs in any case."""
    labels: dict[str, str] | None = None
    cpus: int | None = Field(default=None, ge=1, le=255)
    memory: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    disk: int | None = Field(default=None, ge=1 * MIB, le=MAX_DISK, multiple_of=MIB)
    nics: tuple[NicWish, ...] | None = Field(default=None, min_length=1, max_length=MAX_NICS)
    """Networks to join; its source's when not given, with addresses of its own."""
    publish: tuple[Publish, ...] = ()
    accel: Literal["auto", "kvm", "tcg"] | None = None
    autostart: bool = False
    restart_policy: Literal["always", "on-failure", "no"] | None = None
    protect: bool = False


class Vm(Document):
    prefix: ClassVar[str] = "vm"
    spec: VmSpec
    status: VmStatus = Field(default_factory=VmStatus)

    @property
    def awaits_user_data(self) -> bool:
        """Whether its guest is to be asked what became of the user data."""
        told = self.status.cloud_init
        return self.spec.user_data and (told is None or told.state not in ("done", "error"))

    @property
    def nics(self) -> tuple[Nic, ...]:
        """Its NICs as they are, the first one first: while it runs each leads where it led when it
        was plugged, and is known there by the same addresses. The rest is as wished. One that is to
        be taken out is among them until its guest lets go of it.
        """
        there = {nic.number: nic for nic in self.status.runtime.nics} if self.status.runtime else {}
        wished = tuple(nic.wired_as(there.pop(nic.number, nic)) for nic in self.spec.nics)
        return (*wished, *(nic.but(external=()) for nic in there.values()))
