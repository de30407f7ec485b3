"""Copies of servers, with real guests: each a machine of its own, none touches another, nothing
half-made stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from instances import Instance, Json, serve, until

from virtuary.network.passt import free_port

pytestmark = pytest.mark.live

FACTS = (
    "cat /root/data /etc/machine-id /sys/class/net/eth0/address; hostname; sha256sum "
    "</etc/dropbear/dropbear_ed25519_host_key"
)


def facts(instance: Instance, name: str) -> list[str]:
    """What a guest is: its data, machine-id, hardware address, hostname, and SSH host key."""
    return instance.in_guest(name, FACTS).splitlines()


def host_key(instance: Instance, name: str) -> str:
    """The host key that clients are told to expect; that it is the real one shows in a login."""
    assert instance.ok("shell", name, "--", "hostname").out == f"{name}\n"
    place = instance.paths.vm(instance.vm(name)["meta"]["id"]).known_hosts
    return place.read_text().split()[2]


def layers(instance: Instance) -> list[str]:
    return sorted(f"layers/{path.name}" for path in instance.paths.layers.iterdir())


def operation(instance: Instance, name: str) -> Json:
    """The operation that made the copy `name`."""
    found = [
        item
        for item in instance.operations()
        if item["spec"]["target_name"] == name and item["spec"]["deed"]["kind"] == "copy"
    ]
    return found[-1]


def told(instance: Instance, name: str) -> list[str]:
    return [line["text"] for line in operation(instance, name)["status"]["log"]]


@pytest.fixture(scope="module")
def source(instance: Instance) -> Iterator[str]:
    """A server with something on its disk, running; whoever stops it starts it again."""
    instance.ok("launch", "tiny", "source", "-p", f"{free_port()}:80", "-l", "role=source")
    instance.in_guest(
        "source",
        "echo data >/root/data; echo 0123456789abcdef0123456789abcdef >/etc/machine-id; sync",
    )
    host_key(instance, "source")
    yield "source"
    instance.ok("delete", "source", "--now", "--force", "--yes")


# ---- an overlay


def test_a_copy_is_a_machine_of_its_own_with_its_sources_data(
    instance: Instance, source: str
) -> None:
    """One long story, so that each boot serves several rules."""
    refused = instance.run("copy", source, "early")
    assert refused.status == 4 and "is running" in refused.err and "--live" in refused.err
    instance.ok("stop", source)

    said = instance.ok("copy", source, "first")
    assert said.out == "first is a copy of source: virtuary start first\n"
    first, after = instance.vm("first"), instance.vm(source)
    assert first["status"]["state"] == "stopped"
    assert [vm["status"]["disks"]["0"]["layers"] for vm in (first, after)] == [layers(instance)] * 2
    assert first["spec"]["publish"] == [] and first["meta"]["labels"] == {"role": "source"}
    assert {field: first["spec"][field] for field in ("image", "cpu", "memory", "machine")} == {
        field: after["spec"][field] for field in ("image", "cpu", "memory", "machine")
    }
    folder = instance.paths.vm(after["meta"]["id"]).home
    assert (
        sorted(path.name for path in folder.glob("*disk*"))
        == [after["status"]["disks"]["0"]["file"]]
        != ["disk.qcow2"]
    )

    instance.ok("copy", source, "second", "--start", "--cpus", "2")
    assert instance.vm("second")["status"]["disks"]["0"]["layers"] == layers(instance), (
        "a disk that nobody wrote to since is no layer"
    )
    assert instance.in_guest("second", "nproc") == "2"
    instance.ok("start", "first", source)

    was = facts(instance, source)
    assert was[:2] == ["data", "0123456789abcdef0123456789abcdef"] and was[3] == "source"
    for name in ("first", "second"):
        now = facts(instance, name)
        assert now[0] == "data" and now[3] == name
        assert all(mine != theirs for mine, theirs in zip(now[1:], was[1:], strict=True)), (
            now,
            was,
        )
    keys = {host_key(instance, name) for name in (source, "first", "second")}
    assert len(keys) == 3

    for name in (source, "first", "second"):
        instance.in_guest(name, f"echo {name} >/root/own-{name}; sync")
    for name in (source, "first", "second"):
        assert instance.in_guest(name, "ls /root") == f"data\nown-{name}"

    now = facts(instance, "first")
    instance.ok("restart", "first", "--force")
    assert host_key(instance, "first") in keys and facts(instance, "first") == now, (
        "it is renewed once"
    )
    instance.ok("delete", "second", "--now", "--force", "--yes")


def test_a_copy_of_a_copy_goes_on_when_those_it_came_from_are_gone(instance: Instance) -> None:
    instance.ok("create", "tiny", "oldest")
    instance.ok("copy", "oldest", "older")
    assert instance.vm("older")["status"]["disks"]["0"]["layers"] == [], (
        "nothing was written, so the image is all they share"
    )
    instance.ok("start", "older")
    instance.in_guest("older", "echo from-older >/root/data; sync")
    instance.ok("stop", "older")
    instance.ok("copy", "older", "young")
    instance.ok("delete", "oldest", "--now", "--yes")
    instance.ok("delete", "older")  # in the trash it can still come back
    instance.ok("start", "young")
    assert instance.in_guest("young", "cat /root/data") == "from-older"
    instance.ok("undelete", "older")
    instance.ok("delete", "older", "--now", "--yes")
    kept = instance.vm("young")["status"]["disks"]["0"]["layers"]
    assert len(kept) == 1 and kept[0] in layers(instance)
    instance.ok("stop", "young")
    instance.ok("start", "young")
    assert instance.in_guest("young", "cat /root/data") == "from-older"
    instance.ok("delete", "young", "--now", "--force", "--yes")
    assert kept[0] not in layers(instance)


def test_a_disk_grows_with_its_copy(instance: Instance) -> None:
    instance.ok("create", "tiny", "small")
    instance.ok("copy", "small", "large", "--disk", "400MiB", "--start")
    assert int(instance.in_guest("large", "df -m / | tail -n1").split()[1]) > 330
    instance.ok("delete", "small", "large", "--now", "--force", "--yes")


WRONG = {
    "no-such-server": (("nobody", "w"), 3, "there is no server named 'nobody'"),
    "bad-name": (("source", "no_underscores", "--live"), 2, "is not a valid name"),
    "name-taken": (("source", "source", "--live"), 4, "there already"),
    "both-ways": (("source", "w", "--full", "--live"), 2, "exclude each other"),
    "live-with-another-size": (
        ("source", "w", "--live", "--memory", "1GiB"),
        2,
        "a live copy has its source's memory",
    ),
    "a-smaller-disk": (("source", "w", "--live", "--disk", "100MiB"), 2, "disk"),
    "full-while-it-runs": (("source", "w", "--full"), 4, "is running"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_copy_that_can_not_be_is_refused_with_a_reason(
    instance: Instance, source: str, case: str
) -> None:
    words, status, reason = WRONG[case]
    instance.wait_state(source, "running")
    before = {key for key, _ in instance.documents("vm")}
    said = instance.run("copy", *words)
    assert (said.status, reason in said.err) == (status, True), said
    assert {key for key, _ in instance.documents("vm")} == before


def test_a_dry_run_of_a_copy_changes_nothing(instance: Instance, source: str) -> None:
    before = {key for key, _ in instance.documents("")}
    blocked = instance.run("copy", source, "dream", "--dry-run")
    assert blocked.status == 4 and "blocker: source is running" in blocked.err
    assert instance.ok("copy", source, "dream", "--live", "--dry-run").out == "dream can be made\n"
    assert {key for key, _ in instance.documents("")} == before


# ---- in full


def test_a_full_copy_shares_nothing(instance: Instance) -> None:
    instance.ok("create", "tiny", "part")
    instance.ok("copy", "part", "lower", "--start")
    instance.in_guest("lower", "echo kept >/root/data; sync")
    instance.ok("stop", "lower")
    instance.ok("copy", "lower", "upper")  # so that there is a chain to flatten
    assert (
        instance.ok("copy", "upper", "whole", "--full").out
        == "whole is a copy of upper: virtuary start whole\n"
    )
    whole = instance.vm("whole")
    assert (whole["status"]["disks"]["0"]["layers"], whole["status"]["disks"]["0"]["base"]) == (
        [],
        False,
    )
    assert "copying the disk" in told(instance, "whole")
    disk = home_of(instance, "whole") / "disk.qcow2"
    facts_of_disk = json.loads(
        subprocess.check_output(["qemu-img", "info", "--output=json", str(disk)])
    )
    assert (
        "backing-filename" not in facts_of_disk
        and facts_of_disk["virtual-size"] == whole["status"]["disks"]["0"]["size"]
    )
    instance.ok("delete", "part", "lower", "upper", "--now", "--yes")
    assert (
        layers(instance) == instance.vm("source")["status"]["disks"]["0"]["layers"]
        if "source" in names(instance)
        else True
    )
    instance.ok("start", "whole")
    assert facts_without_key(instance, "whole") == ["kept", "whole"]
    held = open_files(instance, "whole")
    assert str(disk) in held and not [
        path for path in held if path.endswith(".qcow2") and path != str(disk)
    ]

    instance.ok("copy", "whole", "lively", "--live")  # below neither of them is anything
    assert facts_without_key(instance, "lively") == ["kept", "lively"]
    assert (
        instance.vm("lively")["status"]["disks"]["0"]["layers"],
        instance.vm("lively")["status"]["disks"]["0"]["base"],
    ) == (
        [],
        False,
    )
    instance.ok("delete", "whole", "--now", "--force", "--yes")
    instance.ok("restart", "lively", "--force")
    host_key(instance, "lively")
    assert facts_without_key(instance, "lively") == ["kept", "lively"]
    instance.ok("delete", "lively", "--now", "--force", "--yes")


def facts_without_key(instance: Instance, name: str) -> list[str]:
    return instance.in_guest(name, "cat /root/data; hostname").splitlines()


def open_files(instance: Instance, name: str) -> list[str]:
    """What the server's QEMU has open."""
    folder = Path(f"/proc/{instance.vm(name)['status']['runtime']['pid']}/fd")
    return [os.readlink(entry) for entry in folder.iterdir()]


def home_of(instance: Instance, name: str) -> Path:
    return instance.paths.vm(instance.vm(name)["meta"]["id"]).home


def names(instance: Instance) -> list[str]:
    return instance.ok("list", "-o", "name").out.split()


# ---- live

COUNTER = """echo memory >/tmp/memory
(while :; do read -r up _ </proc/uptime; echo "$up" >/tmp/count; usleep 50000; done) >/dev/null 2>&1 &
echo $! >/tmp/counter"""
COUNTED = """now() { value=; until [ -n "$value" ]; do read -r value </tmp/count; done; echo "$value"; }
cat /tmp/memory; kill -0 $(cat /tmp/counter) && echo lives; now; usleep 700000; now"""


def counts(instance: Instance, name: str) -> float:
    """The process that counts lives, and goes on; what it counted."""
    memory, lives, before, after = instance.in_guest(name, COUNTED).split()
    assert (memory, lives) == ("memory", "lives") and float(after) > float(before)
    return float(after)


def stood_still(instance: Instance, name: str) -> float:
    """Milliseconds that the source of the copy `name` stood still, as people are told."""
    found = [re.search(r"stood still for ([0-9.]+) (ms|s)", text) for text in told(instance, name)]
    match = next(match for match in found if match)
    return float(match[1]) * (1000 if match[2] == "s" else 1)


def as_before(instance: Instance, name: str) -> None:
    """The server runs, and nothing that a copying needs is left in its QEMU."""
    assert instance.ask_qemu(name, "query-status")["status"] == "running"
    assert instance.ask_qemu(name, "query-jobs") == []
    assert not [
        node
        for node in instance.ask_qemu(name, "query-named-block-nodes")
        if "copy" in node["node-name"]
    ]
    assert not [
        item
        for group in instance.ask_qemu(name, "query-fdsets")
        for item in group["fds"]
        if item.get("opaque")
    ]
    held = [path for path in open_files(instance, name) if "/state/vms/" in path]
    assert not [path for path in held if str(home_of(instance, name)) not in path], held
    assert instance.in_guest(name, "hostname") == name


@pytest.fixture
def counting(instance: Instance, source: str) -> str:
    """The source, in which a process counts on."""
    instance.wait_state(source, "running")
    instance.in_guest(source, f"[ -e /tmp/counter ] || {{ {COUNTER}\n}}")
    return source


def test_a_live_copy_goes_on_where_its_source_is(instance: Instance, counting: str) -> None:
    before = instance.vm(counting)
    said = instance.ok("copy", counting, "twin", "--live")
    assert said.out == "twin is a copy of source: virtuary shell twin\n"
    assert re.search(r"source stood still for \d+ ms$", said.err, re.MULTILINE)
    assert instance.vm("twin")["spec"]["publish"] == []
    first, second = counts(instance, counting), counts(instance, "twin")
    assert abs(first - second) < 10, "both went on from the same moment"
    mine, theirs = facts(instance, "twin"), facts(instance, counting)
    assert mine[0] == theirs[0] == "data" and mine[3] == "twin"
    assert all(one != other for one, other in zip(mine[1:], theirs[1:], strict=True)), (
        mine,
        theirs,
    )
    assert host_key(instance, "twin") != host_key(instance, counting)
    assert instance.vm(counting)["status"] == before["status"], "the source did not notice"
    as_before(instance, counting)
    assert {path.name for path in home_of(instance, "twin").iterdir()} - {
        "console.log",
        "history",
    } == {
        "disk.qcow2",
        "known_hosts",
    }

    for name in (counting, "twin"):
        instance.in_guest(name, f"echo {name} >/root/own; sync")
    instance.ok("copy", "twin", "triplet", "--live")
    counts(instance, "triplet")
    assert instance.in_guest("triplet", "cat /root/own; hostname") == "twin\ntriplet"

    took = [stood_still(instance, name) for name in ("twin", "triplet")]
    # the machine that runs the tests may be busy with something else
    while min(took) > 100 and len(took) < 5:
        instance.ok("copy", counting, f"again-{len(took)}", "--live")
        took.append(stood_still(instance, f"again-{len(took)}"))
        instance.ok("delete", f"again-{len(took) - 1}", "--now", "--force", "--yes")
    assert min(took) <= 100, took

    instance.ok("delete", "twin", "--now", "--force", "--yes")
    counts(instance, "triplet")
    instance.ok("stop", "triplet")
    instance.ok("start", "triplet")  # from its disk, like any other
    assert (
        instance.in_guest("triplet", "cat /root/data /root/own; hostname") == "data\ntwin\ntriplet"
    )
    assert host_key(instance, "triplet")
    instance.ok("delete", "triplet", "--now", "--force", "--yes")
    assert instance.in_guest(counting, "cat /root/own; rm /root/own") == counting


def test_a_live_copy_of_one_that_was_resumed_has_its_processors(warm_tiny: Path) -> None:
    for instance in serve(warm_tiny):
        instance.ok("launch", "tiny", "warm", "--cpus", "2")
        assert instance.vm("warm")["status"]["runtime"]["template"]
        instance.in_guest("warm", COUNTER)
        instance.ok("copy", "warm", "twin", "--live")
        instance.ok("copy", "twin", "triplet", "--live")
        instance.ok("delete", "warm", "--now", "--force", "--yes")
        for name in ("twin", "triplet"):
            counts(instance, name)
            assert instance.in_guest(name, "nproc; hostname") == f"2\n{name}"
        instance.ok("launch", "tiny", "grown", "--memory", "256MiB")
        refused = instance.run("copy", "grown", "never", "--live")
        assert (
            refused.status == 4
            and "was given memory while it ran" in refused.err
            and "virtuary restart grown" in refused.err
        )


WHO = """cat /root/data /etc/machine-id /sys/class/dmi/id/product_uuid /sys/class/net/e*/address
hostname
sha256sum </etc/ssh/ssh_host_ed25519_key
ls /etc/ssh/ssh_host_*"""


def test_a_live_copy_of_a_debian_is_a_machine_of_its_own(debian: Instance) -> None:
    debian.ok("launch", "debian", "web1", limit=180)
    debian.in_guest("web1", "echo data >/root/data; sync")
    debian.ok("copy", "web1", "web2", "--live")
    mine, theirs = (debian.in_guest(name, WHO).splitlines() for name in ("web2", "web1"))
    assert (mine[0], mine[4], theirs[4]) == ("data", "web2", "web1")
    assert all(one != other for one, other in zip(mine[1:6], theirs[1:6], strict=True)), (
        mine,
        theirs,
    )
    assert mine[2] == debian.vm("web2")["meta"]["id"] and mine[6:] == [
        "/etc/ssh/ssh_host_ed25519_key",
        "/etc/ssh/ssh_host_ed25519_key.pub",
    ]
    assert host_key(debian, "web2") != host_key(debian, "web1")
    as_before(debian, "web1")
    debian.ok("delete", "web1", "--now", "--force", "--yes")
    assert debian.in_guest("web2", "cat /root/data") == "data"
    debian.ok("delete", "web2", "--now", "--force", "--yes")


@contextlib.contextmanager
def slowly(instance: Instance, name: str) -> Iterator[None]:
    """While this lasts, the memory of `name` is saved so slowly that something can happen
    meanwhile.
    """
    done = threading.Event()

    def slow() -> None:
        with contextlib.suppress(PermissionError):
            # on a busy host it would come too late
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -20)
        with instance.qemu(name) as ask:
            while not done.is_set():
                # no pause: all of it is written within a tenth of a second
                if ask("query-migrate").get("status") == "active":
                    ask("migrate-set-parameters", **{"max-bandwidth": 2**20})
                    return

    thread = threading.Thread(target=slow)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def under_way(instance: Instance, name: str) -> str:
    """Wait until memory is being saved for the copy `name`; its operation's id."""
    until(
        lambda: "saving the memory" in told(instance, name), 20, "its memory is being saved", 0.02
    )
    return str(operation(instance, name)["meta"]["id"])


def gone(instance: Instance, name: str) -> bool:
    return not [
        key
        for key, value in instance.documents("vm")
        if key == f"vm-name/{name}" or f'"name":"{name}"'.encode() in value
    ]


def test_a_live_copy_that_is_cancelled_leaves_everything_as_it_was(
    instance: Instance, counting: str
) -> None:
    with slowly(instance, counting):
        instance.ok("copy", counting, "fleeting", "--live", "--detach")
        instance.ok("operation", "cancel", under_way(instance, "fleeting"))
        until(lambda: gone(instance, "fleeting"), 10, "nothing of it is left")
    assert operation(instance, "fleeting")["status"]["phase"] == "cancelled"
    as_before(instance, counting)
    counts(instance, counting)


def test_a_copy_that_is_deleted_while_it_is_made_is_gone(instance: Instance, counting: str) -> None:
    with slowly(instance, counting):
        instance.ok("copy", counting, "fleeting", "--live", "--detach")
        under_way(instance, "fleeting")
        instance.ok("delete", "fleeting", "--now", "--force", "--yes")
        until(lambda: gone(instance, "fleeting"), 10, "nothing of it is left")
    as_before(instance, counting)


def test_a_daemon_that_dies_in_the_middle_goes_on_with_the_copy(own_instance: Instance) -> None:
    instance = own_instance
    instance.ok("launch", "tiny", "first")
    instance.in_guest("first", COUNTER)
    with slowly(instance, "first"):
        instance.ok("copy", "first", "second", "--live", "--detach")
        begun = under_way(instance, "second")
        instance.kill()
    instance.start()
    instance.ok("operation", "wait", begun)
    counts(instance, "first")
    counts(instance, "second")
    as_before(instance, "first")


def test_a_source_that_is_stopped_meanwhile_is_not_copied(instance: Instance) -> None:
    instance.ok("launch", "tiny", "leaving")
    with slowly(instance, "leaving"):
        instance.ok("copy", "leaving", "late", "--live", "--detach")
        under_way(instance, "late")
        instance.call("POST", "/v1/vms/leaving/actions/stop", {})
        until(lambda: gone(instance, "late"), 10, "nothing of it is left")
    instance.wait_state("leaving", "stopped")
    assert (
        "leaving did not go on running" in operation(instance, "late")["status"]["error"]["detail"]
    )
    instance.ok("delete", "leaving", "--now", "--yes")


def test_a_live_copy_that_dies_on_its_way_is_removed(instance: Instance, counting: str) -> None:
    instance.ok("copy", counting, "short-lived", "--live", "--detach")

    def started() -> int:
        runtime = instance.vm("short-lived")["status"]["runtime"]
        return runtime["pid"] if runtime else 0

    os.kill(until(started, 20, "it has a process", 0.002), signal.SIGKILL)
    until(lambda: gone(instance, "short-lived"), 10, "nothing of it is left")
    found = operation(instance, "short-lived")["status"]
    assert (
        found["phase"] == "failed"
        and "source was not copied to short-lived" in found["error"]["detail"]
    ), found
    as_before(instance, counting)


def test_a_live_copy_that_can_not_become_a_machine_of_its_own_is_removed(
    instance: Instance, counting: str
) -> None:
    """Its guest took another hardware address, so that nobody can say which of its interfaces is to
    have the new one.
    """
    address = instance.in_guest(counting, "cat /sys/class/net/eth0/address")
    instance.in_guest(
        counting,
        "ip link set eth0 down; ip link set eth0 address 52:54:00:00:00:99; ip link set eth0 up",
    )
    try:
        said = instance.run("copy", counting, "double", "--live")
        assert said.status == 8 and "its identity was refused" in said.err, said
        until(lambda: gone(instance, "double"), 10, "nothing of it is left")
    finally:
        instance.in_guest(
            counting,
            f"ip link set eth0 down; ip link set eth0 address {address}; ip link set eth0 up",
        )
    as_before(instance, counting)


@pytest.mark.slow
def test_a_source_that_writes_too_much_stands_still_longer_and_it_is_said(
    instance: Instance, counting: str
) -> None:
    instance.in_guest(counting, "dd if=/dev/urandom of=/tmp/much bs=1M count=40 2>/dev/null")
    with slowly(instance, counting):
        said = instance.ok("copy", counting, "patient", "--live")
    assert "faster than that could be saved" in said.err
    assert stood_still(instance, "patient") > 10
    counts(instance, "patient")
    counts(instance, counting)
    as_before(instance, counting)
    instance.in_guest(counting, "rm /tmp/much")
    instance.ok("delete", "patient", "--now", "--force", "--yes")


# ---- without room


@pytest.mark.host
def test_a_copy_for_which_there_is_no_room_is_refused_with_the_number_that_is_missing(
    template: Path,
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="vi-", dir="/tmp"))
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400M,mode=711", "tmpfs", str(folder)], check=True
    )
    try:
        instance = Instance(folder / "own")
        for name in ("state", "cache"):
            shutil.copytree(
                template / name, instance.root / name, ignore=shutil.ignore_patterns("daemon.lock")
            )
        try:
            instance.start()
            instance.ok("launch", "tiny", "cramped")
            free = shutil.disk_usage(folder).free
            with open(folder / "ballast", "wb") as ballast:
                os.posix_fallocate(ballast.fileno(), 0, free - (80 << 20))
            said = instance.run("copy", "cramped", "none", "--live")
            assert (
                said.status == 4 and "a live copy needs" in said.err and "are missing" in said.err
            ), said
            as_before(instance, "cramped")
            instance.ok("stop", "cramped")
            with open(folder / "ballast", "ab") as ballast:
                # creation is allowed still
                os.posix_fallocate(ballast.fileno(), free - (80 << 20), 12 << 20)
            said = instance.run("copy", "cramped", "none", "--full")
            assert said.status == 4 and "a full copy needs" in said.err, said
            assert gone(instance, "none")
            instance.wipe()
            instance.audit()
            instance.stop()
        finally:
            instance.remove()
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
