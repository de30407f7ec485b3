"""What the physical machine has: processors, NUMA, huge pages, links, pressure. Read from /proc and
/sys; changes nothing.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from virtuary.model.host import HugePages, Link, NumaNode

SYS, PROC = Path("/sys"), Path("/proc")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def parse_cpus(text: str) -> tuple[int, ...]:
    """CPU numbers of the kernel's list format: "0-2,5" is 0, 1, 2, 5. Raises ValueError."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        found += range(int(first), int(last if dash else first) + 1)
    return tuple(found)


def find_cores(sys: Path = SYS) -> int:
    """Cores of all processors; 0 when the kernel does not tell."""
    places = (sys / "devices/system/cpu").glob("cpu[0-9]*/topology")
    return len(
        {(_read(place / "physical_package_id"), _read(place / "core_id")) for place in places}
    )


def find_numa(sys: Path = SYS) -> tuple[NumaNode, ...]:
    found = []
    for place in (sys / "devices/system/node").glob("node[0-9]*"):
        total = re.search(r"MemTotal:\s+(\d+) kB", _read(place / "meminfo"))
        number = int(place.name.removeprefix("node"))
        found.append(
            NumaNode(
                number=number,
                cpus=parse_cpus(_read(place / "cpulist")),
                memory=int(total[1]) * 1024 if total else 0,
            )
        )
    return tuple(sorted(found, key=lambda node: node.number))


def find_huge_pages(sys: Path = SYS, proc: Path = PROC) -> tuple[HugePages, ...]:
    """Sizes of which some are set aside."""
    found = []
    default = re.search(r"Hugepagesize:\s+(\d+) kB", _read(proc / "meminfo"))
    for place in sorted((sys / "kernel/mm/hugepages").glob("hugepages-*kB")):
        size = int(place.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
        total, free = (
            int(_read(place / "nr_hugepages") or 0),
            int(_read(place / "free_hugepages") or 0),
        )
        if total:
            found.append(
                HugePages(
                    size=size,
                    total=total,
                    free=free,
                    default=bool(default and size == int(default[1]) * 1024),
                )
            )
    return tuple(found)


def merges_pages(sys: Path = SYS) -> bool:
    """Whether the kernel looks for pages that are equal (KSM)."""
    return _read(sys / "kernel/mm/ksm/run") == "1"


def find_links(sys: Path = SYS) -> tuple[Link, ...]:
    """Interfaces with a device behind them: not bridges, taps and the loopback."""
    found = []
    for place in sorted((sys / "class/net").glob("*")):
        if (place / "device").exists():
            speed = _read(place / "speed")
            found.append(
                Link(name=place.name, speed=int(speed) * 10**6 if speed.isdigit() else None)
            )
    return tuple(found)


def find_pressure(proc: Path = PROC) -> dict[str, float]:
    """Percent of the last ten seconds in which somebody waited for each resource; empty where the
    kernel keeps no account.
    """
    found = {}
    for name in ("cpu", "memory", "io"):
        with contextlib.suppress(StopIteration):
            words = _read(proc / "pressure" / name).split()
            found[name] = next(
                float(word.removeprefix("avg10=")) for word in words if word.startswith("avg10=")
            )
    return found
