"""What a server is given of its host's processors and storage traffic: a share, a limit and a
floor.

Percentages of processor time are of one CPU: 150 is one and a half. Weights share what nobody has a
claim to; 100 is the ordinary one. None means no limit.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from virtuary.base.units import MIB
from virtuary.model.applies import Applies
from virtuary.model.meta import Model

MAX_PERCENT = 100 * 1024
TRANSLATION = ((256 * MIB, 64), (512 * MIB, 128))
"""Memory of a machine, at most, and the MiB QEMU may use for translated code when it emulates that;
256 for larger ones. Only what is used counts. Measured: row TB of docs/benchmarks.md.
"""
Weight = Field(default=100, ge=1, le=10_000)
Pages = Literal["normal", "huge"]


def translation_buffer(memory: int) -> int:
    """MiB for the translated code of an emulated machine that begins with so many bytes of
    memory.
    """
    return next((size for most, size in TRANSLATION if memory <= most), 256)


class Cpu(Model):
    """Processor time, and how the virtual CPUs are arranged."""

    limit: int | None = Field(default=None, ge=1, le=MAX_PERCENT)
    """Percent of one CPU that its virtual CPUs may use together, however idle the host is."""
    weight: int = Weight
    """Its share beside others when there is not enough for all."""
    reserve: int = Field(default=0, ge=0, le=MAX_PERCENT)
    """Percent of one CPU that it gets whenever it wants them; counted when servers are admitted."""
    pin: tuple[int, ...] = Field(default=(), max_length=1024)
    """CPUs of the host its virtual CPUs may run on; empty for all."""
    node: Annotated[int | None, Applies.AT_START] = Field(default=None, ge=0, le=1023)
    """NUMA node of the host whose CPUs it runs on, unless it is pinned otherwise, and in whose
    memory it is started.
    """
    sockets: Annotated[int, Applies.AT_START] = Field(default=1, ge=1, le=64)
    threads: Annotated[int, Applies.AT_START] = Field(default=1, ge=1, le=8)
    """Of one core, as the guest sees it."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.limit is not None and self.reserve > self.limit:
            raise ValueError(f"a floor of {self.reserve} % lies above the limit of {self.limit} %")
        if any(number < 0 for number in self.pin) or len(set(self.pin)) != len(self.pin):
            raise ValueError("CPUs to pin to are different numbers from 0 on")
        return self


class DiskIo(Model):
    """Limits of what goes to and from its disk: operations and bytes a second, in all or by
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
    weight: int = Weight

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


class CpuChange(Model):
    """What of `Cpu` is to be changed; what is left out stays, an explicit null takes a limit
    away.
    """

    limit: int | None = None
    weight: int | None = None
    reserve: int | None = None
    pin: tuple[int, ...] | None = None
    node: int | None = None
    sockets: int | None = None
    threads: int | None = None


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
