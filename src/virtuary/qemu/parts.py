"""A device is one dict: what every part of a virtual machine is described by.

The same dict becomes JSON on QEMU's command line at boot and the arguments of a QMP command at run
time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

from virtuary.jail.walls import Bounds

Kind = Literal["object", "blockdev", "netdev", "chardev", "device"]
Mode = Literal["ro", "wo", "rw", "socket", "given"]


class Part(NamedTuple):
    kind: Kind
    args: dict[str, Any]


class Grant(NamedTuple):
    """A file or socket the daemon opens afresh for one launch and hands over as a descriptor.

    `role` names it in parts; `number` is the descriptor inside QEMU. A `socket` is bound and
    listening. What is `given` is no file: whoever starts the machine has the descriptor, and `path`
    is only its name.
    """

    role: str
    number: int
    path: Path
    mode: Mode

    @property
    def fdset(self) -> str:
        """How `-blockdev` and `-accel` name it."""
        return f"/dev/fdset/{self.number}"

    @property
    def flags(self) -> int:
        access = {"ro": os.O_RDONLY, "wo": os.O_WRONLY}.get(self.mode, os.O_RDWR)
        return access | os.O_CLOEXEC


FIRST_DESCRIPTOR = 20


class Grants:
    """Collects the grants of one machine and numbers them in order, so that the same machine gives
    the same line. `runtime`: folder of the machine's sockets.
    """

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.all: list[Grant] = []

    def add(self, role: str, path: Path, mode: Mode) -> Grant:
        grant = Grant(role, FIRST_DESCRIPTOR + len(self.all), path, mode)
        self.all.append(grant)
        return grant

    def listen(self, role: str) -> Grant:
        """A socket of this role, at which QEMU is listening from its start."""
        return self.add(role, self.runtime / role, "socket")


class Parts(NamedTuple):
    """A whole machine as data: settings that QEMU takes as plain options, parts, and what must be
    opened for it.
    """

    settings: list[tuple[str, str]]
    parts: list[Part]
    grants: list[Grant]
    readable: list[Path]
    """Files that QEMU opens itself by path inside its jail (kernel, initrd)."""
    bounds: Bounds
    """What its process may use at most, as far as no control group says it."""
    memory: int
    """Bytes that all its processes may have together."""
