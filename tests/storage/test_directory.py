"""Disks in a folder: an overlay is there whole or not at all, knows its image by a relative name,
and only grows.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from virtuary.base.errors import Invalid, NoRoom
from virtuary.base.space import reserve
from virtuary.base.units import GIB, MIB, TIB
from virtuary.storage.directory import allocated, check_space, ensure_overlay, free_space, grow

pytestmark = pytest.mark.qemu


@pytest.fixture
def base(tmp_path: Path) -> Path:
    place = tmp_path / "images" / "one" / "disk.qcow2"
    place.parent.mkdir(parents=True)
    (tmp_path / "vms" / "web1").mkdir(parents=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(place), "4M"], check=True)
    place.chmod(0o444)
    return place


def facts(disk: Path) -> dict[str, object]:
    done = subprocess.run(
        ["qemu-img", "info", "-f", "qcow2", "--output=json", str(disk)],
        capture_output=True,
        check=True,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


async def test_an_overlay_names_its_image_and_its_format(base: Path, tmp_path: Path) -> None:
    disk = tmp_path / "vms/web1/disk.qcow2"
    assert await ensure_overlay(disk, base, 4 * MIB, None) == 4 * MIB
    found = facts(disk)
    assert (
        found["backing-filename"] == "../../images/one/disk.qcow2"
        and found["backing-filename-format"] == "qcow2"
    )
    assert found["virtual-size"] == 4 * MIB and disk.stat().st_mode & 0o777 == 0o600
    assert os.listdir(disk.parent) == ["disk.qcow2"]


async def test_repeating_it_keeps_what_is_there(base: Path, tmp_path: Path) -> None:
    disk = tmp_path / "vms/web1/disk.qcow2"
    await ensure_overlay(disk, base, 4 * MIB, 8 * MIB)
    before = disk.stat().st_ino
    assert await ensure_overlay(disk, base, 4 * MIB, 8 * MIB) == 8 * MIB
    assert disk.stat().st_ino == before and facts(disk)["virtual-size"] == 8 * MIB


async def test_what_a_crash_left_behind_is_made_again(base: Path, tmp_path: Path) -> None:
    disk = tmp_path / "vms/web1/disk.qcow2"
    disk.with_name(".disk.qcow2.partial").write_bytes(b"half")
    await ensure_overlay(disk, base, 4 * MIB, None)
    assert os.listdir(disk.parent) == ["disk.qcow2"] and facts(disk)["format"] == "qcow2"


async def test_a_disk_below_its_image_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="needs a disk of 4 MiB and 1 MiB were asked for"):
        await ensure_overlay(tmp_path / "vms/web1/disk.qcow2", base, 4 * MIB, MIB)
    assert os.listdir(tmp_path / "vms/web1") == []


async def test_a_disk_grows(base: Path, tmp_path: Path) -> None:
    disk = tmp_path / "vms/web1/disk.qcow2"
    await ensure_overlay(disk, base, 4 * MIB, None)
    await grow(disk, [base], 16 * MIB)
    await grow(disk, [base], 16 * MIB)
    assert facts(disk)["virtual-size"] == 16 * MIB
    assert 0 < allocated(disk.parent) < 4 * MIB


@pytest.mark.parametrize(
    ("total", "kept"),
    [
        (100 * GIB, 5 * GIB),
        (10 * GIB, GIB),
        (GIB, GIB // 10),
        (100 * MIB, 64 * MIB),
        (10 * TIB, TIB // 2),
    ],
)
def test_a_share_of_the_pool_stays_free(total: int, kept: int) -> None:
    assert reserve(total) == kept
    assert reserve(total, 7) == 7 and reserve(total, total + 1) == total


def test_what_does_not_fit_is_refused_with_the_missing_number(tmp_path: Path) -> None:
    check_space(tmp_path, 0, "nothing")
    with pytest.raises(NoRoom, match="are missing") as caught:
        check_space(tmp_path, free_space(tmp_path) + GIB, "a disk")
    assert caught.value.details["needed"] > caught.value.details["free"]
