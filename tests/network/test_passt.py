"""passt: the exact command line, and the proof that a build of it works."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable

import pytest

from virtuary.base.errors import Failed
from virtuary.base.proc import identify, start_time
from virtuary.network import passt
from virtuary.network.frames import ACK, SYN, Segment, accept, parse_segment
from virtuary.network.passt import Forward, command

TCP = (Forward("tcp", "127.0.0.1", 2222, 22), Forward("tcp", "::1", 8080, 80))
UDP = (Forward("udp", "0.0.0.0", 53, 5353),)


@pytest.mark.parametrize(
    ("name", "forwards"), {"none": (), "tcp": TCP, "udp": UDP, "both": TCP + UDP}.items()
)
def test_the_command_line_is_the_one_that_was_reviewed(
    name: str, forwards: tuple[Forward, ...], golden: Callable[[str, str], None]
) -> None:
    line = command("/usr/bin/passt", 7, forwards)
    text = (
        "".join(f"\n{word}" if word.startswith("-") else f" {word}" for word in line).strip() + "\n"
    )
    golden(f"passt-{name}.txt", text)


def test_without_forwards_nothing_is_published() -> None:
    """Left out, the options would publish every port of the guest."""
    line = command("passt", 7, ())
    assert [line[line.index(option) + 1] for option in ("--tcp-ports", "--udp-ports")] == [
        "none",
        "none",
    ]


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def syn(port: int) -> bytes:
    """What passt sends a guest when somebody calls: made by turning an answer around."""
    caller = Segment(
        b"\x52\x54\0\0\0\2", bytes([10, 0, 2, 15]), bytes([10, 0, 2, 2]), 25, port, 0, 0, 0
    )
    made = bytearray(accept(caller, 5000))
    made[47] = SYN
    return bytes(made)


async def play(answer: str) -> str | None:
    """The conversation of `prove` with a network that behaves as named."""
    ours, theirs = socket.socketpair()
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def network() -> None:
        reader, writer = await asyncio.open_connection(sock=theirs)
        size = int.from_bytes(await reader.readexactly(4), "big")
        await reader.readexactly(size)  # the announcement
        writer.write(frame(b"noise") + frame(syn(port)))
        size = int.from_bytes(await reader.readexactly(4), "big")
        segment = parse_segment(await reader.readexactly(size))
        assert segment and segment.flags == SYN | ACK and segment.acknowledged == 5001
        if answer == "completes":
            done = bytearray(syn(port))
            done[47], done[42:46] = ACK, (segment.sequence + 1).to_bytes(4, "big")
            writer.write(frame(bytes(done)))
            await writer.drain()
            await reader.read(1)
        if answer == "is silent":
            await asyncio.sleep(5)
        writer.close()

    task = asyncio.create_task(network())
    try:
        async with asyncio.timeout(0.6):
            return await passt._handshake(ours, port)
    except TimeoutError:
        return "never"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        ours.close()
        theirs.close()
        server.close()


@pytest.mark.parametrize(
    ("answer", "verdict"),
    {
        "completes": None,
        "is silent": "never",
        "hangs up": "it ended while a test guest was called",
    }.items(),
)
@pytest.mark.slow
async def test_only_a_completed_handshake_is_a_proof(answer: str, verdict: str | None) -> None:
    assert await play(answer) == verdict


has_passt = pytest.mark.skipif(
    not any(
        os.access(f"{place}/passt", os.X_OK) for place in ("/usr/bin", "/usr/local/bin", "/bin")
    ),
    reason="passt is not installed",
)


@has_passt
async def test_a_passt_that_starts_is_known_by_pid_and_start_and_leaves_nothing_open() -> None:
    ours, theirs = socket.socketpair()
    before = len(os.listdir("/proc/self/fd"))
    with ours, theirs:
        identity = await passt.start(theirs, ())
        try:
            assert identify(identity.pid) == identity
        finally:
            os.kill(identity.pid, signal.SIGKILL)
        for _ in range(100):
            if start_time(identity.pid) is None:
                break
            await asyncio.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) <= before


@has_passt
async def test_a_passt_that_ends_at_once_is_told_in_its_own_words() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Failed, match=r"passt ended at once: .*[a-z]{3}"):
            await passt.start(theirs, (Forward("tcp", "999.1.1.1", 80, 80),), settle=2)


@has_passt
@pytest.mark.slow
async def test_the_proof_ends_in_time_with_a_verdict() -> None:
    async with asyncio.timeout(8):
        fault = await passt.prove(limit=1)
    assert fault is None or len(fault) > 10


def test_a_port_that_is_listened_to_is_told_from_one_that_is_not_and_asking_disturbs_nobody() -> (
    None
):
    with socket.socket() as service:
        service.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        service.bind(("127.0.0.1", 0))
        port = service.getsockname()[1]
        assert not passt.is_listened_to(port), "it is bound only"
        service.listen()
        assert passt.is_listened_to(port)
        with socket.create_connection(("127.0.0.1", port)):
            assert service.accept()
    assert not passt.is_listened_to(port)
