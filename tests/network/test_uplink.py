"""How what is published gets into a user's own networks."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from virtuary.network.filtered import Forward
from virtuary.network.uplink import ADDRESS, Held, lead, parse_held

TOLD = """Hub 0 (user):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  13       127.0.0.1  2222       10.0.2.15  2222     0     0
  TCP[ESTABLISHED]   19       10.0.2.15 40000     192.0.2.7     443     0     0
  TCP[HOST_FORWARD]  14               *  8080       10.0.2.15 65535     0     0
  UDP[HOST_FORWARD]  15       192.0.2.1    53       10.0.2.15    53     0     0
"""
Protocol = Literal["tcp", "udp"]


def forward(
    protocol: Protocol, address: str, port: int, guest: str = "10.1.0.2", guest_port: int = 80
) -> Forward:
    return Forward(protocol, ip_address(address), port, ip_address(guest), guest_port)


def test_what_qemu_says_is_held_is_read() -> None:
    assert parse_held(TOLD) == {
        Held("tcp", "127.0.0.1", 2222, 2222), Held("tcp", "0.0.0.0", 8080, 65535), Held("udp",
        "192.0.2.1", 53, 53),
    }  # fmt: skip
    assert parse_held("") == set()


def test_a_port_is_told_to_qemu_and_taken_back() -> None:
    held = Held("tcp", "127.0.0.1", 2222, 22)
    assert held.add() == f"hostfwd_add user tcp:127.0.0.1:2222-{ADDRESS}:22"
    assert held.remove() == "hostfwd_remove user tcp:127.0.0.1:2222"


def test_the_number_is_kept_where_one_address_has_it() -> None:
    web, mail, ssh = (
        forward("tcp", "0.0.0.0", 8080),
        forward("udp", "0.0.0.0", 8080),
        forward("tcp", "127.0.0.1", 2222),
    )
    assert [held.inner for held, _ in lead([web, mail, ssh])] == [2222, 8080, 8080]
    one, other = forward("tcp", "192.0.2.1", 8080), forward("tcp", "192.0.2.2", 8080, "10.1.0.3")
    found = {
        inside.guest: (held.inner, inside.port, str(inside.address))
        for held, inside in lead([other, one])
    }
    assert found == {
        ip_address("10.1.0.2"): (8080, 8080, ADDRESS),
        ip_address("10.1.0.3"): (65535, 65535, ADDRESS),
    }


PLACES = st.tuples(
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from(["0.0.0.0", "127.0.0.1", "192.0.2.1"]),
    st.integers(65530, 65535),
)


@given(st.sets(PLACES, max_size=20))
def test_no_two_meet_and_each_leads_where_it_shall(places: set[tuple[Protocol, str, int]]) -> None:
    wanted = [forward(*place, guest_port=number + 1) for number, place in enumerate(sorted(places))]
    found = lead(wanted)
    assert sorted((held.protocol, held.address, held.host) for held, _ in found) == sorted(places)
    inner = [(held.protocol, held.inner) for held, _ in found]
    assert len(set(inner)) == len(inner)
    for held, inside in found:
        assert (inside.protocol, inside.port) == (held.protocol, held.inner) and str(
            inside.address
        ) == ADDRESS
        (meant,) = [
            item
            for item in wanted
            if (item.protocol, str(item.address), item.port)
            == (held.protocol, held.address, held.host)
        ]
        assert inside.guest_port == meant.guest_port
    assert lead(reversed(wanted)) == found, "whatever the order in which they are named"
