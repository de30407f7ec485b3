"""The rootless network of one machine: passt, a process of its own beside QEMU, connected through a
socket.

QEMU listens on a socket the daemon bound; the daemon connects to it and hands the connection to
passt, which therefore can be replaced when it dies, without QEMU noticing more than a cable pulled.
passt opens the guest's connections on the host and confines itself (own user, namespaces,
system-call filter). It ends by itself when QEMU does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import NamedTuple

from virtuary.base.errors import Failed, HostLacks
from virtuary.base.proc import ENVIRONMENT, Identity, bounded, find_program, identify, last_line
from virtuary.base.units import GIB
from virtuary.network import frames

ADDRESS, GATEWAY, NAMESERVER, PREFIX = "10.0.2.15", "10.0.2.2", "10.0.2.3", 24
"""What the guest is given by DHCP; the same numbers as QEMU's own user network."""


MEMORY = 2 * GIB
"""Bytes of address space that passt may have: its tables of connections are made for more than it
ever serves.
"""


class Forward(NamedTuple):
    """A port of the host that leads to a port of the guest."""

    protocol: str
    address: str
    host: int
    guest: int


def command(program: str, descriptor: int, forwards: tuple[Forward, ...]) -> list[str]:
    """passt's command line. Pure; numbers and addresses only."""
    line = [program, "--foreground", "--quiet", "--fd", str(descriptor), "--no-map-gw"]
    line += ["--address", ADDRESS, "--netmask", str(PREFIX), "--gateway", GATEWAY]
    line += ["--dns-forward", NAMESERVER, "--dns", NAMESERVER]
    for option, protocol in (("--tcp-ports", "tcp"), ("--udp-ports", "udp")):
        wanted = [forward for forward in forwards if forward.protocol == protocol]
        for forward in wanted:
            line += [option, f"{forward.address}/{forward.host}:{forward.guest}"]
        if not wanted:
            line += [option, "none"]
    return line


async def start(
    link: socket.socket, forwards: tuple[Forward, ...], settle: float = 0.03
) -> Identity:
    """Start passt on `link`, a connection to QEMU's NIC; raises Failed with passt's own words when
    it ends at once.

    Not tied to the daemon's life: it is adopted again like QEMU.
    """
    program = find_program("passt")
    errors_read, errors_write = os.pipe()
    os.set_blocking(errors_read, False)
    os.set_blocking(errors_write, False)
    try:
        process = await asyncio.create_subprocess_exec(
            *bounded(MEMORY, 0),
            *command(program, link.fileno(), forwards),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=errors_write,
            pass_fds=[link.fileno()],
            env=ENVIRONMENT,
            start_new_session=True,
            cwd="/",
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settle):
                await process.wait()
        if identity := identify(process.pid):
            return identity
        raise Failed(f"passt ended at once: {last_line(_drain(errors_read)) or 'it said nothing'}")
    finally:
        os.close(errors_read)
        os.close(errors_write)


def _drain(handle: int) -> bytes:
    try:
        return os.read(handle, 65536)
    except BlockingIOError:
        return b""


async def prove(limit: float = 3.0) -> str | None:
    """Whether this passt works here: a guest of our own is called through a published port. None,
    or why not.

    It is called by somebody who waits for the guest to speak first, as mail and many others do:
    builds of early 2023 complete such a handshake only once the caller has spoken, and nobody ever
    does.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    port = free_port()
    identity = None
    try:
        identity = await start(theirs, (Forward("tcp", "127.0.0.1", port, 25),), settle=0.2)
        async with asyncio.timeout(limit):
            return await _handshake(ours, port)
    except (Failed, HostLacks) as error:
        return error.sentence
    except TimeoutError:
        return "a connection to a test guest was never completed"
    finally:
        if identity:
            with contextlib.suppress(ProcessLookupError):
                os.kill(identity.pid, signal.SIGKILL)
        theirs.close()


async def _handshake(link: socket.socket, port: int) -> str | None:
    # From here on the socket is the transport's: closed behind its back, its number would be
    # watched when it is another's.
    reader, writer = await asyncio.open_connection(sock=link)
    _send(writer, frames.announcement(ADDRESS))
    await asyncio.sleep(0.1)
    caller = asyncio.create_task(asyncio.open_connection("127.0.0.1", port))
    try:
        answered = None
        while True:
            size = int.from_bytes(await reader.readexactly(4), "big")
            segment = frames.parse_segment(await reader.readexactly(size))
            if segment and segment.flags & frames.SYN:
                answered = 1000
                _send(writer, frames.accept(segment, answered))
            elif (
                segment
                and answered is not None
                and segment.flags & frames.ACK
                and segment.acknowledged == answered + 1
            ):
                return None
    except asyncio.IncompleteReadError:
        return "it ended while a test guest was called"
    finally:
        # before its descriptor is: the loop must not go on watching a number that is given again
        writer.close()
        caller.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            (await caller)[1].close()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _send(writer: asyncio.StreamWriter, frame: bytes) -> None:
    writer.write(len(frame).to_bytes(4, "big") + frame)


def free_port() -> int:
    """A TCP port of the host's loopback that nobody uses now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def is_listened_to(port: int) -> bool:
    """Whether somebody listens on this TCP port of the host's loopback. Disturbs nobody, and needs
    no walk over all connections.
    """
    with socket.socket() as sock:
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # so that only one who listens is in the way, and we in nobody's
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
