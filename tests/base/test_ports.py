"""Ports of this host: taken so that nobody else gets them, and refused where somebody listens."""

from __future__ import annotations

import errno
import socket

import pytest

from virtuary.base.ports import take, why_not


def listener(address: str = "127.0.0.1", kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A program's, as most of them listen: with SO_REUSEADDR."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


@pytest.mark.parametrize(
    ("protocol", "kind"), [("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM)]
)
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_what_a_program_has_is_not_to_be_had(protocol: str, kind: int, address: str) -> None:
    with (
        listener("::1" if ":" in address else "127.0.0.1", kind) as there,
        pytest.raises(OSError) as raised,
    ):
        take(protocol, address, there.getsockname()[1])
    assert why_not(raised.value, address, 80)[0] == "is in use on this host by another program"


@pytest.mark.parametrize("reuse", [False, True])
def test_who_comes_later_fails_to_bind(reuse: bool) -> None:
    with listener() as before:
        number = before.getsockname()[1]
    with take("tcp", "0.0.0.0", number), socket.socket() as later:
        later.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
        with pytest.raises(OSError) as raised:
            later.bind(("127.0.0.1", number))
        assert raised.value.errno == errno.EADDRINUSE


def test_connections_that_a_program_left_are_in_nobodys_way() -> None:
    with listener() as before:
        number = before.getsockname()[1]
        with socket.create_connection(("127.0.0.1", number)) as call:
            answered, _ = before.accept()
            answered.close()  # it is who closes first that has to wait
            call.recv(1)
    take("tcp", "127.0.0.1", number).close()


def test_a_reason_is_told_with_what_helps() -> None:
    with pytest.raises(OSError) as raised:
        take("tcp", "192.0.2.77", 8080)
    assert (
        why_not(raised.value, "192.0.2.77", 8080)[0]
        == "can't be had: 192.0.2.77 is no address of this host"
    )
    denied = why_not(OSError(errno.EACCES, "Permission denied"), "127.0.0.1", 80)
    assert denied == ("is below 1024, where only root may publish", "publish another one: 8080")
