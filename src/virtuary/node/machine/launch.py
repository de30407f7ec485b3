"""A machine's processes: QEMU and whoever serves its network, started together and ended together.

Nothing here knows documents: a server's worker and the maker of templates both start machines by
it. Processes are known by what the launcher wrote down of them, and by their user and control
group, so that one that was started and never recorded in a document is found and ended, whatever it
says of itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Failed, PeerAway
from virtuary.base.known import RECORD, end_each, end_recorded, of_user, recorded, users_of
from virtuary.base.proc import Identity, bury_ended, identify
from virtuary.host import oom
from virtuary.host.cgroups import ensure_group, members_of, outlive, remove_group, set_bounds
from virtuary.jail.walls import Jail, choose_jail
from virtuary.network import passt
from virtuary.node.site import UIDS, Site
from virtuary.qemu import process, usernet
from virtuary.qemu.argv import command, digest
from virtuary.qemu.describe import describe
from virtuary.qemu.machine import Machine
from virtuary.qemu.parts import Grant
from virtuary.storage.own import check_disk

QMP_READY = 10.0
"""Seconds QEMU is given to offer its sockets and to answer its monitor after the start."""
SETTLE = 0.02
"""Seconds within which a helper ends that did not get all of its ports."""
HELPER = "usernet"
"""Folder of a network's helper below its machine's."""
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
    command: str
    """Digest of QEMU's arguments."""
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

    `network`: what its first NIC leads to; None: nowhere. `mute`: nobody serves it yet, see
    `serve_network`. `writable`: files it opens by path for writing. `groups`: of the host, besides
    its own user's.
    """
    binary = await site.binary(machine.platform)
    jail = choose_jail(site.capabilities, uid)
    for disk in machine.disks:
        check_disk(disk.file, disk.layers, disk.size)
    machine.runtime.mkdir(mode=0o711, parents=True, exist_ok=True)
    parts = describe(machine)
    cgroups, gap = ensure_group(machine.uuid)
    gap = gap or set_bounds(machine.uuid, parts.memory, parts.bounds.processes)
    async with site.starts:
        crashpoint("start.before_spawn")
        links = await _plug(network, parts.grants)
        line = command(binary.program, parts)
        order = process.Launch(
            line, parts.grants, parts.readable, jail, machine.runtime, cgroups,
            links=links, writable=list(writable), groups=groups, bounds=parts.bounds,
        )  # fmt: skip
        wiring = None
        if isinstance(network, Served):
            wiring = Wiring(
                site.network, binary.program, machine.uuid, uid, machine.runtime, network.forwards
            )
        serving = asyncio.create_task(_serve(site, None if mute else wiring))
        try:
            started = await process.start(order)
            oom.set_score(started.identity.pid, oom.EXPENDABLE)
        except BaseException:
            await _stop_serving(machine.runtime, serving)
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
        await end_machine(machine.uuid, machine.runtime, uid)
        raise
    gaps = (*jail.gaps, *dict.fromkeys((*started.gaps, *((gap,) if gap else ()))))
    return Launched(
        started,
        helper,
        digest(line),
        jail,
        (*gaps, LOOPBACK_GAP) if wiring and wiring.kind == "qemu-user" else gaps,
    )


async def _plug(
    network: Served | Plugged | None, grants: list[Grant]
) -> tuple[tuple[int, int], ...]:
    """The taps of a machine, opened: (here, there)."""
    given = [grant for grant in grants if grant.mode == "given"]
    return (
        tuple([(await network.open(), grant.number) for grant in given])
        if isinstance(network, Plugged)
        else ()
    )


async def _serve(site: Site, wiring: Wiring | None) -> Identity | None:
    return await serve_network(site, wiring) if wiring else None


async def serve_network(site: Site, wiring: Wiring) -> Identity:
    """Start whoever serves the network, as soon as the machine's socket is there; QEMU itself may
    still be starting.
    """
    # one that was started and never recorded would hold the ports
    await end_recorded(wiring.runtime / HELPER / RECORD)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as link:
        await _connect(link, wiring.runtime / "network")
        if wiring.kind == "passt":
            identity = await passt.start(link, wiring.forwards)
        else:
            identity = await _start_usernet(site, wiring, link)
        oom.set_score(identity.pid, oom.ORDINARY)
        outlive(identity.pid)
        return identity


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


async def _stop_serving(runtime: Path, serving: asyncio.Task[Identity | None]) -> None:
    """Undo a network that was begun for a machine that did not start; what listens on the socket's
    end goes by itself.
    """
    # a launch cut off half way would leave a child that nobody knows
    await asyncio.wait({serving}, timeout=2)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    await end_recorded(runtime / HELPER / RECORD)


async def _start_usernet(site: Site, wiring: Wiring, link: socket.socket) -> Identity:
    if any(":" in forward.address for forward in wiring.forwards):
        raise Failed(
            "QEMU's user network publishes no IPv6 address",
            "publish on an IPv4 address, or install a passt that works",
        )
    folder = wiring.runtime / HELPER
    folder.mkdir(mode=0o711, exist_ok=True)
    jail = choose_jail(site.capabilities, wiring.uid, reach="internet")
    groups, _ = ensure_group(wiring.uuid)
    argv = usernet.command(wiring.program, wiring.uuid, wiring.forwards)
    order = process.Launch(
        argv, [], [], jail, folder, groups, links=((link.fileno(), usernet.LINK),)
    )
    started = await process.start(order)
    try:
        if not await _listens(started.identity, wiring.forwards[-1].host):
            bury_ended(started.identity.pid)
            raise Failed(
                "the guest's network can't be served: "
                f"{process.read_errors(started.errors) or 'its helper ended at once'}"
            )
    finally:
        os.close(started.errors)
    return started.identity


async def _listens(identity: Identity, port: int, limit: float = 2.0) -> bool:
    """Wait until the helper listens on its last port, and goes on: it ends at once where it did not
    get all of them. False when it ended.
    """
    until = asyncio.get_running_loop().time() + limit
    while asyncio.get_running_loop().time() < until:
        if passt.is_listened_to(port):
            await asyncio.sleep(SETTLE)
            return identify(identity.pid) == identity
        if identify(identity.pid) != identity:
            return False
        await asyncio.sleep(0.003)
    return True


async def clean_up(uuid: str, runtime: Path, uid: int | None) -> None:
    """Nothing of a machine that is over stays: not its network's helper, not its sockets, not its
    group. Raises PeerAway, see `end_machine`.
    """
    await end_machine(uuid, runtime, uid)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(runtime)
    for _ in range(200):
        if remove_group(uuid):
            break
        await asyncio.sleep(0.01)


async def end_machine(uuid: str, runtime: Path, uid: int | None) -> None:
    """End every process of this machine. Raises PeerAway when one can't be ended: only then is the
    machine not gone.

    `uid`: its user, where that is known; else it is told by the processes that are found.
    """
    users = {uid} if uid is not None and uid in UIDS else set[int]()
    for _ in range(5):
        found = find_processes(uuid, runtime, users)
        if not found:
            return
        for identity in found:
            users |= {user for user in users_of(identity.pid) if user in UIDS}
        await end_each(found)
    raise PeerAway(
        "processes of the server can't be ended",
        "the host's kernel may be waiting for a disk; it is tried again",
    )


def find_processes(uuid: str, runtime: Path, users: Iterable[int]) -> set[Identity]:
    """The living processes of a machine: those that the launcher wrote down, and those of its
    control group and of its user.
    """
    found = {*recorded(runtime / RECORD), *recorded(runtime / HELPER / RECORD)}
    found |= {identity for pid in members_of(uuid) if (identity := identify(pid))}
    for uid in users:
        found.update(of_user(uid))
    return found


GROUP = UIDS.stop
"""In system mode the group that may read the memory of templates; nobody is in it but QEMUs that
run copies.
"""
