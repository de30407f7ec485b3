"""A pool: a directory of this host in which disks lie, besides the default one in the state
folder.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from pydantic import Field

from virtuary.model.meta import Document, Model

DEFAULT_POOL = "default"
"""The pool in the state folder: it has no document, and every root disk lies in it."""


class PoolSpec(Model):
    path: str
    """Absolute path of the directory on the owner's host."""
    owner: str = ""
    """Id of the host whose directory it is."""
    reserve: int | None = Field(default=None, ge=0, le=1 << 62)
    """Bytes that stay free; None: by the rule that holds for the default pool."""
    ratio: float = Field(default=1, ge=1, le=100)
    """How many times its space may be promised to disks, which take it as they are written to."""


class Pool(Document):
    prefix: ClassVar[str] = "pool"
    spec: PoolSpec


class PoolSpace(NamedTuple):
    """Bytes in a pool."""

    size: int
    free: int
    kept: int
    """What stays free."""

    @property
    def usable(self) -> int:
        return max(self.size - self.kept, 0)


class PoolWish(Model):
    """What a user may say when creating one."""

    name: str
    path: str = Field(min_length=1, max_length=4096)
    reserve: int | None = Field(default=None, ge=0, le=1 << 62)
    ratio: float = Field(default=1, ge=1, le=100)


class PoolChange(Model):
    """What a user may change later; fields left out stay as they are."""

    reserve: int | None = Field(default=None, ge=0, le=1 << 62)
    ratio: float | None = Field(default=None, ge=1, le=100)
