"""The configuration as one model; every field is documented here and in the reference."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from virtuary.base.errors import Invalid
from virtuary.base.units import GIB, MIB, parse_size
from virtuary.model.meta import Model


def _bytes(value: Any) -> Any:
    try:
        return parse_size(value) if isinstance(value, str) else value
    except Invalid as error:
        raise ValueError(error.sentence) from error


Size = Annotated[int, BeforeValidator(_bytes, json_schema_input_type=int | str), Field(ge=0)]
"""Bytes; in the file also as text such as "16GiB"."""


class ImageSettings(Model):
    mirrors: dict[str, str] = Field(
        default_factory=dict,
        description="publisher's host -> base URL of a mirror with the same layout",
    )
    allow_private: bool = Field(
        default=False,
        description="whether images may be fetched from private and loopback addresses",
    )


class TemplateSettings(Model):
    auto: bool = Field(
        default=True,
        description="whether an image is made warm in the background after its first launch",
    )
    patience: float = Field(
        default=400,
        gt=0,
        description="seconds a guest is given to boot, and again to settle, when a template is "
        "made",
    )
    max_disk: Size = Field(
        default=16 * GIB,
        description="disk space for warm templates in all; the oldest unused one goes first",
    )


class ResourceSettings(Model):
    """How much of the host is promised to servers, and what is kept from them."""

    cpu_overcommit: float = Field(
        default=32, gt=0, description="virtual CPUs of all running servers to one CPU of the host"
    )
    memory_overcommit: float = Field(
        default=1,
        ge=1,
        le=16,
        description="memory of all running servers to what the host can give; above 1 each is "
        "sure of that part only",
    )
    disk_overcommit: float = Field(
        default=4,
        gt=0,
        description="sizes of all disks to the pool's size; disks take space as they fill",
    )
    reserve_memory: Size | None = Field(
        default=None,
        description="memory kept for the host itself; a 32nd, at least 512 MiB, when not set",
    )
    reserve_cpu: int = Field(
        default=0, ge=0, description="percent of one CPU that is promised to nobody as a floor"
    )
    reserve_disk: Size | None = Field(
        default=None,
        description="free space below which no disk is made or grown; 5 % of the pool, at least "
        "1 GiB, at most a tenth, when not set",
    )
    patience: float = Field(
        default=60,
        gt=0,
        description="seconds a guest is given to take or give CPUs or memory before the change "
        "is taken back",
    )

    def memory_kept(self, total: int) -> int:
        """Bytes that are kept for a host which has `total`."""
        kept = self.reserve_memory
        return min(max(total // 32, 512 * MIB) if kept is None else kept, total)


class NetworkSettings(Model):
    default: str = Field(
        default="auto",
        description="network that a server joins when nobody says which: a network's name, "
        "`user`, or `auto`: the host's NAT network "
        "`default` where the host can have one, else `user`",
    )


class Settings(Model):
    network: NetworkSettings = Field(
        default_factory=NetworkSettings, description="networks of servers"
    )
    resources: ResourceSettings = Field(
        default_factory=ResourceSettings, description="what the host promises to servers"
    )
    templates: TemplateSettings = Field(
        default_factory=TemplateSettings, description="warm templates"
    )
    images: ImageSettings = Field(
        default_factory=ImageSettings, description="where images come from"
    )
