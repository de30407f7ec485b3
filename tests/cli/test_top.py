"""The live table, its figures and the advice as people see them."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from virtuary.cli import advise, figures
from virtuary.cli.figures import facts, host_line, ordered, row
from virtuary.cli.top import frame
from virtuary.model.usage import (
    DiskUsage,
    GuestMemory,
    HostUsage,
    NetworkUsage,
    NicShare,
    Overview,
    Usage,
)

SOURCE = Path(__file__).resolve().parents[2] / "src"


def vm(name: str, **changes: Any) -> dict[str, Any]:
    return Usage(id=name, name=name, state="running", cpus=1, memory=2**30, **changes).model_dump(
        mode="json"
    )


BUSY: dict[str, Any] = {
    "age": 0.4, "cpu": 1.5, "steal": 0.25, "resident": 300 * 2**20,
    "guest": GuestMemory(total=2**30, used=2**29, available=2**29, age=9),
    "disk": DiskUsage(read=2048.0, written=0.0), "network": NetworkUsage(received=10.0, sent=20.0,
    age=3),
}  # fmt: skip
HOST = HostUsage(
    cpus=2,
    memory=8 * 2**30,
    cpu=1.2,
    steal=0.1,
    available=4 * 2**30,
    pressure={"cpu": 0.4, "io": 0.0},
)


def overview(*vms: dict[str, Any]) -> dict[str, Any]:
    return Overview(host=HOST).model_dump(mode="json") | {"vms": list(vms)}


def test_a_line_tells_everything_and_says_where_nothing_is_known() -> None:
    assert row(vm("a", **BUSY)) == [
        "a", "running", "150 %", "25 %", "300 MiB", "512 MiB of 1 GiB", "2 KiB/s", "0 B/s",
        "10 B/s", "20 B/s",
    ]  # fmt: skip
    assert row(vm("b"))[2:] == ["-"] * 8 and len(row(vm("b"))) == len(figures.HEAD)


def test_traffic_is_held_against_a_limit_where_all_nics_have_one() -> None:
    limited = NicShare(number=0, network="lan", limit_received=100.0, floor_sent=5.0)
    told = row(vm("a", **BUSY, nics=(limited,)))
    assert told[-2:] == ["10 B/s, 10%", "20 B/s"]
    assert row(vm("a", **BUSY, nics=(limited, NicShare(number=1, network="lan"))))[-2] == "10 B/s"


def test_show_tells_how_old_the_guest_s_figures_are() -> None:
    told = dict(
        facts(
            vm(
                "a",
                **{**BUSY, "guest": GuestMemory(total=2**30, used=2**29, available=2**29, age=90)},
            )
        )
    )
    assert told["in the guest"] == "512 MiB of 1 GiB memory used, 1 min 30 s ago"
    assert told["traffic"] == "10 B/s received, 20 B/s sent" and told["cpu"].startswith(
        "150 % of a processor, 25 % waited"
    )
    assert facts(vm("b")) == []


def test_the_host_has_a_line() -> None:
    line = host_line(overview()["host"])
    assert (
        line.startswith("120 % of 200 % cpu; 10 % stolen; 4 GiB of 8 GiB memory available")
        and "waits for cpu 40 %, io 0 %" in line
    )


@pytest.mark.parametrize(
    ("by", "order"),
    [
        ("cpu", ["c", "b", "a"]),
        ("memory", ["a", "b", "c"]),
        ("name", ["a", "b", "c"]),
        ("network", ["b", "a", "c"]),
    ],
)
def test_servers_are_sorted_the_highest_first_and_by_name_where_equal(
    by: str, order: list[str]
) -> None:
    every = [
        vm("b", cpu=0.2, resident=20, network=NetworkUsage(received=5.0, sent=None, age=0)),
        vm("c", cpu=0.9), vm("a", resident=30),
    ]  # fmt: skip
    assert [item["name"] for item in ordered(every, by)] == order


def test_what_has_no_place_is_counted() -> None:
    lines = frame(overview(*(vm(f"v{number:02}") for number in range(30))), "name", 15)
    assert len(lines) <= 15 and lines[-1] == "... and 20 more" and "v09" in lines[-2]
    assert frame(overview(), "cpu", 24)[-1] == "no servers yet: virtuary launch debian"


# ---- the whole command, against a daemon that always says the same


@pytest.fixture
def daemon(short: Path) -> Iterator[dict[str, str]]:
    """The environment in which such a daemon is found."""
    body = json.dumps(overview(vm("web1", **BUSY), vm("db1"))).encode()
    place = short / "s"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(place))
        sock.listen(8)

        def serve() -> None:
            while True:
                try:
                    caller, _ = sock.accept()
                except OSError:
                    return
                with caller, contextlib.suppress(OSError):  # a caller that is ended hangs up
                    caller.recv(65536)
                    caller.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                    )

        threading.Thread(target=serve, daemon=True).start()
        yield os.environ | {
            "VIRTUARY_HOST": f"unix://{place}",
            "PYTHONPATH": str(SOURCE),
            "NO_COLOR": "1",
            "TERM": "xterm",
        }
        sock.shutdown(socket.SHUT_RDWR)


def run(environment: dict[str, str], *words: str) -> str:
    command = [sys.executable, "-m", "virtuary", "top", *words]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=30, check=True
    ).stdout


def test_without_a_terminal_one_table_is_printed(daemon: dict[str, str]) -> None:
    lines = run(daemon).splitlines()
    assert (
        lines[0].startswith("host: ")
        and lines[1].split()[:3] == ["NAME", "STATE", "CPU"]
        and lines[2].startswith("web1")
    )
    assert json.loads(run(daemon, "-o", "json", "--sort", "name"))["vms"][0]["name"] == "db1"
    assert run(daemon, "-o", "name").split() == ["web1", "db1"]


@pytest.mark.parametrize(("ending", "status"), [("q", 0), ("Ctrl-C", 130)])
@pytest.mark.slow
def test_on_a_terminal_it_lives_until_it_is_ended_and_leaves_no_trace(
    daemon: dict[str, str], ending: str, status: int
) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    # whoever runs the tests in the background has them ignore Ctrl-C
    command = [
        "env",
        "--default-signal=INT",
        sys.executable,
        "-m",
        "virtuary",
        "top",
        "--every",
        "200ms",
    ]
    with subprocess.Popen(
        command, env=daemon, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        limit = threading.Timer(60, process.kill)
        limit.start()
        seen = _until(ours, b"", lambda text: text.count(b"\x1b[H") >= 3)
        assert b"\x1b[?1049h" in seen and b"web1" in seen and b"150 %" in seen
        os.write(ours, b"a")  # sort by name
        if ending == "q":
            os.write(ours, b"q")
        else:
            process.send_signal(signal.SIGINT)  # a terminal of its own would send it
        _until(ours, seen, lambda text: b"\x1b[?1049l" in text)
        assert process.wait(10) == status
        limit.cancel()
    assert termios.tcgetattr(theirs) == before
    os.close(theirs)
    os.close(ours)


def _until(terminal: int, seen: bytes, wanted: Any) -> bytes:
    end = time.monotonic() + 20
    while not wanted(seen):
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 65536)
    return seen


# ---- advice


def advice(**changes: Any) -> dict[str, Any]:
    finding = {
        "resource": "memory",
        "verdict": "too-big",
        "evidence": ["its guest used 1 GiB"],
        "confidence": "high",
        "now": 4 * 2**30,
        "wanted": 2**31,
    }
    facts = {
        "name": "db1",
        "id": "i",
        "revision": 3,
        "findings": [finding],
        "change": {"memory": 2**31},
        "saves": {"memory": 2**31},
    }
    return {**facts, "command": "virtuary set db1 --memory 2048MiB", **changes}


def test_advice_is_a_table_and_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    unknown = {
        "resource": "cpus",
        "verdict": "unknown",
        "evidence": ["not enough history"],
        "confidence": "low",
        "now": 1,
        "wanted": None,
    }
    advise._show(
        [advice(), advice(name="new", findings=[unknown], change={}, command=None, saves={})], False
    )
    said = capsys.readouterr()
    assert re.split("  +", said.out.splitlines()[1]) == [
        "db1",
        "memory",
        "too big",
        "4 GiB",
        "2 GiB",
        "high",
        "its guest used 1 GiB",
    ]
    assert (
        "virtuary set db1 --memory 2048MiB   (gives back 2 GiB memory)" in said.out
        and "new" not in said.out
    )
    assert "of 1 server not enough is known" in said.err


class Refusing:
    """A daemon that refuses the changes of some."""

    def __init__(self, *refused: str) -> None:
        self.refused, self.calls = refused, list[Any]()

    def call(self, method: str, target: str, body: Any = None, headers: Any = None) -> Any:
        from virtuary.base.errors import Stale

        self.calls.append((method, target, body, headers))
        if target.rpartition("/")[2] in self.refused:
            raise Stale("it changed meanwhile")
        return {"meta": {"name": "x", "generation": 1}, "status": {"runtime": None, "applied": 1}}


def test_changes_insist_on_what_was_looked_at_and_one_refusal_stops_no_other() -> None:
    wire: Any = Refusing("i")
    changed, failure = advise._apply(wire, [advice(), advice(id="j")])
    assert len(changed) == 1 and failure and failure.code == "stale"
    assert wire.calls[0] == ("PATCH", "/v1/vms/i", {"memory": 2**31}, {"If-Match": '"3"'})
