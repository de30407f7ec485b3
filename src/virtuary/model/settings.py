"""The configuration as one model; every field is documented here and in the reference."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from virtuary.base.errors import Invalid
from virtuary.base.units import GIB, parse_size
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
        default_factory=dict, description="publisher's host -> base URL of a mirror with the same layout"
    )
    allow_private: bool = Field(default=False, description="whether images may be fetched from private and loopback addresses")


class TemplateSettings(Model):
    auto: bool = Field(default=True, description="whether an image is made warm in the background after its first launch")
    patience: float = Field(
        default=400, gt=0, description="seconds a guest is given to boot, and again to settle, when a template is made"
    )
    max_disk: Size = Field(default=16 * GIB, description="disk space for warm templates in all; the oldest unused one goes first")


class Settings(Model):
    templates: TemplateSettings = Field(default_factory=TemplateSettings, description="warm templates")
    images: ImageSettings = Field(default_factory=ImageSettings, description="where images come from")
