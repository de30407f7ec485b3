"""A virtualization host: the machine a daemon runs on."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from virtuary.model.meta import Document, Model


class Check(Model):
    """One thing a launch depends on, as `doctor` reports it."""

    name: str
    state: Literal["ok", "note", "missing"]
    """`note`: works, but weaker or slower than it could; `missing`: something can't work."""
    found: str
    remedy: str | None = None


class HostStatus(Model):
    mode: Literal["user", "system"]
    version: str
    cpus: int
    memory: int
    memory_available: int
    disk: int
    disk_free: int
    vms: int = 0
    vms_running: int = 0
    memory_promised: int = 0
    """Bytes of memory of the servers that run."""
    accel: str = ""
    accel_reason: str = ""
    qemu: str = ""
    level: str = ""
    kernel: str = ""
    system: str = ""


class Host(Document):
    prefix: ClassVar[str] = "host"
    status: HostStatus | None = Field(default=None)
