"""Disks of their own, with real guests: they come and go while servers run, grow under them, keep
what was written, and are never lost or had twice.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from instances import Instance, Json, until

from virtuary.base.errors import VirtuaryError

pytestmark = pytest.mark.live
MIB = 1 << 20
BY_SERIAL = (
    'for d in /sys/block/*; do [ "$(cat $d/serial 2>/dev/null)" != "{}" ] || echo /dev/${{d##*/}}; '
    "done"
)


@pytest.fixture(scope="module")
def server(instance: Instance) -> Iterator[str]:
    """A server that began with a disk besides its root disk."""
    instance.ok("launch", "tiny", "holder", "--disk", "first=64MiB,serial=FIRST")
    yield "holder"
    instance.ok("delete", "holder", "--now", "--force", "--yes")
    until(lambda: not any(held(item) for item in disks(instance)), 30, "all disks are let go")
    for item in disks(instance):
        instance.ok("disk", "delete", item["meta"]["name"], "--now", "--yes")
    assert list(instance.paths.disks.iterdir()) == [], "no file of a disk is left"


def disk(instance: Instance, name: str) -> Json:
    found: Json = instance.json("disk", "show", name)
    return found


def disks(instance: Instance) -> list[Json]:
    found: list[Json] = instance.json("disk", "list")  # type: ignore[assignment]
    return found


def held(item: Json) -> bool:
    return bool(item["spec"]["attached"])


def open_files(instance: Instance, server: str) -> list[str]:
    """Files of disks besides the root disk that a server's QEMU has open."""
    (pid,) = instance.machines(instance.vm(server)["meta"]["id"])
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    return [link for link in links if "/disks/" in link]


def device(instance: Instance, server: str, serial: str) -> str:
    """What the guest calls the disk with this serial; empty where it has none."""
    return instance.in_guest(server, BY_SERIAL.format(serial)).strip()


def seen(instance: Instance, server: str, serial: str) -> str:
    """The same once the guest has it: its kernel finds a disk a moment after its machine has it."""
    return until(lambda: device(instance, server, serial), 20, f"the guest has {serial}")


def test_a_disk_keeps_what_was_written_from_server_to_server(
    instance: Instance, server: str
) -> None:
    first = seen(instance, server, "FIRST")
    assert first == "/dev/vdb"
    instance.in_guest(server, f"mke2fs {first} >/dev/null 2>&1; mkdir -p /mnt; mount {first} /mnt")
    instance.in_guest(server, "echo kept >/mnt/word; sync")
    used = instance.run("disk", "detach", "first")
    assert used.status == 4 and "mounted on /mnt" in used.err and "--force" in used.err
    assert disk(instance, "first")["spec"]["attached"]
    instance.in_guest(server, f"umount /mnt; sleep 999 <{first} >/dev/null 2>&1 &")
    assert "open in a program" in instance.run("disk", "detach", "first").err
    instance.in_guest(server, "killall sleep")
    instance.ok("pause", server)
    paused = instance.run("disk", "detach", "first")
    assert paused.status == 4 and "paused" in paused.err
    instance.ok("resume", server)
    instance.ok("disk", "detach", "first")
    assert device(instance, server, "FIRST") == ""
    assert not open_files(instance, server), "QEMU has no descriptor of what it let go of"
    instance.ok("launch", "tiny", "other")
    instance.ok("disk", "attach", "first", "other", "--read-only")
    there = seen(instance, "other", "first")
    look = f"mkdir -p /mnt; mount -o ro {there} /mnt && cat /mnt/word; umount /mnt"
    assert instance.in_guest("other", f"{look}; cat /sys/block/{there[5:]}/ro").split() == [
        "kept",
        "1",
    ]
    instance.ok("delete", "other", "--now", "--force", "--yes")
    until(lambda: not disk(instance, "first")["spec"]["attached"], 30, "a gone server lets go")
    assert disk(instance, "first")["status"]["state"] == "ready", "and the disk stays"
    instance.ok("disk", "attach", "first", server, "--serial", "FIRST")
    instance.in_guest(server, f"mount {seen(instance, server, 'FIRST')} /mnt; cat /mnt/word")
    instance.in_guest(server, "umount /mnt")


def test_a_disk_grows_under_its_guest_and_while_nobody_has_it(
    instance: Instance, server: str
) -> None:
    instance.ok("disk", "create", "grows", "32MiB")
    instance.ok("disk", "attach", "grows", server)
    there = seen(instance, server, "grows")
    instance.ok("disk", "resize", "grows", "96MiB")
    size = instance.in_guest(server, f"cat /sys/block/{there[5:]}/size")
    assert int(size) * 512 == 96 * MIB
    instance.in_guest(server, f"dd if=/dev/zero of={there} bs=1M seek=90 count=6 conv=notrunc 2>&1")
    instance.ok("disk", "detach", "grows")
    instance.ok("disk", "resize", "grows", "128MiB")
    assert disk(instance, "grows")["status"]["size"] == 128 * MIB
    smaller = instance.run("disk", "resize", "grows", "64MiB")
    assert smaller.status == 2 and "only grow" in smaller.err


def test_a_guest_that_lets_go_unasked_gets_its_disk_again(instance: Instance, server: str) -> None:
    instance.ok("disk", "create", "clings", "16MiB")
    instance.ok("disk", "attach", "clings", server)
    there = seen(instance, server, "clings")
    instance.in_guest(server, f"echo kept | dd of={there} conv=notrunc 2>/dev/null; sync")
    number = next(
        each["number"]
        for each in instance.vm(server)["spec"]["disks"]
        if each["serial"] == "clings"
    )
    instance.ask_qemu(server, "device_del", id=f"disk{number}-device")
    again = until(lambda: device(instance, server, "clings"), 30, "it has its disk again")
    assert instance.in_guest(server, f"head -c 4 {again}") == "kept"
    instance.ok("disk", "detach", "clings")


def test_disks_are_where_they_were_after_a_restart(instance: Instance, server: str) -> None:
    for name in ("one", "two"):
        instance.ok("disk", "create", name, "16MiB")
        instance.ok("disk", "attach", name, server)
    instance.ok("disk", "detach", "one")
    before = instance.in_guest(server, "for d in /sys/block/vd*; do readlink -f $d; done")
    instance.ok("restart", server)
    after = instance.in_guest(server, "for d in /sys/block/vd*; do readlink -f $d; done")

    def places(text: str) -> set[str]:
        return {line.split("/virtio")[0] for line in text.splitlines()}

    assert places(before) == places(after)
    assert seen(instance, server, "two")


def test_a_daemon_that_dies_in_between_goes_on(own_instance: Instance) -> None:
    own = own_instance
    own.ok("launch", "tiny", "s")
    own.ok("disk", "create", "d", "16MiB")
    own.ok("disk", "attach", "d", "s")
    own.kill()
    own.start()
    assert seen(own, "s", "d")
    own.ok("disk", "detach", "d")
    assert device(own, "s", "d") == ""
    own.ok("stop", "s", "--force")
    own.ok("disk", "attach", "d", "s")
    own.ok("start", "s")
    assert seen(own, "s", "d") == "/dev/vdb"
    own.ok("delete", "s", "--now", "--force", "--yes")
    until(lambda: not disk(own, "d")["spec"]["attached"], 30, "let go")


def test_a_paused_server_goes_on_whatever_became_of_its_disks(
    own_instance: Instance,
) -> None:
    own = own_instance
    own.ok("launch", "tiny", "s")
    own.ok("disk", "create", "d", "16MiB")
    own.ok("disk", "attach", "d", "s")
    begun = own.call("POST", "/v1/disks/d/actions/detach", {}, force="true")
    identity = begun["operation"]["meta"]["id"]
    with contextlib.suppress(VirtuaryError):  # it may have ended
        own.call("POST", f"/v1/operations/{identity}/actions/cancel", {})
    until(lambda: own.run("pause", "s").status == 0, 20, "it can be paused")
    own.ok("resume", "s")
    until(lambda: own.state("s") == "running", 20, "it goes on")

    def agrees() -> bool:
        """What is wished, what is held, and what the guest has are one."""
        wished = len(own.vm("s")["spec"]["disks"]) == 2
        return wished == held(disk(own, "d")) == bool(device(own, "s", "d"))

    until(agrees, 60, "all agree")


def test_what_can_t_be_is_told_and_changes_nothing(instance: Instance, server: str) -> None:
    before = instance.json("disk", "list")
    for words, status, told in (
        (("create", "first", "1GiB"), 4, "there already"),
        (("create", "Bad_Name", "1GiB"), 2, "not a valid name"),
        (("create", "x", "900TiB"), 2, "at most 64 TiB"),
        (("attach", "first", "nobody"), 3, "no server named 'nobody'"),
        (("attach", "nothing", server), 3, "no disk named 'nothing'"),
        (("attach", "first", server), 4, f"attached to {server} already"),
        (("delete", "first"), 4, f"attached to {server}"),
        (("detach", "grows"), 4, "attached to no server"),
        (("undelete", "nothing"), 3, "lies in the trash"),
    ):
        said = instance.run("disk", *words)
        assert (said.status, told in said.err) == (status, True), said
    assert instance.json("disk", "list") == before


def test_a_warm_copy_has_its_disks_too(instance: Instance, server: str) -> None:
    instance.ok("image", "warm", "tiny")
    instance.ok("launch", "tiny", "copy", "--disk", "extra=16MiB")
    assert instance.vm("copy")["status"]["runtime"]["template"], "it resumed a template's memory"
    assert seen(instance, "copy", "extra")
    refused = instance.run("copy", "copy", "twin", "--live")
    assert refused.status == 4 and "disks besides its root disk" in refused.err
    instance.ok("delete", "copy", "--now", "--force", "--yes")


def test_a_pool_that_is_not_mounted_is_no_empty_one(instance: Instance, server: str) -> None:
    place = instance.root / "fast"
    place.mkdir()
    instance.ok("pool", "create", "fast", str(place))
    instance.ok("launch", "tiny", "pooled", "--disk", "lies=16MiB,pool=fast")
    there = seen(instance, "pooled", "lies")
    instance.in_guest("pooled", f"echo kept | dd of={there} conv=notrunc 2>/dev/null; sync")
    assert len(list(place.glob("*/disk.qcow2"))) == 1
    instance.ok("stop", "pooled", "--force")
    away = place.rename(instance.root / "away")
    place.mkdir()  # as where nothing is mounted any more
    said = instance.run("start", "pooled")
    assert said.status != 0 and "the pool fast is not there" in said.err
    assert instance.run("disk", "create", "more", "1MiB", "--pool", "fast").status == 4
    assert instance.json("pool", "show", "fast")["state"] == "away" and not list(place.iterdir())
    place.rmdir()
    away.rename(place)
    instance.ok("start", "pooled")
    there = seen(instance, "pooled", "lies")
    assert instance.in_guest("pooled", f"head -c 4 {there}") == "kept"
    assert instance.run("pool", "delete", "fast").status == 4
    instance.ok("delete", "pooled", "--now", "--force", "--yes")
    until(lambda: not held(disk(instance, "lies")), 30, "let go")
    instance.ok("disk", "delete", "lies", "--now", "--yes")
    instance.ok("pool", "delete", "fast")
    assert list(place.iterdir()) == []
