"""Conversion to our own qcow2: same content, read-only result, and the file that was checked is the
file that is read (IM9).
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from virtuary.base.errors import Conflict, Failed, Invalid, NoRoom
from virtuary.base.units import GIB
from virtuary.images import convert
from virtuary.images.formats import Header, inspect, open_reader
from virtuary.storage.blocks import deadline_for
from virtuary.storage.directory import free_space, reserving

pytestmark = pytest.mark.qemu
MIB = 1024 * 1024
CANARY = b"canary-of-the-host" * 100


def make_image(path: Path, format: str = "qcow2", options: str = "", fill: int = 0x5A) -> Header:
    """An image of 8 MiB with 1 MiB of content at 2 MiB."""
    raw = path.with_suffix(".source")
    raw.write_bytes(bytes(2 * MIB) + bytes([fill]) * MIB + bytes(5 * MIB))
    more = ["-o", options] if options else []
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", format, *more, str(raw), str(path)], check=True
    )
    return header_of(path, "vhd" if format == "vpc" else format)


def header_of(path: Path, format: str) -> Header:
    with open_reader(path) as reader:
        return inspect(reader, format)


def content_of(path: Path) -> bytes:
    raw = path.with_suffix(".raw")
    subprocess.run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(raw)], check=True
    )
    return raw.read_bytes()


def silent(text: str, fraction: float | None) -> None: ...


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("qcow2", ""),
        ("raw", ""),
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=streamOptimized"),
        ("vdi", ""),
        ("vhdx", ""),
        ("vpc", "subformat=fixed,force_size=on"),
        ("vpc", "subformat=dynamic,force_size=on"),
    ],
)
async def test_each_format_becomes_a_qcow2_of_the_same_content(
    tmp_path: Path, format: str, options: str
) -> None:
    source, target = tmp_path / "in", tmp_path / "out.qcow2"
    header = make_image(source, format, options)
    assert header.virtual_size == source.with_suffix(".source").stat().st_size
    said: list[tuple[str, float | None]] = []
    digest = await convert.to_qcow2(
        source, header, target, lambda text, fraction: said.append((text, fraction))
    )
    assert digest == hashlib.sha256(target.read_bytes()).hexdigest()
    assert content_of(target) == source.with_suffix(".source").read_bytes()
    assert stat.S_IMODE(target.stat().st_mode) == 0o400
    assert said[0][1] == 0.0 and ("converting the image", 1.0) in said
    assert {path.name for path in tmp_path.iterdir()} == {"in", "in.source", "out.qcow2", "out.raw"}
    assert target.stat().st_blocks * 512 < 4 * MIB  # sparse


async def test_im9_a_file_exchanged_after_the_check_is_refused(tmp_path: Path) -> None:
    source, other, target = tmp_path / "in", tmp_path / "other", tmp_path / "out.qcow2"
    header = make_image(source)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(other), "9M"], check=True)
    os.replace(other, source)
    with pytest.raises((Conflict, Invalid)):
        await convert.to_qcow2(source, header, target, silent)
    assert not target.exists()


async def test_im9_a_file_exchanged_during_the_conversion_changes_nothing(tmp_path: Path) -> None:
    source, evil, target = tmp_path / "in", tmp_path / "evil", tmp_path / "out.qcow2"
    header = make_image(source)
    make_image(evil, fill=0x66)
    wanted = source.with_suffix(".source").read_bytes()

    def exchange(text: str, fraction: float | None) -> None:
        if evil.exists():  # the last moment: everything is checked, the tool is about to begin
            os.replace(evil, source)

    await convert.to_qcow2(source, header, target, exchange)
    assert content_of(target) == wanted


async def test_im9_a_file_written_to_during_the_conversion_is_refused(tmp_path: Path) -> None:
    source, target, canary = tmp_path / "in", tmp_path / "out.qcow2", tmp_path / "canary"
    header = make_image(source)
    canary.write_bytes(CANARY.ljust(MIB, b"!"))

    def spoil(text: str, fraction: float | None) -> None:
        name = str(canary).encode()
        with source.open("r+b") as image:  # give it a backing file after the check
            image.seek(8)
            image.write(struct.pack(">QI", 4096, len(name)))
            image.seek(4096)
            image.write(name)

    with pytest.raises(Conflict, match="written to"):
        await convert.to_qcow2(source, header, target, spoil)
    assert not any(
        b"canary-of" in path.read_bytes() for path in tmp_path.iterdir() if path != canary
    )


async def test_im7_an_image_whose_every_cluster_is_the_same_one_ends_at_what_is_reserved(
    tmp_path: Path,
) -> None:
    """12 MB that stand for 96 GiB of data: each entry of each table names one cluster."""
    source, target, size = tmp_path / "bomb", tmp_path / "out.qcow2", 96 * GIB
    bomb(source, size)
    header = header_of(source, "qcow2")
    assert source.stat().st_size < 16 * MIB and header.virtual_size == size
    assert convert.room_for(header) == GIB + size // 4096
    with pytest.raises(Failed, match=r"unpacks to more than 1(\.0)? GiB"):
        await convert.to_qcow2(source, header, target, silent)
    assert {path.name for path in tmp_path.iterdir()} == {"bomb"}


def bomb(path: Path, size: int) -> None:
    clusters = size // 65536
    tables = clusters // 8192
    data, l2 = 65536 * 4, 65536 * 5
    head = struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, size, 0, tables, 65536 * 3, 65536, 1, 0, 0,
        0, 0, 0, 4, 104,
    )  # fmt: skip
    with path.open("wb") as file:
        file.write(head)
        for place, content in (
            (65536, struct.pack(">Q", 65536 * 2)),
            (65536 * 2, struct.pack(">H", 1) * 32768),
            (
                65536 * 3,
                b"".join(
                    struct.pack(">Q", l2 + 65536 * number | 1 << 63) for number in range(tables)
                ),
            ),
            (data, b"x" * 65536),
            (l2, struct.pack(">Q", data | 1 << 63) * 8192 * tables),
        ):
            file.seek(place)
            file.write(content)


async def test_room_is_reserved_before_the_first_byte(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out.qcow2"
    header = make_image(source)
    with reserving(tmp_path, free_space(tmp_path) - MIB, "others"), pytest.raises(NoRoom):
        await convert.to_qcow2(source, header, target, silent)
    assert not target.exists()
    await convert.to_qcow2(source, header, target, silent)


async def test_a_tool_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out.qcow2"
    make_image(source)
    with source.open("r+b") as image:  # its tables lead outside of the file
        image.seek(65536 * 3)
        image.write(struct.pack(">Q", 1 << 63 | 512))
    with pytest.raises(Failed):
        await convert.to_qcow2(source, header_of(source, "qcow2"), target, silent)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "in.source"}


def test_room_and_time_grow_with_the_disk_and_end_somewhere() -> None:
    small, large = (Header("raw", size, "", size, {}) for size in (MIB, 16 * 2**40))
    assert convert.room_for(small) < 66 * MIB
    assert deadline_for(small.virtual_size) < 301
    assert deadline_for(large.virtual_size) == 24 * 3600
