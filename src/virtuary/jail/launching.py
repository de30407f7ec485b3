"""The launcher, seen from the daemon: started at the first need, again when it has died, and gone
when the daemon is.

Each order carries a socket of its own for the answer, so that orders don't wait for each other, and
whoever stops waiting is noticed: what nobody waits for is not executed. A launcher that dies harms
nobody: until it has told a pid nothing was started.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import functools
import marshal
import os
import py_compile
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from virtuary.base.errors import Failed, HostLacks
from virtuary.base.proc import bury, end, start_time

PROGRAM = Path(__file__).with_name("launcher.py")
LONGEST_ANSWER = 65536
PATIENCE = 20.0
"""Seconds a launch may take, under whatever load."""


class Launched(NamedTuple):
    pid: int
    pidfd: int
    """The caller's to close."""
    gaps: tuple[str, ...]


class Tied:
    """A program that ends when this is closed, and when this process dies."""

    def __init__(self, pid: int, answers: socket.socket) -> None:
        self.pid = pid
        self._answers = answers
        self._error = ""

    async def wait(self) -> int:
        """Its exit status, negative for a signal. Raises HostLacks when it never began."""
        loop = asyncio.get_running_loop()
        while message := await loop.sock_recv(self._answers, LONGEST_ANSWER):
            kind, _, words = message.decode(errors="replace").partition(" ")
            if kind == "error":
                raise HostLacks(
                    f"the jail can't be made: {words}", "virtuary doctor tells what is missing"
                )
            if kind == "status":
                return int(words)
        raise Failed("the launcher ended while a program of it ran")

    def close(self) -> None:
        self._answers.close()


class Launcher:
    """One launcher program; `launch` may be called from many tasks at once."""

    def __init__(self) -> None:
        self._pid = 0
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """The program, when it was started and not yet found dead."""
        return self._pid or None

    async def launch(self, order: dict[str, Any], descriptors: list[int]) -> Launched:
        """Have one order done; returns when the program of the machine runs in its jail.

        Raises HostLacks with the launcher's words when the jail can't be made. Left early, it
        leaves no process.
        """
        message = marshal.dumps(order)
        # one that died since the last time is found out here, and so is one that dies over the
        # order
        for _ in range(2):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            with ours:
                try:
                    async with asyncio.timeout(PATIENCE):
                        with theirs:
                            await self._order(message, [theirs.fileno(), *descriptors])
                        launched = await _answer(ours)
                except TimeoutError:
                    raise Failed(f"the launcher did not answer within {PATIENCE:.0f} s") from None
            if launched:
                return launched
        raise HostLacks("the launcher ends at once", "the daemon's log has its words")

    async def tie(self, order: dict[str, Any], descriptors: list[int]) -> Tied:
        """Have one order done whose program is to end with us; returns when it is there. To be
        closed. Raises HostLacks.
        """
        message = marshal.dumps({**order, "tied": True})
        for _ in range(2):  # as in `launch`
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            try:
                async with asyncio.timeout(PATIENCE):
                    with theirs:
                        await self._order(message, [theirs.fileno(), *descriptors])
                    answer = await asyncio.get_running_loop().sock_recv(ours, LONGEST_ANSWER)
            except BaseException as error:
                ours.close()
                if isinstance(error, TimeoutError):
                    raise Failed(f"the launcher did not answer within {PATIENCE:.0f} s") from None
                raise
            kind, _, words = answer.decode(errors="replace").partition(" ")
            if kind == "pid":
                return Tied(int(words.partition(" ")[0]), ours)
            ours.close()
            if answer:
                raise HostLacks(
                    f"the jail can't be made: {words}", "virtuary doctor tells what is missing"
                )
        raise HostLacks("the launcher ends at once", "the daemon's log has its words")

    async def _order(self, message: bytes, descriptors: list[int]) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        while True:
            control = self._control or self._start()
            try:
                control.sendmsg([message], rights)
                return
            except BlockingIOError:
                await asyncio.sleep(0.002)  # more orders at once than fit between us
            except ConnectionError:
                self.close()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", program()],
                {},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_RDWR, 0),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )
        self._control = ours
        return ours

    def close(self) -> None:
        """End the program, and forget it; the next launch starts another one."""
        if self._control:
            self._control.close()
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
        self._pid, self._control = 0, None


LAUNCHER = Launcher()
"""This process's own."""


@functools.cache
def program() -> str:
    """The launcher, compiled where that can be kept."""
    try:
        return str(py_compile.compile(str(PROGRAM), doraise=True))
    except (OSError, py_compile.PyCompileError):
        return str(PROGRAM)


@dataclass
class _Answer:
    """What was heard of an order."""

    launched: Launched | None = None
    parent: int = 0
    error: str = ""

    def hear(self, message: bytes) -> None:
        kind, _, words = message.decode(errors="replace").partition(" ")
        if kind == "error":  # the child's may come before its pid does
            self.error = words or "it did not say why"
            return
        pids, *gaps = words.split("\0")
        pid, self.parent = map(int, pids.split())
        try:
            self.launched = Launched(pid, os.pidfd_open(pid), tuple(gaps))
        except ProcessLookupError:
            self.error = self.error or "it ended before its program began"

    def undo(self) -> None:
        if self.launched:
            end(self.launched.pidfd)
            bury(self.launched.pidfd)


async def _answer(ours: socket.socket) -> Launched | None:
    """What became of an order; None when the launcher died over it and started nothing."""
    loop = asyncio.get_running_loop()
    answer = _Answer()
    try:
        while message := await loop.sock_recv(ours, LONGEST_ANSWER):
            answer.hear(message)
        # The kernel makes no event of the rest. When the parent is gone QEMU is our child, or its
        # group is free of processes.
        while start_time(answer.parent):  # noqa: ASYNC110
            await asyncio.sleep(0.0005)
        if answer.error:
            raise HostLacks(
                f"the jail can't be made: {answer.error}", "virtuary doctor tells what is missing"
            )
    except BaseException:
        # from here on nothing is executed, and what is must have told its pid before
        ours.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            while message := ours.recv(LONGEST_ANSWER):
                answer.hear(message)
        answer.undo()
        raise
    return answer.launched
