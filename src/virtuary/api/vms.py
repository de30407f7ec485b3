"""Routes about virtual servers."""

from __future__ import annotations

import asyncio
import base64
import codecs
import contextlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import Header, Query, WebSocket
from pydantic import Field
from starlette.responses import Response
from starlette.websockets import WebSocketDisconnect

from virtuary.actions import copies, firewalls, power, trash, vms
from virtuary.actions.context import find_vm
from virtuary.api import answers, auth
from virtuary.api.deps import (
    MAX_PAGE,
    PAGE,
    Ctx,
    DryRun,
    P,
    Parts,
    accepted,
    answer,
    body_of,
    page,
    replay,
    wanted_revision,
)
from virtuary.api.routing import make_router
from virtuary.base.errors import Invalid, VirtuaryError
from virtuary.model.deeds import Pause, Restart, Resume, Start, Stop
from virtuary.model.image import Image
from virtuary.model.meta import Model
from virtuary.model.operation import Operation
from virtuary.model.patience import STOP_TIMEOUT
from virtuary.model.vm import Vm, VmChange, VmCopy, VmWish
from virtuary.node.touch import inside, touch
from virtuary.store import documents

router = make_router("/v1/vms", tags=["vms"])
DRAFTED: dict[int | str, dict[str, Any]] = {
    200: {"model": answers.Draft, "description": "With dry_run"}
}
UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "As If-None-Match says"}}
PIECE = 768 * 1024
"""Bytes that are encoded at once; a multiple of three, so that pieces of base64 make a whole."""


class StopParams(Model):
    timeout: float = Field(default=STOP_TIMEOUT, ge=0, le=86400)
    """Seconds the guest is given before the plug is pulled."""
    force: bool = False


class StartParams(Model):
    wait: Literal["running", "ready"] = "running"
    """When the operation is done: once the machine runs, or once a shell is possible."""


class RestartParams(StopParams, StartParams): ...


class RenameParams(Model):
    name: str


class UndeleteParams(Model):
    name: str | None = None


class ExecParams(Model):
    command: list[str] = Field(min_length=1, max_length=1000)
    stdin: str = ""
    """Base64."""
    timeout: float = Field(default=600.0, gt=0, le=86400)


@router.get("", response_model=answers.Vms)
async def list_vms(
    parts: P,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = PAGE,
    cursor: str = "",
    trash: bool = False,
    label: str = "",
) -> Response:
    """Servers as their host last saw them; never waits for a machine. `trash` shows the deleted
    ones instead.
    """
    key, equal, value = label.partition("=")

    def wanted(vm: Vm) -> bool:
        labelled = not equal or vm.meta.labels.get(key) == value
        return (vm.meta.deleted is not None) == trash and not vm.meta.purge and labelled

    return page(documents.page(parts.store, Vm, cursor, limit + 1, wanted), limit)


@router.post("", status_code=202, response_model=answers.AcceptedVm, responses=DRAFTED)
async def create_vm(ctx: Ctx, parts: P, wish: VmWish, dry_run: DryRun = False) -> Response:
    """Create a server and, unless it is wished stopped, start it; the operation ends when a shell
    is possible.
    """
    touch.check_staying(parts.node.site)
    if wish.login.user_data is not None:
        touch.check_user_data(wish.login.user_data)
    notes = touch.passed_over(wish.login.user_data) if wish.login.user_data is not None else []
    await touch.notice_host(parts.node.site)
    if dry_run:
        return await _dry_run(ctx, parts, wish, notes)
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    vm, operation = await vms.create(ctx, wish, notes)
    return accepted(operation, {"vm": body_of(vm)})


async def _dry_run(ctx: Ctx, parts: Parts, wish: VmWish, notes: list[str]) -> Response:
    draft = vms.draft(ctx, wish, notes)
    blockers, plan = list(draft.blockers), dict[str, Any]()
    try:
        plan = await touch.preview(parts.node.site, draft.vm, draft.image)
    except VirtuaryError as error:
        blockers.append(error)
    body = {
        "vm": body_of(draft.vm),
        "plan": plan,
        "notes": draft.notes,
        "blockers": [blocker.problem() for blocker in blockers],
    }
    return Response(json.dumps(body), 200, media_type="application/json")


@router.get("/{name}", response_model=Vm, responses=UNCHANGED)
async def show_vm(
    parts: P, name: str, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    vm = find_vm(parts.store, name)
    if if_none_match and if_none_match.strip('"') == str(vm.meta.revision):
        return Response(status_code=304)
    return answer(vm)


@router.patch(
    "/{name}", response_model=Vm | answers.Draft, responses={202: {"model": answers.AcceptedVm}}
)
async def change_vm(
    ctx: Ctx,
    parts: P,
    name: str,
    wish: VmChange,
    if_match: Annotated[str | None, Header()] = None,
    dry_run: DryRun = False,
) -> Response:
    """Change fields (merge-patch). What a running server can be given at once takes effect now:
    limits and shares silently, CPUs, memory and disk by an operation (202). The rest takes effect
    at the next start: compare meta.generation with status.power.applied.
    """
    await touch.notice_host(parts.node.site)
    if dry_run:
        draft = vms.draft_change(ctx, find_vm(ctx.store, name), wish)
        waiting = vms.waits_for_start(find_vm(ctx.store, name), draft.vm.spec)
        body = {
            "vm": body_of(draft.vm),
            "waits_for_start": waiting,
            "blockers": [blocker.problem() for blocker in draft.blockers],
        }
        return Response(json.dumps(body), 200, media_type="application/json")
    if done := replay(ctx):
        return (
            accepted(done, replayed=True)
            if isinstance(done, Operation)
            else answer(find_vm(ctx.store, name))
        )
    vm, operation = await vms.change(ctx, name, wish, wanted_revision(if_match))
    return accepted(operation, {"vm": body_of(vm)}) if operation else answer(vm)


@router.delete(
    "/{name}",
    status_code=202,
    response_model=answers.Accepted,
    responses={200: {"model": Vm, "description": "With dry_run: it can be deleted"}},
)
async def delete_vm(
    ctx: Ctx, name: str, now: bool = False, force: bool = False, dry_run: DryRun = False
) -> Response:
    """Move to the trash, or with `now` remove for good."""
    if dry_run:
        return answer(trash.deletable(ctx, name, force=force))
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    return accepted(await trash.delete(ctx, name, now=now, force=force))


@router.post("/{name}/actions/start", status_code=202, response_model=answers.AcceptedVm)
async def start_vm(ctx: Ctx, parts: P, name: str, params: StartParams | None = None) -> Response:
    touch.check_staying(parts.node.site)
    await touch.notice_host(parts.node.site)
    return await _power(ctx, name, Start(**given(params)))


@router.post("/{name}/actions/stop", status_code=202, response_model=answers.AcceptedVm)
async def stop_vm(ctx: Ctx, name: str, params: StopParams | None = None) -> Response:
    return await _power(ctx, name, Stop(**given(params)))


@router.post("/{name}/actions/restart", status_code=202, response_model=answers.AcceptedVm)
async def restart_vm(
    ctx: Ctx, parts: P, name: str, params: RestartParams | None = None
) -> Response:
    touch.check_staying(parts.node.site)
    return await _power(ctx, name, Restart(**given(params)))


@router.post("/{name}/actions/pause", status_code=202, response_model=answers.AcceptedVm)
async def pause_vm(ctx: Ctx, name: str) -> Response:
    return await _power(ctx, name, Pause())


@router.post("/{name}/actions/resume", status_code=202, response_model=answers.AcceptedVm)
async def resume_vm(ctx: Ctx, name: str) -> Response:
    return await _power(ctx, name, Resume())


def given(params: Model | None) -> dict[str, Any]:
    return params.model_dump() if params else {}


async def _power(ctx: Ctx, name: str, deed: power.Power) -> Response:
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    vm, operation = await power.power(ctx, name, deed)
    return accepted(operation, {"vm": body_of(vm)})


@router.post(
    "/{name}/actions/copy", status_code=202, response_model=answers.AcceptedVm, responses=DRAFTED
)
async def copy_vm(
    ctx: Ctx, parts: P, name: str, wish: VmCopy | None = None, dry_run: DryRun = False
) -> Response:
    """Make a copy: of a stopped server as an overlay or in full, or live of one that runs. The
    operation is the copy's.
    """
    touch.check_staying(parts.node.site)
    if dry_run:
        draft = copies.draft(ctx, name, wish or VmCopy())
        body = {
            "vm": body_of(draft.vm),
            "blockers": [blocker.problem() for blocker in draft.blockers],
        }
        return Response(json.dumps(body), 200, media_type="application/json")
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    vm, operation = await copies.copy(ctx, name, wish or VmCopy())
    return accepted(operation, {"vm": body_of(vm)})


@router.post("/{name}/actions/rename", response_model=Vm)
async def rename_vm(ctx: Ctx, name: str, params: RenameParams) -> Response:
    if replay(ctx):
        return answer(find_vm(ctx.store, params.name))
    return answer(await vms.rename(ctx, name, params.name))


@router.post("/{name}/actions/undelete", response_model=Vm)
async def undelete_vm(ctx: Ctx, name: str, params: UndeleteParams | None = None) -> Response:
    """Take back from the trash, stopped."""
    wanted = params.name if params else None
    if replay(ctx):
        return answer(find_vm(ctx.store, wanted or name))
    return answer(await trash.undelete(ctx, name, wanted))


@router.post(
    "/{name}/actions/purge",
    status_code=202,
    response_model=answers.Accepted,
    responses={200: {"model": Vm, "description": "With dry_run: it can be purged"}},
)
async def purge_vm(ctx: Ctx, name: str, dry_run: DryRun = False) -> Response:
    """Remove one that lies in the trash for good."""
    if dry_run:
        return answer(trash.find_trashed(ctx.store, name))
    if isinstance(done := replay(ctx), Operation):
        return accepted(done, replayed=True)
    return accepted(await trash.purge(ctx, name))


# ---- touches


@router.get("/{name}/doctor", response_model=answers.Checks)
async def examine_network(parts: P, name: str) -> dict[str, Any]:
    """Try the network of a running server from inside its guest, and name whoever is in the way.
    Changes nothing.
    """
    vm = find_vm(parts.store, name)
    checks = await inside.examine(parts.node, vm, firewalls.judge_of(parts.store, vm))
    return {
        "healthy": all(check.state != "missing" for check in checks),
        "checks": [check.model_dump() for check in checks],
    }


@router.get("/{name}/ssh", response_model=answers.WayIn)
async def way_in(parts: P, name: str) -> dict[str, Any]:
    """How to log in by SSH."""
    vm = find_vm(parts.store, name)
    return await touch.way_in(parts.node, vm, _image(parts, vm))


@router.get("/{name}/logs", response_model=answers.Logs)
async def logs(
    parts: P, name: str, size: Annotated[int, Query(ge=1, le=4 * 1024 * 1024)] = 65536
) -> Response:
    """The end of what the serial console printed, and what QEMU wrote when it last ended. Text of
    the guest: hostile.
    """
    vm = find_vm(parts.store, name)
    qemu = touch.qemu_log(parts.node.site.paths.vm(vm.id))
    body = await asyncio.to_thread(
        lambda: logs_body(touch.console_log(parts.node.site, vm, size), qemu)
    )
    return Response(body, media_type="application/json")


def logs_body(console: bytes, qemu: str) -> bytes:
    """The answer's body, in pieces between which others get their turn: 4 MiB of odd bytes take
    long.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    ends = range(0, len(console) + 1, PIECE // 12)
    texts = (decoder.decode(console[at : at + PIECE // 12], at == ends[-1]) for at in ends)
    return b"".join(
        [
            b'{"console": "',
            *(json.dumps(text)[1:-1].encode() for text in texts),
            b'", "qemu": %s}' % json.dumps(qemu).encode(),
        ]
    )


@router.post("/{name}/exec", response_model=answers.Outcome)
async def execute(parts: P, name: str, params: ExecParams) -> Response:
    """Run a command in the guest through its agent and wait for its end."""
    vm = find_vm(parts.store, name)
    try:
        stdin = base64.b64decode(params.stdin, validate=True)
    except ValueError:
        raise Invalid("stdin must be base64") from None
    outcome = await touch.execute(parts.node, vm, params.command, stdin, params.timeout)
    # 32 MiB of output are put together beside the loop
    return Response(await asyncio.to_thread(outcome_body, outcome), media_type="application/json")


def outcome_body(outcome: touch.Outcome) -> bytes:
    """The answer's body, in pieces between which others get their turn."""
    facts = json.dumps({"status": outcome.status, "truncated": outcome.truncated})
    return b"".join(
        [
            facts[:-1].encode(),
            b', "stdout": "',
            *_encoded(outcome.stdout),
            b'", "stderr": "',
            *_encoded(outcome.stderr),
            b'"}',
        ]
    )


def _encoded(data: bytes) -> Iterator[bytes]:
    return (base64.b64encode(data[at : at + PIECE]) for at in range(0, len(data), PIECE))


@router.post("/{name}/actions/trim", response_model=answers.Trimmed)
async def trim_vm(parts: P, name: str) -> dict[str, int | None]:
    """Give the space back that the guest's filesystems do not use: `trimmed` is what it told of,
    `freed` what the pool got.
    """
    trimmed, freed = await touch.trim(parts.node, find_vm(parts.store, name), parts.node.site)
    return {"trimmed": trimmed, "freed": freed}


@router.websocket("/{name}/console/serial")
async def serial_console(socket: WebSocket, name: str) -> None:
    """The serial console: binary frames both ways; the first one holds the end of what was printed
    so far.
    """
    parts: Parts = socket.app.state.parts
    try:
        auth.actor(socket.scope.get("extensions", {}).get(auth.EXTENSION))
        vm = find_vm(parts.store, name)
        console = touch.console_of(parts.node, vm)
    except VirtuaryError as error:
        await socket.accept(subprotocol="binary")
        await socket.close(4000 + error.status % 1000, error.sentence[:120])
        return
    await socket.accept(subprotocol="binary")
    async with console.view() as queue:
        await socket.send_bytes(touch.console_now(parts.node.site, vm, 4096))
        await _pump(socket, console, queue)


async def _pump(socket: WebSocket, console: Any, queue: Any) -> None:
    async def outwards() -> None:
        while chunk := await queue.get():
            await socket.send_bytes(chunk)

    async def inwards() -> None:
        while True:
            await console.write(await socket.receive_bytes())

    tasks = [asyncio.create_task(outwards()), asyncio.create_task(inwards())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await asyncio.gather(*tasks, return_exceptions=True)
            await socket.close()


def _image(parts: Parts, vm: Vm) -> Image | None:
    return documents.get(parts.store, Image, vm.spec.image_id)
