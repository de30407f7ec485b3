"""Commands with streams: the program that runs them, tried here beside an agent that really opens
files and starts programs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from base64 import b64decode, b64encode
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from freestanding import BUILD
from virtuary.base.errors import Failed, GuestSilent, Misbehaves
from virtuary.guest import relay
from virtuary.guest.relay import Command, End, NotStarted, Piece, Relay


class Here:
    """What a guest's agent does, done on this machine: files and programs of `relay.FOLDER` lie in
    a folder of the test.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[int, Any] = {}
        self.started: list[subprocess.Popen[bytes]] = []
        self.lose = 0
        """So many answers to come get lost, though what was asked is done."""

    async def run(self, command: str, deadline: float = 10, **given: Any) -> object:
        answer = getattr(self, command.replace("-", "_"))(given)
        if self.lose and command == "guest-file-read":
            self.lose -= 1
            raise GuestSilent("lost")
        return answer

    def place(self, path: str) -> str:
        return path.replace(relay.FOLDER, str(self.folder))

    def guest_file_open(self, given: dict[str, Any]) -> int:
        file = open(self.place(given["path"]), given["mode"] + "b")  # noqa: SIM115
        self.files[file.fileno()] = file
        return file.fileno()

    def guest_file_read(self, given: dict[str, Any]) -> dict[str, Any]:
        data = self.files[given["handle"]].read(given["count"])
        return {"count": len(data), "buf-b64": b64encode(data).decode(), "eof": not data}

    def guest_file_seek(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"position": self.files[given["handle"]].seek(given["offset"], given["whence"])}

    def guest_file_write(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"count": self.files[given["handle"]].write(b64decode(given["buf-b64"]))}

    def guest_file_flush(self, given: dict[str, Any]) -> dict[str, Any]:
        self.files[given["handle"]].flush()
        return {}

    def guest_file_close(self, given: dict[str, Any]) -> dict[str, Any]:
        self.files.pop(given["handle"]).close()
        return {}

    def guest_exec(self, given: dict[str, Any]) -> dict[str, Any]:
        words = [self.place(word) for word in (given["path"], *given["arg"])]
        self.started.append(subprocess.Popen(words, stdin=subprocess.DEVNULL))
        return {"pid": self.started[-1].pid}

    def guest_exec_status(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"exited": self.started[-1].poll() is not None}


@pytest.fixture
def here(tmp_path: Path) -> Here:
    program = tmp_path / Path(relay.place()).name
    program.write_bytes(relay.program())
    program.chmod(0o700)
    return Here(tmp_path)


async def begin(here: Here, *words: str, **fields: Any) -> Relay:
    return await relay.start(here, Command(words, **fields))  # type: ignore[arg-type]


async def to_its_end(running: Relay, data: bytes | None = b"") -> tuple[int, bytes, bytes, int]:
    """Hand in `data` as it is taken, and the end of it; None: nothing, and no end. Its status,
    output, errors and what it did not read.
    """
    said = {1: b"", 2: b""}
    if data == b"":
        await running.close_input()
    async with asyncio.timeout(20):
        while True:
            if data and running.room:
                piece, data = data[: running.room], data[running.room :]
                await running.give(piece)
                if not data:
                    await running.close_input()
            for item in await running.look():
                if isinstance(item, Piece):
                    said[item.stream] += item.data
                else:
                    await running.close()
                    return item.status, said[1], said[2], item.unread
            await asyncio.sleep(0.005)


def test_the_program_is_what_its_source_says(tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    source = Path(str(resources.files("virtuary.guest") / "relay.c"))
    subprocess.run(
        [*BUILD, "-o", tmp_path / "relay", source], check=True, timeout=60, capture_output=True
    )
    built = (tmp_path / "relay").read_bytes()
    assert b"/dev/ptmx" in relay.program() and abs(len(built) - len(relay.program())) < 512, (
        "build it again and keep it as relay.bin"
    )


@pytest.mark.parametrize("shell", [["sh"], ["dash"], ["busybox", "sh"]], ids=" ".join)
def test_every_shell_of_a_guest_can_read_how_it_is_put_there(shell: list[str]) -> None:
    if not shutil.which(shell[0]):
        pytest.skip(f"{shell[0]} is not installed")
    done = subprocess.run([*shell, "-n"], input=relay.setup_script(), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


async def test_output_and_errors_and_the_status_come_back(here: Here) -> None:
    running = await begin(here, "sh", "-c", "echo out; echo wrong >&2; exit 3")
    assert await to_its_end(running) == (3, b"out\n", b"wrong\n", 0)
    assert not here.files and not list(here.folder.glob("*.*")), (
        "nothing is left open, and no file is left"
    )


async def test_much_input_comes_back_as_it_was(here: Here) -> None:
    data = os.urandom(5 * 1024 * 1024)
    assert await to_its_end(await begin(here, "cat"), data) == (0, data, b"", 0)


async def test_what_was_read_takes_no_room_and_what_nobody_reads_has_a_bound(here: Here) -> None:
    running = await begin(here, "sh", "-c", "head -c 20000000 /dev/zero")
    out = max(here.files)
    await asyncio.sleep(0.5)
    assert os.fstat(out).st_size < 3 * 1024 * 1024, "the command waits"
    got = 0
    async with asyncio.timeout(20):
        while got < 15_000_000:
            found = await running.look()
            assert not any(isinstance(item, End) for item in found), (got, found[-1])
            got += sum(len(item.data) for item in found if isinstance(item, Piece))
            await asyncio.sleep(0.002)
    assert os.fstat(out).st_size > 15_000_000 and os.fstat(out).st_blocks * 512 < 6 * 1024 * 1024
    status, rest, _, _ = await to_its_end(running, None)
    assert status == 0 and got + len(rest) == 20_000_000


async def test_nothing_is_lost_where_answers_are(here: Here) -> None:
    running = await begin(here, "seq", "100000")
    here.lose = 5
    said = b""
    async with asyncio.timeout(10):
        while not said.endswith(b"\n100000\n"):
            try:
                said += b"".join(
                    item.data for item in await running.look() if isinstance(item, Piece)
                )
            except GuestSilent:
                await asyncio.sleep(0.02)
    assert said == b"".join(b"%d\n" % number for number in range(1, 100001))
    await running.close()


async def test_input_comes_while_the_command_runs_and_what_it_left_is_counted(here: Here) -> None:
    running = await begin(
        here, "sh", "-c", "read one; echo got $one; read two; echo and $two; sleep 0.2"
    )
    await running.give(b"1\n")
    async with asyncio.timeout(5):
        while not (found := await running.look()):
            await asyncio.sleep(0.01)
    assert found == [Piece(1, b"got 1\n")]
    await running.give(b"2\nthis is for nobody\n")
    assert await to_its_end(running, None) == (0, b"and 2\n", b"", len("this is for nobody\n"))


async def test_input_that_came_after_the_end_was_read_by_nobody(here: Here) -> None:
    running = await begin(here, "true")
    await asyncio.sleep(0.5)
    await running.give(b"too late")
    assert await to_its_end(running, None) == (0, b"", b"", len("too late"))


@pytest.mark.parametrize(
    ("word", "number"), [("no-such-command", 2), ("/etc/passwd", 13), ("/etc", 13), ("", 2)]
)
async def test_what_can_t_be_started_is_said(here: Here, word: str, number: int) -> None:
    with pytest.raises(NotStarted) as caught:
        await to_its_end(await begin(here, word))
    assert caught.value.details == {"errno": number}


async def test_a_script_without_a_first_line_is_a_shell_s(here: Here) -> None:
    script = here.folder / "script"
    script.write_text('echo "$0 $1"\n')
    script.chmod(0o700)
    assert (await to_its_end(await begin(here, str(script), "a b")))[
        1
    ] == f"{script} a b\n".encode()


async def test_a_signal_is_the_command_s(here: Here) -> None:
    running = await begin(
        here, "sh", "-c", "trap 'echo heard; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    )
    while not await running.look():
        await asyncio.sleep(0.01)
    await running.signal(signal.SIGINT)
    assert await to_its_end(running, None) == (9, b"heard\n", b"", 0)
    running = await begin(here, "sleep", "50")
    await running.signal(signal.SIGTERM)
    assert (await to_its_end(running))[0] == 143


async def test_who_leaves_ends_the_command(here: Here) -> None:
    running = await begin(here, "sh", "-c", "trap '' HUP TERM; sleep 60 & wait; wait")
    await asyncio.sleep(0.2)
    await running.close()
    began = time.monotonic()
    await asyncio.to_thread(here.started[-1].wait, 10)
    assert time.monotonic() - began < 6


async def test_a_program_that_was_ended_inside_is_no_success(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "WATCHED", 0.1)
    running = await begin(here, "sleep", "1")
    here.started[-1].kill()
    with pytest.raises(Failed, match="was ended there"):
        await to_its_end(running)


async def test_a_terminal_has_a_kind_and_a_size_that_changes(here: Here) -> None:
    script = (
        "stty size; echo $TERM; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo yes; read x; stty size"
    )
    running = await begin(here, "sh", "-c", script, terminal="vt100", size=(33, 111))
    said = b""
    async with asyncio.timeout(5):
        while b"yes" not in said:
            said += b"".join(item.data for item in await running.look() if isinstance(item, Piece))
            await asyncio.sleep(0.01)
        await running.resize(44, 122)
        await running.give(b"\n")
        status, rest, errors, _ = await to_its_end(running, None)
    assert (
        said == b"33 111\r\nvt100\r\nyes\r\n"
        and rest.endswith(b"44 122\r\n")
        and (status, errors) == (0, b"")
    )


async def test_what_holds_the_output_open_is_waited_for_but_not_a_terminal(here: Here) -> None:
    assert (await to_its_end(await begin(here, "sh", "-c", "(sleep 0.5; echo late) & echo now")))[
        1
    ] == b"now\nlate\n"
    running = await begin(here, "sh", "-c", "setsid sleep 5 & echo now", terminal="dumb")
    began = time.monotonic()
    assert (await to_its_end(running, None))[1] == b"now\r\n" and time.monotonic() - began < 3


@pytest.mark.parametrize(
    "said", [b"o\xff\xff\xff\xff", b"q\0\0\0\0", b"x\1\0\0\0\0", b"t\0\0\0\0", b"f\2\0\0\0\0\0"]
)
async def test_what_is_no_frame_is_refused(here: Here, said: bytes) -> None:
    running = Relay(here, {}, "x")  # type: ignore[arg-type]
    with pytest.raises(Misbehaves):
        running._parse(said)


async def test_frames_are_put_together_from_pieces_in_little_time(here: Here) -> None:
    running = Relay(here, {}, "x")  # type: ignore[arg-type]
    told = b"o\1\0\0\0a" * 80_000 + b"e\2\0\0\0bc" + b"x" + (12).to_bytes(4, "little") + bytes(12)
    began = time.thread_time()
    for at in range(0, len(told), 100_000):
        running._parse(told[at : at + 100_000])
    assert time.thread_time() - began < 0.5
    pieces = [item for item in running._found if isinstance(item, Piece)]
    assert b"".join(item.data for item in pieces if item.stream == 1) == b"a" * 80_000 and pieces[
        -1
    ] == Piece(2, b"bc")
    assert running._found[-1] == End(0, 0)
