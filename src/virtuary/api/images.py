"""Routes about images."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import Query, Request
from pydantic import Field
from starlette.responses import Response

from virtuary.actions import images
from virtuary.actions.context import find_image
from virtuary.api import answers
from virtuary.api.deps import (
    MAX_PAGE,
    PAGE,
    Ctx,
    DryRun,
    P,
    UploadCtx,
    accepted,
    answer,
    body_of,
    page,
    replay,
)
from virtuary.api.routing import make_router
from virtuary.base.errors import Invalid
from virtuary.base.units import MAX_SIZE, MIB
from virtuary.model.image import Image, ImageSource, ImageWish
from virtuary.model.memory import MAX_MEMORY, MIN_MEMORY
from virtuary.model.meta import Model
from virtuary.model.operation import Operation
from virtuary.model.template import Template
from virtuary.node.touch import touch
from virtuary.store import documents

UPLOAD_CAP = MAX_SIZE
"""Bytes of an image that is brought; how much room there is decides sooner."""


FILE = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class ImportFacts(Model):
    """What only whoever brings an image can know."""

    format: Literal["", "qcow2", "raw", "vmdk", "vhdx", "vhd", "vdi"] = ""
    sha256: str = Field(default="", pattern=r"^([0-9a-fA-F]{64})?$")
    firmware: Literal["", "bios", "uefi"] = ""
    user: str = Field(default="", pattern=r"^([a-z_][a-z0-9_-]{0,31})?$")
    agent: bool = False
    cloud_init: bool = True


router = make_router("/v1/images", tags=["images"])
templates = make_router("/v1/templates", tags=["images"])


@router.get("", response_model=answers.Images)
async def list_images(
    parts: P, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE, cursor: str = ""
) -> Response:
    return page(documents.page(parts.store, Image, cursor, limit + 1), limit)


@router.post("", status_code=202, response_model=answers.AcceptedImage)
async def create_image(ctx: Ctx, parts: P, wish: ImageWish) -> Response:
    """Have an image built, pulled or fetched."""
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    touch.check_source(parts.node.site, wish.source)
    image, operation = await images.create(ctx, wish)
    return accepted(operation, {"image": body_of(image)})


@router.put(
    "/{name}/content",
    status_code=202,
    max_body_size=UPLOAD_CAP,
    response_model=answers.AcceptedImage,
    openapi_extra=FILE,
)
async def import_image(
    ctx: UploadCtx, parts: P, request: Request, name: str, facts: Annotated[ImportFacts, Query()]
) -> Response:
    """Bring an image: the body is the file as it is (qcow2, raw, vmdk, vhdx, vhd or vdi). It is
    checked, then converted.
    """
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    length = int(request.headers.get("content-length", "0"))
    if length == 0:
        raise Invalid("the length of the file must be given and more than 0")
    wish = ImageWish(name=name, source=ImageSource(kind="file", **facts.model_dump()))
    images.check_new(ctx, wish)
    upload = await touch.receive(parts.node.site, request.stream(), length)
    image, operation = await images.create(ctx, wish.but(source=wish.source.but(path=upload)))
    return accepted(operation, {"image": body_of(image)})


class WarmParams(Model):
    memory: int | None = Field(default=None, ge=MIN_MEMORY, le=MAX_MEMORY, multiple_of=MIB)
    """Bytes its copies begin with; the image's default when not given. They can grow from there."""


@router.post("/{name}/actions/warm", status_code=202, response_model=answers.AcceptedTemplate)
async def warm_image(ctx: Ctx, name: str, params: WarmParams | None = None) -> Response:
    """Boot the image once and save it with its memory: servers then start by resuming copies of
    it.
    """
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    template, operation = await images.warm(ctx, name, params.memory if params else None)
    return accepted(operation, {"template": body_of(template)})


@router.post("/{name}/actions/cool", response_model=answers.Cooled)
async def cool_image(ctx: Ctx, name: str) -> Response:
    """Remove the image's warm templates."""
    found = [] if replay(ctx) else await images.cool(ctx, name)
    return Response(
        json.dumps({"items": [body_of(template) for template in found]}),
        200,
        media_type="application/json",
    )


@templates.get("", response_model=answers.Templates)
async def list_templates(
    parts: P, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE, cursor: str = ""
) -> Response:
    """Warm templates: what there is, and what became of one that could not be made."""
    return page(documents.page(parts.store, Template, cursor, limit + 1), limit)


@router.get("/{name}", response_model=Image)
async def show_image(parts: P, name: str) -> Response:
    return answer(find_image(parts.store, touch.canonical(name)))


@router.delete(
    "/{name}",
    status_code=202,
    response_model=answers.Accepted,
    responses={200: {"model": Image, "description": "With dry_run: it can be deleted"}},
)
async def delete_image(ctx: Ctx, name: str, dry_run: DryRun = False) -> Response:
    """Remove an image no server uses."""
    if dry_run:
        return answer(images.deletable(ctx, name))
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    return accepted(await images.delete(ctx, name))
