"""The process that a server is right now, and how far it can grow."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from virtuary.model.disk import Disk
from virtuary.model.memory import MIN_MEMORY
from virtuary.model.meta import Model
from virtuary.model.network import Nic


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
    disks: tuple[Disk, ...] = ()
    """The disks it has besides the root disk, as they were plugged."""
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
