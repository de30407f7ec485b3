"""The configuration as one model; every field is documented here and in the reference."""

from __future__ import annotations

from pydantic import Field

from virtuary.model.meta import Model


class ImageSettings(Model):
    mirrors: dict[str, str] = Field(
        default_factory=dict, description="publisher's host -> base URL of a mirror with the same layout"
    )
    allow_private: bool = Field(default=False, description="whether images may be fetched from private and loopback addresses")


class Settings(Model):
    images: ImageSettings = Field(default_factory=ImageSettings, description="where images come from")
