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
    release: Literal["", "12", "13"] = ""
    packages: tuple[str, ...] = Field(default=(), max_length=200)
    entry: str = Field(default="", max_length=100)
    """Catalogue name, for `pull`."""
    url: str = Field(default="", max_length=2048)
    sha256: str = Field(default="", pattern=r"^([0-9a-fA-F]{64})?$")
    path: str = Field(default="", pattern=r"^(upload-[0-9a-f-]{36})?$")
    """Name of an upload in the daemon's downloads, for `file`; chosen by the daemon."""
    format: Literal["", "qcow2", "raw", "vmdk", "vhdx", "vhd", "vdi"] = ""
    """Format stated by whoever brings the file; read from its header when empty."""
    firmware: Literal["", "bios", "uefi"] = ""
    user: str = Field(default="", pattern=r"^([a-z_][a-z0-9_-]{0,31})?$")
    """Whom the shell logs in as."""
    agent: bool = False
    cloud_init: bool = True


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

    @property
    def makes_login(self) -> bool:
        """Whether only cloud-init, at a boot, makes the user whom the shell logs in as, and lets
        our key in.
        """
        return self.cloud_init and self.user not in ("", "root")


class Image(Document):
    prefix: ClassVar[str] = "image"
    local: ClassVar[tuple[str, ...]] = ("state", "reason", "size", "made", "used")
    spec: ImageSpec
    status: ImageStatus = Field(default_factory=ImageStatus)


class ImageWish(Model):
    """What a user may say when asking for an image to be made, pulled or imported."""

    name: ImageName
    source: ImageSource
