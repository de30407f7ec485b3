"""Conversion to our own qcow2: same content, read-only result, and the file that was checked is the file that is read (IM9)."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from virtuary.base import proc
from virtuary.base.errors import Conflict, Failed, Invalid, NoRoom
from virtuary.images import convert
from virtuary.images.confine import READ_FILE, Limits, cage, landlock_version
from virtuary.images.formats import Header, inspect, open_reader

pytestmark = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
MIB = 1024 * 1024
CANARY = b"canary-of-the-host" * 100


def make_image(path: Path, format: str = "qcow2", options: str = "", fill: int = 0x5A) -> Header:
    """An image of 8 MiB with 1 MiB of content at 2 MiB."""
    raw = path.with_suffix(".source")
    raw.write_bytes(bytes(2 * MIB) + bytes([fill]) * MIB + bytes(5 * MIB))
    more = ["-o", options] if options else []
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format, *more, str(raw), str(path)], check=True)
    return header_of(path, format)


def header_of(path: Path, format: str) -> Header:
    with open_reader(path) as reader:
        return inspect(reader, format)


def content_of(path: Path) -> bytes:
    raw = path.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(raw)], check=True)
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
    ],
)
async def test_each_format_becomes_a_qcow2_of_the_same_content(tmp_path: Path, format: str, options: str) -> None:
    source, target = tmp_path / "in", tmp_path / "out.qcow2"
    header = make_image(source, format, options)
    said: list[tuple[str, float | None]] = []
    digest = await convert.to_qcow2(source, header, target, lambda text, fraction: said.append((text, fraction)))
    assert digest == hashlib.sha256(target.read_bytes()).hexdigest()
    assert content_of(target) == source.with_suffix(".source").read_bytes()
    assert stat.S_IMODE(target.stat().st_mode) == 0o400
    assert said[0][1] == 0.0 and ("converting the image", 1.0) in said
    assert {path.name for path in tmp_path.iterdir()} == {"in", "in.source", "out.qcow2", "out.raw"}
    assert target.stat().st_blocks * 512 < 4 * MIB  # sparse
    await convert.check(target)


async def test_im9_a_file_exchanged_after_the_check_is_refused(tmp_path: Path) -> None:
    source, other, target = tmp_path / "in", tmp_path / "other", tmp_path / "out.qcow2"
    header = make_image(source)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(other), "9M"], check=True)
    os.replace(other, source)
    with pytest.raises((Conflict, Invalid)):
        await convert.to_qcow2(source, header, target, silent)
    assert not target.exists()


async def test_im9_a_file_exchanged_during_the_conversion_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, evil, target = tmp_path / "in", tmp_path / "evil", tmp_path / "out.qcow2"
    header = make_image(source)
    make_image(evil, fill=0x66)
    wanted = source.with_suffix(".source").read_bytes()
    run = proc.run

    async def exchange_first(*command: str, **more: object) -> proc.Result:
        os.replace(evil, source)  # the last moment: everything is checked, the tool is about to open it
        return await run(*command, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(convert.proc, "run", exchange_first)
    await convert.to_qcow2(source, header, target, silent)
    assert content_of(target) == wanted


async def test_im9_a_file_written_to_during_the_conversion_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, canary = tmp_path / "in", tmp_path / "out.qcow2", tmp_path / "canary"
    header = make_image(source)
    canary.write_bytes(CANARY.ljust(MIB, b"!"))
    run = proc.run

    async def spoil_first(*command: str, **more: object) -> proc.Result:
        name = str(canary).encode()
        with source.open("r+b") as image:  # give it a backing file after the check
            image.seek(8)
            image.write(struct.pack(">QI", 4096, len(name)))
            image.seek(4096)
            image.write(name)
        return await run(*command, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(convert.proc, "run", spoil_first)
    with pytest.raises(Conflict, match="written to"):
        await convert.to_qcow2(source, header, target, silent)
    assert not any(b"canary-of" in path.read_bytes() for path in tmp_path.iterdir() if path != canary)


@pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock")
async def test_the_tool_in_the_cage_opens_only_what_it_was_given(tmp_path: Path) -> None:
    """Without Landlock the header checks and the closed backing chain stand alone."""
    given, other = tmp_path / "given", tmp_path / "other"
    given.write_bytes(b"yes")
    other.write_bytes(CANARY)
    descriptor = os.open(given, os.O_RDONLY)
    try:
        with cage(Limits(1 << 30, 10, 0), {descriptor: READ_FILE}) as preexec:
            ours = await proc.run("cat", f"/dev/fd/{descriptor}", pass_fds=(descriptor,), preexec=preexec)
            foreign = await proc.run("cat", str(other), preexec=preexec, check=False)
    finally:
        os.close(descriptor)
    assert ours.stdout == b"yes"
    assert foreign.status != 0 and foreign.stdout == b""


async def test_im6_the_tool_has_a_memory_limit(tmp_path: Path) -> None:
    with cage(Limits(1 << 30, 10, 0), {}) as preexec:
        result = await proc.run("sh", "-c", "ulimit -v; ulimit -t; ulimit -f; ulimit -c", preexec=preexec)
    assert result.stdout.split() == [b"1048576", b"10", b"0", b"0"]


async def test_a_tool_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "in", tmp_path / "out.qcow2"
    header = make_image(source)
    monkeypatch.setattr(convert, "limits_for", lambda header: Limits(1 << 30, 60, 65536))  # the output may not grow
    with pytest.raises((Failed, NoRoom)):
        await convert.to_qcow2(source, header, target, silent)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "in.source"}


async def test_check_finds_damage(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    make_image(image)
    await convert.check(image)
    with open_reader(image) as reader:
        (l1_offset,) = struct.unpack(">Q", reader.read(40, 8))
    with image.open("r+b") as handle:
        handle.seek(l1_offset)
        handle.write(struct.pack(">Q", 1 << 63 | 1 << 45))
    with pytest.raises(Invalid, match="damaged"):
        await convert.check(image)


def test_limits_grow_with_the_disk_and_end_somewhere() -> None:
    small, large = (Header("raw", size, "", size, {}) for size in (MIB, 16 * 2**40))
    assert convert.limits_for(small).file_size < 66 * MIB
    assert convert.deadline_for(small.virtual_size) == 300
    assert convert.deadline_for(large.virtual_size) == 24 * 3600
