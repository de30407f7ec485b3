"""Routes about disks that are documents of their own."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import Header, Query
from starlette.responses import Response

from virtuary.actions import volumes
from virtuary.api import answers
from virtuary.api.deps import (
    MAX_PAGE,
    PAGE,
    Ctx,
    DryRun,
    P,
    accepted,
    answer,
    body_of,
    page,
    replay,
    wanted_revision,
)
from virtuary.api.routing import make_router
from virtuary.model.meta import Model
from virtuary.model.operation import Operation
from virtuary.model.volume import AttachWish, Volume, VolumeChange, VolumeWish
from virtuary.node.touch import touch
from virtuary.node.touch import volumes as touched
from virtuary.store import documents

router = make_router("/v1/disks", tags=["disks"])


class UndeleteDisk(Model):
    name: str | None = None
    """Another name, where its own was taken meanwhile."""


@router.get("", response_model=answers.Disks)
async def list_disks(
    parts: P,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE,
    cursor: str = "",
    trash: bool = False,
) -> Response:
    """Disks besides servers' root disks. `trash` shows the deleted ones instead."""
    wanted = documents.page(
        parts.store,
        Volume,
        cursor,
        limit + 1,
        lambda volume: (volume.meta.deleted is not None) == trash and not volume.meta.purge,
    )
    return page(wanted, limit)


@router.post(
    "",
    status_code=202,
    response_model=answers.AcceptedDisk,
    responses={200: {"model": answers.DiskDraft, "description": "With dry_run"}},
)
async def create_disk(ctx: Ctx, parts: P, wish: VolumeWish, dry_run: DryRun = False) -> Response:
    """Have an empty disk made."""
    await touch.notice_host(parts.node.site)
    if dry_run:
        draft = volumes.draft(ctx, wish)
        body = {
            "disk": body_of(draft.volume),
            "blockers": [blocker.problem() for blocker in draft.blockers],
        }
        return Response(json.dumps(body), 200, media_type="application/json")
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    volume, operation = await volumes.create(ctx, wish)
    return accepted(operation, {"disk": body_of(volume)})


@router.get("/{name}", response_model=answers.ShownDisk)
async def show_disk(parts: P, name: str) -> Response:
    """A disk, and the bytes that its file occupies."""
    volume = volumes.find(parts.store, name)
    used = touched.used_by(parts.node.site, volume)
    headers = {"ETag": f'"{volume.meta.revision}"'}
    body = json.dumps(body_of(volume) | {"used": used}, ensure_ascii=False)
    return Response(body, 200, headers, "application/json")


@router.patch("/{name}", response_model=Volume, responses={202: {"model": answers.AcceptedDisk}})
async def change_disk(
    ctx: Ctx,
    parts: P,
    name: str,
    wish: VolumeChange,
    if_match: Annotated[str | None, Header()] = None,
) -> Response:
    """Change fields (merge-patch). A larger size is an operation (202), also while a server has
    it.
    """
    await touch.notice_host(parts.node.site)
    if done := replay(ctx):
        return (
            accepted(done, replayed=True)
            if isinstance(done, Operation)
            else answer(volumes.find(ctx.store, name))
        )
    volume, operation = await volumes.change(ctx, name, wish, wanted_revision(if_match))
    return accepted(operation, {"disk": body_of(volume)}) if operation else answer(volume)


@router.delete("/{name}", response_model=Volume, responses={202: {"model": answers.AcceptedDisk}})
async def delete_disk(ctx: Ctx, name: str, now: bool = False, dry_run: DryRun = False) -> Response:
    """Move to the trash, or with `now` remove for good (202)."""
    if dry_run:
        return answer(volumes.deletable(ctx, name))
    done = replay(ctx)
    if isinstance(done, Operation):
        return accepted(done, replayed=True)
    if done:
        return answer(volumes.find_trashed(ctx.store, name))
    return _answered(*await volumes.delete(ctx, name, now=now))


def _answered(volume: Volume, operation: Operation | None) -> Response:
    return accepted(operation, {"disk": body_of(volume)}) if operation else answer(volume)


@router.post("/{name}/actions/attach", status_code=202, response_model=answers.AcceptedDisk)
async def attach_disk(ctx: Ctx, name: str, wish: AttachWish) -> Response:
    """Give a server the disk, also while it runs."""
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    return _answered(*await volumes.attach(ctx, name, wish))


@router.post("/{name}/actions/detach", status_code=202, response_model=answers.AcceptedDisk)
async def detach_disk(ctx: Ctx, parts: P, name: str, force: bool = False) -> Response:
    """Take the disk from its server, when its guest lets go of it. One that its guest uses is
    refused, but with `force`.
    """
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    if not force:
        await touched.check_unused(parts.node, volumes.detachable(ctx, name).volume)
    return _answered(*await volumes.detach(ctx, name))


@router.post("/{name}/actions/undelete", response_model=Volume)
async def undelete_disk(ctx: Ctx, name: str, params: UndeleteDisk | None = None) -> Response:
    """Take back from the trash."""
    wanted = params.name if params else None
    if replay(ctx):
        return answer(volumes.find(ctx.store, wanted or name))
    return answer(await volumes.undelete(ctx, name, wanted))


@router.post(
    "/{name}/actions/purge",
    status_code=202,
    response_model=answers.Accepted,
    responses={200: {"model": Volume, "description": "With dry_run: it can be purged"}},
)
async def purge_disk(ctx: Ctx, name: str, dry_run: DryRun = False) -> Response:
    """Remove one that lies in the trash for good."""
    if dry_run:
        return answer(volumes.find_trashed(ctx.store, name))
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    return accepted(await volumes.purge(ctx, name))
