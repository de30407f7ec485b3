"""The virtual server: what its owner wishes of it and what its host last saw of it."""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from virtuary.base import ports
from virtuary.base.units import GIB, MIB, format_size
from virtuary.model.applies import Applies
from virtuary.model.meta import Document, ImageName, Model
from virtuary.model.network import MAX_NICS, USER, Nic, NicWish
from virtuary.model.patience import STOP_TIMEOUT
from virtuary.model.resources import Cpu, CpuChange, DiskIo, DiskIoChange, Pages

Power = Literal["running", "paused", "stopped"]
State = Literal[
    "creating",
    "starting",
    "running",
    "paused",
    "stopping",
    "stopped",
    "crashed",
    "unresponsive",
    "unknown",
    "trashed",
]
Arch = Literal["x86_64"]
HostShutdown = Literal["shutdown", "off"]
CopyMode = Literal["overlay", "full", "live"]
"""overlay: a stopped server's disk becomes a layer below both. full: a disk of its own. live:
memory and disk of one that runs.
"""
STAGES = ("image", "disk", "firmware", "kernel", "agent", "network", "ssh")
"""What a launch passes through, in this order; each is noted when a real signal shows it."""

NO_CLOUD_INIT = (
    "the image {image} has no cloud-init, and nobody else in it would read the user data"
)
MIN_MEMORY, MAX_MEMORY = 64 * MIB, 16 * 1024 * GIB
MAX_DISK = 64 * 1024 * GIB
DEFAULT_MEMORY = {"tiny": 128 * MIB}


LEAST_MEMORY = {"tiny": 72 * MIB, "debian": 192 * MIB}
"""Bytes of memory with which servers of an image that is built here still start, by what it is
built of: they do not with 64 MiB and 128 MiB.
"""


def default_memory(image: str) -> int:
    """Bytes of memory a server of this image gets when nobody says how much."""
    return DEFAULT_MEMORY.get(image, 1 * GIB)


_KEY_KIND = r"(?:ssh-(?:ed25519|rsa)|ecdsa-sha2-nistp(?:256|384|521)|sk-[a-z0-9@.-]+)"
_KEY = re.compile(_KEY_KIND + r" [A-Za-z0-9+/=]{40,16000}(?: [^\n\r]{0,200})?")


def _check_key(text: str) -> str:
    key = text.strip()
    if not _KEY.fullmatch(key) or not key.isprintable():
        raise ValueError("an SSH public key is one line such as 'ssh-ed25519 AAAA... name'")
    return key


SshKey = Annotated[str, AfterValidator(_check_key)]


class Publish(Model):
    """A port of the host that leads to a port of the guest."""

    host: int = Field(ge=1, le=65535)
    guest: int = Field(ge=1, le=65535)
    protocol: Literal["tcp", "udp"] = "tcp"
    address: str = "127.0.0.1"
    """Address of the host to listen on; 0.0.0.0 for all."""

    @model_validator(mode="after")
    def _address_is_one(self) -> Publish:
        ipaddress.ip_address(self.address)
        # a scope may hold any text, and the address stands on a command line
        if "%" in self.address:
            raise ValueError("an address to listen on has no scope")
        return self

    def meets(self, other: Publish) -> bool:
        """Whether only one server can have both: the same port of the same address, or of all of
        its family.
        """
        own, its = ipaddress.ip_address(self.address), ipaddress.ip_address(other.address)
        return (self.protocol, self.host, own.version) == (
            other.protocol,
            other.host,
            its.version,
        ) and (own == its or own.is_unspecified or its.is_unspecified)

    def __str__(self) -> str:
        return f"{self.address}:{self.host}->{self.guest}/{self.protocol}"


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


class Shape(Model):
    """What a process began with, and how far it can grow: what one that takes over its memory has
    to match.
    """

    memory: int
    max_cpus: int
    max_memory: int
    cpus: int = 1
    """CPUs it began with, which can't be taken from it again while it runs."""
    reporting: bool = False
    """Whether its guest reports free pages."""
    wakes: bool = False
    """Whether it has the port at which a template's guest waits."""
    borrowed: bool = False
    """Whether the memory it began with is a template's or another server's, of which nothing can be
    given back.
    """

    def allows(self, cpus: int | None = None, memory: int | None = None) -> bool:
        """Whether the process can get so much while it runs."""
        least = self.memory if self.borrowed else MIN_MEMORY
        fits = cpus is None or self.cpus <= cpus <= max(self.max_cpus, self.cpus)
        return fits and (memory is None or least <= memory <= max(self.max_memory, self.memory))


class Runtime(Model):
    """The process that is this server right now; enough to find it again and to know it is the
    same.
    """

    generation: int
    """Generation of the spec it was started with."""
    restarts: int
    boot_id: str
    pid: int
    start: int
    """Start time of the process in clock ticks since boot: with the pid, its identity."""
    network_pid: int | None = None
    network_start: int | None = None
    uid: int
    accel: str
    level: Literal["L0", "L1", "L2", "L3"]
    gaps: tuple[str, ...] = ()
    """What the isolation level lacks here, in words."""
    network: Literal["passt", "qemu-user", "tap", "none"] = "none"
    """Who serves its first NIC."""
    nics: tuple[Nic, ...] = ()
    """The NICs it has, as they were plugged."""
    ssh_port: int | None = None
    """Port of `ssh_host` that leads to the guest's SSH."""
    ssh_host: str = "127.0.0.1"
    template: str | None = None
    """Id of the warm template whose memory this process resumed; None when it booted."""
    live: bool = False
    """Whether it resumed the memory of another server, of which it is a live copy."""
    shape: Shape | None = None
    """What it began with and how far it can grow; None for one that an older version started."""
    command: str = ""
    """Digest of the arguments it was started with."""
    end: str | None = None
    """Why it is being ended, noted before it is: shutdown (by the guest), stop, restart, panic,
    cancel. None: unexpected.
    """
    started: datetime


class Crash(Model):
    at: datetime
    why: str


class MemoryHold(Model):
    """A server that runs is paused because its host ran out of memory."""

    room: int
    """Bytes of memory that have to be available before it goes on."""
    why: str
    since: datetime


class CloudInit(Model):
    """What became of the user data."""

    state: Literal["not begun", "running", "done", "error"]
    errors: tuple[str, ...] = ()
    """What cloud-init says went wrong, in its own words."""
    units: tuple[str, ...] = ()
    """Units of systemd in which that was."""


class OfProcess:
    """Marks a field of a status that is true of one process only, and over with it."""


class VmStatus(Model):
    """What is known of a server. Each part has one writer on the server's host, all of them in the
    loop about it: whoever else wants something else of a server changes its spec.
    """

    # ---- node/report: what people are shown
    state: State = "creating"
    reason: str | None = None
    """Why the state is what it is, when that is not plain: the crash, the missing thing."""
    since: datetime | None = None
    """When the state became what it is."""
    stages: dict[str, float] = Field(default_factory=dict)
    """Seconds from the start to each stage reached, of the current or last run."""
    addresses: Annotated[tuple[str, ...], OfProcess] = ()
    cpus: Annotated[int | None, OfProcess] = None
    """CPUs it has now, while it runs."""
    memory: Annotated[int | None, OfProcess] = None
    """Bytes of memory its guest has now, while it runs."""
    cloud_init: CloudInit | None = None
    """What became of the user data, where there is some and the guest has an agent."""

    # ---- node/power: its process
    applied: int = 0
    runtime: Annotated[Runtime | None, OfProcess] = None
    crashes: tuple[Crash, ...] = ()
    """Crashes of the last ten minutes; five of them stop the restarting."""

    # ---- node/tuning, and node/memory for the whole host
    gaps: Annotated[tuple[str, ...], OfProcess] = ()
    """What of its limits and shares this host can't give, in words."""
    reclaimed: Annotated[bool, OfProcess] = False
    """Whether its host, being short, has taken some of its memory for a while."""
    held_for_memory: Annotated[MemoryHold | None, OfProcess] = None
    """Why its host has paused it, when it ran out of memory; it goes on by itself."""

    # ---- node/disks, and node/copies for what is shared
    disk_ready: bool = False
    disk_size: int | None = None
    disk_file: str = "disk.qcow2"
    """Name of its own disk in its folder; another one after it was copied, when what it had became
    a layer.
    """
    layers: tuple[str, ...] = ()
    """Files between the image and the server's own disk, the lowest first; relative to the state
    folder, never changed.
    """
    base: bool = True
    """Whether the image lies below all of them; nothing does below a full copy."""
    copied: bool = False
    """Of a copy: whether its source has given what it is made of."""
    template: str | None = None
    """Id of the warm template its disk was made on, whose copy its first start resumes."""
    cold: str | None = None
    """Why its first start booted, or will boot, instead of resuming a warm template's copy."""

    # ---- node/identity, and node/warm and node/copies for who was another machine before
    identity: str | None = None
    """The hostname whose identity has been given to the guest; None before the first time."""
    identity_refused: str | None = None
    """Why the guest did not take its present name and keys when they were given last: it goes on
    under those it has, and is asked again later.
    """
    renew: bool = False
    """Whether its guest still is who its source is: its first start gives it another machine-id and
    other SSH host keys too.
    """

    def without_process(self, **changes: Any) -> VmStatus:
        """The same when its process is over, with these changes."""
        return self.but(**{name: field.default for name, field in OF_PROCESS.items()} | changes)


OF_PROCESS = {
    name: field for name, field in VmStatus.model_fields.items() if OfProcess in field.metadata
}


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
