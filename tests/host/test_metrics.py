"""Figures from /proc: every file as kernels write it, a real process of the test's own, and
processes that are gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.proc import start_time
from virtuary.host.metrics import (
    PAGE,
    TICK,
    HostFiles,
    Meter,
    Sample,
    Traffic,
    find_disks,
    find_links,
    glance,
    open_process,
    parse_stat,
    throttled,
)

STAT = (
    "{pid} ({name}) S 1 {pid} {pid} 0 -1 4194624 1 2 3 4 {user} {system} 0 0 20 0 4 0 {start} "
    "900000 {pages} 18446744073709551615 1 1 0 0 0\n"
)
IO = (
    "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: {read}\nwrite_bytes: "
    "{written}\ncancelled_write_bytes: 0\n"
)
HOST = {
    "stat": "cpu  1000 200 300 9000 50 6 7 80 500 0\ncpu0 1 2 3 4 5 6 7 8 9 0\nintr 1 2 3\n",
    "meminfo": "MemTotal:        8000 kB\nMemFree:          100 kB\nMemAvailable:    6000 kB\nSwapTotal:       1000 kB\nSwapFree:         900 kB\n",
    "diskstats": " 254 0 vda 10 0 2000 5 20 0 4000 6 0 7 8 0 0 0 0\n 254 1 vda1 9 0 1000 5 9 0 1000 6 0 7 8 0 0 0 0\n   7 0 loop0 99 0 99 0 0 0 0 0 0 0 0\n",
    "net/dev": "Inter-|   Receive\n face |bytes\n    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n  eth0:111 2 0 0 0 0 0 0 333 4 0 0 0 0 0 0\n  tap0: 7 7 0 0 0 0 0 0 7 7 0 0 0 0 0 0\n",
    "pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
}


def process(proc: Path, pid: int = 7, name: str = "qemu", **facts: int) -> Path:
    facts = {"user": 100, "system": 50, "start": 4000, "pages": 10, "read": 5, "written": 6} | facts
    folder = proc / str(pid)
    (folder / "task").mkdir(parents=True, exist_ok=True)
    (folder / "stat").write_text(STAT.format(pid=pid, name=name, **facts))
    (folder / "io").write_text(IO.format(**facts))
    return folder


def thread(folder: Path, number: int, waited: int) -> None:
    (folder / "task" / str(number)).mkdir(exist_ok=True)
    (folder / "task" / str(number) / "schedstat").write_text(f"123 {waited} 9\n")


def host(folder: Path, **changes: str | None) -> Path:
    for name, text in {**HOST, **changes}.items():
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    return folder


def system(folder: Path, *real: str) -> Path:
    for name in (
        "block/vda",
        "block/loop0",
        "class/net/lo",
        "class/net/eth0",
        "class/net/tap0",
        *real,
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


# ---- meters


def test_a_rate_is_the_difference_a_second() -> None:
    meter = Meter()
    assert meter.read(10, 100.0) is None
    assert meter.read(30, 104.0) == 5.0


@pytest.mark.parametrize(
    ("again", "at", "within"),
    [(5, 101.0, 99), (None, 101.0, 99), (20, 201.0, 99)],
    ids=["went back", "unknown", "too long ago"],
)
def test_a_counter_that_began_anew_has_no_rate(
    again: float | None, at: float, within: float
) -> None:
    meter = Meter()
    meter.read(10, 100.0)
    assert meter.read(again, at, within) is None


def test_a_meter_at_rest_shows_none_and_begins_anew() -> None:
    meter = Meter()
    meter.read(10, 100.0)
    meter.read(20, 101.0)
    meter.rest()
    assert (meter.rate, meter.total) == (0.0, 20)
    assert meter.read(500, 102.0) is None and meter.read(501, 103.0) == 1.0


@given(st.lists(st.tuples(st.integers(0, 2**64), st.floats(0, 1e6)), max_size=20))
def test_no_rate_is_below_nothing(readings: list[tuple[int, float]]) -> None:
    meter = Meter()
    assert all((rate := meter.read(total, now)) is None or rate >= 0 for total, now in readings)


# ---- a process


@pytest.mark.parametrize("name", ["qemu", "a b", ") S 1 (", "x) R 9 9 9", ""])
def test_whatever_a_process_is_called_its_figures_are_read(tmp_path: Path, name: str) -> None:
    process(tmp_path, name=name)
    found = open_process(7, 4000, tmp_path)
    assert found
    assert found.sample() == Sample(150 / TICK, 10 * PAGE, 5, 6)
    found.close()


def test_another_process_of_the_same_number_is_not_taken(tmp_path: Path) -> None:
    process(tmp_path)
    assert open_process(7, 4001, tmp_path) is None and glance(7, 4001, tmp_path) is None
    assert glance(7, 4000, tmp_path) == glance(7, None, tmp_path) == (150 / TICK, 10 * PAGE)
    assert open_process(8, None, tmp_path) is None and glance(8, None, tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"7", b"7 (qemu) S 1", b"\xff" * 200])
def test_what_is_no_process_is_gone(tmp_path: Path, content: bytes) -> None:
    folder = process(tmp_path)
    found = open_process(7, None, tmp_path)
    assert found
    (folder / "stat").write_bytes(content)
    (folder / "io").write_bytes(content)
    assert found.sample() is None and open_process(7, 4000, tmp_path) is None
    found.close()


def test_storage_that_is_kept_secret_is_none(tmp_path: Path) -> None:
    (process(tmp_path) / "io").unlink()
    found = open_process(7, None, tmp_path)
    assert found
    assert found.sample() == Sample(150 / TICK, 10 * PAGE, None, None)
    found.close()


def test_waiting_is_counted_over_threads_that_come_and_go(tmp_path: Path) -> None:
    folder = process(tmp_path)
    thread(folder, 7, 5_000_000_000)
    found = open_process(7, None, tmp_path)
    assert found
    assert found.waited() == 0
    thread(folder, 7, 6_000_000_000)
    thread(folder, 8, 500_000_000)
    assert found.waited() == 1.5
    (folder / "task/8/schedstat").unlink()
    thread(folder, 7, 6_100_000_000)
    assert found.waited() == pytest.approx(1.6)
    (folder / "task/7/schedstat").write_text("0\n")
    assert found.waited() is None
    found.close()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that computes, waits for a line, and then idles."""
    code = (
        "import sys, time\nwhile time.process_time() < 0.3: "
        "pass\nprint(flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as started:
        assert started.stdout
        started.stdout.readline()
        yield started
        started.kill()


def test_a_real_process_is_seen_and_its_end_is_no_error(child: subprocess.Popen[bytes]) -> None:
    found = open_process(child.pid, start_time(child.pid))
    assert found
    sample = found.sample()
    assert sample and 0.1 < sample.cpu < 5 and sample.resident > 2**20 and sample.read is not None
    assert found.waited() == 0 and (found.waited() or 0) >= 0
    child.kill()
    child.wait()
    assert found.sample() is None and found.waited() is None
    assert open_process(child.pid) is None and glance(child.pid, None) is None
    found.close()


def test_looking_leaves_no_descriptor(child: subprocess.Popen[bytes]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert open_process(child.pid, 1) is None
        found = open_process(child.pid)
        assert found
        found.waited()
        found.close()
        files = HostFiles()
        files.sample()
        files.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("usage_usec 5\nnr_throttled 2\nthrottled_usec 2500000\n", 2.5),
        ("nr_periods 4\nnr_throttled 2\nthrottled_time 1500000000\n", 1.5),
        ("nr_periods 4\n", None),
        ("throttled_usec x\n", None),
    ],
)
def test_time_a_limit_took_is_read_in_both_versions(
    tmp_path: Path, text: str, seconds: float | None
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/cpu.stat").write_text(text)
    assert throttled([tmp_path / "a", tmp_path / "b"]) == seconds
    assert throttled([]) is None and throttled([tmp_path / "gone"]) is None


# ---- the host


def test_the_host_is_read(tmp_path: Path) -> None:
    files = HostFiles(
        host(tmp_path / "proc"),
        system(tmp_path / "sys", "block/vda/device", "class/net/eth0/device"),
    )
    found = files.sample()
    assert found
    assert (found.cpu, found.steal, found.iowait) == (1513 / TICK, 80 / TICK, 50 / TICK)
    assert (found.memory, found.available, found.swap_used) == (
        8000 * 1024,
        6000 * 1024,
        100 * 1024,
    )
    assert found.disk == Traffic(2000 * 512, 4000 * 512, 10, 20)
    assert found.network == Traffic(111, 333, 2, 4)
    assert found.pressure == {"cpu": 2.5}
    files.close()


def test_without_devices_what_leads_out_is_counted(tmp_path: Path) -> None:
    folder = system(tmp_path)
    assert find_disks(folder) == {"vda"} and find_links(folder) == {"eth0", "tap0"}
    assert find_disks(tmp_path / "nowhere") == find_links(tmp_path / "nowhere") == frozenset()


@pytest.mark.parametrize("missing", ["diskstats", "net/dev", "pressure/cpu"])
def test_what_a_kernel_does_not_tell_is_left_out(tmp_path: Path, missing: str) -> None:
    files = HostFiles(host(tmp_path, **{missing: None}), system(tmp_path / "sys"))
    found = files.sample()
    assert found and {
        "diskstats": found.disk,
        "net/dev": found.network,
        "pressure/cpu": found.pressure,
    }[missing] in (None, {})
    files.close()


@pytest.mark.parametrize("broken", ["stat", "meminfo"])
def test_a_host_that_tells_nothing_is_none(tmp_path: Path, broken: str) -> None:
    files = HostFiles(host(tmp_path, **{broken: "nothing\n"}), system(tmp_path / "sys"))
    assert files.sample() is None
    files.close()


@given(st.binary(max_size=300))
def test_no_text_is_too_strange(text: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        parse_stat(text)
        raise ValueError("it may even make sense")


def test_this_host_tells() -> None:
    files = HostFiles()
    first = files.sample()
    end = time.monotonic() + 0.05
    while time.monotonic() < end:
        pass
    second = files.sample()
    assert first and second and second.cpu >= first.cpu and 0 < second.available <= second.memory
    files.close()
