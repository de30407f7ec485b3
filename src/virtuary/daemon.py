"""The daemon, the only place where rooms are wired together: paths, store, site, node, API; closed
in reverse order.

Stopping it stops no machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import shutil
import signal
import socket as sockets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from virtuary import __version__
from virtuary.actions import firewalls, peers
from virtuary.api.app import make_app
from virtuary.api.auth import listening_socket
from virtuary.api.deps import Parts
from virtuary.api.protocols import PeerProtocol, PeerWebSocket
from virtuary.base import proc, startup
from virtuary.base.errors import Conflict
from virtuary.base.files import write_whole
from virtuary.base.log import say, set_up
from virtuary.base.paths import Paths, find_paths
from virtuary.host import cgroups
from virtuary.model.meta import new_id
from virtuary.node import turns
from virtuary.node.node import Node
from virtuary.node.site import describe_host, open_site
from virtuary.node.touch import inside
from virtuary.settings import read
from virtuary.store import documents
from virtuary.store.api import Store
from virtuary.store.ballast import Ballast
from virtuary.store.sealed import SealedStore
from virtuary.store.sqlite import SqliteStore

logger = logging.getLogger("virtuary.daemon")
OPEN_FILES = 65_536
MORE_TIME = 30
"""Seconds that systemd is asked for again and again while servers shut down."""


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: the loop and the signals are the daemon's."""

    def __init__(self, config: uvicorn.Config, stop: asyncio.Event) -> None:
        super().__init__(config)
        self._stop = stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        """Wake once a second for the Date header, instead of ten times: an idle daemon shall cost
        nothing.
        """
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._stop.wait()
                    self.should_exit = True


def _clear_scratch(paths: Paths) -> None:
    """Temporary folders are ours alone from here on, and what a daemon left that was killed is
    gone.
    """
    shutil.rmtree(paths.scratch, ignore_errors=True)
    paths.scratch.mkdir(mode=0o711, exist_ok=True)
    paths.scratch.chmod(0o711)
    tempfile.tempdir = str(paths.scratch)


async def serve(paths: Paths) -> None:
    """Run until SIGTERM or SIGINT. Raises Conflict when another daemon runs."""
    os.umask(0o077)
    paths.ensure()
    settings = read(paths.config)
    with _only_one(paths):
        if why := cgroups.prepare():
            say(logger, "no limits", logging.WARNING, why=why)
        proc.aside = cgroups.builds_group()
        _clear_scratch(paths)
        _open_many()
        store = SealedStore(SqliteStore(paths.store, Ballast(paths.ballast)), paths.secret_key)
        try:
            await _keep_secrets(store)
            host_id = _host_id(paths)
            documents.look_from(store, host_id)
            await documents.bring_over(store)
            await peers.bring_over(store)
            site = await open_site(paths, store, host_id, settings)
            await describe_host(site)
            node = Node(site)
            site.examine = lambda vm: inside.examine(node, vm, firewalls.judge_of(store, vm))
            await node.start()
            await _serve(paths, node, store)
        finally:
            await store.close()


async def _keep_secrets(store: SealedStore) -> None:
    if loss := store.find_loss():
        say(logger, "secrets lost", logging.ERROR, why=loss)
    else:
        await store.seal_all()


def _open_many() -> None:
    """Have as many files open as is needed: services and shells are given 1024, and each server
    takes about ten.
    """
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if most == resource.RLIM_INFINITY else min(most, OPEN_FILES)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


async def _serve(paths: Paths, node: Node, store: Store) -> None:
    stop, host_down, leave = asyncio.Event(), asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGPWR, host_down.set)
    config = uvicorn.Config(
        make_app(Parts(node, store)), http=PeerProtocol, ws=PeerWebSocket, lifespan="off",
        log_config=None, access_log=False,
        timeout_graceful_shutdown=1, loop="asyncio", ws_per_message_deflate=False,
        # the other side is on this machine: the kernel tells of its end, and one that takes its
        # time may
        ws_ping_interval=None,
    )  # fmt: skip
    server = _Server(config, leave)
    sock = listening_socket(str(paths.socket), paths.mode == "system")
    working = asyncio.create_task(node.run())
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    stopping, falling = asyncio.create_task(stop.wait()), asyncio.create_task(host_down.wait())
    say(logger, "ready", version=__version__, mode=paths.mode, socket=paths.socket)
    _notify("READY=1")
    startup.settle()
    await asyncio.wait({working, serving, stopping, falling}, return_when=asyncio.FIRST_COMPLETED)
    if (
        not working.done()
        and not serving.done()
        and (host_down.is_set() or await turns.host_goes_down(paths.mode == "system"))
    ):
        await _shut_down(node, stop)
    leave.set()
    _notify("STOPPING=1")
    say(logger, "stopping; machines run on")
    server.should_exit = True
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    for task in (working, stopping, falling):
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working
    with contextlib.suppress(FileNotFoundError):
        os.unlink(paths.socket)


async def _shut_down(node: Node, stop: asyncio.Event) -> None:
    """Shut the servers down, in order, before the host is down; systemd is asked for the time it
    takes. Told to stop again, stop.
    """
    stop.clear()

    def tell(text: str) -> None:
        _notify(f"EXTEND_TIMEOUT_USEC={MORE_TIME * 1_000_000}\nSTATUS={text}")

    shutting, again = asyncio.create_task(node.shut_down(tell)), asyncio.create_task(stop.wait())
    await asyncio.wait({shutting, again}, return_when=asyncio.FIRST_COMPLETED)
    for task in (shutting, again):
        task.cancel()
    await asyncio.gather(shutting, again, return_exceptions=True)


@contextmanager
def _only_one(paths: Paths) -> Iterator[None]:
    handle = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise Conflict("a daemon runs already for this user", "virtuary host shows it") from None
    try:
        yield
    finally:
        os.close(handle)


def _host_id(paths: Paths) -> str:
    """The host's identity: neither its name nor its address; made once."""
    place = paths.state / "host-id"
    if not place.exists():
        write_whole(place, new_id().encode())
    return place.read_text(encoding="ascii").strip()


def _notify(text: str) -> None:
    """Tell systemd, where it started us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with (
            sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM) as sock,
            contextlib.suppress(OSError),
        ):
            sock.connect("\0" + address[1:] if address.startswith("@") else address)
            sock.send(text.encode())


def main() -> None:
    """`virtuary daemon`: in the foreground."""
    paths = find_paths()
    set_up(os.environ.get("VIRTUARY_LOG", "info"), paths.log)
    asyncio.run(serve(paths))
