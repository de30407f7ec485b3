"""Touches: calls to a server that leave no memory. Screen of the console, commands in the guest,
the way in by SSH, the plan.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

from virtuary.base.errors import Conflict, Failed, GuestSilent, Invalid, VirtuaryError
from virtuary.base.files import write_whole
from virtuary.base.paths import VmPaths
from virtuary.guest import hostkeys
from virtuary.guest.agent import OUTPUT_CAP, Outcome
from virtuary.guest.cloudkeys import passed_over
from virtuary.guest.relay import Command, Piece
from virtuary.guest.userdata import check_user_data, login_lines
from virtuary.host import capacity
from virtuary.images import making
from virtuary.images.sources import canonical, find_source
from virtuary.jail.walls import choose_jail
from virtuary.model.host import Host
from virtuary.model.image import Image, ImageSource
from virtuary.model.vm import Vm
from virtuary.network import physical
from virtuary.network.routes import find_own, find_routed
from virtuary.node import operations
from virtuary.node.machine.console import Console, latest, tail
from virtuary.node.machine.resolve import find_qemu, machine_of
from virtuary.node.machine.run import Run
from virtuary.node.node import Node
from virtuary.node.site import UIDS, Site, allocated, describe_host
from virtuary.node.touch.session import Inbox, Say, Session
from virtuary.node.warm.derive import choose_template, copy_of
from virtuary.qemu.argv import command
from virtuary.qemu.describe import describe
from virtuary.qemu.platforms.table import PLATFORMS
from virtuary.storage.directory import reserving
from virtuary.store import documents, userdata

HOST_KEYS_HOLD = 10.0
"""Seconds for which host keys count as told: a first login asks nothing, and one after keys were
changed inside finds the new ones.
"""


def _run(node: Node, vm: Vm) -> Run:
    run = node.worker(vm.id).run
    if run is None or run.ended:
        raise not_running(vm)
    return run


def not_running(vm: Vm) -> Conflict:
    """The error that a server does not run, with the reason where one is known."""
    why = f": {vm.status.reason}" if vm.status.reason else ""
    return Conflict(
        f"{vm.name} is {vm.status.state}, not running{why}", f"virtuary start {vm.name}"
    )


def _agent_run(node: Node, vm: Vm) -> Run:
    """The live side of a server whose agent answers. Raises Conflict where it does not run, Failed
    where its start failed, GuestSilent where it has no such agent.
    """
    run = _run(node, vm)
    check_awake(vm)
    silent = run.agent is None or "agent" not in {**run.signals, **vm.status.stages}
    if silent and (why := operations.failed_start(node.site.store, vm)):
        raise Failed(
            f"the start of {vm.name} failed: {why}",
            f"virtuary logs {vm.name} shows its console; virtuary restart {vm.name} --force starts "
            "it again",
        )
    if (run.agent is None or not run.may_be_asked) and vm.status.state == "starting":
        raise GuestSilent(
            f"the guest agent of {vm.name} is not up yet", "repeat when it has started"
        )
    if silent:
        raise GuestSilent(
            f"{vm.name} has no guest agent that answers", f"virtuary shell {vm.name} needs none"
        )
    return run


def check_awake(vm: Vm) -> None:
    """Raise Conflict for a paused server: nothing in it answers."""
    if vm.status.state == "paused":
        why = f": {vm.status.reason}" if vm.status.reason else ""
        raise Conflict(f"{vm.name} is paused{why}", f"virtuary resume {vm.name}")


def open_session(node: Node, vm: Vm, inbox: Inbox, say: Say) -> Session:
    """A command in the guest, with streams: `inbox` is what it is told, `say` hears what it says.
    Raises as `execute`.
    """
    return Session(node, vm, _agent_run(node, vm), inbox, say)


async def execute(
    node: Node, vm: Vm, words: list[str], stdin: bytes, deadline: float, most: int = OUTPUT_CAP
) -> Outcome:
    """Run a command in the guest through its agent, for at most so many bytes of output. Raises
    GuestSilent when there is none.
    """
    run = _agent_run(node, vm)
    assert run.agent
    return await run.agent.execute(words, stdin, deadline, most=most)


async def trim(node: Node, vm: Vm, site: Site) -> tuple[int | None, int]:
    """Have the guest tell which blocks of its filesystems it does not use: bytes it told of, and
    bytes the pool got back.
    """
    run = _run(node, vm)
    if run.agent is None:
        raise GuestSilent(
            f"{vm.name} has no guest agent that answers", "run fstrim in it by virtuary shell"
        )
    before = allocated(site, [vm])
    told = await run.agent.trim(deadline=300)
    return told, max(before - allocated(site, [vm]), 0)


def console_of(node: Node, vm: Vm) -> Console:
    """The serial console of a running server."""
    return _run(node, vm).console


def console_log(site: Site, vm: Vm, size: int) -> bytes:
    """The last `size` bytes of what the serial console printed, also of a stopped server."""
    return tail(site.paths.vm(vm.id).console, size)


def console_now(site: Site, vm: Vm, size: int) -> bytes:
    """The same, of its present run alone."""
    return latest(console_log(site, vm, size))


def qemu_log(paths: VmPaths) -> str:
    """What QEMU itself wrote when it ended."""
    try:
        return paths.errors.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


async def way_in(node: Node, vm: Vm, image: Image | None) -> dict[str, Any]:
    """How to reach the server's SSH: user, address, port, the key to show, where its host keys are
    written down, and whether they are.
    """
    site, paths = node.site, node.site.paths.vm(vm.id)
    runtime = vm.status.runtime
    if runtime is None or runtime.ssh_port is None:
        raise not_running(vm)
    check_awake(vm)
    ready = "ssh" in vm.status.stages and vm.status.state == "running"
    if ready:
        await _learn_host_keys(node, vm)
    return {
        "host": runtime.ssh_host,
        "port": runtime.ssh_port,
        "user": image.status.user if image else "root",
        "key": str(site.paths.key),
        "known_hosts": str(paths.known_hosts),
        "known": paths.known_hosts.exists(),
        "alias": hostkeys.alias(vm.id),
        "ready": ready,
        "failed": None if ready else operations.failed_start(site.store, vm),
        "suspects": _suspects(site, vm),
        "state": vm.status.state,
        "stages": vm.status.stages,
    }


def _suspects(site: Site, vm: Vm) -> list[str]:
    """Lines of its user data that may have taken away the login."""
    text = userdata.read(site.store, vm.id) if vm.spec.login.user_data else None
    return login_lines(text) if text else []


async def _learn_host_keys(node: Node, vm: Vm) -> None:
    """Write down which host keys the guest's agent says it has, unless they were told a moment ago.
    Where none answers nothing changes.
    """
    now = node.site.clock.now()
    with contextlib.suppress(VirtuaryError, OSError):
        run = _run(node, vm)
        held = not vm.spec.login.user_data  # cloud-init may make others at any time
        told = held and run.host_keys_told is not None and now - run.host_keys_told < HOST_KEYS_HOLD
        if told or run.agent is None or "agent" not in {**run.signals, **vm.status.stages}:
            return
        if keys := await hostkeys.ask(run.agent):
            place, lines = (
                node.site.paths.vm(vm.id).known_hosts,
                hostkeys.known_hosts(hostkeys.alias(vm.id), keys),
            )
            if not place.exists() or place.read_bytes() != lines:
                write_whole(place, lines)
            run.host_keys_told = now


def routed() -> list[str]:
    """Every prefix that this host routes, as CIDR."""
    return find_routed()


def own_addresses() -> set[str]:
    """Every address this host has."""
    return find_own()


def interface_fault(interface: str, tagged: bool) -> tuple[str, str] | None:
    """Why servers can't join this interface of the host, or a VLAN of it, and what helps."""
    return physical.find_fault(interface, None, tagged=tagged)


async def receive(site: Site, chunks: AsyncIterator[bytes], length: int) -> str:
    """Keep an uploaded file of `length` bytes beside the downloads; its name there. Nothing is kept
    of a broken upload.
    """
    with reserving(site.paths.downloads, length, "the upload", site.kept):
        return await _receive(site, chunks, length)


async def _receive(site: Site, chunks: AsyncIterator[bytes], length: int) -> str:
    name = f"upload-{uuid.uuid4()}"
    place = site.paths.downloads / name
    handle = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    got = 0
    try:
        async for chunk in chunks:
            got += len(chunk)
            if got > length:
                break
            await asyncio.to_thread(_put, handle, chunk)
        if got != length:
            raise Invalid(f"{length} bytes were announced and {got} came")
        os.ftruncate(handle, length)
        await asyncio.to_thread(os.fsync, handle)
    except BaseException:
        place.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    return name


def _put(handle: int, chunk: bytes) -> None:
    """Write a piece of an upload, or leave a hole for one of zeros."""
    if chunk.count(0) == len(chunk):
        os.lseek(handle, len(chunk), os.SEEK_CUR)
        return
    view = memoryview(chunk)
    while view:
        view = view[os.write(handle, view) :]


def check_source(site: Site, source: ImageSource) -> None:
    """Raise Invalid or Refused for an image that can't be had as it is asked for."""
    making.check_source(source, site.settings.images.allow_private)


async def preview(site: Site, vm: Vm, image: Image) -> dict[str, Any]:
    """What a start would do: accelerator, isolation, and the exact command line."""
    steps = [] if image.status.state == "ready" else [f"make the image {image.name}"]
    template, why = (
        await choose_template(site, vm, image)
        if image.status.state == "ready"
        else (None, "the image is not there yet")
    )
    steps += [
        "make the disk, an overlay on "
        f"{'the warm template' if template and vm.wanted != 'stopped' else 'the image'}"
    ]
    if vm.wanted == "stopped":
        return {"steps": steps}
    choice = await site.accel(PLATFORMS[vm.spec.arch], vm.spec.accel)
    qemu = await find_qemu(site, vm)
    jail = choose_jail(site.capabilities, UIDS.start)
    steps += [f"start QEMU {qemu.version} with {choice.accel}"]
    steps += (
        [f"resume {why}", "give the copy its own identity"]
        if template
        else [f"boot, because {why}"]
    )
    steps += ["wait until a shell is possible"]
    plan: dict[str, Any] = {
        "steps": steps,
        "accel": choice.accel,
        "why": choice.why,
        "level": jail.level,
        "gaps": list(jail.gaps),
        "warm": template is not None,
        "warm_reason": why,
    }
    if image.status.state == "ready":
        machine = (
            copy_of(site, vm, image, template, qemu)
            if template
            else machine_of(site, vm, image, choice.accel, qemu)
        )
        plan["command"] = command(qemu.program, describe(machine))
    else:
        plan["note"] = "the command line is known once the image is made"
    return plan


def check_staying(site: Site) -> None:
    """Raise Conflict while the host goes down: nothing is started any more."""
    if site.turns.going_down:
        raise Conflict(
            "this host is going down", "repeat when it is back: servers come back with it"
        )


async def notice_host(site: Site) -> None:
    """Write down anew what this host has, when its huge pages are no longer those: an administrator
    sets them aside at any time, and what is set aside no ordinary server can have.
    """
    host = documents.get(site.store, Host, site.host_id)
    known = host.status.huge_pages if host and host.status else ()
    if {page.size: page.total for page in known} != {
        page.size: page.total for page in capacity.find_huge_pages()
    }:
        await describe_host(site)


__all__ = [
    "Command", "Inbox", "Outcome", "Piece", "canonical", "check_source", "check_user_data",
    "console_log", "console_now", "console_of", "execute", "find_source",
    "notice_host", "open_session", "passed_over", "preview", "qemu_log", "receive", "trim",
    "way_in",
]  # fmt: skip
