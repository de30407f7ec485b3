"""Routes about images."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from virtuary.actions import images
from virtuary.actions.context import find_image
from virtuary.api.deps import MAX_PAGE, PAGE, Ctx, P, accepted, answer, body_of, page, replay
from virtuary.model.image import ImageWish
from virtuary.model.operation import Operation

router = APIRouter(prefix="/v1/images", tags=["images"])


@router.get("")
async def list_images(parts: P, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE, cursor: str = "") -> Response:
    found = parts.store.list("image/", after=cursor, limit=limit + 1)
    return page(found.records, limit, found.revision)


@router.post("", status_code=202)
async def create_image(ctx: Ctx, wish: ImageWish) -> Response:
    """Have an image built, pulled or fetched."""
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    image, operation = await images.create(ctx, wish)
    return accepted(operation, {"image": body_of(image)})


@router.get("/{name}")
async def show_image(parts: P, name: str) -> Response:
    return answer(find_image(parts.store, images.canonical(name)))


@router.delete("/{name}", status_code=202)
async def delete_image(ctx: Ctx, name: str) -> Response:
    """Remove an image no server uses."""
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    return accepted(await images.delete(ctx, name))
