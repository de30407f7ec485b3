"""What a server's host last saw of it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

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
