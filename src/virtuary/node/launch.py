"""A machine's processes: QEMU and whoever serves its network, started together and ended together.

Nothing here knows documents: a server's worker and the maker of templates both start machines by it. Processes are known by the
machine's uuid on their command line, so that one that was started and never recorded is found and ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed
from virtuary.base.proc import Identity, adopt, find_marked, identify, reap, wait_end
from virtuary.base.proc import end as end_process
from virtuary.host import oom
from virtuary.host.cgroups import ensure_group, outlive, remove_group, set_bounds
from virtuary.jail.walls import Jail, choose_jail
from virtuary.network import passt
from virtuary.node.site import Site
from virtuary.qemu import process, usernet
from virtuary.qemu.argv import command
from virtuary.qemu.describe import Machine, describe
from virtuary.qemu.parts import Grant
from virtuary.storage.own import check_disk

QMP_READY = 10.0
"""Seconds QEMU is given to offer its sockets and to answer its monitor after the start."""
HELPER = ("-machine\0none\0",)
"""What sets the command line of a network's helper apart from its machine's."""
LOOPBACK_GAP = "the guest can reach services on the host's loopback addresses (QEMU's user network)"
declare("start.before_spawn", "start.after_spawn", "network.after_start")


@dataclass(frozen=True)
class Wiring:
    """The network a machine is to be connected to; enough to connect it again later."""

    kind: str
    program: str
    uuid: str
    uid: int
    runtime: Path
    forwards: tuple[passt.Forward, ...]


@dataclass(frozen=True)
class Served:
    """A network of the machine's own, served by a process beside it."""

    forwards: tuple[passt.Forward, ...]


@dataclass(frozen=True)
class Plugged:
    """A tap on a network of the host's."""

    open: Callable[[], Awaitable[int]]
    """Gives a descriptor of it, to be closed."""


@dataclass(frozen=True)
class Launched:
    """A machine that is there, paused; no virtual CPU has run."""

    started: process.Started
    network: Identity | None
    """The process that serves its network, where there is one."""
    jail: Jail
    gaps: tuple[str, ...]


async def launch(
    site: Site,
    machine: Machine,
    uid: int,
    network: Served | Plugged | None,
    *,
    writable: tuple[Path, ...] = (),
    groups: tuple[int, ...] = (),
    mute: bool = False,
) -> Launched:
    """Start a machine and its network, side by side; when one of the two fails neither stays.

    `network`: what its first NIC leads to; None: nowhere. `mute`: nobody serves it yet, see `serve_network`.
    `writable`: files it opens by path for writing. `groups`: of the host, besides its own user's.
    """
    binary = await site.binary(machine.platform)
    jail = choose_jail(site.capabilities, uid)
    machine.runtime.mkdir(mode=0o711, parents=True, exist_ok=True)
    parts = describe(machine)
    check_disk(machine.disk, machine.layers, machine.disk_size)
    cgroups, gap = ensure_group(machine.uuid)
    gap = gap or set_bounds(machine.uuid, parts.memory, parts.bounds.processes)
    async with site.starts:
        crashpoint("start.before_spawn")
        links = await _plug(network, parts.grants)
        order = process.Launch(
            command(binary.program, parts), parts.grants, parts.readable, jail, machine.runtime, cgroups,
            links=links, writable=list(writable), groups=groups, bounds=parts.bounds,
        )  # fmt: skip
        wiring = None
        if isinstance(network, Served):
            wiring = Wiring(site.network, binary.program, machine.uuid, uid, machine.runtime, network.forwards)
        serving = asyncio.create_task(_serve(site, None if mute else wiring))
        try:
            started = await process.start(order)
            oom.set_score(started.identity.pid, oom.EXPENDABLE)
        except BaseException:
            await _stop_serving(machine.uuid, serving)
            raise
        finally:
            for here, _ in links:
                os.close(here)
    try:
        crashpoint("start.after_spawn")
        helper = await serving
        crashpoint("network.after_start")
    except Exception:
        os.close(started.errors)
        await end_marked(machine.uuid)
        raise
    gaps = (*jail.gaps, *dict.fromkeys((*started.gaps, *((gap,) if gap else ()))))
    return Launched(started, helper, jail, (*gaps, LOOPBACK_GAP) if wiring and wiring.kind == "qemu-user" else gaps)


async def _plug(network: Served | Plugged | None, grants: list[Grant]) -> tuple[tuple[int, int], ...]:
    """The taps of a machine, opened: (here, there)."""
    given = [grant for grant in grants if grant.mode == "given"]
    return tuple([(await network.open(), grant.number) for grant in given]) if isinstance(network, Plugged) else ()


async def _serve(site: Site, wiring: Wiring | None) -> Identity | None:
    return await serve_network(site, wiring) if wiring else None


async def serve_network(site: Site, wiring: Wiring) -> Identity:
    """Start whoever serves the network, as soon as the machine's socket is there; QEMU itself may still be starting."""
    await end_marked(wiring.uuid, *HELPER)  # one that was started and never recorded would hold the ports
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as link:
        await _connect(link, wiring.runtime / "network")
        if wiring.kind == "passt":
            identity = await passt.start(link, wiring.forwards)
        else:
            identity = await _start_usernet(site, wiring, link)
        oom.set_score(identity.pid, oom.ORDINARY)
        outlive(identity.pid)
        return identity


def mark_of(kind: str, uuid: str) -> str:
    """What stands on the command line of the process that serves a network of this kind."""
    return uuid if kind == "qemu-user" else "passt"


async def _connect(link: socket.socket, path: Path) -> None:
    until = asyncio.get_running_loop().time() + QMP_READY
    while True:
        try:
            link.connect(str(path))
            return
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if asyncio.get_running_loop().time() > until:
                raise Failed("QEMU offers no socket for its network") from error
            await asyncio.sleep(0.002)


async def _stop_serving(uuid: str, serving: asyncio.Task[Identity | None]) -> None:
    """Undo a network that was begun for a machine that did not start; what listens on the socket's end goes by itself."""
    await asyncio.wait({serving}, timeout=2)  # a launch cut off half way would leave a child that nobody knows
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await end_marked(uuid, *HELPER)


async def _start_usernet(site: Site, wiring: Wiring, link: socket.socket) -> Identity:
    if any(":" in forward.address for forward in wiring.forwards):
        raise Failed("QEMU's user network publishes no IPv6 address", "publish on an IPv4 address, or install a passt that works")
    folder = wiring.runtime / "usernet"
    folder.mkdir(mode=0o711, exist_ok=True)
    jail = choose_jail(site.capabilities, wiring.uid, host_network=True)
    groups, _ = ensure_group(wiring.uuid)
    argv = usernet.command(wiring.program, wiring.uuid, wiring.forwards)
    order = process.Launch(argv, [], [], jail, folder, groups, links=((link.fileno(), usernet.LINK),))
    started = await process.start(order)
    try:
        if not await _listens(started.identity, wiring.forwards[-1].host):
            raise Failed(
                f"the guest's network can't be served: {process.read_errors(started.errors) or 'its helper ended at once'}"
            )
    finally:
        os.close(started.errors)
    return started.identity


async def _listens(identity: Identity, port: int, limit: float = 2.0) -> bool:
    """Wait until the helper listens on its last port, which says that it got all of them; False when it ended instead."""
    until = asyncio.get_running_loop().time() + limit
    while asyncio.get_running_loop().time() < until:
        if passt.is_listened_to(port):
            return True
        if identify(identity.pid) != identity:
            return False
        await asyncio.sleep(0.003)
    return True


async def clean_up(uuid: str, runtime: Path) -> None:
    """Nothing of a machine that is over stays: not its network's helper, not its sockets, not its group."""
    await end_marked(uuid)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(runtime)
    for _ in range(200):
        if remove_group(uuid):
            break
        await asyncio.sleep(0.01)


async def end_marked(uuid: str, *marks: str) -> None:
    """End every process that carries this machine's uuid, and these marks, and wait until it is gone."""
    for marked in find_marked(f"-uuid\0{uuid}\0", *marks):
        handle = adopt(marked, uuid)
        if handle is None:
            continue
        try:
            end_process(handle)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    await wait_end(handle)
            reap(handle)
        finally:
            os.close(handle)
