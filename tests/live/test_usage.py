"""What real guests use: a busy one and an idle one, memory from both sides, a past that survives
the daemon, Prometheus' page.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest
from instances import Instance, Json, until

from tools import find_tool

pytestmark = [pytest.mark.live, pytest.mark.alone]
LOOP = "(timeout {seconds} sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null &)"


@pytest.fixture(scope="module")
def pair(instance: Instance) -> Iterator[Instance]:
    """Two servers that have come to rest: `busy`, which is given work, and `idle`."""
    for name in ("busy", "idle"):
        instance.ok("launch", "tiny", name)
    yield instance
    instance.ok("delete", "busy", "idle", "--now", "--force", "--yes")


def usage(instance: Instance, name: str) -> Json:
    return instance.call("GET", f"/v1/vms/{name}/usage")


def wants(usage: Json) -> float:
    """Processor time it takes and, on a host that has other things to do, waits for."""
    return (usage["cpu"] or 0.0) + (usage["steal"] or 0.0)


def work(instance: Instance, seconds: int) -> None:
    instance.in_guest("busy", LOOP.format(seconds=seconds))


def test_a_busy_guest_shows_within_seconds_and_an_idle_one_does_not(pair: Instance) -> None:
    work(pair, 60)
    until(lambda: wants(usage(pair, "busy")) >= 0.8, 25, "a spinning guest takes a processor", 0.3)
    until(
        lambda: (usage(pair, "idle")["cpu"] or 0) < 0.1,
        15,
        "an idle guest takes next to nothing",
        0.5,
    )
    until(
        lambda: wants(usage(pair, "busy")) >= 0.8, 15, "the other one still takes a processor", 0.3
    )
    top = pair.json("top")
    assert [vm["name"] for vm in top["vms"]] == ["busy", "idle"] and top["host"]["cpu"] > 0.5
    assert (
        "busy" in pair.ok("top", "--once").out and "% of a processor" in pair.ok("show", "busy").out
    )


def test_memory_is_told_from_both_sides(pair: Instance) -> None:
    until(lambda: usage(pair, "idle")["guest"], 20, "the guest tells of its memory")
    seen = usage(pair, "idle")
    assert 64 << 20 < seen["guest"]["total"] <= seen["memory"] == 128 << 20
    assert 0 < seen["guest"]["used"] < seen["guest"]["total"] and seen["guest"]["age"] < 30
    assert seen["resident"] > seen["guest"]["used"]


def test_disk_and_network_are_told_while_somebody_looks(pair: Instance) -> None:
    def moved() -> Json:
        pair.in_guest(
            "busy",
            "dd if=/dev/urandom of=/root/noise bs=64k count=32 2>/dev/null; sync; wget -q -T 1 "
            "-O - http://10.0.2.2:1/ || true",
        )
        seen = usage(pair, "busy")
        return (
            seen
            if seen["disk"]["writes"] and seen["network"] and seen["network"]["sent"] is not None
            else None
        )

    seen = until(moved, 40, "operations and traffic", 1)
    assert (
        seen["totals"]["disk_written"] > 0
        and seen["totals"]["network_sent"] > 0
        and seen["disk"]["write_latency"] > 0
    )


def test_a_paused_server_takes_nothing_and_is_not_looked_at(pair: Instance) -> None:
    pair.ok("pause", "idle")
    until(lambda: usage(pair, "idle")["cpu"] == 0, 10, "it takes nothing")
    first = usage(pair, "idle")["age"]
    until(lambda: usage(pair, "idle")["age"] > first + 1.5, 10, "its figures grow old")
    pair.ok("resume", "idle")
    until(lambda: usage(pair, "idle")["age"] < 2, 10, "it is looked at again")


def test_its_past_survives_a_killed_daemon(pair: Instance) -> None:
    def points(resolution: str) -> dict[int, Json]:
        return {
            point["at"]: point
            for point in pair.call("GET", "/v1/vms/busy/history", resolution=resolution)["points"]
        }

    before = until(lambda: len(found := points("second")) > 5 and found, 20, "some seconds")
    pair.kill()
    pair.start()
    after = points("second")
    assert {at: after[at] for at in before if at in after} == {
        at: before[at] for at in before if at in after
    }
    assert len(after) >= len(before) - 10
    until(lambda: max(points("second")) > max(before), 20, "it goes on")
    assert points("minute") and pair.call("GET", "/v1/host/history", resolution="minute")["points"]
    assert "not enough history" in pair.ok("advise", "busy").out


def page(instance: Instance) -> str:
    """The page as it is sent; nothing but JSON is read by our own client."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(instance.paths.socket))
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: virtuary\r\nConnection: close\r\n\r\n")
        with sock.makefile("rb") as stream:
            head, _, body = stream.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return body.decode()


def test_prometheus_is_served(pair: Instance) -> None:
    text = page(pair)
    assert (
        'virtuary_vm_cpu_seconds_total{name="busy",' in text
        and "virtuary_host_cpu_seconds_total" in text
    )
    promtool = find_tool("promtool")
    if promtool is None:
        pytest.skip(
            "promtool can't be had here; the strict parser in tests/api/test_metrics.py stands in"
        )
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
