"""Run inside a guest with control groups of version 2, as a delegated service: the real kernel is
asked to limit and to weigh.

Prints, as JSON, what could not be done and the percent of one CPU that spinning processes got.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

sys.path.insert(0, "/tmp/virtuary-test")
from virtuary.host import cgroups, shares


def spinner(group: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"])
    (cgroups.group_paths(group)[0] / "cgroup.procs").write_text(str(process.pid))
    return process


def used(*groups: str, seconds: float = 6) -> list[float]:
    """Percent of one CPU that each group got, by the kernel's own account."""

    def clock(group: str) -> float:
        text = (cgroups.group_paths(group)[0] / "cpu.stat").read_text()
        return int(text.split("usage_usec")[1].split()[0]) / 1e6

    before, began = [clock(group) for group in groups], time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    return [100 * (clock(group) - was) / took for group, was in zip(groups, before, strict=True)]


found: dict[str, object] = {
    "version": cgroups.version(),
    "prepare": cgroups.prepare(),
    "repeated": cgroups.prepare(),
}
for name in ("one", "two"):
    found[f"group {name}"] = cgroups.ensure_group(name)[1]
first, second = spinner("one"), spinner("two")
group = cgroups.group_paths("one")[0]
found["bounds"] = [
    cgroups.set_bounds("one", 64 << 20, 50),
    *((group / name).read_text().strip() for name in ("memory.max", "pids.max")),
]
found["members"] = cgroups.members_of("one") == {first.pid}
try:
    limited, free = SimpleNamespace(limit=30, pin=()), SimpleNamespace(limit=None, pin=())
    second.send_signal(signal.SIGSTOP)
    found["free"] = used("one")[0]
    found["limit gaps"] = shares.apply_cpu("one", [first.pid], limited, 100)
    found["limited"] = used("one")[0]
    second.send_signal(signal.SIGCONT)
    found["weight gaps"] = [
        *shares.apply_cpu("one", [first.pid], free, 300),
        *shares.apply_cpu("two", [second.pid], free, 100),
    ]
    found["weighed"] = used("one", "two", seconds=8)
finally:
    for process in (first, second):
        process.kill()
        process.wait()
for name in ("one", "two"):
    cgroups.remove_group(name)
    found[f"left {name}"] = cgroups.group_paths(name)[0].exists()
print(json.dumps(found))
