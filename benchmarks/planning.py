"""P30, the consolidation planner: 2,000 servers with their loads in every hour of the week onto about 200 hosts.

The planner is measured as the daemon uses it: its own process, from JSON to JSON, with what happens when each host fails. Beside it runs
plain first fit decreasing on the same loads. It needs neither QEMU nor a daemon:

    python benchmarks/planning.py [SERVERS]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import Row

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/planning"))
from fleets import fleet, wish

from virtuary.planning import exact
from virtuary.planning.bounds import lower_bound
from virtuary.planning.greedy import first_fit, pack_greedily
from virtuary.planning.lanes import Bin, Frame, Item, make_items, make_scale

COMMAND = [sys.executable, "-I", "-m", "virtuary.planning"]


def p30(_: Any = None, count: int = 2000, rounds: int = 3) -> None:
    row = Row(
        "P30", f"consolidation plan: {count} servers, 168 hours x 4 resources, as a process of its own", targets=["<= 10 s"]
    )
    wanted = wish(fleet(count))
    text = wanted.model_dump_json(exclude_none=True).encode()
    plans: list[dict[str, Any]] = []

    def run_ours() -> float:
        began = time.monotonic()
        plans.append(json.loads(subprocess.run(COMMAND, input=text, capture_output=True, check=True).stdout))
        return time.monotonic() - began

    scale = make_scale(wanted.host, wanted.headroom)
    frame = Frame.of(scale, scale.limits)
    bins: list[Bin] = []

    def run_first_fit() -> float:
        began = time.monotonic()
        items = [item for item in make_items(wanted, scale) if not frame.excess(item)]
        for item in items:
            item.seal(scale)
        bins[:] = first_fit(items, frame)
        return time.monotonic() - began

    row.interleave({"ours, whole": run_ours, "first fit decreasing, in memory": run_first_fit}, rounds)
    plan = plans[-1]
    row.facts["hosts"] = f"ours {plan['hosts_used']}, first fit decreasing {len(bins)}, proven bound {plan['bound']['hosts']}"
    row.facts["hosts / bound"] = (
        f"ours {plan['hosts_used'] / plan['bound']['hosts']:.3f}, first fit {len(bins) / plan['bound']['hosts']:.3f}"
    )
    row.facts["the same plan every time"] = all(each == plan for each in plans)
    row.facts["request"] = f"{len(text) / 2**20:.1f} MiB of JSON"
    row.facts["small cases"] = small()
    row.finish()


def small(cases: int = 40, seconds: float = 5.0) -> str:
    """Fleets of 14 servers: how often the exact solver proves the fewest hosts, how long it takes, how often greedy had them."""
    proven = same = 0
    longest = 0.0
    for seed in range(cases):
        wanted = wish(fleet(14, size=6.0, seed=seed))
        items, frame = _ready(wanted)
        bound = lower_bound(items, frame.scale).hosts
        greedy = len(pack_greedily(items, frame, bound))
        began = time.monotonic()
        found = exact.search(items, frame, bound, greedy, seconds)
        longest = max(longest, time.monotonic() - began)
        best = len(found.bins) if found.bins else greedy
        proven += best == found.bound
        same += best == greedy
    return f"of {cases} fleets of 14: proven optimal {proven}, greedy was as good in {same}, longest search {longest:.2f} s"


def _ready(wanted: Any) -> tuple[list[Item], Frame]:
    scale = make_scale(wanted.host, wanted.headroom)
    frame = Frame.of(scale, scale.limits)
    items = [item for item in make_items(wanted, scale) if not frame.excess(item)]
    for item in items:
        item.seal(scale)
    return items, frame


ROWS: dict[str, Callable[[Any], None]] = {"P30": p30}


if __name__ == "__main__":
    p30(count=int(sys.argv[1]) if sys.argv[1:] else 2000)
