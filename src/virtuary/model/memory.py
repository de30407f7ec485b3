"""A server's memory: how much, its bounds, and what it gets when nobody says."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from virtuary.base.units import GIB, MIB, format_size
from virtuary.model.applies import Applies
from virtuary.model.meta import Model

MIN_MEMORY, MAX_MEMORY = 64 * MIB, 16 * 1024 * GIB
DEFAULT_MEMORY = {"tiny": 128 * MIB}
LEAST_MEMORY = {"tiny": 72 * MIB, "debian": 192 * MIB}
"""Bytes of memory with which servers of an image that is built here still start, by what it is
built of: they do not with 64 MiB and 128 MiB.
"""
TRANSLATION = ((256 * MIB, 64), (512 * MIB, 128))
"""Memory of a machine, at most, and the MiB QEMU may use for translated code when it emulates that;
256 for larger ones. Only what is used counts. Measured: row TB of docs/benchmarks.md.
"""
Pages = Literal["normal", "huge"]


def default_memory(image: str) -> int:
    """Bytes of memory a server of this image gets when nobody says how much."""
    return DEFAULT_MEMORY.get(image, 1 * GIB)


def translation_buffer(memory: int) -> int:
    """MiB for the translated code of an emulated machine that begins with so many bytes of
    memory.
    """
    return next((size for most, size in TRANSLATION if memory <= most), 256)


class MemoryBounds(Model):
    """Between what its memory may be changed while it runs, and what pages it lies in."""

    max: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    """Bytes that it may be grown to while the server runs; None: what the host can give."""
    min: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    """Bytes that are never taken from it, however short the host is; None: what the host's
    overcommit leaves it.
    """
    pages: Annotated[Pages, Applies.AT_START] = "normal"
    merge: Annotated[bool, Applies.AT_START] = False
    """Whether pages that equal another server's may be kept once (KSM); slower, and one may learn
    what the other holds.
    """
    priority: int = Field(default=50, ge=0, le=100)
    """When the host runs out of memory, what has the lowest is taken from and paused first."""


class MemoryWish(MemoryBounds):
    """As it is asked for."""

    size: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    """Bytes; when not given, what servers of the image usually have."""


class Memory(MemoryBounds):
    size: Annotated[int, Applies.BY_GUEST] = Field(
        default=1 * GIB, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB
    )
    """Bytes."""

    @model_validator(mode="after")
    def _lies_between(self) -> Self:
        if self.max is not None and self.size > self.max:
            raise ValueError(
                f"{format_size(self.size)} of memory are more than the most it may have, "
                f"{format_size(self.max)}"
            )
        if self.min is not None and self.min > self.size:
            raise ValueError(
                f"a floor of {format_size(self.min)} lies above the memory, "
                f"{format_size(self.size)}"
            )
        return self


class MemoryChange(Model):
    """What of `Memory` is to be changed; what is left out stays, an explicit null takes a bound
    away.
    """

    size: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    max: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    min: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    pages: Pages | None = None
    merge: bool | None = None
    priority: int | None = Field(default=None, ge=0, le=100)
