"""Processors: how many there are, how the guest sees them arranged, and what executes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from virtuary.qemu.parts import Grants
from virtuary.qemu.platforms.platform import Platform

Accel = Literal["kvm", "tcg"]


@dataclass(frozen=True)
class Cpus:
    count: int
    most: int = 0
    """CPUs it can be given while it runs; no more than it begins with when 0."""
    sockets: int = 1
    threads: int = 1
    """Of a core, as the guest sees it."""

    @property
    def limit(self) -> int:
        """CPUs that there can ever be."""
        return max(self.count, self.most)

    @property
    def option(self) -> str:
        """Cores and threads of sockets; with room for more, in whole sockets, where the machine
        can grow.
        """
        each = self.sockets * self.threads
        most = max(self.most // each * each, self.count)
        growth = f",maxcpus={most}" if most > self.count else ""
        shape = f"sockets={self.sockets},cores={most // each},threads={self.threads}"
        return f"cpus={self.count}{growth},{shape}"


def model(accel: Accel, platform: Platform) -> str:
    return platform.kvm_cpu if accel == "kvm" else platform.tcg_cpu


def accelerator(accel: Accel, buffer: int, grants: Grants) -> str:
    """`buffer`: MiB for translated code, where it is emulated."""
    if accel == "kvm":
        return f"kvm,device={grants.add('kvm', Path('/dev/kvm'), 'rw').fdset}"
    return f"tcg,thread=multi,tb-size={buffer}"
