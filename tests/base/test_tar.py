"""Reading tar: what tar programs write is read as it was meant, and whatever else comes is one kind
of error.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from archives import Item, archive, header, long, padded, pax
from virtuary.base.errors import Failed
from virtuary.base.tar import Archive, Entry


def read(data: bytes) -> list[tuple[Entry, bytes]]:
    whole = Archive(io.BytesIO(data))
    return [(entry, b"".join(whole.content())) for entry in whole]


TARS = [
    *(["tar", f"--format={name}", "-cf", "-"] for name in ("v7", "ustar", "gnu", "pax", "oldgnu")),
    ["busybox", "tar", "-cf", "-"],
    ["bsdtar", "-cf", "-"],
]


@pytest.mark.parametrize("words", TARS, ids=" ".join)
def test_what_tar_programs_write_is_read(tmp_path: Path, words: list[str]) -> None:
    if not shutil.which(words[0]):
        pytest.skip(f"{words[0]} is not installed")
    (tmp_path / "d/deep").mkdir(parents=True)
    (tmp_path / "d/deep/empty").touch()
    (tmp_path / "d/deep/full").write_bytes(b"x" * 1000)
    (tmp_path / "d/link").symlink_to("deep/full")
    (tmp_path / "d/same").hardlink_to(tmp_path / "d/deep/full")
    done = subprocess.run([*words, "-C", str(tmp_path), "d"], capture_output=True, check=True)
    found = {
        entry.name.rstrip(b"/"): (entry.kind, content, entry.target)
        for entry, content in read(done.stdout)
    }
    one, other = (
        sorted(
            name
            for name in found
            if name in (b"d/same", b"d/deep/full") and found[name][0] == "hard link"
        ),
        found,
    )
    assert found[b"d"][0] == found[b"d/deep"][0] == "folder"
    assert found[b"d/deep/empty"] == ("file", b"", b"") and found[b"d/link"] == (
        "link",
        b"",
        b"deep/full",
    )
    assert len(one) == 1 and other[other[one[0]][2]][:2] == ("file", b"x" * 1000)


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_names_longer_than_a_header_and_not_ascii_are_read(tmp_path: Path, form: str) -> None:
    name = "/".join(["ordner-ö-" + "x" * 80] * 4) + "/datei"
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("here")
    (tmp_path / "link").symlink_to("y" * 300)
    words = ["tar", f"--format={form}", "-C", str(tmp_path), "-cf", "-", name, "link"]
    first, second = read(subprocess.run(words, capture_output=True, check=True).stdout)
    assert (first[0].name, first[1]) == (name.encode(), b"here") and second[0].target == b"y" * 300


def test_times_are_seconds_that_every_filesystem_knows() -> None:
    def modified(data: bytes) -> int:
        return read(data + bytes(1024))[0][0].modified

    assert modified(header(b"a", b"0", 0, modified=b"\xff" * 12)) == 0
    assert modified(header(b"a", b"0", 0, modified=b"\x80" + b"\xff" * 11)) == 2**33
    assert modified(pax(mtime=b"1700000000.25") + header(b"a", b"0", 0)) == 1700000000
    assert modified(pax(mtime=b"-5") + header(b"a", b"0", 0)) == 0


BROKEN = {
    "nothing": b"",
    "text": b"Welcome to my server!\n" * 40,
    "no end": archive(Item(b"a"), end=False),
    "cut in a header": archive(Item(b"a", content=b"x" * 600))[:-1300],
    "cut in its content": archive(Item(b"a", content=b"x" * 2000))[:1024],
    "a size longer than what comes": archive(Item(b"a", content=b"x", size=2**62)),
    "a size below nothing": (lambda block: block[:124] + b"\xff" * 12 + block[136:])(
        header(b"a", b"0", 0)
    )
    + bytes(1024),
    "a wrong sum": archive(Item(b"a")).replace(b"ustar", b"ustaR", 1),
    "digits that are none": header(b"a", b"0", 0, modified=b"99999999999") + bytes(1024),
    "a name of a gigabyte": header(b"L", b"L", 2**30) + bytes(1024),
    "a pax header of a gigabyte": header(b"x", b"x", 2**30) + bytes(1024),
    "a record longer than its header": header(b"x", b"x", 8) + padded(b"99 a=bc\n"),
    "a record of no length": header(b"x", b"x", 6) + padded(b"0 a=b\n"),
    "a record without an end": header(b"x", b"x", 6) + padded(b"6 a=bc"),
    "a size that is no number": pax(size=b"-1") + archive(Item(b"a")),
    "a time that is none": pax(mtime=b"nan") + archive(Item(b"a")),
    "sparse as GNU has it": header(b"a", b"S", 0) + bytes(1024),
    "sparse as pax has it": pax(**{"GNU.sparse.major": b"1"}) + archive(Item(b"a")),
    "more after its end": archive(Item(b"a")) + bytes(2 * 1024 * 1024),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_archive_is_an_error_that_says_so(case: str) -> None:
    with pytest.raises(Failed, match="archive"):
        read(BROKEN[case])


def test_a_header_full_of_records_is_read_in_a_moment() -> None:
    records = b"6 a=b\n" * 170_000
    assert (
        read(header(b"x", b"x", len(records)) + padded(records) + archive(Item(b"a")))[0][0].name
        == b"a"
    )


@settings(max_examples=300)
@given(
    st.binary(max_size=2000),
    st.integers(0, 3000),
    st.sampled_from([b"x", b"L", b"K", b"g", b"0", b"5", b"S", b"\xff"]),
)
@example(long(b"L", b"a" * 100), 0, b"0")
def test_whatever_comes_is_read_or_is_that_error(noise: bytes, at: int, kind: bytes) -> None:
    whole = bytearray(
        header(b"noise", kind, len(noise)) + padded(noise) + archive(Item(b"a", content=b"x" * 700))
    )
    whole[at : at + 12] = noise[:12]
    for data in (noise, bytes(whole)):
        try:
            read(data)
        except Failed as error:
            assert "archive" in error.sentence
