"""The rows about resources: P25d disk limits, P26 processor shares and limits, P27 a noisy
neighbour and the API, M1 memory that comes and goes, P13 a look beside many machines, D5 many at
once.

A limit's error is what was used, against what was allowed, over a minute (disks: twenty seconds)
with a guest that wants more. What is used is read from the kernel's account of the process.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import warm
from harness import Row, cpu_seconds

SPIN = "setsid sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null &"
WINDOW = 60.0


def inside(bench: Any, name: str, script: str) -> None:
    """A shell script in the guest; it has to succeed."""
    outcome = bench.client.execute(name, ["/bin/sh", "-c", script])
    assert outcome.status == 0, outcome.stderr


def vcpu_seconds(pid: int) -> float:
    """Processor time of a QEMU's virtual CPUs, of which a limit speaks: libvirt has their threads
    named, ours are in a group of their own.
    """
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    found = [
        task
        for task in tasks
        if (task / "comm").read_text().startswith("CPU ")
        or "/vcpus" in (task / "cgroup").read_text()
    ]
    assert found, "nothing tells which threads are virtual CPUs"
    return sum(int((task / "schedstat").read_text().split()[0]) for task in found) / 1e9


def percent(pids: list[int], seconds: float, *clocks: Callable[[int], float]) -> list[float]:
    """Percent of one CPU that each process used over so long, by each of the clocks."""
    read = [(clock, pid) for pid in pids for clock in clocks or (cpu_seconds,)]
    before, began = [clock(pid) for clock, pid in read], time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    return [100 * (clock(pid) - was) / took for (clock, pid), was in zip(read, before, strict=True)]


def tell_limit(row: Row, whose: str, limit: int, pid: int, seconds: float) -> None:
    """How far a limit holds: of the virtual CPUs, for which it is, and what the rest of the process
    takes besides.
    """
    used, whole = percent([pid], seconds, vcpu_seconds, cpu_seconds)
    row.samples[f"{whose}limit {limit} %"] = [used]
    row.facts[f"error of {whose}limit of {limit} %"] = (
        f"{100 * (used - limit) / limit:+.2f} %; {whole - used:.1f} % of a CPU besides"
    )


def pid_of(bench: Any, name: str) -> int:
    runtime = bench.client.vm(name).status.runtime
    assert runtime
    return int(runtime.pid)


def p26(bench: Any) -> None:
    """Two spinning guests on one CPU with weights 1 to 3; one with limits. libvirt's limits beside
    them.
    """
    row = Row(
        "P26",
        "processor shares and limits over 60 s, spinning guests",
        "% of one CPU",
        targets=["share error <= 2 %, limit error <= 1 %"],
    )
    for name, weight in (("light", 100), ("heavy", 300)):
        bench.client.launch("tiny", name, cpu={"weight": weight, "pin": (0,)})
        inside(bench, name, SPIN)
    light, heavy = percent([pid_of(bench, "light"), pid_of(bench, "heavy")], WINDOW)
    row.samples["weight 100"], row.samples["weight 300"] = [light], [heavy]
    row.facts["share of the heavier, wished 75 %"] = f"{100 * heavy / (light + heavy):.2f} %"
    bench.client.delete("heavy", now=True, force=True)
    for limit in (25, 50, 100):
        bench.client.change("light", cpu={"limit": limit, "pin": ()})
        time.sleep(1)
        tell_limit(row, "", limit, pid_of(bench, "light"), WINDOW)
    bench.client.delete("light", now=True, force=True)
    if bench.libvirt:
        limit_libvirt(bench, row)
    bench.skip(row)
    row.finish()


def limit_libvirt(bench: Any, row: Row) -> None:
    virsh = bench.libvirt
    virsh.say(f"create {bench.xml('vb-limit')}")
    ping = 'qemu-agent-command vb-limit \'{"execute":"guest-ping"}\''
    virsh.say_until(ping)
    spin = (
        '{"execute":"guest-exec","arguments":{"path":"/bin/sh","arg":["-c","while :; do :; done"]}}'
    )
    virsh.say(f"qemu-agent-command vb-limit '{spin}'")
    pid = (
        int((virsh.root / "run/libvirt/qemu/vb-limit.pid").read_text())
        if (virsh.root / "run").exists()
        else find_libvirt()
    )
    for limit in (25, 50):
        try:
            virsh.say(f"schedinfo vb-limit --live vcpu_period=100000 vcpu_quota={limit * 1000}")
        except RuntimeError as error:
            row.skipped[f"libvirt, limit {limit} %"] = str(error)
            continue
        time.sleep(1)
        tell_limit(row, "libvirt's ", limit, pid, WINDOW / 2)
    virsh.say("destroy vb-limit")


def find_libvirt() -> int:
    """The QEMU that is libvirt's, by the name it gave it on its command line."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                line = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if b"guest=vb-limit" in line:
                return int(name)
    raise RuntimeError("libvirt's machine was not found")


def p25d(bench: Any) -> None:
    """Disk limits: operations and bytes a second of a guest that reads past its cache."""
    row = Row("P25d", "disk limits over 20 s", "error %", targets=["<= 2 %"])
    bench.client.launch("tiny", "reader")
    read = (
        "setsid sh -c 'while :; do dd if=/dev/vda of=/dev/null bs={size} count=4000 "
        "iflag=direct; done' >/dev/null 2>&1 </dev/null &"
    )
    for what, limit, size in (
        ("iops", 50, "4k"),
        ("iops", 200, "4k"),
        ("bandwidth", 4 << 20, "64k"),
        ("bandwidth", 16 << 20, "64k"),
    ):
        bench.client.change(
            "reader", disks=[{"io": {"iops": None, "bandwidth": None} | {what: limit}}]
        )
        inside(bench, "reader", read.format(size=size))
        time.sleep(3)
        before, began = blocks(bench), time.monotonic()
        time.sleep(20)
        took = time.monotonic() - began
        used = (blocks(bench)[what == "bandwidth"] - before[what == "bandwidth"]) / took
        row.samples[f"{what} {limit}"] = [100 * (used - limit) / limit]
        inside(
            bench,
            "reader",
            "kill $(pgrep -f iflag=direct) 2>/dev/null; killall dd 2>/dev/null; true",
        )
    row.skipped["libvirt"] = "its blkdeviotune is the same mechanism of QEMU"
    row.finish()


def blocks(bench: Any) -> tuple[int, int]:
    """Reads and bytes read of the guest, by the kernel of the guest's own count."""
    outcome = bench.client.execute("reader", ["/bin/cat", "/sys/block/vda/stat"])
    words = outcome.stdout.split()
    return int(words[0]), int(words[2]) * 512


def p27(bench: Any) -> None:
    """How long a list takes while two guests spin, and while nothing runs."""
    row = Row(
        "P27",
        "the API's list of 10 servers, 1000 times, beside two spinning guests",
        "ms",
        targets=["99th % with neighbours <= 3 x idle"],
    )
    for number in range(8):
        bench.client.create("tiny", f"still{number}")
    row.samples["idle"] = lists(bench, 1000)
    for name in ("noisy1", "noisy2"):
        bench.client.launch("tiny", name)
        inside(bench, name, SPIN)
    time.sleep(2)
    row.samples["two guests spin"] = lists(bench, 1000)
    high = [sorted(values)[int(len(values) * 0.99)] for values in row.samples.values()]
    row.facts["99th %, spinning to idle"] = round(high[1] / high[0], 2)
    row.finish()


def lists(bench: Any, count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.monotonic()
        list(bench.client.vms())
        found.append(1000 * (time.monotonic() - began))
    return found


def p13(bench: Any, many: int = 60) -> None:
    """How long one look takes beside 10 machines that are there and paused, and beside as many as
    this host admits.
    """
    row = Row(
        "P13",
        f"one server of {many} asked for, 1000 times, and all of them listed, 100 times; the "
        "machines are there, paused",
        "ms",
        targets=["99th % of one <= 1.5 of that beside 10"],
    )
    there = 0
    for count in (10, many):
        names = [f"still{number}" for number in range(there, count)]
        there = count

        def begin(name: str) -> None:
            client = bench.ours.connect()
            client.create("tiny", name, memory=64 << 20)
            client.start(name, wait="running")
            client.pause(name)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(begin, names))
        time.sleep(10)
        ones = row.samples[f"one, beside {count}"] = []
        for _ in range(1000):
            began = time.monotonic()
            bench.client.vm("still3")
            ones.append(1000 * (time.monotonic() - began))
        row.samples[f"list of {count}"] = lists(bench, 100)
    high = [sorted(row.samples[f"one, beside {count}"])[990] for count in (10, many)]
    row.facts[f"99th % of one, beside {many} to beside 10"] = round(high[1] / high[0], 2)
    row.finish()


def m1(bench: Any) -> None:
    """A gibibyte given to a Debian and taken back, CPUs too; the end is the guest's own word."""
    row = Row(
        "M1",
        "a Debian that runs is given 1 GiB and a CPU, and gives them back",
        targets=["1 GiB <= 3 s each way"],
    )
    warm.make_warm(bench, warm.DEBIAN)
    bench.client.launch(warm.DEBIAN, "debian")

    def changed(**wish: Any) -> Callable[[], float]:
        def run() -> float:
            began = time.monotonic()
            bench.client.change("debian", **wish)
            return time.monotonic() - began

        return run

    for _ in range(5):
        for name, wish in {
            "grow 1 GiB": {"memory": 2 << 30}, "shrink 1 GiB": {"memory": 1 << 30}, "plug a CPU": {"cpu": 2}, "unplug it": {"cpu": 1},
        }.items():  # fmt: skip
            row.samples.setdefault(name, []).append(changed(**wish)())
            time.sleep(1)
    row.finish()


def d5(bench: Any, count: int = 60) -> None:
    """A storm of starts of 256 MiB each; then lists while all of them run."""
    row = Row(
        "D5",
        f"{count} servers of 256 MiB launched at once",
        targets=[f"{count} of {count} running; list 99th % <= 250 ms"],
    )
    warm.make_warm(bench, "tiny", 256 << 20)
    answers: list[str] = []
    waits: list[float] = []

    def launch(number: int) -> None:
        try:
            bench.ours.connect().launch("tiny", f"storm{number}", memory=256 << 20)
            answers.append("running")
        except Exception as error:
            answers.append(str(error)[:80])

    began = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(launch, number) for number in range(count)]
        client = bench.ours.connect()
        while not all(future.done() for future in running):
            asked = time.monotonic()
            list(client.vms())
            waits.append(1000 * (time.monotonic() - asked))
            time.sleep(0.1)
    row.samples["all running"] = [time.monotonic() - began]
    row.facts["running"] = f"{answers.count('running')} of {count}"
    row.facts["others"] = sorted(set(answers) - {"running"}) or "none"
    row.facts["list while they start, median and 99th %, ms"] = (
        f"{statistics.median(waits):.0f}, {sorted(waits)[int(len(waits) * 0.99)]:.0f}"
    )
    time.sleep(10)
    rest = lists(bench, 300)
    row.facts["list while all run, median and 99th %, ms"] = (
        f"{statistics.median(rest):.0f}, {sorted(rest)[int(len(rest) * 0.99)]:.0f}"
    )
    row.finish()


ROWS: dict[str, Callable[[Any], None]] = {
    "P25d": p25d,
    "P26": p26,
    "P27": p27,
    "P13": p13,
    "M1": m1,
    "D5": d5,
}
