"""A disk that is a document of its own: it outlives the servers it is attached to.

The root disk of a server is made with the server and goes with it. What the command line calls a
disk is a volume here, so that it is not taken for the place in a server's list that it has
(`model/disk.py`).
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from pydantic import Field

from virtuary.base.units import MIB
from virtuary.model.disk import MAX_DISK, Serial
from virtuary.model.meta import Document, Model
from virtuary.model.pool import DEFAULT_POOL

VolumeState = Literal["creating", "ready", "failed"]


class Attachment(Model):
    """A server that holds the volume: from when it is asked for until its machine let go."""

    server: str
    """The server's id."""
    since: datetime


class VolumeSpec(Model):
    size: int = Field(ge=1 * MIB, le=MAX_DISK, multiple_of=MIB)
    """Bytes. It only grows."""
    owner: str = ""
    """Id of the host in whose pool it lies."""
    pool: str = ""
    """Id of the pool in which it lies; empty for the default one."""
    attached: tuple[Attachment, ...] = ()
    """By whom it is held. It is written with the server's list of disks, in one transaction: of two
    who want the same volume one is refused.
    """

    def holds(self, server: str) -> bool:
        return any(item.server == server for item in self.attached)


class VolumeStatus(Model):
    """What became of it. Its worker on the owner's host writes it; while a machine has it, that
    server's.
    """

    state: VolumeState = "creating"
    reason: str | None = None
    size: int | None = None
    """Bytes that it has."""


class Volume(Document):
    prefix: ClassVar[str] = "disk"
    spec: VolumeSpec
    status: VolumeStatus = VolumeStatus()

    @property
    def promised(self) -> int:
        """Bytes of its pool that it may come to take."""
        return max(self.spec.size, self.status.size or 0)

    @property
    def usable(self) -> bool:
        """Whether a machine can be given it as it is wished."""
        return self.status.state == "ready" and (self.status.size or 0) >= self.spec.size

    def let_go(self, server: str) -> Volume:
        """The same, not held by that server any more."""
        left = tuple(item for item in self.spec.attached if item.server != server)
        return self.but(spec=self.spec.but(attached=left))


class VolumeWish(Model):
    """What a user may say when creating one."""

    name: str
    size: int = Field(ge=1 * MIB, le=MAX_DISK, multiple_of=MIB)
    pool: str = DEFAULT_POOL
    """Name of the pool in which it is to lie."""
    labels: dict[str, str] = Field(default_factory=dict)


class VolumeChange(Model):
    """What a user may change later; fields left out stay as they are."""

    size: int | None = Field(default=None, ge=1 * MIB, le=MAX_DISK, multiple_of=MIB)
    labels: dict[str, str] | None = None


class AttachWish(Model):
    """How a server is to have a volume."""

    server: str
    """Name or id."""
    serial: Serial | None = None
    """What its guest knows it by, as /dev/disk/by-id/virtio-SERIAL; the disk's name when not
    given.
    """
    read_only: bool = False
