"""The virtual server: what its owner wishes of it. What its host saw of it is in model/status.py.

A server is composed of nouns, each in a file of its own with its change and its checks.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from virtuary.base import ports
from virtuary.model.applies import Applies
from virtuary.model.cpu import Cpu, CpuChange, CpuWish
from virtuary.model.disk import MAX_DISKS, ROOT, Disk, DiskChange, DiskIo, DiskWish
from virtuary.model.login import Login, LoginWish
from virtuary.model.memory import Memory, MemoryChange, MemoryWish
from virtuary.model.meta import Document, ImageName, Model, alone
from virtuary.model.network import MAX_NICS, USER, Nic, NicWish
from virtuary.model.policy import Policy, PolicyChange
from virtuary.model.publish import Publish
from virtuary.model.status import VmStatus

Power = Literal["running", "paused", "stopped"]
Sized = Literal["cpus", "memory", "disk"]
Arch = Literal["x86_64"]
Accel = Literal["auto", "kvm", "tcg"]
Firmware = Literal["auto", "bios", "uefi"]
CopyMode = Literal["overlay", "full", "live"]
"""overlay: a stopped server's disk becomes a layer below both. full: a disk of its own. live:
memory and disk of one that runs.
"""
NO_CLOUD_INIT = (
    "the image {image} has no cloud-init, and nobody else in it would read the user data"
)


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
    asked: int = Field(default=0, ge=0)
    """Counts how often it was asked for as it stood still; what made it halt before the last time
    holds no more.
    """
    restarts: int = Field(default=0, ge=0)
    """Counts restarts asked for; a running server started under a smaller count is restarted."""
    cpu: Annotated[Cpu, alone("count")] = Cpu()
    memory: Annotated[Memory, alone("size")] = Memory()
    disks: tuple[Annotated[Disk, alone("size")], ...] = Field(default=(Disk(),), min_length=1)
    """Its disks; the first is its root disk."""
    nics: tuple[Nic, ...] = Field(default=(Nic(),), min_length=1, max_length=MAX_NICS)
    """Its network interfaces; the first is there while it lives, the others can be plugged in and
    out.
    """
    publish: tuple[Publish, ...] = Field(default=(), max_length=ports.MOST)
    login: Login = Login()
    policy: Policy = Policy()
    arch: Arch = "x86_64"
    accel: Annotated[Accel, Applies.AT_START] = "auto"
    firmware: Firmware = "auto"
    machine: str = ""
    """QEMU machine type, pinned at creation so that an upgrade does not change the hardware."""
    cold: bool = False
    """Whether its first start is a boot in any case, never the resume of a warm template's copy."""
    origin: Origin | None = None
    """For a copy: of which server, and how."""

    @property
    def root(self) -> Disk:
        """The disk that it starts from."""
        return self.disks[ROOT]

    @property
    def sizes(self) -> dict[Sized, int | None]:
        """What its guest has to take or give when it changes."""
        return {"cpus": self.cpu.count, "memory": self.memory.size, "disk": self.root.size}

    def resized(self, what: Sized, size: int | None) -> VmSpec:
        """The same with another of `sizes`, validated."""
        match what:
            case "cpus":
                return self.but(cpu=self.cpu.but(count=size))
            case "memory":
                return self.but(memory=self.memory.but(size=size))
        return self.but(disks=(self.root.but(size=size), *self.disks[1:]))

    @model_validator(mode="after")
    def _disks_are_distinct(self) -> VmSpec:
        numbers = [disk.number for disk in self.disks]
        if len(set(numbers)) < len(numbers) or numbers[0] != ROOT:
            raise ValueError("each disk has a number of its own, the first of them 0")
        serials = [disk.serial for disk in self.disks]
        if twice := next((item for item in serials if serials.count(item) > 1), None):
            raise ValueError(f"two disks have the serial {twice}")
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
    """What a user may say when creating a server; everything else in the spec is decided by us.

    `cpu`, `memory` and a disk may be their size alone: `"memory": 1073741824` is
    `"memory": {"size": 1073741824}`.
    """

    name: str | None = None
    image: ImageName
    labels: dict[str, str] = Field(default_factory=dict)
    power: Power = "running"
    cpu: Annotated[CpuWish, alone("count")] = CpuWish()
    memory: Annotated[MemoryWish, alone("size")] = MemoryWish()
    disks: tuple[Annotated[DiskWish, alone("size")], ...] = Field(
        default=(), max_length=1 + MAX_DISKS
    )
    """Its disks. The first is its root disk, as the image has it when not given; each other one is
    made by its name.
    """
    nics: tuple[NicWish, ...] | None = Field(default=None, min_length=1, max_length=MAX_NICS)
    """Networks to join; the host's default one when not given."""
    publish: tuple[Publish, ...] = ()
    login: LoginWish = LoginWish()
    policy: Policy = Policy()
    arch: Arch = "x86_64"
    accel: Accel = "auto"
    firmware: Firmware = "auto"
    cold: bool = False

    @model_validator(mode="after")
    def _the_first_disk_is_the_root_disk(self) -> VmWish:
        root = self.disks[0] if self.disks else DiskWish()
        if root.but(size=None, io=DiskIo()) != DiskWish():
            raise ValueError(
                "the first of its disks is the root disk: it has a size and limits alone"
            )
        return self


class VmChange(Model):
    """What a user may change later; fields left out stay as they are, an explicit null takes a
    limit or floor away.
    """

    labels: dict[str, str] | None = None
    cpu: Annotated[CpuChange, alone("count")] = CpuChange()
    memory: Annotated[MemoryChange, alone("size")] = MemoryChange()
    disks: tuple[Annotated[DiskChange, alone("size")], ...] = ()
    """Disks to change; those that are not named stay."""
    nics: tuple[NicWish, ...] | None = Field(default=None, min_length=1, max_length=MAX_NICS)
    publish: tuple[Publish, ...] | None = None
    policy: PolicyChange = PolicyChange()
    accel: Accel | None = None

    @model_validator(mode="after")
    def _each_disk_is_named_once(self) -> VmChange:
        numbers = [disk.number for disk in self.disks]
        if len(set(numbers)) < len(numbers):
            raise ValueError("a disk is to be changed twice")
        return self


class VmCopy(Model):
    """What a user may say when copying a server; whatever is left out is as its source has it, but
    for published ports, autostart and protection: none.
    """

    name: str | None = None
    mode: CopyMode = "overlay"
    start: bool = False
    """Whether the copy of a stopped server is started; a live copy runs in any case."""
    labels: dict[str, str] | None = None
    cpu: Annotated[CpuChange, alone("count")] = CpuChange()
    memory: Annotated[MemoryChange, alone("size")] = MemoryChange()
    disks: tuple[Annotated[DiskChange, alone("size")], ...] = ()
    nics: tuple[NicWish, ...] | None = Field(default=None, min_length=1, max_length=MAX_NICS)
    """Networks to join; its source's when not given, with addresses of its own."""
    publish: tuple[Publish, ...] = ()
    policy: PolicyChange = PolicyChange()
    accel: Accel | None = None


class Vm(Document):
    prefix: ClassVar[str] = "vm"
    spec: VmSpec
    status: VmStatus = Field(default_factory=VmStatus)

    @property
    def wanted(self) -> Power:
        """What is to be now: what is wished, but that it halted since it was asked for last."""
        halted = self.status.power.halted
        return "stopped" if halted and halted.asked >= self.spec.asked else self.spec.power

    @property
    def awaits_user_data(self) -> bool:
        """Whether its guest is to be asked what became of the user data."""
        told = self.status.cloud_init
        return self.spec.login.user_data and (told is None or told.state not in ("done", "error"))

    @property
    def nics(self) -> tuple[Nic, ...]:
        """Its NICs as they are, the first one first: while it runs each leads where it led when it
        was plugged, and is known there by the same addresses. The rest is as wished. One that is to
        be taken out is among them until its guest lets go of it.
        """
        there = {nic.number: nic for nic in self.status.runtime.nics} if self.status.runtime else {}
        wished = tuple(nic.wired_as(there.pop(nic.number, nic)) for nic in self.spec.nics)
        return (*wished, *(nic.but(external=()) for nic in there.values()))
