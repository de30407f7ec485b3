"""The walls around a running machine, read from the kernel and tried from inside: QEMU's own
monitor plays the intruder.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from instances import Instance, Json, until

from virtuary.base.known import of_user
from virtuary.base.units import MIB

pytestmark = [pytest.mark.live, pytest.mark.host]


@pytest.fixture(scope="module")
def pair(instance: Instance) -> Iterator[list[Json]]:
    """Two running machines, as their documents tell of them."""
    for name in ("left", "right"):
        instance.ok("launch", "tiny", name, "--detach")
    for name in ("left", "right"):
        instance.wait_state(name, "running")
    vms = [instance.vm(name) for name in ("left", "right")]
    if vms[0]["status"]["runtime"]["level"] != "L3":
        pytest.skip(f"this host does not give level L3: {vms[0]['status']['runtime']['gaps']}")
    yield vms


def pid_of(vm: Json) -> int:
    return int(vm["status"]["runtime"]["pid"])


def facts(pid: int) -> dict[str, str]:
    lines = (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {name: rest.strip() for name, _, rest in lines}


def test_each_machine_has_a_user_of_its_own_and_no_power(pair: list[Json]) -> None:
    users = set()
    for vm in pair:
        told = facts(pid_of(vm))
        uids, gids = set(told["Uid"].split()), set(told["Gid"].split())
        assert uids == gids == {str(vm["status"]["runtime"]["uid"])}
        assert int(told["CapEff"], 16) == int(told["CapPrm"], 16) == int(told["CapAmb"], 16) == 0
        assert (told["NoNewPrivs"], told["Seccomp"], told["Groups"]) == ("1", "2", "")
        users |= uids
    assert len(users) == 2 and all(int(uid) >= 2_000_000_000 for uid in users)


def test_the_daemon_goes_before_the_machines_and_nothing_that_it_starts_does(
    instance: Instance, pair: list[Json]
) -> None:
    assert instance.process and pair
    assert os.getpriority(os.PRIO_PROCESS, instance.process.pid) < 0
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in instance.processes()} == {0}


@pytest.mark.parametrize("space", ["net", "mnt", "pid_for_children", "ipc", "uts"])
def test_each_machine_lives_in_namespaces_of_its_own(pair: list[Json], space: str) -> None:
    seen = {os.readlink(f"/proc/{pid}/ns/{space}") for pid in (os.getpid(), *map(pid_of, pair))}
    assert len(seen) == 3


def test_a_machine_of_128_mib_can_have_neither_700_mib_nor_a_thousand_threads(
    pair: list[Json],
) -> None:
    found = bounds_of(pid_of(pair[0]))
    assert found["memory"] < 700 * MIB and found["pids"] < 1000
    limits = dict(
        re.findall(
            r"^(Max [a-z ]+?)  +(\S+)",
            Path(f"/proc/{pid_of(pair[0])}/limits").read_text(),
            re.MULTILINE,
        )
    )
    assert (
        int(limits["Max processes"]) < 1000
        and int(limits["Max open files"]) <= 1024
        and limits["Max core file size"] == "0"
    )


def bounds_of(pid: int) -> dict[str, int]:
    """What its control group lets a process have."""
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, place = line.split(":", 2)
        for name, file in (
            ("memory", "memory.limit_in_bytes"),
            ("pids", "pids.max"),
            ("", "memory.max"),
            ("", "pids.max"),
        ):
            if name in names.split(","):
                path = Path("/sys/fs/cgroup") / name / place.lstrip("/") / file
                if path.exists():
                    found[name or file.partition(".")[0]] = int(path.read_text())
    return found


def test_its_network_namespace_holds_nothing_but_loopback(pair: list[Json]) -> None:
    lines = Path(f"/proc/{pid_of(pair[0])}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]


def test_its_root_is_empty_but_for_libraries_and_its_own_kernel(
    instance: Instance, pair: list[Json]
) -> None:
    pid = pid_of(pair[0])
    root = Path(f"/proc/{pid}/root")
    top = str(instance.root).split("/")[1]
    assert {entry.name for entry in root.iterdir()} <= {"usr", "lib", "lib64", "etc", "dev", top}
    assert {str(path.relative_to(root)) for path in (root / "etc").rglob("*")} == {
        "etc/ld.so.cache"
    }
    assert {entry.name for entry in (root / "dev").iterdir()} == {"urandom", "null"}
    files = {path.name for path in (root / top).rglob("*") if path.is_file()}
    assert files == {"kernel", "initrd"}
    mounts = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
    writable = [fields[1] for fields in mounts if "rw" in fields[3].split(",")]
    assert writable == ["/dev/null"]


def test_it_holds_no_descriptor_of_another_servers_files(
    instance: Instance, pair: list[Json]
) -> None:
    for vm, other in (pair, reversed(pair)):
        held = [os.readlink(entry) for entry in Path(f"/proc/{pid_of(vm)}/fd").iterdir()]
        assert str(instance.paths.vm(vm["meta"]["id"]).disk) in held
        assert not [path for path in held if other["meta"]["id"] in path]
        own = instance.paths.vm(vm["meta"]["id"])
        allowed = (str(own.home), str(own.runtime), str(instance.paths.images), "/dev/", "/memfd:")
        foreign = {path for path in held if path.startswith("/") and not path.startswith(allowed)}
        assert foreign <= {"/null"}  # /dev/null of its own root, seen from here


def test_the_daemon_holds_no_descriptor_of_a_disk_or_an_image(
    instance: Instance, pair: list[Json]
) -> None:
    assert instance.process
    held = [os.readlink(entry) for entry in Path(f"/proc/{instance.process.pid}/fd").iterdir()]
    ours = [
        path
        for path in held
        if path.startswith((str(instance.paths.vms), str(instance.paths.images)))
    ]
    assert all(Path(path).name == "history" for path in ours), (
        "what it used is written there, by the daemon itself"
    )


def test_the_helper_of_its_network_is_confined_too(pair: list[Json]) -> None:
    runtime = pair[0]["status"]["runtime"]
    told = facts(runtime["network_pid"])
    assert (
        int(told["CapEff"], 16) == 0
        and told["NoNewPrivs"] == "1"
        and told["Seccomp"] == "2"
        and told["Uid"].split()[0] != "0"
    )


def test_files_of_servers_belong_to_the_daemon_alone(instance: Instance, pair: list[Json]) -> None:
    for top in (instance.paths.vms, instance.paths.images):
        assert stat.S_IMODE(top.stat().st_mode) == 0o700
    for path in instance.paths.vms.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert path.lstat().st_uid == 0 and mode == (0o700 if path.is_dir() else 0o600), (
            f"{path} has mode {mode:o}"
        )
    for path in (instance.paths.store, instance.paths.key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for vm in pair:
        for path in instance.paths.vm(vm["meta"]["id"]).runtime.iterdir():
            if path.is_socket():
                assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_stranger_with_a_servers_id_on_its_command_line_is_left_alone_and_in_nobodys_way(
    instance: Instance, pair: list[Json]
) -> None:
    instance.ok("launch", "tiny", "third", "--detach")
    vm = instance.wait_state("third", "running")
    words = [
        sys.executable,
        "-c",
        "import time; time.sleep(120)",
        "-uuid",
        vm["meta"]["id"],
        "-machine",
        "none",
    ]
    stranger = subprocess.Popen(words, user=65534)
    try:
        instance.ok("delete", "third", "--now", "--force", "--yes")
        assert stranger.poll() is None
        own = instance.paths.vm(vm["meta"]["id"])
        assert (
            not own.home.exists()
            and not own.runtime.exists()
            and of_user(vm["status"]["runtime"]["uid"]) == []
        )
    finally:
        stranger.kill()
        stranger.wait()


class Intruder:
    """Somebody who has taken over QEMU, as far as its monitor lets one play it: QEMU opens what we
    say, from inside its jail.
    """

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(path))
        self.file = self.sock.makefile("rw")
        assert "QMP" in json.loads(self.file.readline())
        assert "return" in self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Json:
        self.file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "event" not in answer:
                return answer

    def close(self) -> None:
        self.file.close()
        self.sock.close()


@pytest.fixture
def intruder(instance: Instance, pair: list[Json]) -> Iterator[Intruder]:
    found = Intruder(instance.paths.vm(pair[0]["meta"]["id"]).socket("rescue"))
    yield found
    found.close()


def host_file(driver: str, filename: str) -> dict[str, Any]:
    return {"driver": driver, "filename": filename, "node-name": "stolen"}


ACTS = {
    "a file of the host": lambda instance, pair: host_file("file", "/etc/passwd"),
    "a device": lambda instance, pair: host_file("file", "/dev/net/tun"),
    "the store": lambda instance, pair: host_file("file", str(instance.paths.store)),
    "the key": lambda instance, pair: host_file("file", str(instance.paths.key)),
    "another server's disk": lambda instance, pair: host_file("file",
    str(instance.paths.vm(pair[1]["meta"]["id"]).disk)),
    "its own disk a second time": lambda instance, pair: host_file("file",
    str(instance.paths.vm(pair[0]["meta"]["id"]).disk)),
    "memory of the host": lambda instance, pair: host_file("file", "/dev/mem"),
    "itself by proc": lambda instance, pair: host_file("file", "/proc/self/mem"),
    "a server by tcp": lambda instance, pair: {
        "driver": "nbd", "node-name": "stolen", "server": {"type": "inet", "host": "127.0.0.1",
        "port": str(instance.port)},
    },
    "another server's monitor": lambda instance, pair: {
        "driver": "nbd", "node-name": "stolen",
        "server": {"type": "unix",
        "path": str(instance.paths.vm(pair[1]["meta"]["id"]).socket("rescue"))},
    },
    "the daemon": lambda instance, pair: {
        "driver": "nbd", "node-name": "stolen", "server": {"type": "unix",
        "path": str(instance.paths.socket)},
    },
}  # fmt: skip


@pytest.mark.parametrize("act", ACTS)
def test_a_machine_that_was_taken_over_reaches(
    instance: Instance, pair: list[Json], intruder: Intruder, act: str
) -> None:
    """... nothing: each act is refused, by the kernel and not for a reason of QEMU's own."""
    with socket.socket() as listener:  # a service of the host that would accept
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        instance.port = listener.getsockname()[1]  # type: ignore[attr-defined]
        answer = intruder.ask("blockdev-add", **ACTS[act](instance, pair))
    assert "error" in answer, f"{act} was reached: {answer}"
    reasons = (
        "Permission denied",
        "No such file",
        "Operation not permitted",
        "Network is unreachable",
        "Address family not supported",
    )
    assert any(reason in answer["error"]["desc"] for reason in reasons), answer


def test_the_intruder_is_a_fair_witness(
    instance: Instance, pair: list[Json], intruder: Intruder
) -> None:
    """The negative control: what the machine may open, the same request opens."""
    assert "return" in intruder.ask(
        "blockdev-add", **{"driver": "null-co", "node-name": "fair", "size": 1 << 20}
    )
    kernel = instance.paths.image(pair[0]["spec"]["image_id"]) / "kernel"
    wish = {
        "driver": "file",
        "filename": str(kernel),
        "node-name": "own-kernel",
        "read-only": True,
        "locking": "off",
    }
    answer = intruder.ask("blockdev-add", **wish)
    assert "return" in answer, answer
    for node in ("fair", "own-kernel"):
        assert "return" in intruder.ask("blockdev-del", **{"node-name": node})


def test_a_machine_can_neither_run_a_program_nor_write_a_file(
    instance: Instance, intruder: Intruder
) -> None:
    dumped = intruder.ask("pmemsave", val=0, size=4096, filename="/tmp/stolen-memory")
    assert "error" in dumped and not Path("/tmp/stolen-memory").exists()
    moved = intruder.ask("migrate", uri="exec:touch /tmp/stolen-exec")
    until(
        lambda: (
            intruder.ask("query-migrate")["return"].get("status") in ("failed", None)
            or "error" in moved
        ),
        10,
        "it failed",
    )
    assert not Path("/tmp/stolen-exec").exists()
    assert instance.in_guest("left", "echo alive") == "alive"
