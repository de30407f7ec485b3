"""What becomes of servers when their daemon ends: nothing. It comes back, finds them again, and
goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import time
from typing import Any

import pytest
from instances import Instance, Json, until

from virtuary.base.errors import VirtuaryError
from virtuary.model.vm import Vm

pytestmark = pytest.mark.live


def launch_all(instance: Instance, names: list[str]) -> None:
    """Launch them, a few at once; all are running at the end."""
    for start in range(0, len(names), 3):
        followers = [
            instance.start_cli("launch", "tiny", name, "--memory", "96MiB")
            for name in names[start : start + 3]
        ]
        for follower in followers:
            _, err = follower.communicate(timeout=120)
            assert follower.returncode == 0, err


def uptime(instance: Instance, name: str) -> float:
    return float(instance.in_guest(name, "cut -d' ' -f1 /proc/uptime"))


@pytest.mark.alone
@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_servers_run_on_without_their_daemon_and_are_adopted_within_two_seconds(
    own_instance: Instance, count: int
) -> None:
    instance, names = own_instance, [f"survivor-{number}" for number in range(count)]
    launch_all(instance, names)
    pids = {name: instance.vm(name)["status"]["runtime"]["pid"] for name in names}
    before = {name: uptime(instance, name) for name in names[:2]}
    for end in (instance.stop, instance.kill):
        end()
        time.sleep(1)
        assert all(os.path.exists(f"/proc/{pid}") for pid in pids.values())
        instance.start()
        began = time.monotonic()
        until(
            lambda: watched(instance) >= 2 * count,
            10,
            "each machine and each network's helper is watched",
            0.02,
        )
        assert time.monotonic() - began <= 2
        answering(instance, names)
        assert {name: instance.vm(name)["status"]["runtime"]["pid"] for name in names} == pids
        for name in names[:2]:
            now = uptime(instance, name)
            assert now > before[name]
            before[name] = now
        with instance.start_cli("console", names[0], stdin=subprocess.PIPE) as console:
            assert console.stdin and console.stdout
            console.stdin.write("\recho con$((1+1))sole\r")
            console.stdin.flush()
            until(
                lambda: "con2sole" in instance.call("GET", f"/v1/vms/{names[0]}/logs")["console"],
                10,
                "the console answers",
            )
        assert instance.ok("shell", names[-1], "--", "hostname").out.strip() == names[-1]
    one_machine_each(instance)


def watched(instance: Instance) -> int:
    """How many processes the daemon holds by pidfd: what it has adopted."""
    assert instance.process
    folder, found = f"/proc/{instance.process.pid}/fd", 0
    for entry in os.listdir(folder):
        with contextlib.suppress(OSError):
            found += "pidfd" in os.readlink(f"{folder}/{entry}")
    return found


def answering(instance: Instance, names: list[str]) -> None:
    """Wait until every server answers: its agent ran something for us."""
    for name in names:
        until(lambda name=name: answered(instance, name), 10, f"{name} answers", 0.02)  # type: ignore[misc]


def answered(instance: Instance, name: str) -> bool:
    with contextlib.suppress(VirtuaryError):
        return bool(
            instance.call("POST", f"/v1/vms/{name}/exec", {"command": ["true"], "timeout": 5})[
                "status"
            ]
            == 0
        )
    return False


def one_machine_each(instance: Instance) -> None:
    """No server runs twice, and what is recorded is what runs."""
    for key, value in instance.documents("vm/"):
        runtime = json.loads(value)["status"]["runtime"]
        assert instance.machines(key.removeprefix("vm/")) == (
            [runtime["pid"]] if runtime else []
        ), key


def settled(instance: Instance) -> bool:
    """Every operation has ended and every server is as it is wished."""
    if any(item["status"]["phase"] in ("pending", "running") for item in instance.operations()):
        return False
    vms = instance.call("GET", "/v1/vms", limit=1000)["items"]
    return all(
        (vm["status"]["runtime"] is not None) == (Vm.from_body(vm).wanted != "stopped")
        for vm in vms
    )


class Script:
    """Random deeds on a few servers, and a record of what was acknowledged, kept apart from what
    the daemon says.
    """

    def __init__(self, instance: Instance, seed: int) -> None:
        self.instance, self.random, self.number = instance, random.Random(seed), 0
        self.there: set[str] = set()
        self.unknown: set[str] = set()
        """Servers of whose last creation or deletion no answer came."""
        self.told: set[str] = set()
        """Operations that were acknowledged."""

    def deed(self) -> None:
        """One deed; what it was answered is remembered, also that no answer came."""
        name = (
            self.random.choice(sorted(self.there))
            if self.there and self.random.random() < 0.6
            else ""
        )
        if not name:
            self.number += 1
            name = f"w{self.number}"
            self._ask(
                name,
                "POST",
                "/v1/vms",
                {"image": "tiny", "name": name, "memory": 96 << 20},
                joins=len(self.there) < 4,
            )
            return
        what = self.random.choice(["start", "stop", "restart", "pause", "resume", "delete"])
        if what == "delete":
            self._ask(
                name, "DELETE", f"/v1/vms/{name}", None, leaves=True, now="true", force="true"
            )
        else:
            body = {"timeout": 0, "force": True} if what in ("stop", "restart") else {}
            self._ask(name, "POST", f"/v1/vms/{name}/actions/{what}", body)

    def _ask(
        self,
        name: str,
        method: str,
        target: str,
        body: Json,
        joins: bool | None = None,
        leaves: bool = False,
        **query: Any,
    ) -> None:
        if joins is False:
            return
        try:
            answer = self.instance.call(method, target, body, **query)
        except VirtuaryError as error:
            if error.code == "peer-away" and (joins or leaves):
                self.unknown.add(name)
                self.there.discard(name)
            return
        except (OSError, IndexError):  # cut off in the middle of an answer
            if joins or leaves:
                self.unknown.add(name)
                self.there.discard(name)
            return
        self.told.add(answer.get("operation", answer)["meta"]["id"])
        if joins:
            self.there.add(name)
        elif leaves:
            self.there.discard(name)

    def check(self) -> None:
        """Everything that was acknowledged is true."""
        names = {
            vm["meta"]["name"] for vm in self.instance.call("GET", "/v1/vms", limit=1000)["items"]
        }
        assert self.there - names == set(), "acknowledged and lost"
        assert names - self.there <= self.unknown, "deleted and still there"
        assert self.told <= {item["meta"]["id"] for item in self.instance.operations()}, (
            "operations forgotten"
        )
        self.there |= names
        self.unknown.clear()


@pytest.mark.parametrize(
    "seed", [11, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 18))]
)
def test_a_daemon_killed_at_any_moment_loses_and_doubles_nothing(
    own_instance: Instance, seed: int
) -> None:
    instance = own_instance
    script = Script(instance, seed)
    for _ in range(8):
        end = time.monotonic() + script.random.uniform(0.2, 1.6)
        while time.monotonic() < end:
            script.deed()
            time.sleep(script.random.uniform(0, 0.12))
        instance.kill()
        for vm_id in instance.ids():
            assert len(instance.machines(vm_id)) <= 1
        instance.start()
        one = {vm_id: instance.machines(vm_id) for vm_id in instance.ids()}
        assert all(len(pids) <= 1 for pids in one.values()), one
        script.check()
    try:
        until(lambda: settled(instance), 60, "every wish has come true")
    except AssertionError as error:
        open_ones = [
            item
            for item in instance.operations()
            if item["status"]["phase"] in ("pending", "running")
        ]
        raise AssertionError(
            f"{error}: {open_ones} {instance.call('GET', '/v1/vms')['items']}\n{instance.words()}"
        ) from None
    script.check()
    one_machine_each(instance)


def test_the_disk_of_a_running_server_is_locked_and_free_after_its_stop(
    own_instance: Instance,
) -> None:
    instance = own_instance
    vm_id = instance.json("launch", "tiny", "locked", "--detach")["vm"]["meta"]["id"]
    until(
        lambda: instance.vm("locked")["status"]["stages"],
        60,
        "its kernel speaks, so QEMU has opened its disk",
    )
    disk = str(instance.paths.vm(vm_id).disk)
    tools = (
        ("qemu-io", "-f", "qcow2", "-c", "write 0 512", disk),
        ("qemu-img", "resize", "-f", "qcow2", disk, "+1M"),
    )

    def refused(*words: str) -> bool:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        return done.returncode != 0 and "lock" in done.stderr

    for restarted in (False, True):
        if restarted:
            instance.kill()
            instance.start()
        assert all(refused(*words) for words in tools)
    instance.ok("stop", "locked", "--force")
    assert subprocess.run(tools[1], capture_output=True, timeout=20, check=False).returncode == 0


def test_after_a_boot_of_the_host_only_autostarted_servers_run(own_instance: Instance) -> None:
    """The boot is played: the machines are killed while no daemon runs, and their records are made
    to name another boot.
    """
    import signal
    import sqlite3

    instance = own_instance
    for name, flag in (("wanted", "--autostart"), ("other", "--no-autostart")):
        instance.ok("launch", "tiny", name, flag, "--detach")
        until(
            lambda name=name: instance.vm(name)["status"]["state"] == "starting",
            20,
            f"{name} starts",
        )  # type: ignore[misc]
        until(
            lambda name=name: instance.vm(name)["status"]["runtime"]["network_pid"],
            20,
            "it has a network",
        )  # type: ignore[misc]
    pids = {name: instance.vm(name)["status"]["runtime"] for name in ("wanted", "other")}
    instance.stop()
    for runtime in pids.values():
        os.kill(runtime["pid"], signal.SIGKILL)
        os.kill(runtime["network_pid"], signal.SIGKILL)
    with contextlib.closing(sqlite3.connect(instance.paths.store)) as db:
        for key, value in db.execute(
            "select key, value from object where key like 'vm/%'"
        ).fetchall():
            document = json.loads(value)
            document["status"]["runtime"]["boot_id"] = "another boot"
            db.execute(
                "update object set value = ? where key = ?",
                (json.dumps(document, separators=(",", ":")).encode(), key),
            )
        db.commit()
    instance.start()
    until(lambda: instance.vm("wanted")["status"]["runtime"], 20, "the autostarted one runs")
    assert instance.vm("wanted")["status"]["runtime"]["pid"] != pids["wanted"]["pid"]
    other = instance.wait_state("other", "stopped")
    assert other["status"]["reason"] == "the host was restarted"
    until(lambda: settled(instance), 40, "no operation is left")
    ends = {
        item["spec"]["target_name"]: item["status"]["phase"]
        for item in instance.operations()
        if item["spec"]["deed"]["kind"] == "launch"
    }
    assert ends == {"wanted": "done", "other": "failed"}
