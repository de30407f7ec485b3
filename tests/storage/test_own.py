"""A disk of ours whose header a hostile QEMU has written is refused before any tool sees it; what
Virtuary and QEMU write is not.
"""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.errors import Failed
from virtuary.base.units import GIB, MIB
from virtuary.storage.directory import ensure_overlay, grow
from virtuary.storage.full import flatten, make_empty
from virtuary.storage.overlay import header, write_overlay
from virtuary.storage.own import LAYOUT, Damaged, check_disk, check_header, open_disk

SIZE = 4 * MIB
FIELDS = {
    "magic": 0, "version": 1, "backing_offset": 2, "backing_length": 3, "cluster_bits": 4,
    "size": 5, "encryption": 6, "l1_entries": 7,
    "l1_offset": 8, "refcount_offset": 9, "refcount_clusters": 10, "snapshots": 11,
    "snapshots_offset": 12, "incompatible": 13,
    "compatible": 14, "autoclear": 15, "refcount_order": 16, "header_length": 17,
}  # fmt: skip


@pytest.fixture
async def disk(tmp_path: Path) -> Path:
    """A server's disk on an image, and a file of the host that nobody may read."""
    base = tmp_path / "images/one/disk.qcow2"
    base.parent.mkdir(parents=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(base), str(SIZE)], check=True)
    place = tmp_path / "vms/web1/disk.qcow2"
    place.parent.mkdir(parents=True)
    await ensure_overlay(place, base, SIZE, None)
    return place


def layers(disk: Path) -> tuple[Path, ...]:
    return (disk.parents[2] / "images/one/disk.qcow2",)


def spoil(disk: Path, extension: bytes = b"", **changes: Any) -> None:
    """Write into the header what a QEMU that was taken over can."""
    with disk.open("r+b") as file:
        fields = list(LAYOUT.unpack(file.read(LAYOUT.size)))
        for name, value in changes.items():
            fields[FIELDS[name]] = value
        file.seek(0)
        file.write(LAYOUT.pack(*fields))
        if extension:
            file.seek(fields[FIELDS["header_length"]])
            file.write(extension)


def external(secret: Path) -> bytes:
    name = os.fsencode(secret)
    named = struct.pack(">II", 0x44415441, len(name)) + name.ljust(-(-len(name) // 8) * 8, b"\0")
    return named + struct.pack(">II", 0, 0)


HOSTILE = {
    "another file's data": {"incompatible": 1 << 4 | 1 << 2},
    "no backing file any more": {"backing_offset": 0, "backing_length": 0},
    "a shorter name below it": {"backing_length": 3},
    "a name beyond its header": {"backing_offset": 1 << 40},
    "encryption": {"encryption": 1},
    "encryption of the other kind": {"encryption": 2},
    "snapshots": {"snapshots": 1, "snapshots_offset": 65536},
    "an unknown feature": {"incompatible": 1 << 4 | 1 << 17},
    "an unknown compatible feature": {"compatible": 1 << 9},
    "raw data outside": {"autoclear": 2},
    "a mark of damage": {"incompatible": 1 << 4 | 2},
    "more than the disk has": {"size": SIZE + 512},
    "nothing at all": {"size": 0},
    "no whole sector": {"size": 1000},
    "an old version": {"version": 2},
    "a short header": {"header_length": 72},
    "a long header": {"header_length": 65536},
    "clusters of another size": {"cluster_bits": 21},
    "tables outside": {"l1_offset": 1 << 50},
    "a giant table": {"l1_entries": 1 << 30},
    "another format": {"magic": b"KDMV"},
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_a_hostile_header_is_refused_by_every_verb(
    disk: Path, tmp_path: Path, case: str
) -> None:
    spoil(disk, **HOSTILE[case])
    before = disk.read_bytes()
    with pytest.raises(Damaged):
        check_disk(disk, layers(disk), SIZE)
    with pytest.raises(Damaged):
        await grow(disk, layers(disk), SIZE + (0 if case == "more than the disk has" else 4 * MIB))
    with pytest.raises(Damaged):
        await flatten(
            (*layers(disk), disk), tmp_path / "copy.qcow2", SIZE, lambda text, fraction: None
        )
    assert disk.read_bytes() == before and not (tmp_path / "copy.qcow2").exists()


async def test_a_file_of_the_host_named_by_an_extension_is_neither_grown_nor_copied(
    disk: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the host" * 100)
    for incompatible in (1 << 4 | 1 << 2, 1 << 4):
        spoil(disk, external(secret), incompatible=incompatible)
        with pytest.raises(Damaged):
            await grow(disk, layers(disk), 300 * MIB)
        with pytest.raises(Damaged):
            await flatten(
                (*layers(disk), disk), tmp_path / "copy.qcow2", SIZE, lambda text, fraction: None
            )
    assert secret.read_bytes() == b"of the host" * 100


@pytest.mark.parametrize("kind", ["pipe", "folder", "short", "empty"])
async def test_what_is_no_disk_any_more_holds_nobody_up(disk: Path, kind: str) -> None:
    head = disk.read_bytes()[:111]
    disk.unlink()
    match kind:
        case "pipe":
            os.mkfifo(disk)
        case "folder":
            disk.mkdir()
        case _:
            disk.write_bytes(head if kind == "short" else b"")
    with pytest.raises(Damaged, match="any more"):
        check_disk(disk, layers(disk), SIZE)


async def test_a_disk_whose_every_cluster_is_the_same_one_ends_at_what_is_reserved_for_its_copy(
    disk: Path, tmp_path: Path
) -> None:
    """One L2 table for all of it, whose entries all name one cluster: a file of 400 KiB that stands
    for 6 GiB.
    """
    size, cluster = 6 * GIB, 1 << 17
    disk.unlink()
    write_overlay(disk, os.path.relpath(layers(disk)[0], disk.parent), size)
    table, data = 5 * cluster, 6 * cluster
    with disk.open("r+b") as file:
        for place, content in (
            (3 * cluster, struct.pack(">Q", table | 1 << 63) * (size // (cluster * 8192))),
            (table, struct.pack(">QQ", data | 1 << 63, 0xFFFFFFFF) * 8192),
            (data, b"x" * cluster),
        ):
            file.seek(place)
            file.write(content)
    with pytest.raises(Damaged, match="more than its file can hold"):
        await flatten(
            (*layers(disk), disk), tmp_path / "copy.qcow2", size, lambda text, fraction: None
        )
    assert not list(tmp_path.glob("*copy*"))


async def test_a_disk_that_became_a_link_is_not_followed(disk: Path) -> None:
    disk.rename(disk.with_name("real"))
    disk.symlink_to("real")
    with pytest.raises(Failed, match="can't be opened"):
        check_disk(disk, layers(disk), SIZE)


async def test_what_is_ours_passes_before_and_after_qemu_wrote_to_it(
    disk: Path, tmp_path: Path
) -> None:
    assert check_disk(disk, layers(disk), SIZE) == SIZE
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", "-c", "discard 2M 64k", str(disk)]
    subprocess.run(write, check=True, capture_output=True)
    assert check_disk(disk, layers(disk), SIZE) == SIZE
    await grow(disk, layers(disk), 8 * MIB)
    assert check_disk(disk, layers(disk), 8 * MIB) == 8 * MIB
    alone = tmp_path / "alone.qcow2"
    make_empty(alone, SIZE)
    assert check_disk(alone, (), SIZE) == SIZE
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", str(alone)],
        check=True,
        capture_output=True,
    )
    assert check_disk(alone, (), SIZE) == SIZE


async def test_a_disk_that_was_made_a_layer_since_passes_where_it_lies_now(disk: Path) -> None:
    layer = disk.parents[2] / "layers/beef.qcow2"
    layer.parent.mkdir()
    os.link(disk, layer)
    await ensure_overlay(disk.with_name("disk-2.qcow2"), layer, SIZE, None)
    assert check_disk(disk.with_name("disk-2.qcow2"), (*layers(disk), layer), SIZE) == SIZE


async def test_a_name_that_ends_like_the_image_is_not_the_image(disk: Path) -> None:
    wanted = os.fsencode(os.path.relpath(layers(disk)[0], disk.parent))
    for name in (
        b"/etc/disk.qcow2",
        b"../../images/two/disk.qcow2",
        b"isk.qcow2",
        b"../..",
        b"json:{}/disk.qcow2",
    ):
        with pytest.raises(Damaged):
            check_header(
                header(name, SIZE, 1).ljust(65536, b"\0"), GIB, layers(disk)[0], SIZE, "it"
            )
    check_header(header(wanted, SIZE, 1).ljust(65536, b"\0"), GIB, layers(disk)[0], SIZE, "it")


@given(st.binary(max_size=400), st.integers(0, 200))
def test_any_header_passes_or_is_refused_by_one_kind(noise: bytes, place: int) -> None:
    sound = header(b"../../images/one/disk.qcow2", SIZE, 1).ljust(65536, b"\0")
    head = sound[:place] + noise + sound[place + len(noise) :]
    try:
        check_header(head, GIB, Path("/state/images/one/disk.qcow2"), SIZE, "it")
    except Damaged:
        return
    assert LAYOUT.unpack_from(head)[FIELDS["incompatible"]] & ~(1 << 4 | 1) == 0
    assert b"DATA" not in head[: LAYOUT.size + 32]


def test_a_descriptor_is_what_was_checked(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    make_empty(disk, SIZE)
    handle = open_disk(disk, None, SIZE)
    assert os.fstat(handle).st_ino == disk.stat().st_ino
    os.close(handle)
