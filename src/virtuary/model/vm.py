"""The virtual server: what its owner wishes of it and what its host last saw of it."""

from __future__ import annotations

import ipaddress
import re
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from virtuary.base.units import GIB, MIB
from virtuary.model.meta import Document, ImageName, Model

Power = Literal["running", "paused", "stopped"]
State = Literal[
    "creating", "starting", "running", "paused", "stopping", "stopped", "crashed", "unresponsive", "unknown", "trashed"
]
Arch = Literal["x86_64"]
CopyMode = Literal["overlay", "full", "live"]
"""overlay: a stopped server's disk becomes a layer below both. full: a disk of its own. live: memory and disk of one that runs."""
STAGES = ("image", "disk", "firmware", "kernel", "agent", "network", "ssh")
"""What a launch passes through, in this order; each is noted when a real signal shows it."""

MIN_MEMORY, MAX_MEMORY = 64 * MIB, 16 * 1024 * GIB
MAX_DISK = 64 * 1024 * GIB
DEFAULT_MEMORY = {"tiny": 128 * MIB}


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
        if "%" in self.address:  # a scope may hold any text, and the address stands on a command line
            raise ValueError("an address to listen on has no scope")
        return self

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
    cpus: int = Field(default=1, ge=1, le=255)
    memory: int = Field(default=1 * GIB, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    disk: int | None = Field(default=None, ge=1 * MIB, le=MAX_DISK, multiple_of=MIB)
    """Size of the root disk; the image's own size when not given."""
    publish: tuple[Publish, ...] = Field(default=(), max_length=64)
    ssh_keys: tuple[SshKey, ...] = Field(default=(), max_length=64)
    user_data: bool = False
    """Whether cloud-init user data was given; the text itself is kept apart and never shown."""
    arch: Arch = "x86_64"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    firmware: Literal["auto", "bios", "uefi"] = "auto"
    machine: str = ""
    """QEMU machine type, pinned at creation so that an upgrade does not change the hardware."""
    autostart: bool = False
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
    def _ports_are_distinct(self) -> VmSpec:
        seen: set[tuple[int, str]] = set()
        for port in self.publish:
            if (port.host, port.protocol) in seen:
                raise ValueError(f"port {port.host}/{port.protocol} of the host is published twice")
            seen.add((port.host, port.protocol))
        return self


class VmWish(Model):
    """What a user may say when creating a server; everything else in the spec is decided by us."""

    name: str | None = None
    image: ImageName
    labels: dict[str, str] = Field(default_factory=dict)
    power: Power = "running"
    cpus: int | None = Field(default=None, ge=1, le=255)
    memory: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    disk: int | None = Field(default=None, ge=1 * MIB, le=MAX_DISK, multiple_of=MIB)
    publish: tuple[Publish, ...] = ()
    ssh_keys: tuple[SshKey, ...] = ()
    user_data: str | None = Field(default=None, max_length=256 * 1024)
    arch: Arch = "x86_64"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    firmware: Literal["auto", "bios", "uefi"] = "auto"
    autostart: bool = False
    restart_policy: Literal["always", "on-failure", "no"] = "no"
    protect: bool = False
    cold: bool = False


class VmChange(Model):
    """What a user may change later; fields left out stay as they are."""

    labels: dict[str, str] | None = None
    cpus: int | None = Field(default=None, ge=1, le=255)
    memory: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    disk: int | None = Field(default=None, ge=1 * MIB, le=MAX_DISK, multiple_of=MIB)
    publish: tuple[Publish, ...] | None = None
    accel: Literal["auto", "kvm", "tcg"] | None = None
    autostart: bool | None = None
    restart_policy: Literal["always", "on-failure", "no"] | None = None
    protect: bool | None = None


class VmCopy(Model):
    """What a user may say when copying a server; whatever is left out is as its source has it, but for published ports: none."""

    name: str | None = None
    mode: CopyMode = "overlay"
    start: bool = False
    """Whether the copy of a stopped server is started; a live copy runs in any case."""
    labels: dict[str, str] | None = None
    cpus: int | None = Field(default=None, ge=1, le=255)
    memory: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    disk: int | None = Field(default=None, ge=1 * MIB, le=MAX_DISK, multiple_of=MIB)
    publish: tuple[Publish, ...] = ()
    accel: Literal["auto", "kvm", "tcg"] | None = None
    autostart: bool = False
    restart_policy: Literal["always", "on-failure", "no"] | None = None
    protect: bool = False


class Shape(Model):
    """The memory a process began with, and how far it can grow: what one that takes over its memory has to match."""

    memory: int
    max_cpus: int
    max_memory: int


class Runtime(Model):
    """The process that is this server right now; enough to find it again and to know it is the same."""

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
    network: Literal["passt", "qemu-user", "none"] = "none"
    ssh_port: int | None = None
    """Port on 127.0.0.1 of the host that leads to the guest's SSH."""
    template: str | None = None
    """Id of the warm template whose memory this process resumed; None when it booted."""
    live: bool = False
    """Whether it resumed the memory of another server, of which it is a live copy."""
    shape: Shape | None = None
    """Of a live copy: the room to grow it has from the process it was copied from; None when that had none."""
    end: str | None = None
    """Why it is being ended, noted before it is: shutdown (by the guest), stop, restart, panic, cancel. None: unexpected."""
    started: datetime


class Crash(Model):
    at: datetime
    why: str


class VmStatus(Model):
    state: State = "creating"
    reason: str | None = None
    """Why the state is what it is, when that is not plain: the crash, the missing thing."""
    stage: str | None = None
    """The last stage of starting that was reached."""
    stages: dict[str, float] = Field(default_factory=dict)
    """Seconds from the start to each stage reached, of the current or last run."""
    applied: int = 0
    runtime: Runtime | None = None
    disk_ready: bool = False
    disk_size: int | None = None
    disk_file: str = "disk.qcow2"
    """Name of its own disk in its folder; another one after it was copied, when what it had became a layer."""
    layers: tuple[str, ...] = ()
    """Files between the image and the server's own disk, the lowest first; relative to the state folder, never changed."""
    base: bool = True
    """Whether the image lies below all of them; nothing does below a full copy."""
    copied: bool = False
    """Of a copy: whether its source has given what it is made of."""
    renew: bool = False
    """Whether its guest still is who its source is: its first start gives it another machine-id and other SSH host keys too."""
    template: str | None = None
    """Id of the warm template its disk was made on, whose copy its first start resumes."""
    cold: str | None = None
    """Why its first start booted, or will boot, instead of resuming a warm template's copy."""
    identity: str | None = None
    """The hostname whose identity has been given to the guest; None before the first time."""
    addresses: tuple[str, ...] = ()
    since: datetime | None = None
    """When the state became what it is."""
    crashes: tuple[Crash, ...] = ()
    """Crashes of the last ten minutes; five of them stop the restarting."""


class Vm(Document):
    prefix: ClassVar[str] = "vm"
    spec: VmSpec
    status: VmStatus = Field(default_factory=VmStatus)
