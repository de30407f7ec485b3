"""A chain of disks as one: what every layer says is there, nothing lies below, and nothing
half-made stays.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from virtuary.base.errors import Failed
from virtuary.base.units import MIB
from virtuary.storage.directory import ensure_overlay
from virtuary.storage.full import flatten, make_empty, needed
from virtuary.storage.own import Damaged

pytestmark = pytest.mark.qemu
SIZE = 8 * MIB


def put(disk: Path, pattern: int, at: str) -> None:
    """Write 64 KiB of one byte, as a guest would."""
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {at} 64k", str(disk)],
        check=True,
        capture_output=True,
    )


def says(disk: Path, pattern: int, at: str) -> bool:
    done = subprocess.run(
        ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P {pattern} {at} 64k", str(disk)],
        capture_output=True,
    )
    return done.returncode == 0 and b"verification failed" not in done.stdout


@pytest.fixture
async def chain(tmp_path: Path) -> list[Path]:
    """Three disks, each on the one before; each says something of its own, and something that the
    next one says otherwise.
    """
    files = [tmp_path / f"{name}.qcow2" for name in ("base", "middle", "top")]
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", str(files[0]), str(SIZE)], check=True
    )
    for number, disk in enumerate(files):
        if number:
            await ensure_overlay(disk, files[number - 1], SIZE, None)
        put(disk, number + 1, f"{number}M")
        put(disk, number + 1, "5M")
    return files


def quiet(text: str, fraction: float | None) -> None:
    pass


async def test_what_every_layer_says_is_in_the_one_file(chain: list[Path], tmp_path: Path) -> None:
    disk, heard = tmp_path / "whole.qcow2", []
    await flatten(chain, disk, SIZE, lambda text, fraction: heard.append(fraction))
    for path in chain:
        path.unlink()
    assert all(
        says(disk, pattern, at)
        for pattern, at in ((1, "0M"), (2, "1M"), (3, "2M"), (3, "5M"), (0, "6M"))
    )
    found = json.loads(
        subprocess.check_output(["qemu-img", "info", "-f", "qcow2", "--output=json", str(disk)])
    )
    assert "backing-filename" not in found and found["virtual-size"] == SIZE
    assert disk.stat().st_mode & 0o777 == 0o600 and os.listdir(tmp_path) == ["whole.qcow2"]
    assert heard and heard[-1] == 1.0


async def test_a_header_that_names_another_file_is_not_believed(
    chain: list[Path], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(secret), str(SIZE)], check=True)
    put(secret, 9, "0M")
    subprocess.run(
        [
            "qemu-img",
            "rebase",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-F",
            "qcow2",
            "-b",
            str(secret),
            str(chain[0]),
        ],
        check=True,
    )
    with pytest.raises(Damaged, match="names another file below it"):
        await flatten(chain[:1], tmp_path / "whole.qcow2", SIZE, quiet)
    assert not (tmp_path / "whole.qcow2").exists()


async def test_a_flattening_that_is_cancelled_leaves_nothing(
    chain: list[Path], tmp_path: Path
) -> None:
    task = asyncio.create_task(flatten(chain, tmp_path / "whole.qcow2", SIZE, quiet))
    await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert {path.name for path in tmp_path.iterdir()} == {"base.qcow2", "middle.qcow2", "top.qcow2"}


async def test_a_flattening_that_fails_leaves_nothing(chain: list[Path], tmp_path: Path) -> None:
    chain[0].write_bytes(b"no disk")
    with pytest.raises(Failed, match="is no qcow2 file any more"):
        await flatten(chain, tmp_path / "whole.qcow2", SIZE, quiet)
    assert {path.name for path in tmp_path.iterdir()} == {"base.qcow2", "middle.qcow2", "top.qcow2"}


async def test_one_that_stands_alone_has_its_size(tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    make_empty(disk, SIZE)
    assert says(disk, 0, "0M")
    found = json.loads(
        subprocess.check_output(["qemu-img", "info", "-f", "qcow2", "--output=json", str(disk)])
    )
    assert found["virtual-size"] == SIZE


def test_the_room_it_needs_is_what_there_is_and_never_more_than_the_disk(chain: list[Path]) -> None:
    data = sum(path.stat().st_blocks * 512 for path in chain)
    assert data <= needed(chain, SIZE) <= SIZE + SIZE // 4096 + 4 * MIB
    assert needed(chain, 1 * MIB) < 6 * MIB
