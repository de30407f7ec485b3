"""Where the networks of a host are: on the host itself for root, in a network namespace of their
own for an ordinary user.

Whoever makes networks asks their `Netns` to call the functions that touch the kernel. `Host` calls
them; `Private` has them called inside the user's namespace. What may be read there can be read from
here, below `net`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from virtuary.base.errors import Failed, HostLacks, PeerAway
from virtuary.base.known import RECORD, end_recorded, recorded
from virtuary.base.proc import (
    ENVIRONMENT,
    find_program,
    last_line,
    run,
)
from virtuary.base.watched import Watched, watch
from virtuary.network.bridge import NET
from virtuary.network.within import LENGTH, READY, ask, stay, understand

READY_WITHIN, ANSWER_WITHIN = 10.0, 90.0
"""Seconds."""
TUN = Path("/dev/net/tun")
TRIED = (
    "ip link add vbtry type bridge && ip tuntap add vttry mode tap && ip link set vttry master "
    "vbtry && "
    "nft add table inet virtuary && nft add table bridge virtuary && echo 1 > "
    "/proc/sys/net/ipv4/ip_forward"
)
PROGRAM = (sys.executable, "-P", "-s", "-m", "virtuary.network.within")
SURROUNDINGS = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


P = ParamSpec("P")
T = TypeVar("T")


class Netns(Protocol):
    private: bool
    """Whether it is a user's own."""

    @property
    def net(self) -> Path:
        """The folder of its network interfaces, like /sys/class/net."""
        ...

    @overload
    async def call(
        self, function: Callable[P, Awaitable[T]], *words: P.args, **named: P.kwargs
    ) -> T: ...
    @overload
    async def call(self, function: Callable[P, T], *words: P.args, **named: P.kwargs) -> T: ...
    async def call(self, function: Callable[..., Any], *words: Any, **named: Any) -> Any:
        """What this function, of a module, gives there; raises what it raises, and PeerAway where
        there can't be reached.
        """
        ...

    async def open(
        self, function: Callable[P, int | Awaitable[int]], *words: P.args, **named: P.kwargs
    ) -> int:
        """The same for one that opens a descriptor, which is the caller's to close."""
        ...

    async def leave(self) -> None:
        """No network is left: nothing need be kept for them."""
        ...


class Host:
    """The host itself."""

    private = False
    net = NET

    async def call(self, function: Callable[..., Any], *words: Any, **named: Any) -> Any:
        value = function(*words, **named)
        return await value if inspect.isawaitable(value) else value

    async def open(self, function: Callable[..., Any], *words: Any, **named: Any) -> int:
        return int(await self.call(function, *words, **named))

    async def leave(self) -> None:
        pass


class Private:
    """A user's own network namespace, made when it is first needed. It outlives the daemon, as
    machines do.
    """

    private = True

    def __init__(self, folder: Path) -> None:
        self._anchor = folder / "anchor"
        self._lock = asyncio.Lock()
        self._holder: Watched | None = None
        """Who stays in the namespace."""
        self._server: _Server | None = None
        self.served: list[Path] = []
        """Records of others that are of no use when the namespace is another one."""

    @property
    def net(self) -> Path:
        return Path(f"/proc/{self._holder.identity.pid if self._holder else 0}/root/sys/class/net")

    async def call(self, function: Callable[..., Any], *words: Any, **named: Any) -> Any:
        return await asyncio.shield(asyncio.create_task(self._ask(False, function, words, named)))

    async def open(self, function: Callable[..., Any], *words: Any, **named: Any) -> int:
        task: asyncio.Task[int] = asyncio.create_task(self._ask(True, function, words, named))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_close)
            raise

    async def _ask(
        self,
        descriptor: bool,
        function: Callable[..., Any],
        words: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        async with self._lock:
            server = await self._ensure()
            try:
                async with asyncio.timeout(ANSWER_WITHIN):
                    answer = await server.ask(ask(function, words, named, descriptor=descriptor))
            except (OSError, EOFError, TimeoutError) as error:
                await self._part()
                raise PeerAway("who makes your networks ended, and is started again") from error
            value = understand(answer, function)
            return server.take() if descriptor else value

    async def _ensure(self) -> _Server:
        """Somebody to ask, in the namespace of who stays there."""
        if self._holder is None or self._holder.ended:
            self._let_go()
            self._holder = _find([self._anchor]) or await self._stay() or await self._hold()
        if self._server is None:
            self._server = await _Server.start(self._holder.identity.pid)
        return self._server

    async def _stay(self) -> Watched | None:
        """Have somebody stay again in a namespace that is left to those who serve there; None where
        nobody does.
        """
        if self._server is None:
            if (serving := _find(self._serving)) is None:
                return None
            serving.let_go()
            self._server = await _Server.start(serving.identity.pid)
        try:
            async with asyncio.timeout(READY_WITHIN):
                await self._server.ask(ask(stay, (str(self._anchor),), {}, descriptor=False))
        except (OSError, EOFError, TimeoutError):
            return None
        return await self._appear()

    async def _appear(self) -> Watched | None:
        """Who was just started to stay, once it has written down who it is."""
        for _ in range(1000):
            if found := _find([self._anchor]):
                return found
            await asyncio.sleep(0.001)
        return None

    @property
    def _serving(self) -> list[Path]:
        """Records of those that give addresses and names there."""
        return list(self._anchor.parent.glob(f"*/{RECORD}"))

    async def _hold(self) -> Watched:
        """Make the namespace. What served networks in one that is lost would answer nobody."""
        await self._part()
        self._anchor.parent.mkdir(parents=True, exist_ok=True)
        for record in (*self._serving, *self.served):
            await end_recorded(record)
        process = await asyncio.create_subprocess_exec(
            *PROGRAM, "hold", str(self._anchor),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=SURROUNDINGS, start_new_session=True, cwd="/",
        )  # fmt: skip
        assert process.stdout and process.stderr
        try:
            async with asyncio.timeout(READY_WITHIN):
                said = await process.stdout.readline()
                errors = await process.stderr.read()  # both ends when it stays
        except TimeoutError:
            process.kill()
            raise Failed("a network namespace of your own was not made in time") from None
        if said == READY and (found := await self._appear()):
            return found
        raise HostLacks(
            "a network namespace of your own can't be made: "
            f"{last_line(errors) or 'it ended at once'}"
        )

    async def leave(self) -> None:
        async with self._lock:
            await self._part()
            self._holder = self._holder or _find([self._anchor])
            if self._holder:
                self._holder.end()
                await self._holder.wait()
            self._let_go()
            self._anchor.unlink(missing_ok=True)

    async def _part(self) -> None:
        if self._server:
            await self._server.stop()
        self._server = None

    def _let_go(self) -> None:
        if self._holder:
            self._holder.let_go()
        self._holder = None


def _find(records: Sequence[Path]) -> Watched | None:
    """A living process that one of these records names."""
    found = (watch(identity) for record in records for identity in recorded(record))
    return next((process for process in found if process), None)


def _close(task: asyncio.Task[int]) -> None:
    if not task.cancelled() and not task.exception():
        os.close(task.result())


class _Server:
    """Who does in the namespace what is asked for."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter, hands: socket.socket
    ) -> None:  # fmt: skip
        self._process, self._reader, self._writer, self._hands = process, reader, writer, hands

    @classmethod
    async def start(cls, holder: int) -> _Server:
        control, theirs = socket.socketpair()
        hands, lent = socket.socketpair()
        with theirs, lent:
            process = await asyncio.create_subprocess_exec(
                *PROGRAM, "serve", str(holder), str(theirs.fileno()), str(lent.fileno()),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=SURROUNDINGS,
                pass_fds=(theirs.fileno(), lent.fileno()), start_new_session=True, cwd="/",
            )  # fmt: skip
        return cls(process, *await asyncio.open_connection(sock=control), hands)

    async def ask(self, question: bytes) -> bytes:
        """Its answer; raises OSError or EOFError when it has ended."""
        self._writer.write(LENGTH.pack(len(question)) + question)
        await self._writer.drain()
        (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        return await self._reader.readexactly(length)

    def take(self) -> int:
        """The descriptor that came with the last answer."""
        _, handles, _, _ = socket.recv_fds(self._hands, 1, 1, socket.MSG_CMSG_CLOEXEC)
        return handles[0]

    async def stop(self) -> None:
        self._writer.close()
        self._hands.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()


async def prove() -> str | None:
    """Whether this user can have a namespace for networks, tried in one that goes at once. None, or
    why not.
    """
    if not os.access(TUN, os.R_OK | os.W_OK):
        return f"{TUN} can't be opened by this user"
    try:
        for program in ("dnsmasq", "ip", "tc", "nft"):
            find_program(program)
        await run(*PROGRAM, "try", TRIED, cwd=Path("/"), env=SURROUNDINGS)
    except (Failed, HostLacks) as error:
        return error.sentence
    return None
