"""All that decides a machine's command line, as one value made of small ones.

Resolved: no defaults are left to choose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from virtuary.qemu.devices.balloon import Balloon
from virtuary.qemu.devices.disk import Disk
from virtuary.qemu.devices.firmware import Flash
from virtuary.qemu.devices.generation import Generation
from virtuary.qemu.devices.kernel import Kernel
from virtuary.qemu.devices.memory import Memory
from virtuary.qemu.devices.nic import Nic
from virtuary.qemu.devices.processor import Accel, Cpus
from virtuary.qemu.devices.seed import Seed
from virtuary.qemu.devices.state import State
from virtuary.qemu.platforms.platform import Platform


@dataclass(frozen=True)
class Machine:
    uuid: str
    platform: Platform
    type: str
    """The versioned machine type, such as pc-q35-10.0."""
    accel: Accel
    cpus: Cpus
    memory: Memory
    disks: tuple[Disk, ...]
    """The root disk first."""
    nics: tuple[Nic, ...]
    runtime: Path
    """Folder of the listening sockets."""
    firmware: Flash | None = None
    """None: the BIOS that QEMU brings."""
    kernel: Kernel | None = None
    """None: the firmware finds a system on a disk."""
    seed: Seed | None = None
    balloon: Balloon = field(default_factory=Balloon)
    generation: Generation = field(default_factory=Generation)
    wakes: bool = False
    """Whether it has the channel at which a guest waits for the identity of a copy."""
    state: State | None = None
    """What it is saved to or goes on from; None: it boots, and is never saved as a template."""

    @property
    def root(self) -> Disk:
        return self.disks[0]
