"""An image: the disk a virtual server starts from, immutable once ready."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from pydantic import Field

from virtuary.model.meta import Document, ImageName, Model


class ImageSource(Model):
    """Where an image comes from; one of the four ways."""

    kind: Literal["build", "pull", "url", "file"]
    recipe: Literal["tiny", "debian"] | None = None
    release: str = ""
    packages: tuple[str, ...] = Field(default=(), max_length=200)
    entry: str = ""
    """Catalogue name, for `pull`."""
    url: str = Field(default="", max_length=2048)
    sha256: str = ""
    path: str = Field(default="", max_length=4096)
    """File of the host, for `file`; read as the daemon's user."""
    format: str = ""
    """Format the user states for a file; asked of the header when empty."""


class ImageSpec(Model):
    source: ImageSource
    arch: str = "x86_64"


class ImageStatus(Model):
    state: Literal["absent", "making", "ready", "failed"] = "absent"
    reason: str | None = None
    format: str = "qcow2"
    virtual_size: int = 0
    size: int = 0
    """Bytes the files occupy on disk."""
    sha256: str = ""
    boot: Literal["disk", "direct"] = "disk"
    kernel_args: str = ""
    firmware: tuple[str, ...] = ("bios",)
    agent: bool = False
    """Whether the image brings the QEMU guest agent."""
    cloud_init: bool = False
    user: str = "root"
    """Whom the shell logs in as."""
    os: str = ""
    made: datetime | None = None
    used: datetime | None = None


class Image(Document):
    prefix: ClassVar[str] = "image"
    spec: ImageSpec
    status: ImageStatus = Field(default_factory=ImageStatus)


class ImageWish(Model):
    """What a user may say when asking for an image to be made, pulled or imported."""

    name: ImageName
    source: ImageSource
