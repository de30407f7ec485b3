"""A VMDK of several files read as the disk that it is, and nothing opened but what lies beside its
descriptor.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from virtuary.base.errors import Invalid
from virtuary.cli.images import name_of
from virtuary.cli.vmdk_set import find_extents, parse, read_disk, size_of

MIB = 1024 * 1024
HEAD = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\n'


def disk(path: str) -> bytes:
    extents = find_extents(path)
    assert extents
    told = b"".join(read_disk(path, extents))
    assert len(told) == size_of(extents)
    return told


@pytest.mark.qemu
@pytest.mark.parametrize("kind", ["monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"])
def test_each_kind_that_is_made_of_files_is_read(tmp_path: Path, kind: str) -> None:
    content = os.urandom(MIB) + bytes(3 * MIB) + os.urandom(100 * 512)
    (tmp_path / "raw").write_bytes(content)
    place = str(tmp_path / "disk.vmdk")
    subprocess.run(
        [
            "qemu-img",
            "convert",
            "-f",
            "raw",
            "-O",
            "vmdk",
            "-o",
            f"subformat={kind}",
            str(tmp_path / "raw"),
            place,
        ],
        check=True,
    )
    assert disk(place) == content


def test_what_esx_exports_and_extents_with_an_offset_are_read(tmp_path: Path) -> None:
    (tmp_path / "a-flat.vmdk").write_bytes(b"x" * 512 + b"a" * 1024)
    (tmp_path / "a.vmdk").write_text(
        HEAD + 'RW 2 VMFS "a-flat.vmdk" 1\nRW 3 ZERO\nRDONLY 1 FLAT "a-flat.vmdk" 0\n'
    )
    assert disk(str(tmp_path / "a.vmdk")) == b"a" * 1024 + bytes(1536) + b"x" * 512


REFUSED = {
    "a parent": (HEAD.replace("ffffffff", "12345678") + "RW 1 ZERO\n", "parent"),
    "a parent by name": (HEAD + 'parentFileNameHint="x"\nRW 1 ZERO\n', "parent"),
    "no extent": (HEAD, "names no disk"),
    "no size": (HEAD + "RW 0 ZERO\n", "names no disk"),
    "more than there is": (HEAD + "RW 99999999999999 ZERO\n", "names no disk"),
    "a file elsewhere": (HEAD + 'RW 1 FLAT "/etc/shadow" 0\n', "no file beside it"),
    "a file above": (HEAD + 'RW 1 FLAT "..\\\\x" 0\n', "no file beside it"),
    "another kind": (HEAD + 'RW 1 VMFSSPARSE "x"\n', "kind VMFSSPARSE"),
    "no access": (HEAD + 'NOACCESS 1 FLAT "x" 0\n', "not understood"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_disk_of_one_s_own_is_refused(case: str) -> None:
    text, words = REFUSED[case]
    with pytest.raises(Invalid, match=words):
        parse(text)


def test_files_that_are_missing_or_short_or_no_files_are_named_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    place = tmp_path / "a.vmdk"
    (tmp_path / "short").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    for line, words in (
        ('FLAT "gone" 0', "can't be read"),
        ('FLAT "short" 0', "shorter"),
        ('FLAT "folder" 0', "no plain file"),
        ('SPARSE "short"', "ends before"),
    ):
        place.write_text(f"{HEAD}RW 1 ZERO\nRW 9 {line}\n")
        extents = find_extents(str(place))
        assert extents
        with pytest.raises(Invalid, match=words):
            next(read_disk(str(place), extents))


def test_any_other_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1024))
    assert find_extents(str(tmp_path / "disk")) is None


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/x/Old Server.vmdk", "old-server"),
        ("debian-12.QCOW2", "debian-12"),
        ("a_b.c.img", "a-b.c"),
        ("..raw", None),
        ("disk", "disk"),
    ],
)
def test_an_image_is_named_after_its_file(file: str, name: str | None) -> None:
    if name is None:
        with pytest.raises(Invalid, match="no name"):
            name_of(file)
    else:
        assert name_of(file) == name
