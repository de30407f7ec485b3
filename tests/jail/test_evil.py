"""What somebody who took over a program in its jail can do. The list of what may succeed is short,
and stands here.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(
        platform.machine() != "x86_64",
        reason="evil.py makes system calls by their numbers on x86-64",
    ),
    pytest.mark.skipif(
        not os.path.exists("/usr/bin/python3"),
        reason="needs a Python that lies among the system's libraries",
    ),
]

MAY = {
    "a pair of sockets": "QEMU talks to itself by them",
    "a thread": "virtual CPUs are threads",
    "write its own file": "its disk",
    "see what its tap is": "QEMU asks for it at the start",
}
ON_THE_NETWORK = {
    "an internet socket": "a guest's connections are made by it",
    "connect to a service of the host": "the host's own addresses are on the host's network; `show` says so",
}
NAMES = {"a datagram socket": "by which names are looked up"}
KINDS = {
    "machine": MAY,
    "network": MAY | ON_THE_NETWORK | NAMES,
    "tool": MAY,
    "lookup": MAY | NAMES,
}
PEOPLE = ["root", "user"]


@pytest.fixture(
    scope="module", params=[(kind, person) for kind in KINDS for person in PEOPLE], ids="-".join
)
def told(request: pytest.FixtureRequest) -> dict[str, Any]:
    kind, person = request.param
    folder = Path("/tmp") / f"vt-evil-{kind}-{person}-{os.getpid()}"
    folder.mkdir(mode=0o755)
    words = [sys.executable, str(Path(__file__).with_name("evils.py")), kind, str(folder)]
    try:
        if person == "user":
            os.chown(folder, 65534, 65534)
            words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *words]
        unshared = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *words]
        done = subprocess.run(unshared, capture_output=True, text=True, timeout=120, cwd="/")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if person == "user" and "Permission denied" in done.stderr and "Traceback" not in done.stderr:
        pytest.skip("the source is closed to other users here")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if found["level"] == "L0":
        pytest.skip(f"no jail here: {found['gaps']}")
    found["may"] = KINDS[kind]
    found["acts"] = json.loads(found["words"].splitlines()[0])
    return found


def test_nothing_succeeds_that_is_not_on_the_list(told: dict[str, Any]) -> None:
    done = {name for name, outcome in told["acts"].items() if outcome == "done"}
    assert done - set(told["may"]) == set()


def test_what_may_be_done_can_be_done(told: dict[str, Any]) -> None:
    """The negative control: the acts are real."""
    done = {name for name, outcome in told["acts"].items() if outcome == "done"}
    missing = set(told["may"]) - done
    assert missing <= {"see what its tap is"} and (not missing or told["address"] is None), told[
        "acts"
    ]


def test_each_act_fails_as_a_system_call_does(told: dict[str, Any]) -> None:
    assert [
        name
        for name, outcome in told["acts"].items()
        if not outcome.isupper() and outcome != "done"
    ] == []


def test_a_call_by_another_numbering_is_the_end(told: dict[str, Any]) -> None:
    assert "the old door is open" not in told["words"]
    assert told["status"] == signal.SIGSYS


def test_nothing_of_the_host_has_changed(told: dict[str, Any]) -> None:
    assert told["alive"] and told["canary"] == "secret"
    assert told["address"] != "52:54:00:c0:ff:ee"
