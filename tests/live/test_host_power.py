"""A shutdown of the host is no power cut for its servers, and a boot brings them back, each in its
turn.

The host's shutdown is told by SIGPWR, and its boot is played: the store names another one.
"""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from instances import Instance, serve, until

from virtuary.model.vm import Vm

pytestmark = pytest.mark.live


@pytest.fixture
def own(warm_tiny: Path) -> Iterator[Instance]:
    """A daemon with a warm tiny, of the test's own."""
    yield from serve(warm_tiny)


def place(log: str, words: str) -> int:
    """Where the daemon's log tells something first."""
    assert words in log, log
    return log.index(words)


def test_servers_shut_down_with_the_host_and_come_back_with_it_in_order(own: Instance) -> None:
    own.ok("launch", "tiny", "db", "--autostart", "--boot-order", "1")
    own.ok("launch", "tiny", "web", "--autostart", "--boot-order", "2", "--shutdown-timeout", "60s")
    own.ok("launch", "tiny", "cut", "--on-host-shutdown", "off", "--boot-order", "2")
    own.ok("create", "tiny", "idle", "--autostart")
    shown = own.ok("show", "web").out
    assert "boot order 2" in shown and "1 min 0 s to shut down with the host" in shown
    own.in_guest("db", "echo kept > /root/unsynced")
    assert own.process
    own.process.send_signal(signal.SIGPWR)
    until(
        lambda: own.vm("cut")["status"]["state"] == "stopped",
        20,
        "it answers while servers shut down",
        0.05,
    )
    own.process.wait(100)
    log = own.log.read_text()
    assert place(log, "ended vm=web") < place(
        log, "vm=db wanted=running found=running step=ask_shutdown"
    ), "what stands on it goes first"
    assert "vm=cut wanted=running found=running step=ask_shutdown" not in log
    with contextlib.closing(sqlite3.connect(own.paths.store)) as db:
        assert (
            db.execute(
                "update object set value = ? where key like 'here/%/boot'", (b"another boot",)
            ).rowcount
            == 1
        )
        db.commit()
    own.log.write_text("")
    own.start()
    until(lambda: own.vm("web")["status"]["state"] == "running", 90, "all are back")
    log = own.log.read_text()
    assert place(log, "state vm=db was=starting now=running") < place(
        log, "vm=web wanted=running found=stopped step=start"
    )
    assert (
        Vm.from_body(own.vm("cut")).wanted == "stopped"
        and own.vm("idle")["spec"]["power"] == "running"
    )
    assert own.in_guest("db", "cat /root/unsynced") == "kept"
