"""The port at which a copy waits: what a guest answers is hostile until read, every wait has an
end; and the program itself behind a socket.
"""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virtuary.base.errors import GuestSilent, Misbehaves, VirtuaryError
from virtuary.guest.wake import REPLY_CAP, Port, open_port

Guest = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def behind(folder: Path, guest: Guest) -> AsyncIterator[Port]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await guest(reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "wake")
    port = await open_port(folder / "wake")
    try:
        yield port
    finally:
        port.close()
        server.close()


def says(*answers: bytes) -> Guest:
    """A guest that reads all it is told and says this, in these pieces."""

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(int(await reader.readexactly(8)))
        for answer in answers:
            writer.write(answer)
            await writer.drain()
            await asyncio.sleep(0.01)

    return guest


@pytest.mark.parametrize(
    ("answers", "status", "listens"),
    [
        ([b"awake 0 1\n"], 0, True), ([b"awake 0 0\n"], 0, False), ([b"awa", b"ke 0", b" 1\n"], 0, True),
        ([b"it failed: b /x, 2\n", b"awake 2 0\n"], 2, False), ([b"awake 0 1\nnot the last\nawake 1 1\n"], 1, True),
    ],
)  # fmt: skip
async def test_what_a_guest_answers_is_understood(
    tmp_path: Path, answers: list[bytes], status: int, listens: bool
) -> None:
    async with behind(tmp_path, says(*answers)) as port:
        outcome = await port.wake(b"y\n", 5)
    assert (
        outcome.status == status
        and outcome.stdout == b"".join(answers)
        and outcome.stdout.endswith(b"1\n") is listens
    )


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", GuestSilent), (b"awake 0", GuestSilent), (b"asleep\n", GuestSilent), (b"awake 10 1\n", GuestSilent), (b" awake 0 1\n", GuestSilent),
        (b"a" * (REPLY_CAP + 1), Misbehaves), (b"\n" * (REPLY_CAP + 1), Misbehaves),
    ],
)  # fmt: skip
async def test_what_is_no_answer_is_an_error(
    tmp_path: Path, answer: bytes, error: type[VirtuaryError]
) -> None:
    async with behind(tmp_path, says(answer)) as port:
        with pytest.raises(error):
            await port.wake(b"y\n", 5)


async def test_a_guest_that_says_nothing_is_waited_for_no_longer(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with behind(tmp_path, silent) as port:
        with pytest.raises(GuestSilent):
            await port.wake(b"y\n", 0.2)


async def test_a_port_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GuestSilent):
        await open_port(tmp_path / "wake")


@pytest.mark.host
@pytest.mark.parametrize("chunk", [1, 7, 100000])
async def test_the_program_behind_it_takes_lines_in_pieces_and_tells_how_it_went(
    tmp_path: Path, chunk: int
) -> None:
    """Its port is a terminal here: both are opened by a path, and give what is there."""
    program = tmp_path / "awaken"
    program.write_bytes((resources.files("virtuary.guest") / "awaken.bin").read_bytes())
    program.chmod(0o755)
    content = b"x" * 300
    lines = b"f 644 300 %s\n%s\nq\n" % (str(tmp_path / "file").encode(), content)

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left, right = os.openpty()
        tty.setraw(left)
        tty.setraw(right)
        process = await asyncio.create_subprocess_exec(program, os.ttyname(right))
        told = await reader.readexactly(8 + len(lines))
        for at in range(0, len(told), chunk):
            os.write(left, told[at : at + chunk])
            await asyncio.sleep(0)
        await process.wait()
        said = b""
        # a terminal hands on what was written to it bit by bit
        while b"awake " not in said or not said.endswith(b"\n"):
            said += os.read(left, 4096)
        writer.write(said)
        await writer.drain()
        os.close(left)
        os.close(right)

    async with behind(tmp_path, guest) as port:
        outcome = await port.wake(lines, 20)
    assert outcome.status == 1 and outcome.stdout.splitlines()[0].startswith(b"it failed: q")
    assert (tmp_path / "file").read_bytes() == content


@given(
    pieces=st.lists(
        st.binary(max_size=40)
        | st.sampled_from([b"awake 0 1\n", b"\n", b"awake", b"awake 10 1\n", b"\xff" * 70_000]),
        max_size=4,
    )
)
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_whatever_a_guest_says_it_woke_up_or_that_is_no_answer(
    tmp_path: Path, pieces: list[bytes]
) -> None:
    async def play() -> None:
        async with behind(tmp_path, says(*pieces)) as port:
            try:
                outcome = await port.wake(b"", 5)
            except GuestSilent:
                return
            assert 0 <= outcome.status <= 9 and b"awake " in outcome.stdout

    (tmp_path / "wake").unlink(missing_ok=True)
    asyncio.run(play())
