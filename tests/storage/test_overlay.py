"""The overlay we write is the one qemu-img would: QEMU's own tools find no fault in it, and read
and write through it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from virtuary.base.errors import Invalid
from virtuary.base.units import GIB, KIB, MIB, TIB
from virtuary.storage.overlay import CLUSTER, pieces, write_overlay

pytestmark = pytest.mark.qemu
SIZES = {
    "one sector": 512,
    "1 MiB": MIB,
    "no whole cluster": 3 * MIB + 512,
    "no whole sector": 5 * MIB + 1,
    "one L1 entry, full": GIB,
    "one sector more": GIB + 512,
    "10 GiB": 10 * GIB,
    "one cluster of L1, full": 16 * TIB,
    "one byte more": 16 * TIB + 1,
    "64 TiB": 64 * TIB,
    "below 64 TiB": 64 * TIB - 512,
    "1 PiB": 1024 * TIB,
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An image with a pattern in its first MiB."""
    place = tmp_path / "base.qcow2"
    tool("qemu-img", "create", "-q", "-f", "qcow2", str(place), "4M")
    tool("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 0 1M", str(place))
    return place


def tool(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def facts(disk: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        tool("qemu-img", "info", "-f", "qcow2", "--output=json", str(disk))
    )
    return found


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_it_is_what_qemu_img_makes_and_nothing_is_wrong_with_it(
    tmp_path: Path, base: Path, size: int
) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_overlay(ours, "base.qcow2", size)
    options = "extended_l2=on,cluster_size=128k,lazy_refcounts=off"
    tool(
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        "base.qcow2",
        "-o",
        options,
        str(theirs),
        str(size),
    )
    assert "No errors" in tool("qemu-img", "check", "-f", "qcow2", str(ours))
    told = [
        {key: value for key, value in facts(disk).items() if key not in ("filename", "actual-size",
        "full-backing-filename", "children")}
        for disk in (ours, theirs)
    ]  # fmt: skip
    assert told[0] == told[1]
    assert (
        told[0]["backing-filename-format"] == "qcow2"
        and told[0]["format-specific"]["data"]["extended-l2"]
    )
    assert ours.stat().st_mode & 0o777 == 0o600 and ours.stat().st_blocks * 512 <= 64 * KIB


@pytest.mark.parametrize("size", [4 * MIB, 3 * MIB + 512, 64 * TIB])
def test_what_is_not_written_is_the_images_and_what_is_written_stays(
    tmp_path: Path, base: Path, size: int
) -> None:
    disk = tmp_path / "disk"
    write_overlay(disk, "base.qcow2", size)
    last = size - 512
    commands = [
        "read -P 0x5a 0 1M",
        "read -P 0 1M 2M",
        "write -P 7 4k 4k",
        f"write -P 9 {last} 512",
        "read -P 0x5a 0 4k",
    ]
    commands += ["read -P 7 4k 4k", "read -P 0x5a 8k 1016k", f"read -P 9 {last} 512"]
    said = tool(
        "qemu-io",
        "-f",
        "qcow2",
        *(word for command in commands for word in ("-c", command)),
        str(disk),
    )
    assert "failed" not in said
    assert "No errors" in tool("qemu-img", "check", "-f", "qcow2", str(disk))
    assert "Pattern" not in tool("qemu-io", "-f", "qcow2", "-c", "read -P 0x5a 0 1M", str(base)), (
        "the image is untouched"
    )


def test_it_grows_by_qemus_own_means(tmp_path: Path, base: Path) -> None:
    disk = tmp_path / "disk"
    write_overlay(disk, "base.qcow2", 4 * MIB)
    tool("qemu-img", "resize", "-q", "-f", "qcow2", str(disk), "32T")
    assert facts(disk)["virtual-size"] == 32 * TIB
    assert "No errors" in tool("qemu-img", "check", "-f", "qcow2", str(disk))


def test_the_name_of_its_image_may_be_as_long_as_qcow2_allows(tmp_path: Path, base: Path) -> None:
    name = "./" * ((1023 - len("base.qcow2")) // 2) + "base.qcow2"
    disk = tmp_path / "disk"
    write_overlay(disk, name, MIB)
    assert facts(disk)["backing-filename"] == name and len(name) >= 1022
    assert "failed" not in tool("qemu-io", "-f", "qcow2", "-c", "read -P 0x5a 0 1M", str(disk))
    with pytest.raises(Invalid, match="has 1024 bytes, and qcow2 holds 1023"):
        write_overlay(tmp_path / "other", "x" * 1024, MIB)
    assert not (tmp_path / "other").exists()


def test_it_is_never_written_over_another_file(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"somebody's")
    with pytest.raises(FileExistsError):
        write_overlay(disk, "base.qcow2", MIB)
    assert disk.read_bytes() == b"somebody's"


@pytest.mark.parametrize("size", [0, -1, 4096 * TIB + 1])
def test_a_size_that_qcow2_has_no_room_for_is_refused(size: int) -> None:
    with pytest.raises(Invalid, match="can't be made"):
        pieces("base.qcow2", size)


def test_its_tables_lie_side_by_side_in_clusters_of_their_own() -> None:
    assert [offset // CLUSTER for offset, _ in pieces("base.qcow2", MIB)] == [0, 1, 2, 3]
    assert all(
        offset % CLUSTER == 0 and content for offset, content in pieces("base.qcow2", 64 * TIB)
    )
