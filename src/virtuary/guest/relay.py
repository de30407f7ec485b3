"""A command in the guest with streams, through its agent and without any network: what goes in and
comes out is passed on piece by piece.

The agent itself keeps a command's whole output until it ends, cuts it at 16 MiB, and lets the
command live on when nobody waits for it any more. So a small program (relay.c) is put into the
guest once and runs the command there; the agent reads and writes the files by which it is spoken
with. What it says is a hostile guest's: frames are bounded, and nothing is believed but how long
they are.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import secrets
import struct
from collections.abc import Coroutine
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

from virtuary.base.answers import read
from virtuary.base.errors import Failed, GuestSilent, Misbehaves
from virtuary.guest.agent import WHO, Agent, decode

FOLDER = "/run/virtuary/exec"
PIECE = 192 * 1024
"""Bytes of input that are written at once."""
WINDOW = 1024 * 1024
"""Bytes of input that may lie in the guest and were not taken by the command."""
TAKE = 480 * 1024
"""Bytes that are read at once: as base64 they fit into a line."""
FRAME_CAP = 64 * 1024
ACKNOWLEDGED_AT = 256 * 1024
WATCHED = 5.0
"""Seconds without a word after which it is asked whether the program still runs."""
ANSWERS = 5.0
"""Seconds within which an agent begins to do what it is asked: where none does, there is another
way in.
"""
BEAT = 20.0
"""Seconds after which the guest is told that somebody still waits; it ends the command after 120
without.
"""
QUICK, SLOW = 0.01, 0.25
"""Seconds between two looks: the least, and the most where nothing happens."""
_STREAMS = {b"o": 1, b"e": 2}
_ODD = "the guest answered something else than a command's output"
_MODES = {"in": "w", "ctl": "w", "out": "w+"}


@dataclass(frozen=True)
class Command:
    words: tuple[str, ...]
    terminal: str = ""
    """Kind of the terminal (TERM) it is to have; none where empty."""
    size: tuple[int, int] = (24, 80)
    """Rows and columns of that."""


class Piece(NamedTuple):
    """Something that the command said."""

    stream: int
    """1: output, 2: errors."""
    data: bytes


class End(NamedTuple):
    """How the command ended."""

    status: int
    """As shells count: 128 and the signal for one that was killed."""
    unread: int
    """Bytes of the input it was handed and did not read."""


class NotStarted(Failed):
    """The command can't be started in the guest: its errno is among the details."""

    def __init__(self, word: str, number: int) -> None:
        super().__init__(f"{word[:200]}: {os.strerror(number)}", None, errno=number)


def program() -> bytes:
    return (resources.files("virtuary.guest") / "relay.bin").read_bytes()


def place() -> str:
    """Where the program lies in a guest that has had it; another version lies elsewhere."""
    return f"{FOLDER}/relay-{hashlib.sha256(program()).hexdigest()[:12]}"


def setup_script() -> bytes:
    """Puts the program where the guest can run it: /run may forbid that, and a disk may be full.
    Fails with a reason.
    """
    text = base64.encodebytes(program()).decode()
    return f"""umask 077
mkdir -p {FOLDER} || exit 1
chmod 711 /run/virtuary
chmod 700 {FOLDER}
put() {{
    base64 -d > "$1/relay.new" << 'END' && chmod 700 "$1/relay.new" && "$1/relay.new" && mv "$1/relay.new" "$1/relay" && ln -sfn "$1/relay" {place()}
{text}END
}}
for folder in /var/lib/virtuary {FOLDER} /dev/shm /tmp; do
    case $folder in
    /dev/shm | /tmp) own=$(mktemp -d "$folder/virtuary-XXXXXX") || continue ;;
    *) own=$folder/exec.bin; mkdir -p "$own" || continue ;;
    esac
    put "$own" && exit 0
    rm -rf "$own"
done 2> /dev/null
echo "no filesystem of its lets a program be put there and run" >&2
exit 1
""".encode()


class Relay:
    """One command that runs. Made by `start`; `close` ends it if it still runs."""

    def __init__(self, agent: Agent, handles: dict[str, int], word: str, pid: int = 0) -> None:
        self._agent, self._handles, self._word, self._pid = agent, handles, word, pid
        self._given = self._taken = self._got = self._acknowledged = 0
        self._rest = b""
        self._end: End | None = None
        self._found: list[Piece | End] = []
        self._lost = self._over = False
        self._beat = self._seen = asyncio.get_running_loop().time()

    # ---- what it is told

    @property
    def room(self) -> int:
        """Bytes of input that may be given now."""
        return max(0, WINDOW - (self._given - self._taken))

    async def give(self, data: bytes) -> None:
        """Hand over input."""
        for at in range(0, len(data), PIECE):
            piece = data[at : at + PIECE]
            # first: what was sent once gets there, also where no answer came
            self._given += len(piece)
            await self._write("in", piece)

    async def close_input(self) -> None:
        await self._tell(b"z", self._given)

    async def signal(self, number: int) -> None:
        await self._tell(b"s", number)

    async def resize(self, rows: int, columns: int) -> None:
        await self._tell(b"w", rows << 16 | columns)

    async def beat(self) -> None:
        """Have the command live on, if that was not said for a while."""
        if asyncio.get_running_loop().time() - self._beat > BEAT:
            await self._tell(b"h", 0)

    async def _tell(self, letter: bytes, number: int) -> None:
        self._beat = asyncio.get_running_loop().time()
        await self._write("ctl", _record(letter, number))

    async def _write(self, name: str, data: bytes) -> None:
        text = base64.b64encode(data).decode()
        await self._agent.run(
            "guest-file-write", 60, **{"handle": self._handles[name], "buf-b64": text}
        )
        await self._agent.run("guest-file-flush", handle=self._handles[name])

    # ---- what it says

    async def look(self) -> list[Piece | End]:
        """What came since the last look; empty where nothing did. After an End there is nothing
        more. Raises NotStarted.

        After a GuestSilent it may be asked again: nothing is lost.
        """
        if self._end is None:
            await self._take()
        found, self._found = self._found, []
        return found

    async def _take(self) -> None:
        now = asyncio.get_running_loop().time()
        data = await self._read()
        self._got += len(data)
        self._parse(data)
        if data:
            self._seen = now
        elif self._over:
            raise Failed(
                f"what ran {self._word[:200]!r} in the guest was ended there",
                "its output may not be whole",
            )
        elif now - self._seen > WATCHED:
            # a program that was ended from inside the guest says nothing any more
            self._seen = now
            self._over = read(await self._agent.run("guest-exec-status", pid=self._pid), WHO).flag(
                "exited"
            )
        if self._end is None and self._got - self._acknowledged > ACKNOWLEDGED_AT:
            self._acknowledged = self._got
            await self._tell(b"a", self._got)
        await self.beat()

    async def _read(self) -> bytes:
        out = self._handles["out"]
        if self._lost:  # what an answer that never came had read is read again
            await self._agent.run("guest-file-seek", handle=out, offset=self._got, whence=0)
        self._lost = True
        told = read(await self._agent.run("guest-file-read", handle=out, count=TAKE), WHO)
        self._lost = False
        data = decode(told.text("buf-b64", "", most=2 * TAKE).encode())
        if len(data) > TAKE:
            raise Misbehaves(f"{WHO} answered more than it was asked for")
        return data

    def _parse(self, data: bytes) -> None:
        """Frames that are whole; what belongs to one stream in a row becomes one piece."""
        told, at = self._rest + data, 0
        row: list[bytes] = []
        stream = 0
        while self._end is None and len(told) >= at + 5:
            kind, size = told[at : at + 1], int.from_bytes(told[at + 1 : at + 5], "little")
            if size > FRAME_CAP:
                raise Misbehaves(_ODD)
            if len(told) < at + 5 + size:
                break
            body = told[at + 5 : at + 5 + size]
            at += 5 + size
            if now := _STREAMS.get(kind):
                if now != stream:
                    self._flush(stream, row)
                stream = now
                row.append(body)
            else:
                self._heed(kind, body)
        self._rest = told[at:]
        self._flush(stream, row)
        if self._end:
            self._found.append(self._end)

    def _flush(self, stream: int, row: list[bytes]) -> None:
        if row:
            self._found.append(Piece(stream, b"".join(row)))
            row.clear()

    def _heed(self, kind: bytes, body: bytes) -> None:
        if kind == b"t" and len(body) == 8:
            self._taken = min(self._given, max(self._taken, int.from_bytes(body, "little")))
        elif kind == b"f" and len(body) == 4:
            raise NotStarted(self._word, int.from_bytes(body, "little"))
        elif kind == b"x" and len(body) == 12:
            status, unread = struct.unpack("<IQ", body)
            left = self._given - self._taken  # came when the command had ended already
            self._end = End(status & 255, left + min(unread, self._taken))
        else:
            raise Misbehaves(_ODD)

    async def close(self) -> None:
        """End the command if it still runs, and leave nothing open."""
        if self._end is None:
            await _quietly(self._tell(b"s", 0))
        for handle in self._handles.values():
            await _quietly(self._agent.run("guest-file-close", handle=handle))
        await _quietly(self._agent.run("guest-exec-status", pid=self._pid))


async def _quietly(work: Coroutine[Any, Any, object]) -> None:
    with contextlib.suppress(Failed, GuestSilent):
        await work


def _record(letter: bytes, number: int) -> bytes:
    return letter + number.to_bytes(8, "little")


async def start(agent: Agent, command: Command) -> Relay:
    """Run a command in the guest. Raises Failed where its agent refuses that, or no program can be
    put into it.
    """
    try:
        return await _start(agent, command)
    except Failed:  # it is not there yet, or the folder was emptied
        outcome = await agent.execute(["/bin/sh"], setup_script(), 60)
        if outcome.status != 0:
            raise Failed(
                "the guest can't be made ready to run commands: "
                f"{outcome.stderr.decode(errors='replace').strip()[-300:]}"
            ) from None
    return await _start(agent, command)


async def _start(agent: Agent, command: Command) -> Relay:
    name, handles = f"{FOLDER}/{secrets.token_hex(8)}", dict[str, int]()
    rows, columns = command.size
    try:
        for end, mode in _MODES.items():
            handles[end] = read(
                await agent.run("guest-file-open", ANSWERS, path=f"{name}.{end}", mode=mode), WHO
            ).number()
        if command.terminal:
            await Relay(agent, handles, "").resize(rows, columns)
        words = [name, "t" if command.terminal else "p", command.terminal, *command.words]
        pid = read(await agent.run("guest-exec", path=place(), arg=words), WHO).number("pid")
    except BaseException:
        for handle in handles.values():
            await _quietly(agent.run("guest-file-close", handle=handle))
        raise
    return Relay(agent, handles, command.words[0], pid)
