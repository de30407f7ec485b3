"""Digests that know no difference between holes and zeroes, and holes made of zeroes."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from virtuary.storage.sparse import BLOCK, detach, digest, punch

SIZE = 8 * BLOCK + 100


def write(path: Path, blocks: dict[int, bytes], holes: bool, size: int = SIZE) -> None:
    with open(path, "wb") as file:
        if holes:
            file.truncate(size)
        else:
            file.write(bytes(size))
        for number, content in blocks.items():
            file.seek(number * BLOCK)
            file.write(content)


@given(st.dictionaries(st.integers(0, 7), st.binary(min_size=1, max_size=200), max_size=5))
def test_holes_and_zeroes_are_the_same(tmp_path_factory: object, blocks: dict[int, bytes]) -> None:
    folder = tmp_path_factory.mktemp("sparse")  # type: ignore[attr-defined]
    write(folder / "holes", blocks, holes=True)
    write(folder / "zeroes", blocks, holes=False)
    assert digest(folder / "holes") == digest(folder / "zeroes")
    before, found = (folder / "zeroes").read_bytes(), digest(folder / "zeroes")
    punch(folder / "zeroes")
    assert (folder / "zeroes").read_bytes() == before and digest(folder / "zeroes") == found


def test_one_bit_in_any_block_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, {2: b"text", 8: b"end"}, holes=True)
    found = {digest(path)}
    for offset in (0, 2 * BLOCK, 5 * BLOCK + 17, SIZE - 1):
        with open(path, "r+b") as file:
            byte = os.pread(file.fileno(), 1, offset)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 1]), offset)
            found.add(digest(path))
            os.pwrite(file.fileno(), bytes([byte]), offset)
    assert len(found) == 5


def test_the_same_content_at_another_place_or_of_another_size_is_another_file(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a", {1: b"text"}, holes=True)
    write(tmp_path / "b", {2: b"text"}, holes=True)
    write(tmp_path / "c", {1: b"text"}, holes=True, size=SIZE + BLOCK)
    assert len({digest(tmp_path / name) for name in "abc"}) == 3


def test_zeroes_are_given_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, {7: b"text"}, holes=False)
    os.sync()
    before = path.stat().st_blocks
    assert (
        punch(path) == 7 * BLOCK and path.stat().st_blocks < before and path.stat().st_size == SIZE
    )


def test_an_empty_file_has_a_digest(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert len(digest(tmp_path / "empty")) == 64 and punch(tmp_path / "empty") == 0


def test_a_file_of_its_own_has_the_same_content_holes_and_mode_and_nobody_has_it_open(
    tmp_path: Path,
) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.write(b"begin")
        file.seek(5 << 20)
        file.write(b"end")
        file.truncate(9 << 20)
    path.chmod(0o640)
    before = path.read_bytes()
    with path.open("r+b") as kept:
        detach(path)
        kept.write(b"later")
    assert path.read_bytes() == before and path.stat().st_mode & 0o777 == 0o640
    assert path.stat().st_blocks * 512 < 1 << 20 and [item.name for item in tmp_path.iterdir()] == [
        "disk"
    ]
