"""The rows about networks: P25n bandwidth limits, P25f floors and shares. `python
benchmarks/network.py [ROW]` runs them without QEMU.

Servers are network namespaces on a bridge; a limit's error is what a receiver got in 20 seconds,
with all headers of the frames that carried it, against what was allowed; TCP is cubic. Beside ours
stands what libvirt 9 does for `<bandwidth>`: HTB on the tap, and a policer for what a server sends.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Row

from virtuary.model.bandwidth import DIRECTIONS, Bandwidth, Rate
from virtuary.network import shaping
from virtuary.network.shaping import Port, Segment

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/network"))

from shaping_rig import Rig, say

MBIT = 10**6
SPEEDS = (10, 100, 1000)
WARM, WINDOW = 2.0, 20.0


def p25n(bench: Any = None) -> None:
    """Limits both ways with TCP and UDP."""
    row = Row(
        "P25n",
        f"bandwidth limits over {WINDOW:.0f} s, error",
        "%",
        targets=["<= 2 % and <= 1.0 x libvirt's way"],
    )
    leaf = asyncio.run(shaping.probe())
    row.facts["what waits in a class"] = leaf
    for speed in SPEEDS:
        ours(row, leaf, speed)
        libvirts(row, speed)
    row.finish()


def p25f(bench: Any = None) -> None:
    """Floors and shares of four greedy senders; changes under traffic; what the detour costs."""
    row = Row(
        "P25f",
        f"four greedy TCP senders on a link of 100 Mbit/s over {WINDOW:.0f} s",
        "Mbit/s",
        targets=["floors <= 3 % short", "a change loses <= 5 frames"],
    )
    leaf = asyncio.run(shaping.probe())
    row.facts["what waits in a class"] = leaf
    for name, rates in {
        "floors of 50, 20, none, none": (
            Rate(floor=50 * MBIT),
            Rate(floor=20 * MBIT),
            Rate(),
            Rate(),
        ),
        "weights 1, 2, 4, 1": (Rate(), Rate(weight=200), Rate(weight=400), Rate()),
    }.items():
        for direction in DIRECTIONS:
            found = greedy(leaf, direction, rates)
            row.facts[f"{name}, {direction}"] = (
                f"{', '.join(f'{rate:.2f}' for rate in found)}; together {sum(found):.2f} of 95"
            )
            row.samples |= {
                f"{name}, {direction}, number {number + 1}": [rate]
                for number, rate in enumerate(found)
            }
    row.facts["frames lost of 1000 a second by six changes"] = changes(leaf)
    (
        row.facts["TCP without a limit, Gbit/s"],
        row.facts["the same led through, limit of 900 Gbit/s"],
    ) = detour(leaf)
    row.finish()


def ours(row: Row, leaf: shaping.Leaf, speed: int) -> None:
    rate = Rate(limit=speed * MBIT)
    with Rig("bench") as rig:
        asyncio.run(
            shaping.apply(
                Segment("br0", None, (Port("t0", 2, Bandwidth(inbound=rate, outbound=rate)),)),
                leaf,
                rig.host,
            )
        )
        for direction in DIRECTIONS:
            measure(row, rig, "ours", direction, speed)


def libvirts(row: Row, speed: int) -> None:
    """The commands of libvirt 9's virNetDevBandwidthSet, without what this kernel lacks and what
    plays no part (sfq, its fw filter).
    """
    kilobytes = speed * MBIT // 8 // 1000
    with Rig("bench") as rig:
        for line in (
            "qdisc add dev t0 root handle 1: htb default 1",
            f"class add dev t0 parent 1: classid 1:1 htb rate {kilobytes}kbps quantum "
            f"{kilobytes * 1024 // 8 // 1500}",
        ):
            say("tc", "-n", rig.host, *line.split())
        measure(row, rig, "libvirt's way", "inbound", speed)
        say("tc", "-n", rig.host, "qdisc", "add", "dev", "t0", "ingress")
        police = (
            "filter add dev t0 parent ffff: protocol all u32 match u32 0 0 police rate "
            f"{kilobytes}kbps burst {kilobytes}kb mtu 64kb drop flowid :1"
        )
        tried = subprocess.run(
            ["tc", "-n", rig.host, *police.split()], capture_output=True, text=True
        )
        if tried.returncode:
            row.skipped["libvirt's way, outbound"] = (
                f"its policer: {tried.stderr.strip().splitlines()[0]}"
            )
        else:
            measure(row, rig, "libvirt's way", "outbound", speed)


def measure(row: Row, rig: Rig, subject: str, direction: str, speed: int) -> None:
    for kind in ("tcp", "udp"):
        flow = rig.start(direction, kind, WARM + WINDOW, pace=int(speed * MBIT * 1.2)).wait()
        error = 100 * (flow.rate(WARM, WARM + WINDOW) / (speed * MBIT) - 1)
        row.samples[f"{subject}, {speed} Mbit/s {direction}, {kind.upper()}"] = [error]
        print(
            f"P25n: {subject}, {speed} Mbit/s {direction} {kind}: {error:+.2f} %",
            file=sys.stderr,
            flush=True,
        )


def greedy(leaf: shaping.Leaf, direction: str, rates: tuple[Rate, ...]) -> list[float]:
    with Rig("bench", guests=len(rates)) as rig:
        ports = tuple(
            Port(f"t{number}", 2 + number, Bandwidth(**{direction: rate}))
            for number, rate in enumerate(rates)
        )
        asyncio.run(shaping.apply(Segment("br0", 100 * MBIT, ports), leaf, rig.host))
        flows = [
            rig.start(direction, "tcp", WARM + WINDOW, guest=number) for number in range(len(rates))
        ]
        return [flow.wait().rate(WARM, WARM + WINDOW) / MBIT for flow in flows]


def changes(leaf: shaping.Leaf) -> str:
    """A server that uses 1.6 Mbit/s, while its limits come, change, become a share, and go."""
    steps = [
        Segment("br0", None, (Port("t0", 2, Bandwidth(inbound=Rate(limit=50 * MBIT))),)),
        Segment(
            "br0",
            None,
            (
                Port(
                    "t0",
                    2,
                    Bandwidth(inbound=Rate(limit=20 * MBIT), outbound=Rate(limit=10 * MBIT)),
                ),
            ),
        ),
        Segment(
            "br0", 100 * MBIT, (Port("t0", 2, Bandwidth(inbound=Rate(floor=10 * MBIT, weight=7))),)
        ),
        Segment("br0", 90 * MBIT, (Port("t0", 3, Bandwidth(inbound=Rate(floor=20 * MBIT))),)),
        Segment("br0", None, (Port("t0", 3, Bandwidth(inbound=Rate(limit=30 * MBIT))),)),
        Segment("br0", None, ()),
    ]
    took = []
    with Rig("bench") as rig:
        flow = rig.start("inbound", "udp", 5, pace=1_600_000, size=200)
        for segment in steps:
            time.sleep(0.6)
            began = time.monotonic()
            asyncio.run(shaping.apply(segment, leaf, rig.host))
            took.append(time.monotonic() - began)
        flow.wait()
    return (
        f"{(flow.sent - flow.received) // 200} of {flow.sent // 200}; a change takes "
        f"{1000 * statistics.median(took):.0f} ms"
    )


def detour(leaf: shaping.Leaf) -> tuple[float, float]:
    found = []
    with Rig("bench") as rig:
        for ports in (
            (),
            (
                Port(
                    "t0",
                    2,
                    Bandwidth(
                        inbound=Rate(limit=900_000 * MBIT), outbound=Rate(limit=900_000 * MBIT)
                    ),
                ),
            ),
        ):
            asyncio.run(shaping.apply(Segment("br0", None, ports), leaf, rig.host))
            found.append(round(rig.start("outbound", "tcp", 6).wait().rate(1, 6) / 1e9, 2))
    return found[0], found[1]


ROWS: dict[str, Callable[[Any], None]] = {"P25n": p25n, "P25f": p25f}


if __name__ == "__main__":
    for name in sys.argv[1:] or ROWS:
        ROWS[name](None)
