"""What a server's host last saw of it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field

from virtuary.model.disk import ROOT
from virtuary.model.meta import Model
from virtuary.model.runtime import Runtime

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
STAGES = ("image", "disk", "firmware", "kernel", "agent", "network", "ssh")
"""What a launch passes through, in this order; each is noted when a real signal shows it."""


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


class Halt(Model):
    """A server stands still, whatever is wished: it crashed, its guest shut down, its start was
    given up or cancelled. It does so until somebody asks for it again.
    """

    why: str
    since: datetime
    asked: int
    """How often it had been asked for (`spec.asked`) when that was decided."""


class PowerStatus(Model):
    """Its process. Written by node/power: of what others see, what node/server/parts.py says."""

    applied: int = 0
    """Generation of the spec that is in force: the one its process was started with."""
    crashes: tuple[Crash, ...] = ()
    """Crashes of the last ten minutes; five of them stop the restarting."""
    asked: int = 0
    """How often it had been asked for when its process was started last."""
    halted: Halt | None = None


class TuningStatus(Model):
    """Its limits and shares. Written by node/tuning."""

    gaps: Annotated[tuple[str, ...], OfProcess] = ()
    """What of its limits and shares this host can't give, in words."""


class PressureStatus(Model):
    """What its host does to it while that is short of memory. Written by node/memory: of what
    others see, what node/server/parts.py says.
    """

    reclaimed: Annotated[bool, OfProcess] = False
    """Whether its host, being short, has taken some of its memory for a while."""
    held: Annotated[MemoryHold | None, OfProcess] = None
    """Why its host has paused it, when it ran out of memory; it goes on by itself."""


class DiskStatus(Model):
    """One disk. Written by node/disks: of what others see happen, what node/server/parts.py
    says.
    """

    ready: bool = False
    size: int | None = None
    file: str = "disk.qcow2"
    """Its name in the server's folder; another one after it was copied, when what it had became a
    layer.
    """
    layers: tuple[str, ...] = ()
    """Files between the image and the disk itself, the lowest first; relative to the state folder,
    never changed.
    """
    base: bool = True
    """Whether the image lies below all of them; nothing does below a full copy."""


class OriginStatus(Model):
    """What a copy has of its source. Written by node/copies."""

    copied: bool = False
    """Whether its source has given what it is made of."""


class WarmStatus(Model):
    """How its first start goes. Written by node/warm: of what others see, what node/server/parts.py
    says.
    """

    template: str | None = None
    """Id of the warm template its disk was made on, whose copy its first start resumes."""
    cold: str | None = None
    """Why its first start booted, or will boot, instead of resuming a warm template's copy."""


class Refusal(Model):
    """A guest did not take a name, and the keys that were given with it."""

    name: str
    why: str


class IdentityStatus(Model):
    """Who its guest is. Written by node/identity: of what others see, what node/server/parts.py
    says.
    """

    given: str | None = None
    """The hostname whose identity has been given to the guest; None before the first time."""
    refused: Refusal | None = None
    """What the guest did not take when it was given last: it goes on as who it is, and is asked
    again later. Nothing is known of how it takes another name.
    """
    renew: bool = False
    """Whether its guest still is who its source is: its first start gives it another machine-id and
    other SSH host keys too.
    """

    def refuses(self, name: str) -> str | None:
        """Why the guest did not take this name; None where it did, or was not asked yet."""
        return self.refused.why if self.refused and self.refused.name == name else None


class VmStatus(Model):
    """What is known of a server, by parts. Each has one writer on the server's host, whom it names,
    and all of them are in the loop about it: whoever else wants something else of a server changes
    its spec.
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

    # ---- node/power
    runtime: Annotated[Runtime | None, OfProcess] = None

    # ---- each written by whom it names
    power: PowerStatus = Field(default_factory=PowerStatus)
    tuning: TuningStatus = Field(default_factory=TuningStatus)
    pressure: PressureStatus = Field(default_factory=PressureStatus)
    disks: dict[int, DiskStatus] = Field(default_factory=lambda: {ROOT: DiskStatus()})
    """Its disks by number, the root disk among them in any case."""
    origin: OriginStatus = Field(default_factory=OriginStatus)
    warm: WarmStatus = Field(default_factory=WarmStatus)
    identity: IdentityStatus = Field(default_factory=IdentityStatus)

    @property
    def layers(self) -> set[str]:
        """All files that lie between an image and one of its disks."""
        return {layer for disk in self.disks.values() for layer in disk.layers}

    @property
    def disk(self) -> DiskStatus:
        """The root disk."""
        return self.disks[ROOT]

    def but(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated. Of a part, and of each disk, a dict names
        what changes, `but(identity={"given": name})`; a disk that becomes None is gone.
        """
        changes = {name: _part(getattr(self, name, None), new) for name, new in changes.items()}
        if disks := changes.get("disks"):
            now = {**self.disks, **{key: _part(self.disks.get(key), disks[key]) for key in disks}}
            changes["disks"] = {key: disk for key, disk in now.items() if disk is not None}
        return super().but(**changes)

    def without_process(self, **changes: Any) -> Self:
        """The same when its process is over, with these changes."""
        return _over(self).but(**changes)


M = TypeVar("M", bound=Model)


def _part(now: object, new: object) -> object:
    return now.but(**new) if isinstance(now, Model) and isinstance(new, dict) else new


def _over(part: M) -> M:
    """A part without what was true of a process only. Pure."""
    changes: dict[str, object] = {}
    for name, field in type(part).model_fields.items():
        now = getattr(part, name)
        if OfProcess in field.metadata:
            changes[name] = field.get_default(call_default_factory=True)
        elif isinstance(now, Model):
            changes[name] = _over(now)
    return part.but(**changes)
