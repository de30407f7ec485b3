"""The daemon is ended at every crash point, and started again: what was acknowledged is true,
nothing is half-made or left.

Coverage is complete by construction: a point that no story passes fails the suite, and so does one
in the code that the table of stories does not name. `kill` is SIGKILL at the point; `enospc` makes
the step there fail for lack of space. A run's failure is repeated by `pytest tests/crash -k "POINT
and KIND"`.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import pkgutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from forked import Daemon, Nursery
from instances import LISTENS_WITHIN, Instance, Json, until
from stories import (
    ENDED,
    NETWORKED,
    OUTSIDE,
    STORIES,
    TOLD_BY,
    WARM,
    DaemonDied,
    DeedRefused,
    Teller,
)

import virtuary
from virtuary.base.crash import POINTS
from virtuary.model.vm import Vm

pytestmark = pytest.mark.live
CONVERGES_WITHIN = {"made": 90.0}
"""Seconds until all is as it should be again: 20, but more where that takes the boot of a template,
beside another run.
"""
NUMBERS = itertools.count()
OFTEN = {
    "store.before_commit": (1, 2, 5, 9, 13, 18, 23),
    "store.after_commit": (1, 3, 6, 10, 14, 19, 24),
}
"""Visits at which a point that is passed again and again is tried; the whole run tries every one.
"""
FOUR = ("resize.before", "resize.after_offer", "resize.after")
"""Points that are passed with CPUs and with memory, given and taken."""
SECOND = ("start.before_spawn", "start.after_spawn", "start.after_record", "network.after_start",
"stop.after_mark", "stop.after_kill",
          "collect.before_clean", "collect.after_clean", "start.after_release")  # fmt: skip
"""Points that the story passes again in its restart."""
NOTHING_CAN_FAIL = ("store.after_commit", "template.after_boot", "template.after_record",
"live.standing", "live.after_identity",
                    "network.after_bridge", "network.after_dhcp", "network.after_record",
                    "nic.after_record", "network.after_remove", "volume.after_record",
                    "network.after_external", "rules.after_apply", "rules.after_pass",
                    "rules.after_remove", "rules.after_restore")  # fmt: skip
"""Nothing is written there before the next point, so that a full disk can't be met."""

for module in pkgutil.walk_packages(virtuary.__path__, "virtuary."):
    if not module.name.endswith(("__main__", "qemu.launcher")):
        importlib.import_module(module.name)


class CrashInstance(Instance):
    """An instance that may keep web servers for a story, and may fetch from them. Its daemons come
    from `nursery`, where that is given.
    """

    def __init__(self, template: Path, story: str = "", nursery: Nursery | None = None) -> None:
        namespace = f"vt-c{os.getpid()}-{next(NUMBERS)}" if story in NETWORKED else ""
        super().__init__(template=template, namespace=namespace)
        self.servers: list[object] = []
        self.namespace = namespace
        self.nursery = nursery
        settings = (
            "[images]\nallow_private = true\n\n[templates]\nauto = "
            'false\n\n[network]\ndefault = "user"\n'
        )
        (self.paths.config / "virtuary.toml").write_text(settings)
        if namespace:
            subprocess.run(["ip", "netns", "add", namespace], check=True, timeout=20)
            for words in (
                "link set lo up",
                "link add up0 type bridge",
                "link set up0 up",
                "address add 192.0.2.1/24 dev up0",
            ):
                subprocess.run(["ip", "-n", namespace, *words.split()], check=True, timeout=20)
            chain = "{ type filter hook forward priority 10; policy drop; }"
            # another firewall, in the way
            self.nft("add table inet theirs", f"add chain inet theirs f {chain}")

    def start(self, wait: bool = True, prefix: Sequence[str] = (), **extra: str) -> Instance:
        if self.nursery is None or self.namespace or prefix:
            return super().start(wait, prefix, **extra)
        self.process = Daemon(self.nursery, self.env | extra, self.log)  # type: ignore[assignment]
        if wait:
            until(self.listens, LISTENS_WITHIN, "the daemon listens", 0.02)
        return self

    def nft(self, *lines: str) -> str:
        words = ["ip", "netns", "exec", self.namespace, "nft", "; ".join(lines)]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout

    def leaks(self) -> list[str]:
        found = [leak for leak in super().leaks() if "table inet theirs" not in leak]
        if self.namespace:
            words = ["ip", "-n", self.namespace, "address"]
            told = subprocess.run(
                words, capture_output=True, text=True, check=True, timeout=20
            ).stdout
            found += [f"the host still has {OUTSIDE}"] if OUTSIDE in told else []
            found += ["rules of ours are left"] if "virtuary" in self.nft("list ruleset") else []
        return found

    def remove(self) -> None:
        for server in self.servers:
            server.shutdown()  # type: ignore[attr-defined]
            server.server_close()  # type: ignore[attr-defined]
        super().remove()
        if self.namespace:
            subprocess.run(["ip", "netns", "delete", self.namespace], check=False, timeout=20)


def cases() -> list[object]:
    found = []
    for story, points in TOLD_BY.items():
        for point in points:
            hits = (1, 2) if point in SECOND else (1, 2, 3, 4) if point in FOUR else (1,)
            for hit in OFTEN.get(point, hits):
                for kind in ("kill", "enospc"):
                    if kind == "enospc" and (
                        point in NOTHING_CAN_FAIL or (hit == 1 and point in OFTEN)
                    ):
                        continue
                    found.append(pytest.param(story, point, hit, kind, id=f"{point}-{hit}-{kind}"))
            if point in OFTEN:
                for hit in sorted(set(range(2, 25)) - set(OFTEN[point])):
                    found.append(
                        pytest.param(
                            story,
                            point,
                            hit,
                            "kill",
                            id=f"{point}-{hit}-kill",
                            marks=pytest.mark.slow,
                        )
                    )
    return found


Runs = dict[str, "Future[None]"]


@pytest.fixture(scope="session")
def runs(
    request: pytest.FixtureRequest,
    template: Path,
    warm_tiny: Path,
    pool: ThreadPoolExecutor,
    nursery: Nursery,
) -> Runs:
    """All chosen runs, begun together and told two at a time; each test waits for its own."""
    found: Runs = {}
    for item in request.session.items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if {"story", "point", "hit", "kind"} <= set(params):
            words = (params["story"], params["point"], params["hit"], params["kind"])
            found[item.name] = pool.submit(
                tell, nursery, warm_tiny if words[0] in WARM else template, *words
            )
    return found


@pytest.mark.parametrize(("story", "point", "hit", "kind"), cases())
def test_a_fault_at_this_point_loses_doubles_and_leaves_nothing(
    request: pytest.FixtureRequest, runs: Runs, story: str, point: str, hit: int, kind: str
) -> None:
    runs[request.node.name].result(timeout=560)


def tell(nursery: Nursery, template: Path, story: str, point: str, hit: int, kind: str) -> None:
    """One run: the story with the fault, the daemon's return, convergence, the audit."""
    instance = CrashInstance(template, story, nursery)
    trace = instance.root / "trace"
    try:
        instance.start(
            wait=False, VIRTUARY_CRASH=f"{point}:{hit}:{kind}", VIRTUARY_CRASH_TRACE=str(trace)
        )
        teller = Teller(instance, forgiving=kind == "enospc")
        try:
            until(
                lambda: ended(instance) or (instance.paths.socket.exists() and instance.listens()),
                30,
                "it starts",
                0.02,
            )
            if not ended(instance):
                STORIES[story](teller)
        except (DaemonDied, DeedRefused):
            pass  # the story ends where the fault met it
        assert instance.process
        if kind == "kill":
            assert instance.process.wait(10) == -9, (
                f"the daemon did not die of the fault: {instance.words()}"
            )
            one_machine_each(instance)
            instance.start()
        else:
            assert trace.read_text().split().count(point) >= hit, "the fault was never met"
            assert instance.process.poll() is None, (
                f"the daemon ended by itself: {instance.words()}"
            )
        converge(instance, CONVERGES_WITHIN.get(story, 20.0))
        check(instance, teller)
        clean_up(instance)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{instance.words()}") from None
    finally:
        instance.remove()


def ended(instance: Instance) -> bool:
    return instance.process is not None and instance.process.poll() is not None


def converge(instance: Instance, seconds: float) -> None:
    """Every operation ends within the limit, by itself; at no moment are there two machines of one
    server.
    """
    end = time.monotonic() + seconds
    while True:
        one_machine_each(instance)
        open_ones = [item for item in instance.operations() if item["status"]["phase"] not in ENDED]
        vms = instance.call("GET", "/v1/vms", limit=1000)["items"]
        waiting = [
            vm["meta"]["name"]
            for vm in vms
            if (vm["status"]["runtime"] is None) != (Vm.from_body(vm).wanted == "stopped")
        ]
        waiting += [
            vm["meta"]["name"]
            for vm in vms
            if bool(instance.machines(vm["meta"]["id"])) != bool(vm["status"]["runtime"])
        ]
        waiting += [vm["meta"]["name"] for vm in vms if not settled(vm)]
        if not open_ones and not waiting:
            return
        assert time.monotonic() < end, (
            f"not converged: {[item['spec'] | item['status'] for item in open_ones]} {waiting} "
            f"{vms}"
        )
        time.sleep(0.1)


def settled(vm: Json) -> bool:
    """Whether a server that runs has the CPUs, the memory and the disk that are wished."""
    spec, status = vm["spec"], vm["status"]
    if status["state"] != "running" or status["cpus"] is None:
        return True
    has, wished = status["memory"], spec["memory"]["size"]
    return (
        status["cpus"] == spec["cpu"]["count"]
        and wished <= has < wished + (16 << 20)
        and (spec["disks"][0]["size"] or 0) <= status["disks"]["0"]["size"]
    )


def one_machine_each(instance: Instance) -> None:
    for vm_id in instance.ids():
        assert len(instance.machines(vm_id)) <= 1, f"{vm_id} runs twice: {instance.machines(vm_id)}"


def check(instance: Instance, teller: Teller) -> None:
    """What was acknowledged is there as it was wished, its operations ended well, and nothing else
    is there.
    """
    operations = {item["meta"]["id"]: item for item in instance.operations()}
    assert teller.told <= set(operations), "an acknowledged operation is forgotten"
    ends = Counter(item["status"]["phase"] for item in operations.values())
    if not teller.forgiving:
        assert set(ends) <= {"done"}, [
            item["spec"] | item["status"]
            for item in operations.values()
            if item["status"]["phase"] != "done"
        ]
    for item in operations.values():
        assert item["status"]["phase"] != "failed" or item["status"]["error"]["code"] in (
            "no-room",
            "store-away",
        ), item["status"]
    found = {
        f"vm {vm['meta']['name']}": Vm.from_body(vm).wanted
        for vm in instance.call("GET", "/v1/vms", limit=1000)["items"]
    }
    images = {
        f"image {item['meta']['name']}": item["status"]["state"]
        for item in instance.call("GET", "/v1/images")["items"]
    }
    found |= {key: state for key, state in images.items() if key != "image tiny"}
    found |= {
        f"disk {item['meta']['name']}": item["status"]["state"]
        for item in instance.call("GET", "/v1/disks")["items"]
    }
    for key in set(found) | set(teller.there):
        if key not in teller.doubtful and not teller.forgiving:
            assert found.get(key) == teller.there.get(key), (
                f"{key} is {found.get(key)}, acknowledged was {teller.there.get(key)}"
            )
    for key, value in instance.documents("vm/"):
        runtime = json.loads(value)["status"]["runtime"]
        assert instance.machines(key.removeprefix("vm/")) == ([runtime["pid"]] if runtime else [])


def disks(instance: Instance) -> list[Json]:
    return list(instance.call("GET", "/v1/disks")["items"])


def held(item: Json) -> bool:
    return bool(item["spec"]["attached"])


def clean_up(instance: Instance) -> None:
    """Remove everything by the ordinary commands; then nothing may be left."""
    instance.wipe()
    for item in instance.call("GET", "/v1/images")["items"]:
        if item["meta"]["name"] != "tiny":
            instance.ok("image", "delete", "--yes", item["meta"]["name"])
    until(lambda: not any(held(item) for item in disks(instance)), 20, "disks are let go")
    for item in disks(instance):
        instance.ok("disk", "delete", "--now", "--yes", item["meta"]["name"])
    assert list(instance.paths.disks.iterdir()) == []
    instance.audit()
    downloads = list(instance.paths.downloads.rglob("*"))
    # those may be resumed
    assert not [path for path in downloads if path.is_file() and ".download" not in path.name], (
        downloads
    )
    images = {item["meta"]["id"] for item in instance.call("GET", "/v1/images")["items"]}
    assert {path.name for path in instance.paths.images.iterdir()} == images
    instance.stop()
    instance.audit()


# ---- the harness itself


def test_every_point_is_named_by_a_story() -> None:
    named = Counter(point for points in TOLD_BY.values() for point in points)
    assert set(named) == POINTS and set(named.values()) == {1}


@pytest.mark.parametrize("story", STORIES)
def test_a_story_without_a_fault_passes_all_of_its_points(
    template: Path, warm_tiny: Path, story: str
) -> None:
    instance = CrashInstance(warm_tiny if story in WARM else template, story)
    try:
        trace = instance.root / "trace"
        instance.start(VIRTUARY_CRASH_TRACE=str(trace))
        STORIES[story](teller := Teller(instance))
        visited = Counter(trace.read_text().split())
        check(instance, teller)
        clean_up(instance)
    finally:
        instance.remove()
    assert set(TOLD_BY[story]) <= set(visited), (
        f"never passed: {set(TOLD_BY[story]) - set(visited)}"
    )
    for point, hits in OFTEN.items():
        if point in TOLD_BY[story]:
            assert visited[point] >= hits[-1], f"{point} is passed {visited[point]} times only"


def test_the_audit_sees_a_planted_leak(template: Path) -> None:
    """The negative control: an oracle that can't fail proves nothing."""
    instance = CrashInstance(template).start()
    try:
        instance.call("POST", "/v1/vms", {"name": "leak", "image": "tiny", "memory": 96 << 20})
        vm_id = instance.vm("leak")["meta"]["id"]
        until(lambda: instance.machines(vm_id), 20, "it runs")
        found = " ".join(instance.leaks())
        assert all(
            word in found
            for word in (
                "process",
                "control group",
                "folder",
                "document vm/",
                "operation launch leak is",
            )
        )
        instance.wipe()
        (instance.paths.vms / "stray").mkdir()
        assert instance.leaks() == [f"folder {instance.paths.vms / 'stray'}"]
    finally:
        instance.remove()
