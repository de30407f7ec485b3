"""Bandwidth: the lines for the kernel, and that traffic keeps to them, with servers in network
namespaces.

The live tests are generous: what exactly is kept is measured by the benchmark P25n.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from virtuary.base.errors import Bug, Failed
from virtuary.model.bandwidth import DIRECTIONS, Bandwidth, Direction, Rate
from virtuary.network import iproute, shaping
from virtuary.network.link import measure_link
from virtuary.network.shaping import Found, Leaf, Port, Segment, describe, device_of, plan

# test folders are no packages; this one shares a file
sys.path.insert(0, str(Path(__file__).parent))

from shaping_rig import Rig, say

MBIT = 10**6
LIMITED = Bandwidth(inbound=Rate(limit=10 * MBIT), outbound=Rate(limit=20 * MBIT, burst=300_000))
PROMISED = Bandwidth(outbound=Rate(floor=40 * MBIT, limit=500 * MBIT, weight=300))
SEGMENTS = {
    "limits": Segment("br0", None, (Port("t0", 2, LIMITED), Port("t1", 3, Bandwidth()))),
    "floors": Segment(
        "br0",
        100 * MBIT,
        (Port("t0", 2, LIMITED), Port("t1", 17, Bandwidth()), Port("t2", 4094, PROMISED)),
    ),
    "nothing": Segment("br0", 100 * MBIT, (Port("t0", 2, Bandwidth()),)),
    "unknown-link": Segment("br0", None, (Port("t2", 2, PROMISED),)),
}
INTERFACES = frozenset({"br0", "t0", "t1", "t2"})
NOTHING = Found(INTERFACES, ())


def as_found(segment: Segment, leaf: Leaf = "bfifo") -> Found:
    devices = {device_of(segment.bridge, direction) for direction in DIRECTIONS}
    return Found(INTERFACES | devices, tuple(describe(segment, leaf)))


# ---- pure


@pytest.mark.parametrize("name", SEGMENTS)
def test_the_lines_are_those_that_were_reviewed(
    name: str, golden: Callable[[str, str], None]
) -> None:
    golden(
        f"shaping-{name}.txt",
        "".join(f"{line}\n" for line in plan(SEGMENTS[name], NOTHING, "bfifo")),
    )


@pytest.mark.parametrize("leaf", ["bfifo", "fq_codel"])
@pytest.mark.parametrize("name", SEGMENTS)
def test_where_all_is_there_nothing_is_done(name: str, leaf: Leaf) -> None:
    assert plan(SEGMENTS[name], as_found(SEGMENTS[name], leaf), leaf) == []


@pytest.mark.parametrize("name", ["limits", "floors"])
def test_whatever_somebody_removes_is_made_again_and_nothing_else(name: str) -> None:
    whole = as_found(SEGMENTS[name])
    for fact in whole.facts:
        found = whole._replace(facts=tuple(other for other in whole.facts if other is not fact))
        assert plan(SEGMENTS[name], found, "bfifo") == [fact.make()]


def test_a_changed_limit_touches_only_its_class_and_its_queue() -> None:
    faster = Bandwidth(inbound=LIMITED.inbound, outbound=Rate(limit=30 * MBIT))
    lines = plan(
        Segment("br0", None, (Port("t0", 2, faster),)), as_found(SEGMENTS["limits"]), "bfifo"
    )
    assert [line.split()[:5] for line in lines] == [
        ["tc", "class", "replace", "dev", "br0-o"],
        ["tc", "qdisc", "replace", "dev", "br0-o"],
    ]


def test_with_the_last_wish_everything_goes_and_the_detour_first() -> None:
    assert plan(SEGMENTS["nothing"], as_found(SEGMENTS["limits"]), "bfifo") == [
        "tc qdisc del dev t0 clsact",
        "ip link del br0-i",
        "ip link del br0-o",
    ]


def test_one_direction_can_go_alone() -> None:
    only = Bandwidth(inbound=LIMITED.inbound)
    lines = plan(
        Segment("br0", None, (Port("t0", 2, only),)), as_found(SEGMENTS["limits"]), "bfifo"
    )
    assert lines == ["tc filter del dev t0 ingress pref 11", "ip link del br0-o"]


def test_a_server_that_leaves_takes_its_class_and_nothing_of_the_others() -> None:
    before = SEGMENTS["floors"]
    lines = plan(
        before._replace(ports=(before.ports[0], before.ports[2])), as_found(before), "bfifo"
    )
    assert lines == [
        "tc qdisc del dev t1 clsact",
        "tc filter del dev br0-o parent 1: handle 800::11 protocol all pref 10 u32",
        "tc class del dev br0-o classid 1:11",
    ]


def test_a_hook_that_somebody_else_uses_is_left_alone() -> None:
    found = Found(INTERFACES, (shaping.Hook("t0"),))
    assert plan(SEGMENTS["nothing"], found, "bfifo") == []


def test_a_port_whose_server_does_not_run_is_left_out() -> None:
    assert plan(SEGMENTS["limits"], Found(frozenset({"br0", "t1"}), ()), "bfifo") == []


def test_floors_on_a_link_that_became_slower_shrink_alike() -> None:
    ports = tuple(
        Port(f"t{number}", 2 + number, Bandwidth(inbound=Rate(floor=floor * MBIT)))
        for number, floor in enumerate((60, 30))
    )
    facts = describe(Segment("br0", 10 * MBIT, ports), "bfifo")
    assert [fact.rate for fact in facts if isinstance(fact, shaping.Class)] == [
        9_500_000,
        6_333_333,
        3_166_666,
    ]


def test_weights_are_quanta_of_at_least_the_biggest_packet_and_a_round_ends_soon() -> None:
    ports = tuple(
        Port(f"t{n}", 2 + n, Bandwidth(inbound=Rate(weight=weight)))
        for n, weight in enumerate((50, 100, 10_000))
    )
    facts = describe(Segment("br0", 100 * MBIT, ports), "bfifo")
    light, twice, heavy = [
        fact.quantum for fact in facts if isinstance(fact, shaping.Class) and fact.number > 1
    ]
    assert (
        light == shaping.PACKET
        and twice == 2 * light
        and heavy * 8 <= 95 * MBIT * shaping.ROUND_SECONDS
    )


def test_names_that_would_say_something_else_and_classes_of_two_are_refused() -> None:
    for port in (
        Port("t0\nqdisc", 3, LIMITED),
        Port("t1", 2, LIMITED),
        Port("t1", 4095, LIMITED),
        Port("t1", 1, LIMITED),
    ):
        with pytest.raises(Bug):
            describe(Segment("br0", None, (Port("t0", 2, LIMITED), port)), "bfifo")


@pytest.mark.parametrize(
    "bridge", ["b", "vb0123456789", "thirteen-char", "fourteen-chars", "fifteen-charact"]
)
def test_names_of_devices_fit_and_differ(bridge: str) -> None:
    names = {device_of(bridge, direction) for direction in DIRECTIONS} | {
        device_of(bridge[:-1] + "X", "inbound")
    }
    assert len(names) == 3 and all(len(name) <= 15 for name in names)


CLASSES = """class htb 1:11 parent 1:1 leaf 8003: prio 0 quantum 73728 rate 8Kbit ceil 95Mbit linklayer ethernet burst 72Kb/1 mpu 0b cburst 118750b/1 mpu 0b level 0 
class htb 1:1 root rate 1Gbit ceil 1234567bit linklayer ethernet burst 1.5Mb/1 mpu 0b cburst 118750b/1 mpu 0b level 7 
"""  # noqa: W291
ENTRIES = """filter protocol all pref 10 u32 chain 0 
filter protocol all pref 10 u32 chain 0 fh 800: ht divisor 1 
filter protocol all pref 10 u32 chain 0 fh 800::2 order 2 key ht 800 bkt 0 *flowid 1:2 not_in_hw 
  match 00000000/00000000 at 0
filter protocol all pref 10 u32 chain 0 fh 800::11 order 17 key ht 800 bkt 0 *flowid 1:11 not_in_hw 
  match 00000000/00000000 at 0
  input dev t1
"""  # noqa: W291


def test_what_tc_says_is_understood() -> None:
    assert shaping.parse_classes("d", CLASSES) == [
        shaping.Class("d", 17, 8000, 95 * MBIT, 73728, 118750, 73728),
        shaping.Class("d", 1, 1000 * MBIT, 1_234_567, 1536 * 1024, 118750, 0),
    ]
    assert shaping.parse_entries("d", ENTRIES) == [
        shaping.Entry("d", 2, ""),
        shaping.Entry("d", 17, "t1"),
    ]


def test_the_speed_of_a_bridge_is_that_of_its_slowest_way_out(tmp_path: Path) -> None:
    for name, speed, real in (
        ("eth0", "10000", True),
        ("eth1", "1000", True),
        ("t0", "10", False),
        ("eth2", "-1", True),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "speed").write_text(speed + "\n")
        if real:
            (tmp_path / name / "device").mkdir()
    for name, ports in (("br0", ["eth0", "eth1", "t0"]), ("br1", ["t0", "eth2"]), ("br2", [])):
        for port in ports:
            (tmp_path / name / "brif" / port).mkdir(parents=True)
    (tmp_path / "br2/brif").mkdir(parents=True)
    assert [measure_link(name, tmp_path) for name in ("br0", "br1", "br2", "eth0", "t0",
    "none")] == [
        1000 * MBIT, None, None, 10_000 * MBIT, None, None,
    ]  # fmt: skip


# ---- live


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with Rig(uuid.uuid4().hex[:5], guests=getattr(request, "param", 1)) as made:
        yield made


@pytest.fixture
async def leaf() -> Leaf:
    return await shaping.probe()


def one(**rates: Rate) -> Segment:
    return Segment("br0", None, (Port("t0", 2, Bandwidth(**rates)),))


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.alone
async def test_a_probe_leaves_nothing(rig: Rig) -> None:
    assert await shaping.probe(rig.host) in ("fq_codel", "bfifo")
    assert rig.left() == ""


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("kind", "limit"), [("udp", 8 * MBIT), ("udp", 50 * MBIT), ("tcp", 50 * MBIT)]
)
async def test_a_limit_holds(
    rig: Rig, leaf: Leaf, direction: Direction, kind: str, limit: int
) -> None:
    await shaping.apply(one(**{direction: Rate(limit=limit)}), leaf, rig.host)
    flow = rig.start(direction, kind, 3, pace=limit * 5 // 4).wait()
    assert flow.rate(0.5, 3) == pytest.approx(limit, rel=0.05)


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.alone
async def test_the_other_direction_and_other_servers_are_not_limited(rig: Rig, leaf: Leaf) -> None:
    await shaping.apply(one(inbound=Rate(limit=MBIT)), leaf, rig.host)
    assert rig.start("outbound", "udp", 1.5, pace=20 * MBIT).wait().rate(0.2, 1.5) > 18 * MBIT


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("rig", [4], indirect=True)
@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_floors_hold_beside_greedy_servers_and_weights_share_the_rest(
    rig: Rig, leaf: Leaf, direction: Direction
) -> None:
    """Of 47.5 Mbit/s: 20 are promised to the first, and of the rest its neighbours get 1, 3 and 1
    parts beside its own one; the last has a limit.
    """
    rates = (Rate(floor=20 * MBIT), Rate(weight=300), Rate(), Rate(limit=2_500_000))
    ports = tuple(
        Port(f"t{n}", 2 + n, Bandwidth(**{direction: rate})) for n, rate in enumerate(rates)
    )
    await shaping.apply(Segment("br0", 50 * MBIT, ports), leaf, rig.host)
    flows = [rig.start(direction, "udp", 3.5, guest=n, pace=35 * MBIT) for n in range(4)]
    found = [flow.wait().rate(1, 3.5) / MBIT for flow in flows]
    assert found == pytest.approx([25, 15, 5, 2.5], rel=0.1)


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("rig", [2], indirect=True)
async def test_a_floor_that_nobody_uses_is_lent(rig: Rig, leaf: Leaf) -> None:
    ports = (Port("t0", 2, Bandwidth(outbound=Rate(floor=30 * MBIT))), Port("t1", 3, Bandwidth()))
    await shaping.apply(Segment("br0", 40 * MBIT, ports), leaf, rig.host)
    assert rig.start("outbound", "udp", 2.5, guest=1, pace=60 * MBIT).wait().rate(
        0.5, 2.5
    ) == pytest.approx(38 * MBIT, rel=0.05)


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("rig", [2], indirect=True)
async def test_between_two_servers_both_limits_hold(rig: Rig, leaf: Leaf) -> None:
    ports = (
        Port("t0", 2, Bandwidth(outbound=Rate(limit=30 * MBIT))),
        Port("t1", 3, Bandwidth(inbound=Rate(limit=10 * MBIT), outbound=Rate(limit=20 * MBIT))),
    )
    await shaping.apply(Segment("br0", None, ports), leaf, rig.host)
    there = rig.start("outbound", "udp", 2.5, guest=0, to=1, pace=40 * MBIT)
    back = rig.start("outbound", "udp", 2.5, guest=1, to=0, pace=40 * MBIT)
    assert there.wait().rate(0.5, 2.5) == pytest.approx(10 * MBIT, rel=0.05)
    assert back.wait().rate(0.5, 2.5) == pytest.approx(20 * MBIT, rel=0.05)


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.alone
async def test_changes_while_traffic_flows_lose_nothing(rig: Rig, leaf: Leaf) -> None:
    """A server that stays below all its limits, which come, change, become shares, and go."""
    steps = [
        one(inbound=Rate(limit=50 * MBIT)),
        one(inbound=Rate(limit=20 * MBIT), outbound=Rate(limit=10 * MBIT)),
        Segment(
            "br0", 100 * MBIT, (Port("t0", 2, Bandwidth(inbound=Rate(floor=10 * MBIT, weight=7))),)
        ),
        Segment("br0", 90 * MBIT, (Port("t0", 3, Bandwidth(inbound=Rate(floor=20 * MBIT))),)),
        one(),
    ]
    flow = rig.start("inbound", "udp", 3, pace=2 * MBIT, size=200)
    for segment in steps:
        subprocess.run(["sleep", "0.4"], check=True)
        await shaping.apply(segment, leaf, rig.host)
    flow.wait()
    lost = (flow.sent - flow.received) // 200
    assert lost <= 5 and flow.sent > 2000 * 200
    assert rig.left() == ""


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.alone
async def test_a_new_limit_is_felt_at_once(rig: Rig, leaf: Leaf) -> None:
    await shaping.apply(one(outbound=Rate(limit=10 * MBIT)), leaf, rig.host)
    flow = rig.start("outbound", "udp", 4, pace=50 * MBIT)
    subprocess.run(["sleep", "1.8"], check=True)
    await shaping.apply(one(outbound=Rate(limit=30 * MBIT)), leaf, rig.host)
    flow.wait()
    assert flow.rate(0.3, 1.4) == pytest.approx(10 * MBIT, rel=0.05)
    assert flow.rate(2.4, 4) == pytest.approx(30 * MBIT, rel=0.05)


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("rig", [2], indirect=True)
async def test_what_is_applied_is_read_back_whole_and_goes_without_a_trace(
    rig: Rig, leaf: Leaf
) -> None:
    for segment in (
        SEGMENTS["limits"],
        SEGMENTS["floors"],
        SEGMENTS["unknown-link"],
        SEGMENTS["limits"],
    ):
        await shaping.apply(segment, leaf, rig.host)
        assert plan(segment, await shaping.read_back(segment, rig.host), leaf) == []
        assert await shaping.apply(segment, leaf, rig.host) == []
    assert rig.left()
    await shaping.remove("br0", rig.host)
    assert rig.left() == ""
    assert await shaping.remove("br0", rig.host) == []


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("rig", [2], indirect=True)
@pytest.mark.parametrize(
    "damage",
    [
        "tc qdisc del dev t0 clsact",
        "tc filter del dev t0 egress",
        "tc qdisc del dev br0-o root",
        "tc filter del dev br0-i parent 1:",
        "tc class change dev br0-o parent 1:1 classid 1:2 htb rate 1mbit ceil 1mbit",
        "tc qdisc del dev br0-o parent 1:2",
        "ip link set br0-i down",
        "ip link del br0-i",
    ],
)
async def test_what_somebody_broke_is_found_and_mended(rig: Rig, leaf: Leaf, damage: str) -> None:
    segment = SEGMENTS["floors"]
    await shaping.apply(segment, leaf, rig.host)
    program, *words = damage.split()
    say(program, "-n", rig.host, *words)
    assert await shaping.apply(segment, leaf, rig.host)
    assert await shaping.apply(segment, leaf, rig.host) == []


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.alone
async def test_a_server_that_comes_back_with_a_new_interface_is_limited_again(
    rig: Rig, leaf: Leaf
) -> None:
    segment = one(outbound=Rate(limit=5 * MBIT))
    await shaping.apply(segment, leaf, rig.host)
    rig.renew_port(0)
    assert await shaping.apply(segment, leaf, rig.host)
    assert rig.start("outbound", "udp", 2, pace=10 * MBIT).wait().rate(0.3, 2) == pytest.approx(
        5 * MBIT, rel=0.05
    )


@pytest.mark.host
@pytest.mark.slow
@pytest.mark.alone
async def test_a_refused_line_is_told_with_the_kernels_reason_and_the_others_are_done(
    rig: Rig, leaf: Leaf
) -> None:
    lines = ["tc qdisc add dev nosuch clsact", "tc qdisc add dev t0 clsact"]
    with pytest.raises(Failed, match=r"'tc qdisc add dev nosuch clsact' was refused: .*nosuch"):
        await iproute.change(lines, rig.host)
    assert "clsact" in rig.left()
