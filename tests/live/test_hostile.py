"""A guest whose root is an adversary's: whatever it sends, the daemon answers others, and the guest
is as usable as before once it stops.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from instances import Instance, until

pytestmark = pytest.mark.live
PORT = "/dev/virtio-ports/org.qemu.guest_agent.0"
SMALL = (
    "a='[],[],[],[],[],[],[],[],'; for i in 1 2 3 4 5 6 7; do a=$a$a; done; while :; do "
    "printf %s $a; done"
)
FLOODS = {
    "small values on the agent's port": f"(printf '\\377{{\"return\": [';{SMALL}) > {PORT}",
    "marks on the agent's port": f"tr '\\0' '\\377' < /dev/zero > {PORT}",
    "prints on the console": "while :; do printf '\\033]0;title\\007%01000d' 5; done > /dev/console",
}


@pytest.fixture(scope="module")
def victim(instance: Instance) -> Iterator[str]:
    instance.ok("launch", "tiny", "other")
    instance.ok("launch", "tiny", "victim")
    yield "victim"
    instance.ok("delete", "victim", "other", "--now", "--force", "--yes")


def by_ssh(instance: Instance, name: str, script: str) -> str:
    return instance.ok("shell", name, "--", script).out.strip()


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_from_a_guest_holds_nobody_up(instance: Instance, victim: str, flood: str) -> None:
    again = (
        # the port has one opener, and the agent comes back
        f"while :; do\nkill -KILL $(pidof qemu-ga)\n{FLOODS[flood]}\ndone"
    )
    by_ssh(
        instance,
        victim,
        f"cat > /tmp/flood <<'END'\n{again}\nEND\nsetsid sh /tmp/flood >/dev/null 2>&1 "
        "</dev/null & echo $! > /tmp/pid",
    )
    asking = instance.start_cli("exec", victim, "--", "true")
    slowest = 0.0
    try:
        for _ in range(15):
            began = time.monotonic()
            instance.call("GET", "/v1/vms")
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.2)
        assert instance.in_guest("other", "echo usable") == "usable"
        instance.ok("pause", victim)
        assert instance.state(victim) == "paused"
        instance.ok("resume", victim)
    finally:
        asking.kill()
        asking.communicate()
        by_ssh(instance, victim, "kill -KILL -$(cat /tmp/pid)")
    assert slowest < 2, f"a look took {slowest:.2f} s; it was 14 s before answers were bounded"
    assert by_ssh(instance, victim, "echo usable") == "usable"


def test_what_a_guest_prints_changes_no_terminal(instance: Instance, victim: str) -> None:
    by_ssh(instance, victim, "printf 'a\\033]0;title\\007\\302\\2332Jb\\n' > /dev/console")
    until(lambda: "ab" in instance.ok("logs", victim).out, 10, "it is printed")
    for words in (["logs", victim], ["logs", victim, "-o", "json"], ["logs", victim, "-o", "yaml"]):
        printed = instance.ok(*words).out
        assert all(char.isprintable() or char in "\n\t" for char in printed)


def test_large_output_of_a_command_is_whole(instance: Instance, victim: str) -> None:
    done = instance.ok(
        "exec", "other", "--", "sh", "-c", "head -c 9000000 /dev/zero | tr '\\0' x; echo error >&2"
    )
    assert done.out == "x" * 9_000_000 and done.err == "error\n"


VERBS = {
    "start": ("start", "victim"),
    "a copy": ("copy", "victim", "taken"),
    "a full copy": ("copy", "victim", "taken", "--full"),
}


def test_a_disk_whose_header_its_qemu_has_written_is_refused_by_every_verb_and_left_as_it_is(
    instance: Instance, victim: str, tmp_path: Path
) -> None:
    """An external data file: root made a host file larger, and copied another one, before headers
    were held against what we wrote.
    """
    instance.ok("stop", victim, "--force")
    vm = instance.vm(victim)
    disk = instance.paths.vm(vm["meta"]["id"]).home / vm["status"]["disks"]["0"]["file"]
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the host" * 1000)
    before = disk.read_bytes()[:65536]
    name = os.fsencode(secret)
    with disk.open("r+b") as file:
        file.seek(72)
        file.write(struct.pack(">Q", 1 << 4 | 1 << 2))
        file.seek(struct.unpack_from(">I", before, 100)[0])
        file.write(
            struct.pack(">II", 0x44415441, len(name))
            + name.ljust(-(-len(name) // 8) * 8, b"\0")
            + bytes(8)
        )
    try:
        for what, words in VERBS.items():
            refused = instance.run(*words)
            assert refused.status != 0 and "the disk" in refused.err, (what, refused)
        instance.ok("set", victim, "--disk", "2G")  # it grows as it starts
        assert "the disk" in instance.run("start", victim).err
        assert secret.read_bytes() == b"of the host" * 1000
    finally:
        with disk.open("r+b") as file:
            file.write(before)
    instance.ok("start", victim)
    assert by_ssh(instance, victim, "echo usable") == "usable"
