"""Where networks are: a namespace of a user's own, made when it is needed, which outlives who made
it and leaves nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from lines import command_line, find_marked
from virtuary.base.errors import Failed, PeerAway, VirtuaryError
from virtuary.base.known import RECORD, recorded, recording
from virtuary.base.proc import identify, run
from virtuary.model.bandwidth import Bandwidth, Rate
from virtuary.model.firewall import Match
from virtuary.network import (
    bridge,
    filtered,
    flows,
    leases,
    netns,
    nft,
    routes,
    ruleset,
    shaping,
    within,
)
from virtuary.network.netns import Host, Private

pytestmark = pytest.mark.host


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[Private]:
    place = Private(tmp_path / "networks")
    yield place
    await place.leave()


def holders(place: Private) -> list[int]:
    return [identity.pid for identity in recorded(place._anchor)]


def namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


async def end(*pids: int) -> None:
    """Kill these processes, and wait until they are gone."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    while any(identify(pid) for pid in pids):
        await asyncio.sleep(0.005)


def servers(place: Private) -> list[int]:
    """Who does there what is asked for."""
    inside = {namespace(pid) for pid in holders(place)}
    found = [identity.pid for identity in find_marked("virtuary.network.within\0serve\0")]
    return [pid for pid in found if namespace(pid) in inside]


async def test_what_is_made_there_is_not_on_the_host_and_is_seen_from_it(own: Private) -> None:
    await own.call(bridge.ensure_bridge, "vbown", ["10.9.9.1/24", "fd00:9::1/64"])
    handle = await own.open(bridge.open_tap, "vtown", "vbown", apart=True)
    try:
        assert not bridge.is_there("vbown") and bridge.is_there("vbown", own.net)
        assert (
            bridge.ports_of("vbown", own.net) == {"vtown"}
            and bridge.read_traffic("vtown", own.net) is not None
        )
        assert await own.call(bridge.find_bridges, "vb") == {"vbown"}
    finally:
        os.close(handle)
    assert bridge.ports_of("vbown", own.net) == set(), "a tap lasts as long as its descriptor"
    assert (await own.call(routes.find_own)) >= {"10.9.9.1"} and "10.9.9.1" not in routes.find_own()


async def test_a_tap_is_removed_by_its_name_whoever_has_it(own: Private) -> None:
    await own.call(bridge.ensure_bridge, "vbown", [])
    handle = await own.open(bridge.open_tap, "vtown", "vbown", apart=True)
    try:
        await own.call(bridge.remove_tap, "vtown")
        assert not bridge.is_there("vtown", own.net)
        await own.call(bridge.remove_tap, "vtown")
    finally:
        os.close(handle)


@pytest.mark.parametrize("apart", [True, False])
async def test_a_port_is_set_apart_or_not_and_again(own: Private, apart: bool) -> None:
    await own.call(bridge.ensure_bridge, "vbown", [])
    handle = await own.open(bridge.open_tap, "vtown", "vbown", apart=not apart)
    try:
        await own.call(bridge.keep_apart, "vtown", apart)
        port = own.net / "vtown/brport"
        told = (port / "isolated").read_text().strip(), (port / "hairpin_mode").read_text().strip()
        place = ("nsenter", "-t", str(holders(own)[0]), "-U", "-n", "--preserve-credentials", "cat")
        # the namespace has its own
        settings = await run(*place, *map(str, bridge.FILTERED), check=False)
        filtered = b"1" in settings.stdout
        assert told == (("0", "1") if apart and filtered else ("1", "0") if apart else ("0", "0"))
    finally:
        os.close(handle)


async def test_rules_and_bandwidth_are_taken_there_as_on_the_host(own: Private) -> None:
    await own.call(nft.load, "table inet virtuary {\n chain mark_it {\n return\n }\n }\n")
    with pytest.raises(Failed, match="nft failed"):
        await own.call(nft.load, "no rule at all\n")
    assert not await own.call(ruleset.is_applied, "is_0123456789abcdef")
    await own.call(bridge.ensure_bridge, "vbown", [])
    handle = await own.open(bridge.open_tap, "vtown", "vbown", apart=True)
    try:
        leaf: shaping.Leaf = await own.call(shaping.probe)
        wished = Bandwidth(inbound=Rate(limit=10_000_000))
        segment = shaping.Segment(
            "vbown", 100_000_000, (shaping.Port("vtown", shaping.FIRST_NUMBER, wished),)
        )
        assert await own.call(shaping.apply, segment, leaf)
        assert await own.call(shaping.apply, segment, leaf) == [], "the second time it is there"
    finally:
        os.close(handle)


async def test_connections_and_leases_are_ended_there_as_on_the_host(
    own: Private, tmp_path: Path
) -> None:
    deny = Match("in", "deny", "any", ((1, 2),), (ip_network("10.0.0.0/8"), ip_network("fd00::/8")))
    card = ruleset.Port(
        "vtown",
        "vbown",
        "52:54:00:00:00:01",
        (ip_address("10.9.9.2"), ip_address("fd09::2")),
        frozenset({"ipv4"}),
        (deny,),
    )
    net = filtered.Net("vbown", "nat", (ip_network("10.9.9.0/24"), ip_network("fd09::/64")))
    way = filtered.Forward("tcp", ip_address("10.0.2.15"), 8080, ip_address("10.9.9.2"), 80)
    world = flows.World((net,), (card,), (way,), left=(ip_address("203.0.113.7"),))
    assert await own.call(flows.end_those_over, world) == 0
    gone = [
        leases.Taken("52:54:00:00:00:01", "10.9.9.2", "web1"),
        leases.Taken("", "fd09::2", "web1", 7, "00:01"),
    ]
    assert await own.call(leases.release, str(tmp_path), "vbown", "10.9.9.1", gone), (
        "nobody serves there, and nothing is leased"
    )


async def test_what_a_function_raises_is_raised_here(own: Private) -> None:
    with pytest.raises(Failed, match="can't be made on nobridge"):
        await own.open(bridge.open_tap, "vtown", "nobridge", apart=True)
    with pytest.raises(OSError, match="no interface"):
        await own.call(bridge.attach, "vtown", "nobridge", apart=True)
    assert await own.call(bridge.find_bridges, "vb") == set(), "and the next call is answered"


async def test_only_functions_of_this_room_are_called() -> None:
    assert within.find_function("virtuary.network.bridge:is_there")("lo") is True
    taken_in = (
        "virtuary.network.bridge:run",
        "virtuary.network.bridge:os",
        "virtuary.network.netns:Private",
        "virtuary.network.bridge:nothing",
    )
    for name in (
        "os:system",
        "virtuary.base.proc:run",
        "virtuary.network.bridge:os.system",
        "virtuary.networks:x",
        *taken_in,
    ):
        with pytest.raises(Failed):
            within.find_function(name)


async def test_it_outlives_who_made_it_and_is_found_again(own: Private, tmp_path: Path) -> None:
    await own.call(bridge.ensure_bridge, "vbown", [])
    (first,) = holders(own)
    again = Private(tmp_path / "networks")
    assert await again.call(bridge.find_bridges, "vb") == {"vbown"} and holders(own) == [first]
    await again.leave()
    assert holders(own) == []


async def test_it_stays_when_who_holds_it_is_killed(own: Private) -> None:
    await own.call(bridge.ensure_bridge, "vbown", [])
    (first,) = holders(own)
    inside = namespace(first)
    await end(first)
    assert await own.call(bridge.find_bridges, "vb") == {"vbown"}
    (second,) = holders(own)
    assert second != first and namespace(second) == inside
    assert bridge.is_there("vbown", own.net)


async def test_who_serves_there_is_replaced(own: Private) -> None:
    await own.call(bridge.ensure_bridge, "vbown", [])
    (server,) = servers(own)
    await end(server)
    with pytest.raises(PeerAway):
        await own.call(bridge.find_bridges, "vb")
    assert await own.call(bridge.find_bridges, "vb") == {"vbown"}


async def test_with_nobody_left_in_it_a_new_one_is_made_and_what_served_the_old_one_ends(
    own: Private, tmp_path: Path
) -> None:
    await own.call(bridge.ensure_bridge, "vbown", [])
    record = tmp_path / RECORD
    sleeper = await asyncio.create_subprocess_exec(*recording(record, "/usr/bin/sleep", "1000"))
    own.served.append(record)
    await end(*servers(own), *holders(own))
    assert await own.call(bridge.find_bridges, "vb") == set() and len(holders(own)) == 1
    assert await asyncio.wait_for(sleeper.wait(), 5) == -signal.SIGKILL


async def test_calls_side_by_side_get_their_own_answers_and_a_call_given_up_disturbs_none(
    own: Private,
) -> None:
    await own.call(bridge.ensure_bridge, "vbown", [])
    given_up = asyncio.create_task(own.open(bridge.open_tap, "vtgone", "vbown", apart=True))
    await asyncio.sleep(0)
    given_up.cancel()
    opened = await asyncio.gather(
        *(own.open(bridge.open_tap, f"vt{number}", "vbown", apart=True) for number in range(8))
    )
    try:
        assert bridge.ports_of("vbown", own.net) - {"vtgone"} == {
            f"vt{number}" for number in range(8)
        }
        for number, handle in enumerate(opened):
            os.close(handle)
            assert not bridge.is_there(f"vt{number}", own.net), (
                "the descriptor was that of this tap"
            )
    finally:
        await asyncio.gather(given_up, return_exceptions=True)
    assert not bridge.is_there("vtgone", own.net), "nobody has the one that was given up"


async def test_nothing_stays(tmp_path: Path) -> None:
    place = Private(tmp_path / "networks")
    await place.call(bridge.ensure_bridge, "vbown", [])
    inside = [*servers(place), *holders(place)]
    assert len(inside) == 2
    await place.leave()
    assert not any(command_line(pid) for pid in inside) and not list(
        (tmp_path / "networks").iterdir()
    )
    await place.leave()


async def test_a_host_that_refuses_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert await netns.prove() is None
    missing = tmp_path / "no-tun"
    monkeypatch.setattr(netns, "TUN", missing)
    assert await netns.prove() == f"{missing} can't be opened by this user"
    monkeypatch.undo()
    monkeypatch.setattr(netns, "TRIED", "echo it is forbidden >&2; exit 1")
    assert await netns.prove() == f"{Path(netns.PROGRAM[0])} failed: it is forbidden"


async def test_on_the_host_a_function_is_just_called() -> None:
    here = Host()
    assert (
        await here.call(bridge.is_there, "lo")
        and await here.call(routes.call, "127.0.0.1", 1, 1) == "refused"
    )
    with pytest.raises(VirtuaryError):
        await here.open(bridge.open_tap, "vtown", "nobridge", apart=True)
