"""A server's disks. The first is its root disk, made from its image."""

from __future__ import annotations

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator

from virtuary.base.units import GIB, MIB
from virtuary.model.applies import Applies
from virtuary.model.cpu import Weight
from virtuary.model.meta import Model
from virtuary.model.pool import DEFAULT_POOL

MAX_DISK = 64 * 1024 * GIB
ROOT = 0
_SERIAL = r"[A-Za-z0-9][A-Za-z0-9._-]{0,19}"
MAX_DISKS = 8
"""So many can be attached besides the root disk."""
"""The number of the disk that a server starts from."""


def _check_serial(text: str) -> str:
    if not re.fullmatch(_SERIAL, text):
        raise ValueError(
            f"{text[:40]!r} is no serial: use 1 to 20 letters, digits and . _ -, for example DATA"
        )
    return text


Serial = Annotated[
    str,
    AfterValidator(_check_serial),
    WithJsonSchema({"type": "string", "pattern": f"^{_SERIAL}$"}),
]
"""What a virtio disk can tell its guest: it has room for twenty letters."""


class DiskIo(Model):
    """Limits of what goes to and from a disk: operations and bytes a second, in all or by
    direction.
    """

    iops: int | None = Field(default=None, ge=1, le=10**9)
    read_iops: int | None = Field(default=None, ge=1, le=10**9)
    write_iops: int | None = Field(default=None, ge=1, le=10**9)
    bandwidth: int | None = Field(default=None, ge=1024, le=10**12)
    read_bandwidth: int | None = Field(default=None, ge=1024, le=10**12)
    write_bandwidth: int | None = Field(default=None, ge=1024, le=10**12)
    burst: float = Field(default=1, ge=1, le=100)
    """How many times its limits it may use for a while, after it used less."""
    burst_seconds: int = Field(default=10, ge=1, le=3600)
    weight: Weight = 100

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for what in ("iops", "bandwidth"):
            if getattr(self, what) is not None and (
                getattr(self, f"read_{what}") or getattr(self, f"write_{what}")
            ):
                raise ValueError(f"a limit of {what} holds in all or by direction, not both")
        return self

    @property
    def limited(self) -> bool:
        return any(
            value is not None
            for name, value in self
            if name not in ("burst", "burst_seconds", "weight")
        )


class DiskIoChange(Model):
    """What of `DiskIo` is to be changed; what is left out stays, an explicit null takes a limit
    away.
    """

    iops: int | None = None
    read_iops: int | None = None
    write_iops: int | None = None
    bandwidth: int | None = None
    read_bandwidth: int | None = None
    write_bandwidth: int | None = None
    burst: float | None = None
    burst_seconds: int | None = None
    weight: int | None = None


class DiskShape(Model):
    size: Annotated[int | None, Applies.BY_GUEST] = Field(
        default=None, ge=1 * MIB, le=MAX_DISK, multiple_of=MIB
    )
    """Bytes; the image's own size when not given."""
    io: Annotated[DiskIo, Applies.AT_ONCE] = DiskIo()


class DiskWish(DiskShape):
    """As it is asked for with a new server."""

    name: str | None = None
    """Name of the disk, which is one of its own and outlives the server; the root disk, which is
    the first, has none.
    """
    pool: str = DEFAULT_POOL
    """Name of the pool in which it is to lie; the root disk lies in the default one."""
    serial: Serial | None = None
    """What its guest knows it by; its name when not given."""
    read_only: bool = False


class Disk(DiskShape):
    number: int = Field(default=ROOT, ge=0, le=MAX_DISKS)
    """Its place, which it keeps; the root disk's is 0."""
    volume: str = ""
    """Id of the volume that it is, whose size is its own affair; the root disk is none."""
    serial: str = "root"
    """What its guest knows it by."""
    read_only: bool = False

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        if self.volume and self.size is not None:
            raise ValueError("its size is a disk's own affair: virtuary disk resize")
        return self


class DiskChange(Model):
    """What of a disk is to be changed; what is left out stays."""

    number: int = Field(default=ROOT, ge=0, le=MAX_DISKS)
    """Which one: the root disk when not given."""
    size: int | None = Field(default=None, ge=1 * MIB, le=MAX_DISK, multiple_of=MIB)
    io: DiskIoChange = DiskIoChange()
