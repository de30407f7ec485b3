"""What a server is given while it runs, with real guests: limits hold, CPUs, memory and disk come
and go, a refusal changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from instances import Instance, Json, serve, until

from virtuary.base.errors import NoRoom

pytestmark = [pytest.mark.live, pytest.mark.alone]
MIB = 1 << 20
TICK = os.sysconf("SC_CLK_TCK")
SPIN = "setsid sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null &"


@pytest.fixture(scope="module")
def warm(warm_tiny: Path) -> Iterator[Instance]:
    yield from serve(warm_tiny)


@pytest.fixture
def own(warm_tiny: Path) -> Iterator[Instance]:
    yield from serve(warm_tiny)


@pytest.fixture
def impatient(warm_tiny: Path) -> Iterator[Instance]:
    """A daemon that gives a guest four seconds."""
    yield from serve(warm_tiny, resources="patience = 4")


def change(instance: Instance, name: str, **wish: Json) -> Json:
    """Change a server and wait until its guest has followed; the server."""
    answer = instance.call("PATCH", f"/v1/vms/{name}", wish)
    if "operation" in answer:
        done = instance.call(
            "GET", f"/v1/operations/{answer['operation']['meta']['id']}/wait", timeout=120
        )
        assert done["status"]["phase"] == "done", done["status"]
    return instance.vm(name)


def memory_of(instance: Instance, name: str) -> int:
    """MiB the guest's kernel manages."""
    return int(instance.in_guest(name, "grep MemTotal /proc/meminfo | tr -dc 0-9")) // 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def share(instance: Instance, *names: str, seconds: float = 6) -> list[float]:
    """Percent of one CPU each server's process uses."""
    pids = [instance.vm(name)["status"]["runtime"]["pid"] for name in names]
    before, began = [cpu_seconds(pid) for pid in pids], time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    return [(cpu_seconds(pid) - was) / took * 100 for pid, was in zip(pids, before, strict=True)]


@pytest.fixture(scope="module")
def server(warm: Instance) -> Iterator[str]:
    warm.ok("launch", "tiny", "s")
    yield "s"
    warm.ok("delete", "s", "--now", "--force", "--yes")


# ---- CPUs, memory, disk


def test_memory_comes_and_goes_and_the_guest_sees_it(warm: Instance, server: str) -> None:
    before = memory_of(warm, server)
    vm = change(warm, server, memory=512 * MIB)
    assert vm["status"]["memory"] == 512 * MIB and memory_of(warm, server) > before + 350
    vm = change(warm, server, memory=256 * MIB)
    assert 256 * MIB <= vm["status"]["memory"] < 272 * MIB and memory_of(warm, server) < 280
    assert vm["meta"]["generation"] == vm["status"]["power"]["applied"], "nothing waits for a start"


def test_memory_of_a_template_is_given_back_at_the_next_start_only(
    warm: Instance, server: str
) -> None:
    said = warm.ok("set", server, "--memory", "96MiB")
    assert "takes effect at its next start" in said.out
    assert memory_of(warm, server) > 96
    change(warm, server, memory=128 * MIB)


def test_cpus_come_and_go_and_the_guest_uses_them(warm: Instance, server: str) -> None:
    assert change(warm, server, cpu=2)["status"]["cpus"] == 2
    assert warm.in_guest(server, "nproc") == "2"
    assert change(warm, server, cpu=1)["status"]["cpus"] == 1
    assert warm.in_guest(server, "nproc") == "1"


def test_the_disk_grows_with_its_filesystem(warm: Instance, server: str) -> None:
    warm.in_guest(server, "echo kept >/root/kept; sync")
    vm = change(warm, server, disks=[512 * MIB])
    assert vm["status"]["disks"]["0"]["size"] == 512 * MIB
    assert int(warm.in_guest(server, "df -m / | tail -n1").split()[1]) > 440
    assert warm.in_guest(server, "cat /root/kept") == "kept"
    refused = warm.run("set", server, "--disk", "300MiB")
    assert refused.status == 2 and "disks only grow" in refused.err


def test_what_was_changed_is_there_after_the_daemon_died_and_after_a_start(own: Instance) -> None:
    own.ok("launch", "tiny", "s")
    change(own, "s", cpu={"count": 2, "limit": 80}, memory=256 * MIB)
    own.kill()
    own.start()
    vm = until(
        lambda: (found := own.vm("s"))["status"]["cpus"] == 2 and found,
        20,
        "it is adopted as it is",
    )
    assert vm["status"]["memory"] == 256 * MIB and vm["status"]["tuning"]["gaps"] == []
    assert change(own, "s", memory=384 * MIB)["status"]["memory"] == 384 * MIB
    own.ok("restart", "s", "--force")
    until(lambda: own.state("s") == "running", 60, "it runs again")
    assert own.in_guest("s", "nproc") == "2" and memory_of(own, "s") > 300


def test_a_booted_server_gives_back_what_it_began_with(own: Instance) -> None:
    own.ok("launch", "tiny", "b", "--cold", "--memory", "256MiB")
    own.in_guest(
        "b",
        "mount -t tmpfs -o size=180m used /mnt && head -c 150000000 /dev/zero >/mnt/used && "
        "umount /mnt",
    )
    held = Path(f"/proc/{own.vm('b')['status']['runtime']['pid']}/statm")
    resident = int(held.read_text().split()[1])
    vm = change(own, "b", memory=128 * MIB)
    assert vm["status"]["memory"] <= (128 + 16) * MIB, (
        "what a guest may keep of what it is asked back"
    )
    assert int(held.read_text().split()[1]) < resident - 64 * MIB // os.sysconf("SC_PAGESIZE"), (
        "the host has it again"
    )
    assert change(own, "b", memory=320 * MIB)["status"]["memory"] == 320 * MIB


def test_a_guest_that_refuses_is_as_it_was_and_it_is_said(impatient: Instance) -> None:
    """Its driver is gone, so it can't take the memory; and a CPU it is given it puts away again and
    again.
    """
    impatient.ok("launch", "tiny", "s")
    impatient.in_guest(
        "s", "find /lib/modules -name 'virtio_mem.ko*' -exec rm {} +; rmmod virtio_mem"
    )
    off = "while :; do echo 0 >/sys/devices/system/cpu/cpu1/online; done"
    impatient.in_guest("s", f"setsid sh -c '{off}' >/dev/null 2>&1 </dev/null &")
    for wish in ({"memory": 256 * MIB}, {"cpu": 2}):
        answer = impatient.call("PATCH", "/v1/vms/s", wish)
        done = impatient.call(
            "GET", f"/v1/operations/{answer['operation']['meta']['id']}/wait", timeout=60
        )
        assert (
            done["status"]["phase"] == "failed" and "as it was" in done["status"]["error"]["detail"]
        ), done["status"]
        vm = impatient.wait_state("s", "running")
        assert (vm["spec"]["memory"]["size"], vm["spec"]["cpu"]["count"]) == (128 * MIB, 1)
    until(lambda: impatient.vm("s")["status"]["cpus"] == 1, 30, "it has what it had")


# ---- limits and shares


def test_a_limit_of_processor_time_holds_and_goes(warm: Instance, server: str) -> None:
    change(warm, server, cpu={"limit": 40})
    warm.in_guest(server, SPIN)
    (used,) = share(warm, server)
    assert 38 < used < 44, (
        "the limit holds for the virtual CPUs, and the rest of the process does next to nothing"
    )
    until(
        lambda: warm.call("GET", f"/v1/vms/{server}/usage")["totals"]["throttled_seconds"],
        30,
        "what the limit held back is counted",
    )
    change(warm, server, cpu={"limit": None})
    (used,) = share(warm, server)
    assert used > 75
    warm.in_guest(server, "kill $(pgrep -f 'while :') 2>/dev/null; true")


def test_weights_share_what_there_is(own: Instance) -> None:
    own.ok("launch", "tiny", "heavy", "--cpu-weight", "300", "--pin", "0")
    own.ok("launch", "tiny", "light", "--cpu-weight", "100", "--pin", "0")
    for name in ("heavy", "light"):
        own.in_guest(name, SPIN)
    heavy, light = share(own, "heavy", "light", seconds=8)
    assert 0.70 < heavy / (heavy + light) < 0.80, (heavy, light)


def test_a_limit_of_disk_traffic_holds_and_goes(warm: Instance, server: str) -> None:
    read = (
        "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda of=/dev/null bs=1M count=24 2>/dev/null"
    )
    began = time.monotonic()
    warm.in_guest(server, read)
    free = time.monotonic() - began
    warm.ok("set", server, "--read-bandwidth", "8MiB")
    began = time.monotonic()
    warm.in_guest(server, read)
    limited = time.monotonic() - began
    assert limited > 2.5 > free, (free, limited)
    warm.ok("set", server, "--read-bandwidth", "none")
    began = time.monotonic()
    warm.in_guest(server, read)
    assert time.monotonic() - began < 2.5


def test_what_this_host_can_not_give_is_said(warm: Instance, server: str) -> None:
    said = warm.ok("set", server, "--disk-weight", "300")
    vm, weighs = warm.vm(server), "bfq" in _schedulers()
    assert vm["spec"]["disks"][0]["io"]["weight"] == 300 and vm["status"]["state"] == "running"
    assert weighs or ("weight of storage traffic" in said.err and vm["status"]["tuning"]["gaps"]), (
        "said by the command that asked for it"
    )
    shown = warm.ok("show", server).out
    assert "disk weight 300" in shown and (weighs or "not given" in shown)
    warm.ok("set", server, "--disk-weight", "100")


def _schedulers() -> str:
    return " ".join(place.read_text() for place in Path("/sys/block").glob("*/queue/scheduler"))


# ---- the account


def test_more_than_there_is_is_refused_with_what_is_missing(warm: Instance, server: str) -> None:
    refused = warm.run("set", server, "--memory", "900GiB")
    assert refused.status == 4 and "are missing" in refused.err and "hint:" in refused.err
    assert warm.vm(server)["spec"]["memory"]["size"] < 1 << 30
    answer = warm.json("capacity", "--what-if", "cpus=1,memory=256MiB")
    assert answer["servers"] > 1 and answer["limit"] in answer["by"]
    many = warm.run("capacity", "--what-if", f"memory=256MiB,count={answer['servers'] + 1}")
    assert many.status == 4 and "do not fit" in many.out
    host = warm.json("host")
    assert host["account"]["memory"]["holders"] and host["pools"][0]["allocated"] > 0


def test_many_at_once_are_never_promised_too_much(own: Instance) -> None:
    host = own.call("GET", "/v1/host")
    size = host["account"]["memory"]["usable"] // 4 // MIB * MIB

    def one(number: int) -> bool:
        with contextlib.suppress(NoRoom):
            own.call(
                "POST",
                "/v1/vms",
                {"name": f"m{number}", "image": "tiny", "memory": size, "power": "paused"},
            )
            return True
        return False

    with ThreadPoolExecutor(12) as pool:
        made = sum(pool.map(one, range(12)))
    balance = own.call("GET", "/v1/host")["account"]["memory"]
    assert made == 3 and balance["promised"] <= balance["usable"]


# ---- space


def test_space_that_a_guest_frees_comes_back(warm: Instance, server: str) -> None:
    disk = warm.paths.vm(warm.vm(server)["meta"]["id"]).disk
    warm.in_guest(server, "dd if=/dev/urandom of=/big bs=1M count=40 2>/dev/null; sync")
    full = disk.stat().st_blocks * 512
    assert full > 40 * MIB
    warm.in_guest(server, "rm /big; sync")
    said = warm.ok("trim", server)
    assert "came back" in said.out and disk.stat().st_blocks * 512 < full - 30 * MIB


FILL = (
    "setsid sh -c 'dd if=/dev/urandom of=/big bs=1M count=40; sync; : >/done' >/dev/null 2>&1 "
    "</dev/null &"
)


@pytest.mark.host
@pytest.mark.parametrize("place", ["pool", "everything"])
def test_a_full_disk_pauses_who_fills_it_and_corrupts_nothing(warm_tiny: Path, place: str) -> None:
    """On a small filesystem of its own, the pool alone or all that Virtuary has, its store
    included: each that writes is paused and says so, and goes on by itself when there is room.
    """
    root = Path(tempfile.mkdtemp(prefix="vi-", dir="/tmp"))
    small = root / "state/vms" if place == "pool" else root
    mount = ["mount", "-t", "tmpfs", "-o", "size=1g,mode=0711", "tmpfs", str(small)]
    if place == "everything":
        subprocess.run(mount, check=True, timeout=20)
    instance = Instance(root, template=warm_tiny, resources="reserve_disk = 0")
    if place == "pool":
        subprocess.run(mount, check=True, timeout=20)
    try:
        instance.start()
        names = ("a", "b", "c")
        for name in names:
            instance.ok("launch", "tiny", name)
        ballast = small / "ballast"
        ballast.write_bytes(bytes(20 * MIB))
        used = shutil.disk_usage(small).used
        subprocess.run(
            ["mount", "-o", f"remount,size={used + 30 * MIB}", str(small)], check=True, timeout=20
        )
        for name in names:
            instance.in_guest(name, FILL)
        for name in names:
            assert instance.wait_state(name, "paused", limit=90)["status"]["reason"].startswith(
                "no space"
            )
        assert len(instance.json("list")) == 3, "looking works without any space"
        names = names[:2]
        instance.ok("delete", "c", "--now", "--force", "--yes")
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=1g", str(small)], check=True, timeout=20)
        for name in names:
            instance.wait_state(name, "running", limit=90)
            until(
                lambda name=name: (
                    instance.run("exec", name, "--", "test", "-e", "/done").status == 0
                ),
                90,
                "it wrote all",
            )
            assert instance.in_guest(name, "sync; stat -c %s /big") == str(40 * MIB)
            instance.ok("stop", name)
            disk = instance.paths.vm(instance.vm(name)["meta"]["id"]).disk
            check = subprocess.run(
                ["qemu-img", "check", str(disk)],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert check.returncode in (0, 3), check.stdout
        instance.wipe()
        instance.stop()
    finally:
        instance.remove()
        subprocess.run(["umount", "-l", str(small)], check=False, timeout=20)
        shutil.rmtree(root, ignore_errors=True)


# ---- a real Debian


def test_a_debian_is_given_more_and_gives_it_back_within_seconds(debian: Instance) -> None:
    debian.ok("launch", "debian:12", "d", limit=120)
    took: dict[str, float] = {}
    for name, wish in {
        "grow": {"memory": 2 << 30}, "shrink": {"memory": 1 << 30}, "cpus": {"cpu": 2}, "disk": {"disks": [6 << 30]},
    }.items():  # fmt: skip
        began = time.monotonic()
        change(debian, "d", **wish)
        took[name] = time.monotonic() - began
    assert debian.in_guest("d", "nproc") == "2"
    assert int(debian.in_guest("d", "df -m / | tail -n1").split()[1]) > 5500
    assert 800 < memory_of(debian, "d") < 1100, took
    debian.ok("delete", "d", "--now", "--force", "--yes")


DAEMON_DIES = """set -e
systemd-run -q --unit=d -p Type=notify -p NotifyAccess=all -p KillMode=process python3 /tmp/virtuary-test/daemon.py
systemctl restart d
systemctl kill -s KILL d
for _ in $(seq 50); do systemctl -q is-failed d && break; sleep 0.1; done
systemctl start d
echo holder $(basename $(dirname $(sed s/0::// /proc/$(cat /tmp/virtuary-test/machine)/cgroup)))
systemctl stop d
test -e /proc/$(cat /tmp/virtuary-test/machine)
kill $(cat /tmp/virtuary-test/machine)
"""
"""A daemon with a machine is started again by systemd after a restart and after it was killed, and
the machine runs on.
"""


def test_control_groups_of_version_2_limit_and_weigh(debian: Instance) -> None:
    """Inside the guest, which has systemd and the groups that users' hosts have: the same code,
    asked of a real kernel.
    """
    debian.ok("launch", "debian:12", "groups", limit=120)
    files = [
        "host/cgroups.py",
        "host/shares.py",
        "base/proc.py",
        "base/text.py",
        "base/errors.py",
        *(f"{room}__init__.py" for room in ("", "host/", "base/")),
    ]
    script = "mkdir -p /tmp/virtuary-test/virtuary/host /tmp/virtuary-test/virtuary/base\n"
    source = Path(__file__).parents[2]
    for name in files:
        text = (source / "src/virtuary" / name).read_text() if "__init__" not in name else ""
        script += f"cat > /tmp/virtuary-test/virtuary/{name} <<'END-OF-FILE'\n{text}\nEND-OF-FILE\n"
    for name, place in {"in_guest": "run", "daemon_in_guest": "daemon"}.items():
        text = (source / f"tests/host/{name}.py").read_text()
        script += f"cat > /tmp/virtuary-test/{place}.py <<'END-OF-FILE'\n{text}\nEND-OF-FILE\n"
    debian.ok("exec", "groups", "--", "sh", stdin=script.encode())
    for _ in range(3):  # the guest's processor is shared itself: one quiet moment is enough
        found = _try_groups(debian)
        if 10 < found["limited"] < 33 and found["free"] > 2 * found["limited"]:
            break
    assert 10 < found["limited"] < 33 and found["free"] > 2 * found["limited"], found
    heavy, light = found["weighed"]
    assert 0.68 < heavy / (heavy + light) < 0.82, found
    assert "holder virtuary-servers.scope" in debian.in_guest("groups", DAEMON_DIES)
    debian.ok("delete", "groups", "--now", "--force", "--yes")


def _try_groups(debian: Instance) -> dict[str, Any]:
    told = debian.in_guest(
        "groups",
        "systemd-run -q --pipe --wait --property=Delegate=yes python3 /tmp/virtuary-test/run.py",
    )
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    nothing = {name: found[name] for name in ("prepare", "repeated", "group one", "group two")}
    assert found["version"] == 2 and not any(nothing.values()), found
    assert found["bounds"] == [None, str(64 * MIB), "50"] and found["members"], found
    assert (
        found["limit gaps"] == found["weight gaps"] == []
        and not found["left one"]
        and not found["left two"]
    ), found
    return found
