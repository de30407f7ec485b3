"""A command inside a server, connected with this process: input, output, the terminal and its size,
signals. What `virtuary exec` does.

All that comes out is passed on, or this fails. Input is read only as the command takes it; what it
left of a file is left to whoever reads that file next, as in `while read`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from virtuary.base.errors import Failed, GuestSilent, VirtuaryError, from_problem
from virtuary.base.units import format_duration
from virtuary.cli.output import say
from virtuary.client.frames import BINARY, CLOSE, TEXT, Frames
from virtuary.client.wire import Wire, path_part

WINDOW = 1024 * 1024
"""Bytes of input that are sent before they are taken."""
PIECE = 64 * 1024
UNSAID = 2.0
"""Seconds for which nothing is said of a command that has not begun."""
PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
Put = Callable[[int, bytes], None]


class NotBegun(Exception):
    """The command was not begun: there was no way to."""

    def __init__(self, error: VirtuaryError) -> None:
        super().__init__(error.sentence)
        self.error = error


class Running:
    """One command and the process that waits for it."""

    def __init__(self, frames: Frames, put: Put, stdin: int | None, limit: float | None) -> None:
        """`stdin`: descriptor that is read for it. `limit`: seconds after which it is ended."""
        self._frames, self._put, self._stdin = frames, put, stdin
        self._until = None if limit is None else time.monotonic() + limit
        self._limit = limit or 0
        self._sent = self._taken = 0
        self._eof, self._begun = stdin is None, False
        self._told = False
        self._caught: list[int] = []

    def run(self, wish: dict[str, Any]) -> int:
        """Its exit status, once all that it said was passed on. Raises NotBegun, GuestSilent,
        Failed.
        """
        self._frames.send(TEXT, json.dumps(wish).encode())
        with self._signals() as woken:
            while True:
                for message in self._frames.whole() or self._wait(woken):
                    end = self._heed(message.kind, message.data)
                    if end is not None:
                        return end

    def _tell(self, **word: Any) -> None:
        self._frames.send(TEXT, json.dumps(word).encode())

    def _wait(self, woken: int) -> list[Any]:
        """What came next, after a look at everything else that can happen."""
        reads: list[Any] = [self._frames, woken]
        if self._begun and not self._eof and self._sent - self._taken < WINDOW:
            reads.append(self._stdin)
        left = None if self._until is None else max(0.0, self._until - time.monotonic())
        if not self._begun and not self._told:
            left = UNSAID if left is None else min(left, UNSAID)
        ready, _, _ = select.select(reads, [], [], left)
        if not ready and not self._begun and not self._told:
            self._told = True
            say("waiting for the guest agent")
        if not ready and self._until is not None and time.monotonic() >= self._until:
            raise GuestSilent(
                f"the command did not end within {format_duration(self._limit)}", "it was ended"
            )
        if woken in ready:
            self._pass_signals(woken)
        if self._stdin in ready and self._stdin is not None:
            self._pass_input(self._stdin)
        return self._frames.take() if self._frames in ready else []

    def _pass_input(self, stdin: int) -> None:
        try:
            data = os.read(stdin, PIECE)
        except OSError:  # a closed descriptor, or a terminal that is gone
            data = b""
        if data:
            self._sent += len(data)
            self._frames.send(BINARY, data)
        else:
            self._eof = True
            self._tell(eof=True)

    def _pass_signals(self, woken: int) -> None:
        os.read(woken, 4096)
        caught, self._caught = self._caught, []
        for number in caught:
            if number == signal.SIGWINCH:
                rows, columns = terminal_size()
                self._tell(rows=rows, columns=columns)
            else:
                self._tell(signal=number)

    def _heed(self, kind: int, data: bytes) -> int | None:
        """Pass on what was said; the exit status, when it was that."""
        if kind == CLOSE:
            raise Failed(
                "the daemon went away while the command ran",
                "how it ended is not known, and its output may not be whole",
            )
        if kind == BINARY:
            self._put(2 if data[:1] == b"\2" else 1, data[1:])
            return None
        said = json.loads(data)
        if "error" in said:
            error = from_problem(said["error"])
            raise error if self._begun else NotBegun(error)
        if "started" in said:
            self._begun = True
            if self._eof:
                self._tell(eof=True)
        if "note" in said:
            say(said["note"])
        self._taken = said.get("taken", self._taken)
        if "status" not in said:
            return None
        self._give_back(said["unread"] + max(0, self._sent - self._taken))
        return int(said["status"])

    def _give_back(self, unread: int) -> None:
        """Of a file, what the command did not read is left to be read by others."""
        if self._stdin is not None and unread > 0:
            with contextlib.suppress(OSError):
                os.lseek(self._stdin, -unread, os.SEEK_CUR)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[int]:
        """Signals to this process are the command's; a second SIGINT in a row that nothing follows
        ends this one. A descriptor that wakes.
        """
        out, into = os.pipe()
        os.set_blocking(into, False)
        heeded = [
            number
            for number in (*PASSED_ON, signal.SIGWINCH)
            if signal.getsignal(number) != signal.SIG_IGN
        ]  # as nohup wishes
        before = {number: signal.signal(number, self._catch) for number in heeded}
        wakes = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
        try:
            yield out
        finally:
            signal.set_wakeup_fd(wakes)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(out)
            os.close(into)

    _interrupted = 0.0

    def _catch(self, number: int, _: object) -> None:
        if number in (signal.SIGINT, signal.SIGTERM):
            now = time.monotonic()
            if 0.2 < now - self._interrupted < 2:
                raise KeyboardInterrupt
            self._interrupted = now
        self._caught.append(number)


def terminal_size() -> tuple[int, int]:
    """Rows and columns of the terminal that this process has; 24 and 80 without one."""
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(number)
            if size.lines > 0 and size.columns > 0:
                return size.lines, size.columns
    return 24, 80


def put_out(stream: int, data: bytes) -> None:
    """Write output of the command to this process's own, all of it. Raises Failed, or
    BrokenPipeError where nobody reads it.
    """
    view = memoryview(data)
    try:
        while view:
            try:
                view = view[os.write(stream, view) :]
            except BlockingIOError:
                select.select([], [stream], [])
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failed(
            f"the command's {'output' if stream == 1 else 'errors'} could not be written: "
            f"{error.strerror}"
        ) from error


def run_inside(
    wire: Wire,
    name: str,
    words: tuple[str, ...],
    stdin: int | None,
    terminal: bool,
    limit: float | None,
    put: Put = put_out,
) -> int:
    """Run a command by the guest's agent; its exit status. Raises NotBegun where that can't be
    begun.
    """
    rows, columns = terminal_size()
    wish: dict[str, Any] = {"command": list(words)}
    if terminal:
        wish |= {
            "terminal": os.environ.get("TERM", "")[:64] or "dumb",
            "rows": rows,
            "columns": columns,
        }
    with wire.connect() as sock, _raw(terminal):
        sock.settimeout(None)
        return Running(Frames(sock, f"/v1/vms/{path_part(name)}/exec"), put, stdin, limit).run(wish)


def own_input() -> int | None:
    """The descriptor from which a command inside may be given input; None where reading it would
    only stop this process.
    """
    with contextlib.suppress(OSError):
        if os.isatty(0) and os.tcgetpgrp(0) != os.getpgrp():
            return None  # in the background
    return 0


@contextlib.contextmanager
def _raw(terminal: bool) -> Iterator[None]:
    """This process's terminal as a mere line to the one inside."""
    if not terminal or not os.isatty(0):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
