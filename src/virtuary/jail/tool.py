"""Tools in the jail: programs that parse what strangers wrote, run with nothing but the descriptors
and files they were given.

A tool has a user of its own, all namespaces, an empty root, Landlock, the filter of system calls,
and bounds of memory, time, threads and file size. It ends with whoever waits for it, and with the
daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from virtuary.base import proc
from virtuary.base.errors import Failed
from virtuary.jail.launching import LAUNCHER, Tied
from virtuary.jail.resolver import RESOLVER
from virtuary.jail.syscalls import Reach
from virtuary.jail.walls import Bounds, Capabilities, choose_jail, find_capabilities

UIDS = range(2_000_061_000, 2_000_062_000)
"""Users of tools where the daemon is root, one a run; behind those of machines and their groups."""
_turns = itertools.count()
_host: dict[int, Capabilities] = {}
"""What this host allows, by the user who asked: found once."""


class Surroundings(NamedTuple):
    """What a tool finds beside the system's libraries."""

    readable: Sequence[Path] = ()
    """Files and folders, at their own places. Their modes must let everybody read them."""
    environment: Mapping[str, str] = {"LC_ALL": "C.UTF-8"}
    reach: Reach = "nothing"
    """What it may open sockets for, on the host's network."""


NOTHING = Surroundings()


@contextlib.asynccontextmanager
async def confined(
    argv: Sequence[str],
    descriptors: Mapping[int, int],
    bounds: Bounds,
    around: Surroundings = NOTHING,
) -> AsyncIterator[Tied]:
    """A tool for as long as the `with` lasts; its first word is a program's name or path.
    `descriptors`: there -> here.

    What it is not given as 0, 1 and 2 leads nowhere. Raises HostLacks where the program or the jail
    is missing.
    """
    program = argv[0] if argv[0].startswith("/") else proc.find_program(argv[0])
    host = _host.get(os.getuid()) or _host.setdefault(os.getuid(), await find_capabilities())
    uid = UIDS[next(_turns) % len(UIDS)] if host.root else os.getuid()
    jail = choose_jail(host, uid, reach=around.reach)
    resolver, links = (
        RESOLVER.shown(empty_root=jail.empty_root) if around.reach != "nothing" else ([], {})
    )
    with (
        tempfile.TemporaryDirectory(prefix="virtuary-tool-") as folder,
        open(os.devnull, "r+b") as nothing,
    ):
        os.chmod(folder, 0o711)  # noqa: S103  (its empty root is mounted there, and passed through by a user of its own)
        given = {0: nothing.fileno(), 1: nothing.fileno(), 2: nothing.fileno(), **descriptors}
        order = {
            **jail.order(),
            "argv": [program, *argv[1:]],
            "environment": dict(around.environment),
            "fds": list(given),
            "stderr": None,
            "root": folder if jail.empty_root else None,
            "groups": [],
            "readable": [str(path) for path in (*around.readable, *resolver)],
            "links": links,
            "writable": [],
            "cgroups": [str(proc.aside)] if proc.aside else [],
            "limits": bounds.order(jail),
            "record": None,
        }
        tied = await LAUNCHER.tie(order, list(given.values()))
        try:
            yield tied
        finally:
            tied.close()


async def run(
    argv: Sequence[str], bounds: Bounds, deadline: float, around: Surroundings = NOTHING
) -> proc.Result:
    """Run a tool to its end; what it wrote is capped at 4 MiB each. Raises Failed at the deadline
    (seconds).
    """
    with contextlib.ExitStack() as stack:
        (out, out_end), (err, err_end) = (_pipe(stack) for _ in range(2))
        try:
            async with (
                asyncio.timeout(deadline),
                confined(argv, {1: out_end.fileno(), 2: err_end.fileno()}, bounds, around) as tied,
            ):
                out_end.close()
                err_end.close()
                stdout, stderr = await asyncio.gather(_read(out), _read(err))
                return proc.Result(await tied.wait(), stdout, stderr)
        except TimeoutError:
            raise Failed(f"{Path(argv[0]).name} did not end within {deadline:.0f} s") from None


def _pipe(stack: contextlib.ExitStack) -> tuple[BinaryIO, BinaryIO]:
    reader, writer = os.pipe()
    return stack.enter_context(open(reader, "rb", 0)), stack.enter_context(open(writer, "wb", 0))


async def _read(pipe: BinaryIO) -> bytes:
    """What comes through a pipe until its end."""
    stream = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), pipe)
    kept = bytearray()
    try:
        while chunk := await stream.read(65536):
            kept += chunk[: max(0, proc.OUTPUT_CAP - len(kept))]
    finally:
        transport.close()
    return bytes(kept)
