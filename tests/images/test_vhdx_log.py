"""A VHDX that was not closed cleanly: its log is replayed over the file, as QEMU replays it, or
refused with what is wrong with it.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.errors import Invalid
from virtuary.images import convert
from virtuary.images.formats import Memory, inspect, open_reader
from virtuary.images.vhdx import unpack_vhdx

sys.path.insert(0, str(Path(__file__).parent))
import crafted
from crafted import MIB, dirty_vhdx, put, vhdx_entry

TABLE = struct.pack("<Q", 5 * MIB | 6)
"""The sector of the block table that says where block 0 lies."""
FILLED = b"\x07" * MIB + bytes(63 * MIB)


def unpacked(folder: Path, image: bytes) -> bytes:
    (folder / "in.vhdx").write_bytes(image)
    with open_reader(folder / "in.vhdx") as reader, open(folder / "out", "w+b") as out:
        unpack_vhdx(reader, inspect(reader, "vhdx"), out.fileno(), lambda fraction: None)
        return out.read()


def test_what_the_log_waits_to_write_is_taken_for_written(tmp_path: Path) -> None:
    image = dirty_vhdx(vhdx_entry(1, {3 * MIB: TABLE}))
    assert unpacked(tmp_path, image) == FILLED
    assert (tmp_path / "in.vhdx").read_bytes() == image, "the file stays as it is"


def test_entries_count_in_their_order_from_the_tail_on_and_stale_ones_do_not(
    tmp_path: Path,
) -> None:
    stale = vhdx_entry(7, {3 * MIB: struct.pack("<Q", 4 * MIB | 6)})
    log = (
        stale
        + vhdx_entry(9, {3 * MIB: b"\0" * 8}, tail=8192)
        + vhdx_entry(10, {3 * MIB: TABLE}, tail=8192)
    )
    assert unpacked(tmp_path, dirty_vhdx(log)) == FILLED
    zeroed = vhdx_entry(9, {3 * MIB: TABLE}, tail=0) + vhdx_entry(
        10, {}, tail=0, zeros=((3 * MIB, 4096),)
    )
    assert unpacked(tmp_path, dirty_vhdx(zeroed)) == bytes(64 * MIB)


def test_a_log_goes_on_at_its_beginning(tmp_path: Path) -> None:
    entry = vhdx_entry(5, {3 * MIB: TABLE}, tail=MIB - 4096)
    image = dirty_vhdx(b"")
    image = put(put(image, 2 * MIB - 4096, entry[:4096]), MIB, entry[4096:])
    assert unpacked(tmp_path, image) == FILLED


@pytest.mark.qemu
async def test_qemu_replays_it_to_the_same_disk_and_an_import_takes_it(tmp_path: Path) -> None:
    place = tmp_path / "in.vhdx"
    place.write_bytes(dirty_vhdx(vhdx_entry(1, {3 * MIB: TABLE}, flushed=6 * MIB, last=6 * MIB)))
    shutil.copy(place, tmp_path / "theirs.vhdx")
    subprocess.run(
        ["qemu-img", "check", "-q", "-r", "all", str(tmp_path / "theirs.vhdx")], check=True
    )
    subprocess.run(
        [
            "qemu-img",
            "convert",
            "-O",
            "raw",
            str(tmp_path / "theirs.vhdx"),
            str(tmp_path / "theirs"),
        ],
        check=True,
    )
    with open_reader(place) as reader:
        header = inspect(reader)
    await convert.to_qcow2(place, header, tmp_path / "out.qcow2", lambda text, fraction: None)
    subprocess.run(
        ["qemu-img", "convert", "-O", "raw", str(tmp_path / "out.qcow2"), str(tmp_path / "ours")],
        check=True,
    )
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes() == FILLED


GOOD = vhdx_entry(1, {3 * MIB: TABLE})
REFUSED = {
    "nothing in it": (dirty_vhdx(b""), "replayed, and is damaged"),
    "a wrong checksum": (dirty_vhdx(put(GOOD, 4200, b"x")), "replayed, and is damaged"),
    "a gap": (dirty_vhdx(vhdx_entry(1, {3 * MIB: TABLE}) + vhdx_entry(3, {3 * MIB: TABLE}, tail=0)),
    ""),
    "of another log": (dirty_vhdx(vhdx_entry(1, {3 * MIB: TABLE}, identity=b"x" * 16)),
    "replayed, and is damaged"),
    "a file that was cut": (dirty_vhdx(vhdx_entry(1, {3 * MIB: TABLE}, flushed=2**40)),
    "shorter than its log"),
    "over the headers": (dirty_vhdx(vhdx_entry(1, {65536: TABLE})), "write where it may not"),
    "over the log": (dirty_vhdx(vhdx_entry(1, {MIB: TABLE})), "write where it may not"),
    "no whole sector": (dirty_vhdx(vhdx_entry(1, {3 * MIB + 512: TABLE})),
    "write where it may not"),
    "zeros without end": (dirty_vhdx(vhdx_entry(1, {}, zeros=((3 * MIB, 2**40),))), "more zeros"),
    "another size": (dirty_vhdx(vhdx_entry(1, {2 * MIB: b"x"})), "metadata of the VHDX is damaged"),
    "a block outside": (dirty_vhdx(vhdx_entry(1, {3 * MIB: struct.pack("<Q", 900 * MIB | 6)})),
    "outside of the file"),
    "one block twice": (dirty_vhdx(vhdx_entry(1, {3 * MIB: TABLE * 2})), "lie in each other"),
    "a block of a parent": (dirty_vhdx(vhdx_entry(1, {3 * MIB: struct.pack("<Q", 5 * MIB | 7)})),
    "of a parent disk"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_log_that_can_t_be_replayed_is_refused_with_what_is_wrong(
    tmp_path: Path, case: str
) -> None:
    image, words = REFUSED[case]
    if not words:
        assert unpacked(tmp_path, image) == FILLED, (
            "the older entry stands alone: what follows it was never finished"
        )
        return
    with pytest.raises(Invalid, match=words):
        unpacked(tmp_path, image)


@given(st.integers(0, 8191), st.binary(min_size=1, max_size=8))
def test_fuzz_changed_logs_are_taken_or_refused(at: int, piece: bytes) -> None:
    image = dirty_vhdx(put(GOOD, at, piece)[:8192])
    with contextlib.suppress(Invalid):
        inspect(Memory(image), "vhdx")
    assert crafted.crc32c(b"123456789") == 0xE3069283
