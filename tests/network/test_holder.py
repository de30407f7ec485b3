"""Ports that are published are held as long as they are, and one that a program has is told and
tried again.
"""

from __future__ import annotations

import socket

import pytest

from virtuary.network.holder import Holder, Place


def is_free(number: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", number))
        except OSError:
            return False
    return True


@pytest.fixture
def free() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def test_a_port_is_held_until_it_is_published_no_more(free: int) -> None:
    holder, place = Holder(), Place("tcp", "127.0.0.1", free)
    holder.keep([place])
    holder.keep([place])
    assert not is_free(free) and set(holder.places) == {place} and holder.refused == {}
    holder.keep([])
    assert is_free(free)


def test_a_port_that_a_program_has_is_refused_until_it_is_free(free: int) -> None:
    holder, place = Holder(), Place("tcp", "0.0.0.0", free)
    with socket.socket() as program:
        program.bind(("127.0.0.1", free))
        program.listen()
        holder.keep([place])
        assert (
            holder.refused == {place: "is in use on this host by another program"}
            and not holder.places
        )
    holder.keep([place])
    assert holder.refused == {} and not is_free(free)
    holder.keep([])


def test_an_address_that_is_not_there_is_no_reason_not_to_publish() -> None:
    holder = Holder()
    holder.keep([Place("tcp", "192.0.2.77", 8080)])
    assert not holder.places and not holder.refused
