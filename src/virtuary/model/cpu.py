"""A server's processors: how many, how they are arranged, and what they are given of their host's.

Percentages of processor time are of one CPU: 150 is one and a half. Weights share what nobody has a
claim to; 100 is the ordinary one. None means no limit.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from virtuary.model.applies import Applies
from virtuary.model.meta import Model

MAX_PERCENT = 100 * 1024
MAX_CPUS = 255
Weight = Annotated[int, Applies.AT_ONCE, Field(ge=1, le=10_000)]


class CpuShares(Model):
    """Processor time, and how the virtual CPUs are arranged."""

    limit: Annotated[int | None, Applies.AT_ONCE] = Field(default=None, ge=1, le=MAX_PERCENT)
    """Percent of one CPU that its virtual CPUs may use together, however idle the host is."""
    weight: Weight = 100
    """Its share beside others when there is not enough for all."""
    reserve: Annotated[int, Applies.AT_ONCE] = Field(default=0, ge=0, le=MAX_PERCENT)
    """Percent of one CPU that it gets whenever it wants them; counted when servers are admitted."""
    pin: Annotated[tuple[int, ...], Applies.AT_ONCE] = Field(default=(), max_length=1024)
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


class CpuWish(CpuShares):
    """As it is asked for."""

    count: int | None = Field(default=None, ge=1, le=MAX_CPUS)
    """Virtual CPUs; when not given, as many as its sockets and threads make."""


class Cpu(CpuShares):
    count: Annotated[int, Applies.BY_GUEST] = Field(default=1, ge=1, le=MAX_CPUS)
    """Virtual CPUs."""

    @property
    def shares(self) -> CpuShares:
        """What its host gives them."""
        return CpuShares.model_validate(self.model_dump(exclude={"count"}))

    @model_validator(mode="after")
    def _can_be_arranged(self) -> Self:
        each = self.sockets * self.threads
        if self.count % each:
            raise ValueError(
                f"{self.count} CPUs can't be {self.sockets} sockets of cores with "
                f"{self.threads} threads: use a multiple of {each}"
            )
        return self


class CpuChange(Model):
    """What of `Cpu` is to be changed; what is left out stays, an explicit null takes a limit
    away.
    """

    count: int | None = None
    limit: int | None = None
    weight: int | None = None
    reserve: int | None = None
    pin: tuple[int, ...] | None = None
    node: int | None = None
    sockets: int | None = None
    threads: int | None = None
