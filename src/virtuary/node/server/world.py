"""The world of one server as one frozen value: its documents, and the facts that each capability
found about it. Input of every planner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from virtuary.model.cpu import CpuShares
from virtuary.model.disk import ROOT, DiskIo
from virtuary.model.image import Image
from virtuary.model.operation import Operation
from virtuary.model.status import CloudInit
from virtuary.model.vm import Vm
from virtuary.model.volume import Volume


class Tuning(NamedTuple):
    """Limits and shares: what the host does to a machine without asking its guest."""

    cpu: CpuShares
    io: DiskIo
    cpus: int
    """How many virtual CPUs share the limit; a new one has a thread of its own."""
    merge: bool = False
    """Whether equal pages are to be kept once, which is the host's kernel's to do."""
    others: tuple[tuple[int, DiskIo], ...] = ()
    """Limits of the traffic of its other disks, of those that are there and have any."""

    @property
    def limits(self) -> dict[int, DiskIo]:
        """Limits of traffic by the disks' numbers."""
        return dict(self.others) | ({ROOT: self.io} if self.io.limited else {})


@dataclass(frozen=True)
class ProcessFacts:
    """QEMU's process, and what its monitor said."""

    state: Literal["absent", "alive", "stray"] = "absent"
    """`stray`: a QEMU of this server runs, but no record says so; it never executed the guest."""
    connected: bool = False
    qemu: str | None = None
    """QEMU's run state as last heard."""
    silent: bool = False
    exit_status: int | None = None
    last_words: str = ""
    """What QEMU wrote to stderr last."""
    age: float = 0.0
    """Seconds for which the machine has been there, whatever the host's clock was set to."""
    asked_to_stop: float | None = None
    """Monotonic time at which the guest was first asked to shut down."""
    asked_last: float = 0.0


@dataclass(frozen=True)
class GuestFacts:
    """What was heard from the guest in this run."""

    signals: Mapping[str, float] = field(default_factory=dict)
    """Stage -> seconds since the start at which it was heard."""
    addresses: tuple[str, ...] = ()
    wakes: bool = False
    """Whether the guest waits at its port to be told who it is."""
    behind: float = 0.0
    """Seconds by which its clock is behind since it stood still, as far as nobody has set it."""
    clock_fault: str | None = None
    cloud_init: CloudInit | None = None
    """What became of the user data, once the guest was asked in this daemon's life."""


@dataclass(frozen=True)
class NetworkFacts:
    state: Literal["ready", "creating", "failed", "gone"] = "ready"
    """The worst of the networks that its NICs are on."""
    why: str = ""
    failing: float = 0.0
    """Seconds for which that network has been seen failed."""
    served: bool = True
    """Whether a process that serves its first NIC lives."""


@dataclass(frozen=True)
class DiskFacts:
    files: frozenset[str] = frozenset()
    """Which of disk, seed, firmware-vars, state are there; and leftover, when something is that is
    of no more use.
    """
    space: bool = True
    """Whether the pool has room again for a machine that was paused because it had none."""


@dataclass(frozen=True)
class VolumeFacts:
    listed: Mapping[int, Volume | None] = field(default_factory=dict)
    """The volumes that its list of disks names, by their numbers; None for one that is gone."""
    holding: tuple[Volume, ...] = ()
    """Those that are held for it."""
    away: Mapping[str, str] = field(default_factory=dict)
    """Of those that are held, by id, why their files are not there."""
    lost: frozenset[int] = frozenset()
    """The numbers of disks that the machine had and has not any more: its guest let go of them
    late, or unasked, or it was never plugged.
    """
    plugged_known: bool = False
    """Whether it is known which disks the machine has."""


@dataclass(frozen=True)
class CopyFacts:
    waiting: tuple[Vm, ...] = ()
    """Servers that are to be copies of this one and wait for what it has to give, the first asked
    for first.
    """
    source: Vm | None = None
    """The server this one waits to be a copy of, while that is there."""
    held: bool = False
    """Whether its source is handing over what it is made of just now: nobody else touches it."""


@dataclass(frozen=True)
class TuningFacts:
    tuned: Tuning | None = None
    """Limits and shares its process was given last; None when that is not known."""
    cpus: int | None = None
    memory: int | None = None
    """What the machine has now, by QEMU; None while that is not known."""
    refused: Mapping[str, object] = field(default_factory=dict)
    """What of cpus, memory, disk and identity its guest would not take lately, and how much."""


@dataclass(frozen=True)
class TurnFacts:
    leaving: bool = False
    """Whether it is its turn to shut down, because its host does."""
    waits: Literal["", "down", "boot"] = ""
    """Why it is not to start now: the host goes down, or it has booted and others are first."""


@dataclass(frozen=True)
class SlowFacts:
    usual: Mapping[str, float] = field(default_factory=dict)
    """Seconds that the stages of its start usually take; empty where it is not being started."""
    explained: float = -math.inf
    """Monotonic time at which it was looked last into why its start takes so long."""


@dataclass(frozen=True)
class World:
    vm: Vm
    wall: datetime
    now: float
    """Monotonic seconds."""
    mine: bool = True
    """Whether this host is the one that lets the server run."""
    image: Image | None = None
    operation: Operation | None = None
    """The oldest operation on this server that has not ended."""
    image_operation: Operation | None = None
    """The operation that makes the image, if one is under way."""
    process: ProcessFacts = ProcessFacts()
    guest: GuestFacts = GuestFacts()
    network: NetworkFacts = NetworkFacts()
    disks: DiskFacts = DiskFacts()
    volumes: VolumeFacts = VolumeFacts()
    copies: CopyFacts = CopyFacts()
    tuning: TuningFacts = TuningFacts()
    turn: TurnFacts = TurnFacts()
    slow: SlowFacts = SlowFacts()

    @property
    def absent(self) -> bool:
        return self.process.state == "absent"

    @property
    def alive(self) -> bool:
        return self.process.state == "alive"

    @property
    def takes_devices(self) -> bool:
        """Whether there is a machine that is to go on, and not one that waits for its state: one
        that devices may be plugged into.
        """
        there = self.alive and self.process.connected
        stopping = self.vm.wanted == "stopped" or self.restart_due
        return there and not stopping and self.process.qemu not in (None, "inmigrate")

    @property
    def restart_due(self) -> bool:
        """Whether it runs from before the last restart that was asked for."""
        runtime = self.vm.status.runtime
        return runtime is not None and runtime.restarts < self.vm.spec.restarts

    @property
    def identity_wanted(self) -> bool:
        """Whether the guest still has to be given its identity by agent."""
        status, name = self.vm.status, self.vm.name
        differs = bool(self.image and self.image.status.agent and status.identity.given != name)
        refused = status.identity.refuses(name) and self.tuning.refused.get("identity") == name
        return differs and not refused

    @property
    def ready(self) -> bool:
        """Whether a shell is possible, as far as this image can tell."""
        if not self.alive or self.process.qemu != "running" or self.image is None:
            return False
        if self.image.status.agent and ("agent" not in self.guest.signals or self.identity_wanted):
            return False
        return "ssh" in self.guest.signals
