"""Warm launches with real guests: copies of a template are machines of their own, and behave like
any other server.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from instances import Instance, Json, serve, until

from virtuary.guest import identity
from virtuary.storage import sparse

pytestmark = pytest.mark.live
COPIES = 32
FACTS = """
echo "hostname $(hostname)"
echo "hosts $(grep -c "127.0.1.1 $(hostname)$" /etc/hosts)"
echo "mac $(cat /sys/class/net/e*/address)"
echo "uuid $(cat /sys/class/dmi/id/product_uuid)"
echo "tables $(od -An -tx1 -v /sys/firmware/dmi/tables/DMI | tr -d ' \\n')"
echo "boot $(cat /proc/sys/kernel/random/boot_id)"
echo "random $(head -c 64 /dev/urandom | od -An -tx1 -v | tr -d ' \\n')"
echo "machine $(cat /etc/machine-id 2>/dev/null)"
echo "key $(cat /etc/ssh/ssh_host_ed25519_key.pub 2>/dev/null)$(od -An -tx1 -v /etc/dropbear/dropbear_ed25519_host_key 2>/dev/null | tr -d ' \\n')"
echo "link $(cat /proc/net/if_inet6 | grep fe80 | cut -c1-32)"
"""


@pytest.fixture(scope="module")
def warm(warm_tiny: Path) -> Iterator[Instance]:
    yield from serve(warm_tiny)


@pytest.fixture
def own(warm_tiny: Path) -> Iterator[Instance]:
    """A daemon with a warm tiny, of the test's own."""
    yield from serve(warm_tiny)


def templates(instance: Instance) -> list[Json]:
    return list(instance.call("GET", "/v1/templates")["items"])


def ready(instance: Instance) -> list[Json]:
    return [item for item in templates(instance) if item["status"]["state"] == "ready"]


def the_template(instance: Instance) -> Json:
    (found,) = templates(instance)
    return found


def folder(instance: Instance) -> Path:
    return instance.paths.template(the_template(instance)["meta"]["id"])


def is_copy(instance: Instance, name: str) -> bool:
    return bool(instance.vm(name)["status"]["runtime"]["template"])


def facts(instance: Instance, name: str) -> dict[str, str]:
    return dict(line.partition(" ")[::2] for line in instance.in_guest(name, FACTS).splitlines())


def unchanged(instance: Instance) -> bool:
    place = folder(instance)
    manifest = json.loads((place / "manifest.json").read_text())
    return all(sparse.digest(place / name) == digest for name, digest in manifest["sha256"].items())


def clock_error(instance: Instance, name: str) -> float:
    """Seconds between the guest's clock and ours, as near as asking tells: the guest's time lies
    between before and after.
    """
    before = time.time()
    told = instance.in_guest(
        name, "adjtimex 2>/dev/null | grep time.tv_ || date +tv_sec:%s:tv_usec:%6N"
    )
    after = time.time()
    seconds, micros = (int(word) for word in re.findall(r"[0-9]+", told))
    return max(before - (seconds + micros / 1e6), seconds + micros / 1e6 - after, 0.0)


# ---- the gate


def test_copies_started_together_share_nothing_that_identifies_a_machine(warm: Instance) -> None:
    said = warm.json("launch", "tiny", "gate", "--count", str(COPIES), limit=300)
    names = [vm["meta"]["name"] for vm in said]
    assert len(names) == COPIES and all(is_copy(warm, name) for name in names)
    every = {name: facts(warm, name) for name in names}
    for fact in ("hostname", "mac", "uuid", "tables", "boot", "random", "key", "link"):
        seen = {found[fact] for found in every.values()}
        assert len(seen) == COPIES and "" not in seen, f"{fact} is shared"
    generations = {warm.ask_qemu(name, "query-vm-generation-id")["guid"] for name in names}
    assert len(generations) == COPIES
    for name, found in every.items():
        assert found["hostname"] == name and found["hosts"] == "1"
        assert found["uuid"] == warm.vm(name)["meta"]["id"]
    assert max(clock_error(warm, name) for name in names) < 1
    template = the_template(warm)["meta"]["id"]
    assert all(template not in found["uuid"] for found in every.values())

    for name in names[:4]:  # what may give memory or blocks back must not reach the template
        warm.ask_qemu(name, "balloon", value=96 << 20)
        warm.in_guest(
            name,
            "echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/zero of=/big bs=1M count=20 "
            "2>/dev/null; rm /big; fstrim / || true",
        )
    for name in names[:4]:
        warm.ask_qemu(name, "balloon", value=128 << 20)
    assert unchanged(warm)
    warm.ok("delete", "--now", "--force", "--yes", *names, limit=180)


def test_the_host_key_is_known_before_anybody_logs_in(warm: Instance) -> None:
    warm.ok("launch", "tiny", "known")
    way = warm.call("GET", "/v1/vms/known/ssh")
    assert Path(way["known_hosts"]).read_text().startswith(f"{way['alias']} ssh-ed25519 ")
    done = subprocess.run(
        ["ssh", "-F", "none", "-p", str(way["port"]), "-i", way["key"], "-oBatchMode=yes",
        "-oStrictHostKeyChecking=yes", "-oConnectTimeout=10",
         f"-oUserKnownHostsFile={way['known_hosts']}", f"-oHostKeyAlias={way['alias']}",
         "root@127.0.0.1", "hostname"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "known"), done.stderr
    warm.ok("delete", "--now", "--force", "--yes", "known")


# ---- a copy lives like any server


def test_a_copy_is_a_server_like_any_other(own: Instance) -> None:
    own.ok("launch", "tiny", "c")
    before = facts(own, "c")
    level = own.vm("c")["status"]["runtime"]["level"]
    own.in_guest("c", "echo kept > /root/file; sync")
    own.ok("pause", "c")
    own.ok("resume", "c")
    own.kill()
    own.start()
    assert own.wait_state("c", "running")["status"]["runtime"]["template"], "adopted as it is"
    assert own.in_guest("c", "cat /root/file") == "kept"
    own.ok("rename", "c", "d")
    own.ok("set", "d", "--memory", "192MiB")
    own.ok("restart", "d", "--force")
    until(lambda: own.state("d") == "running", 60, "d runs again")
    runtime = own.vm("d")["status"]["runtime"]
    assert runtime["template"] is None and runtime["level"] == level
    assert own.in_guest("d", "cat /root/file") == "kept"
    after = facts(own, "d")
    assert after["hostname"] == "d" and (after["mac"], after["uuid"], after["key"]) == (
        before["mac"],
        before["uuid"],
        before["key"],
    )


def test_a_copy_is_grown_to_what_was_asked_for(own: Instance) -> None:
    own.ok("launch", "tiny", "big", "--cpus", "2", "--memory", "512MiB", "--disk", "400MiB")
    assert is_copy(own, "big")
    told = own.in_guest("big", "nproc; grep MemTotal /proc/meminfo; df -m / | tail -1").split()
    assert told[0] == "2" and int(told[2]) > 400 * 1024 and int(told[5]) > 300, told
    plan = own.call("POST", "/v1/vms", {"image": "tiny", "memory": 96 << 20}, dry_run="true")[
        "plan"
    ]
    assert plan["warm"] is False and "less than the warm template" in plan["warm_reason"]
    assert own.call("POST", "/v1/vms", {"image": "tiny"}, dry_run="true")["plan"]["warm"] is True


def test_what_was_created_before_starts_as_a_copy_too(own: Instance) -> None:
    own.ok("create", "tiny", "later", "--memory", "192MiB")
    own.ok("set", "later", "--disk", "400MiB")
    own.ok("start", "later")
    assert is_copy(own, "later") and facts(own, "later")["hostname"] == "later"
    assert int(own.in_guest("later", "df -m / | tail -1").split()[1]) > 300
    own.ok("stop", "later")
    own.ok("start", "later")
    assert not is_copy(own, "later"), "from then on it boots"


def test_cold_boots_and_says_why(own: Instance) -> None:
    own.ok("launch", "tiny", "cold", "--cold")
    assert (
        not is_copy(own, "cold")
        and own.vm("cold")["status"]["warm"]["cold"] == "a boot was asked for"
    )


def test_a_template_goes_when_its_last_copy_does(own: Instance) -> None:
    own.ok("launch", "tiny", "last")
    place = folder(own)
    said = own.run("image", "delete", "tiny")
    assert said.status and "last" in said.err
    own.ok("image", "cool", "tiny")
    until(lambda: not (place / "ram").exists(), 10, "its memory is removed")
    assert (place / "disk.qcow2").exists() and the_template(own)["status"]["state"] == "retired"
    assert own.in_guest("last", "echo alive") == "alive", "what it has mapped stays its own"
    own.ok("launch", "tiny", "next")
    assert not is_copy(own, "next") and "retired" not in own.ok("image", "list").out
    own.ok("restart", "last", "--force")
    until(lambda: own.state("last") == "running", 60, "it boots from its disk")
    own.ok("delete", "--now", "--force", "--yes", "last")
    until(lambda: not templates(own) and not place.exists(), 10, "the template is gone")


# ---- what must not be resumed


def test_a_template_with_a_flipped_bit_is_not_resumed_and_is_made_anew(own: Instance) -> None:
    own.stop()
    own.configure(auto=True)
    own.start()
    old = the_template(own)["meta"]["id"]
    ram = folder(own) / "ram"
    copy = ram.with_name("ram.copy")  # the prepared file is shared with other tests
    shutil.copy(ram, copy)
    os.replace(copy, ram)
    with open(ram, "r+b") as file:
        start = os.lseek(file.fileno(), 0, os.SEEK_DATA) + 5 * sparse.BLOCK
        byte = os.pread(file.fileno(), 1, start)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), start)
    own.ok("launch", "tiny", "safe")
    vm = own.vm("safe")
    assert vm["status"]["runtime"]["template"] is None and "damaged" in vm["status"]["warm"]["cold"]
    again = until(lambda: ready(own), 60, "another template")
    assert again[0]["meta"]["id"] != old
    own.ok("launch", "tiny", "warm-again")
    assert is_copy(own, "warm-again")


@pytest.mark.host
def test_a_template_of_another_build_of_qemu_is_not_resumed(
    warm_tiny: Path, tmp_path: Path
) -> None:
    program = shutil.which("qemu-system-x86_64")
    assert program
    shutil.copy(program, tmp_path / "qemu")
    other = Instance(template=warm_tiny)
    upgraded = (
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-ec",
        f'mount --bind {tmp_path}/qemu {program}; exec "$@"',
        "sh",
    )
    try:
        other.start(prefix=upgraded)
        until(lambda: not templates(other), 10, "the old template is removed")
        other.ok("launch", "tiny", "upgraded")
        assert not is_copy(other, "upgraded")
        other.wipe()
        other.audit()
        other.stop()
    finally:
        other.remove()


@pytest.mark.parametrize("fault", ["identity", "state"])
def test_a_copy_that_can_not_be_made_a_machine_of_its_own_is_booted_instead(
    own: Instance, fault: str
) -> None:
    """A manifest that names another network card makes the guest refuse; a state that is no state
    makes QEMU refuse.
    """
    place = folder(own)
    manifest = json.loads((place / "manifest.json").read_text())
    if fault == "identity":
        manifest["mac"] = "52:54:00:00:00:00"
    else:
        broken = place / "state.new"
        broken.write_bytes(b"nonsense" * 1000)
        os.replace(broken, place / "state")
        manifest["sha256"]["state"] = sparse.digest(place / "state")
    (place / "new").write_text(json.dumps(manifest))
    os.replace(place / "new", place / "manifest.json")
    own.ok("launch", "tiny", "anyway")
    vm = own.vm("anyway")
    assert vm["status"]["runtime"]["template"] is None and vm["status"]["warm"]["cold"].startswith(
        "the warm start failed"
    )
    assert (
        vm["status"]["disks"]["0"]["layers"] == []
        and own.in_guest("anyway", "hostname") == "anyway"
    )
    assert len(own.machines(vm["meta"]["id"])) == 1


# ---- making


def test_the_first_launch_makes_the_second_one_warm(own_instance: Instance) -> None:
    own_instance.stop()
    own_instance.configure(auto=True)
    own_instance.start()
    own_instance.ok("launch", "tiny", "first")
    assert (
        not is_copy(own_instance, "first")
        and "no warm template" in own_instance.vm("first")["status"]["warm"]["cold"]
    )
    until(lambda: ready(own_instance), 60, "a template in the background")
    assert re.search(r"tiny .*128 MiB \(", own_instance.ok("image", "list").out)
    own_instance.ok("launch", "tiny", "second")
    assert is_copy(own_instance, "second")


def test_a_guest_that_never_settles_leaves_nothing_but_the_reason(
    own_instance: Instance, tmp_path: Path
) -> None:
    own_instance.stop()
    own_instance.configure(auto=False, patience=4)
    own_instance.start()
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "blank.qcow2", "64M"],
        check=True,
        timeout=20,
    )
    own_instance.ok("image", "import", str(tmp_path / "blank.qcow2"), "--name", "blank", "--agent")
    said = own_instance.run("image", "warm", "blank")
    assert said.status and "never settled" in said.err
    assert (
        not list(own_instance.paths.templates.iterdir())
        and the_template(own_instance)["status"]["state"] == "failed"
    )
    assert "failed" in own_instance.ok("image", "list").out


def test_copies_that_are_deleted_while_they_start_are_gone_at_once(warm: Instance) -> None:
    """Among what is begun with a start is a host key, made in a folder that is to go."""
    for number in range(12):
        name = f"fleeting{number}"
        warm.call("POST", "/v1/vms", {"image": "tiny", "name": name})
        time.sleep(0.02 * number)
        said = warm.run("delete", name, "--now", "--force", "--yes")
        assert said.status == 0, f"{said}\n{warm.words()}"
    assert "Directory not empty" not in warm.log.read_text()


def test_a_cancelled_making_leaves_nothing(own_instance: Instance) -> None:
    operation = own_instance.ok("image", "warm", "tiny", "--detach").out.strip()
    until(lambda: list(own_instance.paths.templates.glob(".making-*/ram")), 20, "it is being made")
    own_instance.ok("operation", "cancel", operation)
    until(lambda: not templates(own_instance), 20, "the template is gone")
    until(lambda: not list(own_instance.paths.templates.iterdir()), 10, "its files are gone")


@pytest.mark.host
def test_a_full_disk_while_a_template_is_made_leaves_nothing(own_instance: Instance) -> None:
    place = own_instance.paths.templates
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "none", str(place)], check=True, timeout=10
    )
    try:
        said = own_instance.run("image", "warm", "tiny")
        assert said.status and "disk space" in said.err
        assert not list(place.iterdir())
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, timeout=10)
    own_instance.ok("image", "warm", "tiny", limit=120)
    own_instance.ok("launch", "tiny", "after")
    assert is_copy(own_instance, "after")


def test_templates_are_kept_within_their_budget(own: Instance) -> None:
    own.ok("image", "warm", "tiny", "--memory", "192MiB", limit=120)
    sizes = sorted(item["status"]["size"] for item in templates(own))
    own.stop()
    own.configure(auto=False, max_disk=sizes[-1] + 1)
    own.start()
    until(lambda: len(templates(own)) == 1, 10, "one of two is removed")


def test_however_late_a_copy_is_told_the_time_its_clock_is_right(warm: Instance) -> None:
    """Its real-time clock knows how late it was; that one is behind by the part of a second at
    which the template was started.
    """
    warm.ok("launch", "tiny", "late")
    lag = round(json.loads((folder(warm) / "manifest.json").read_text())["lag"] * 1e9)
    for part in range(4):
        time.sleep((part / 4 - time.time()) % 1)
        seconds, nanos = divmod(time.time_ns() - 2_500_000_000, 10**9)
        assert warm.in_guest(
            "late", f"echo t {seconds} {nanos} {lag} | {identity.FOLDER}/awaken"
        ).split()[:2] == ["awake", "0"]
        assert clock_error(warm, "late") < 0.6
    warm.in_guest("late", f"echo 't {seconds} {nanos} ' | {identity.FOLDER}/awaken")
    assert clock_error(warm, "late") > 2, "without its real-time clock it has what it was told"
    warm.ok("delete", "late", "--now", "--force", "--yes")


# ---- a real Debian


def test_a_copy_of_debian_is_a_machine_of_its_own_within_seconds(debian: Instance) -> None:
    names = ["deb1", "deb2", "deb3"]
    for name in names:
        debian.ok("launch", "debian:12", name)
        assert is_copy(debian, name)
    every = [facts(debian, name) for name in names]
    for fact in ("hostname", "mac", "uuid", "boot", "random", "machine", "key"):
        assert len({found[fact] for found in every}) == 3, f"{fact} is shared"
    assert max(clock_error(debian, name) for name in names) < 1
    for name, found in zip(names, every, strict=True):
        assert debian.ok("shell", name, "--", "hostname").out.strip() == name
        assert debian.in_guest(name, "ls /var/log/journal") == found["machine"]
        assert not debian.in_guest(name, "ls -d /run/motd.dynamic /etc/update-motd.d || true"), (
            "a login starts no programs"
        )
    assert unchanged(debian)
    state = until(
        lambda: debian.in_guest("deb1", "systemctl is-system-running || true") == "running",
        30,
        "nothing failed in it",
    )
    assert state
    debian.ok("delete", "--now", "--force", "--yes", *names)


def test_a_debian_copy_is_grown_runs_user_data_and_boots_later_by_itself(
    debian: Instance, tmp_path: Path
) -> None:
    data = tmp_path / "user-data"
    data.write_text(
        "#cloud-config\nwrite_files: [{path: /root/by-cloud-init, content: hello}]\nruncmd: "
        "[touch /root/ran]\n"
    )
    debian.ok(
        "launch", "debian:12", "grown", "--cpus", "2", "--memory", "1536MiB", "--disk", "6GiB",
        "--user-data", str(data), limit=120
    )  # fmt: skip
    assert is_copy(debian, "grown")
    told = debian.in_guest("grown", "nproc; grep MemTotal /proc/meminfo; df -m / | tail -1").split()
    assert told[0] == "2" and int(told[2]) > 1350 * 1024 and int(told[5]) > 5400, told
    until(
        lambda: (debian.vm("grown")["status"]["cloud_init"] or {}).get("state") == "done",
        120,
        "cloud-init ran",
        2,
    )
    assert "user data     carried out" in debian.ok("show", "grown").out
    assert debian.in_guest("grown", "cat /root/by-cloud-init") == "hello"
    before = facts(debian, "grown")
    known = debian.paths.vm(debian.vm("grown")["meta"]["id"]).known_hosts.read_text()
    assert (
        debian.in_guest("grown", "cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub")
        == known.split()[2]
    ), "cloud-init left it its host key"
    debian.ok("stop", "grown", limit=150)
    debian.ok("start", "grown", limit=300)
    assert debian.paths.vm(debian.vm("grown")["meta"]["id"]).known_hosts.read_text() == known
    after = facts(debian, "grown")
    same: dict[str, Any] = {
        fact: before[fact] for fact in ("hostname", "mac", "uuid", "machine", "key")
    }
    assert {fact: after[fact] for fact in same} == same
    assert debian.in_guest("grown", "nproc; cat /root/by-cloud-init").split() == ["2", "hello"]
    debian.ok("delete", "--now", "--force", "--yes", "grown")
