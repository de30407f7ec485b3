"""A dynamic VHD unpacked by our own reader: block by block, sector by sector, never more than the
file holds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from virtuary.base.errors import Invalid
from virtuary.images.formats import inspect, open_reader
from virtuary.images.vhd import unpack_vhd

sys.path.insert(0, str(Path(__file__).parent))
import crafted
from crafted import MIB


def unpacked(folder: Path, image: bytes) -> bytes:
    (folder / "in.vhd").write_bytes(image)
    with open_reader(folder / "in.vhd") as reader, open(folder / "out", "w+b") as out:
        unpack_vhd(reader, inspect(reader, "vhd"), out.fileno(), lambda fraction: None)
        return out.read()


def test_blocks_come_to_their_places_and_the_last_one_is_cut(tmp_path: Path) -> None:
    assert unpacked(tmp_path, crafted.vhd()) == b"\1" * (2 * MIB) + bytes(2 * MIB) + b"\3" * MIB
    assert (tmp_path / "out").stat().st_blocks * 512 <= 3 * MIB + 65536


def test_sectors_that_the_bitmap_does_not_name_are_zeros(tmp_path: Path) -> None:
    found = unpacked(tmp_path, crafted.vhd(bitmaps=b"\x40".ljust(512, b"\0")))
    assert found == (bytes(512) + b"\1" * 512).ljust(4 * MIB, b"\0") + (
        bytes(512) + b"\3" * 512
    ).ljust(MIB, b"\0")


@pytest.mark.parametrize(
    "places",
    [
        (4, 4, 4101),
        (4, 5, 4101),
        (0, 0xFFFFFFFF, 4101),
        (4, 0xFFFFFFFF, 2**31),
        (4, 0xFFFFFFFF, 4200),
    ],
)
def test_blocks_in_each_other_or_outside_are_refused(
    tmp_path: Path, places: tuple[int, ...]
) -> None:
    with pytest.raises(Invalid, match="lie in each other or outside"):
        unpacked(tmp_path, crafted.vhd(places=places))


def test_a_fixed_one_is_the_disk_before_its_footer(tmp_path: Path) -> None:
    (tmp_path / "in.vhd").write_bytes(crafted.vhd("fixed"))
    with open_reader(tmp_path / "in.vhd") as reader:
        header = inspect(reader)
    assert (header.format, header.virtual_size, header.details["kind"]) == ("vhd", 5 * MIB, "fixed")
