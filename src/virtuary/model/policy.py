"""What becomes of a server when nobody is there to ask: at boot, at shutdown, when it ends."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from virtuary.model.meta import Model
from virtuary.model.patience import STOP_TIMEOUT

HostShutdown = Literal["shutdown", "off"]
RestartPolicy = Literal["always", "on-failure", "no"]


class Policy(Model):
    autostart: bool = False
    """Whether it is started when the host has booted."""
    boot_order: int = Field(default=0, ge=0, le=1000)
    """When the host boots lower ones are started first, and those of one order before the next;
    when it goes down the other way round.
    """
    on_host_shutdown: HostShutdown = "shutdown"
    """What becomes of it when the host goes down: its guest is asked to shut down, or the plug is
    pulled at once.
    """
    shutdown_timeout: float = Field(default=STOP_TIMEOUT, ge=0, le=3600)
    """Seconds that its guest has for that."""
    restart: RestartPolicy = "no"
    """When it is started again after it ended."""
    protect: bool = False
    """While set, deletion is refused."""


class PolicyChange(Model):
    """What of `Policy` is to be changed; what is left out stays."""

    autostart: bool | None = None
    boot_order: int | None = Field(default=None, ge=0, le=1000)
    on_host_shutdown: HostShutdown | None = None
    shutdown_timeout: float | None = Field(default=None, ge=0, le=3600)
    restart: RestartPolicy | None = None
    protect: bool | None = None
