"""A warm template: an image booted once and saved with its memory; servers start by resuming copies
of it.
"""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from pydantic import Field

from virtuary.model.meta import Document, ImageName, Model
from virtuary.model.vm import Arch

WAKE_PORT = "org.virtuary.wake"
"""Name of the virtio port at which a template's guest waits until a copy of it is told who it is.
"""


class TemplateSpec(Model):
    image: ImageName
    image_id: str
    memory: int
    """Bytes its copies begin with; they can grow from there."""
    arch: Arch = "x86_64"
    accel: Literal["kvm", "tcg"]
    firmware: Literal["bios", "uefi"]


class TemplateStatus(Model):
    state: Literal["absent", "making", "ready", "failed", "retired"] = "absent"
    """`retired`: its memory is gone and nothing is resumed from it; its disk stays while servers
    stand on it.
    """
    reason: str | None = None
    key: str = ""
    """Digest of everything that must match for a copy to be resumed: image, engine, processor,
    devices.
    """
    size: int = 0
    """Bytes its files occupy on disk."""
    disk_size: int = 0
    made: datetime | None = None
    took: float | None = None
    """Seconds its making took."""


class Template(Document):
    prefix: ClassVar[str] = "template"
    local: ClassVar[tuple[str, ...]] = tuple(TemplateStatus.model_fields)
    spec: TemplateSpec
    status: TemplateStatus = Field(default_factory=TemplateStatus)

    @property
    def layer(self) -> str:
        """Its disk, relative to the state folder: what lies below the disks of its copies."""
        return f"templates/{self.id}/disk.qcow2"
