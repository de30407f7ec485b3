"""Header readers: sound images are taken with the right size, everything else is refused with the
sentence that says why.

Ids IM1, IM2 ... are rows of the attack list: backing files, data files, foreign extents, polyglots,
absurd sizes.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virtuary.base.errors import Invalid
from virtuary.images.formats import Header, Memory, inspect, open_reader
from virtuary.images.vhdx import PARENT_LOCATOR, crc32c

# test folders are no packages; this one shares a file
sys.path.insert(0, str(Path(__file__).parent))
import crafted
from crafted import DESCRIPTOR, MIB, extension, put

CANARY = b"root:x:0:0:canary-of-the-host"
SOUND = {
    "qcow2": crafted.qcow2(),
    "vmdk": crafted.vmdk(),
    "vdi": crafted.vdi(),
    "vhdx": crafted.vhdx(),
    "vhd": crafted.vhd(),
    "raw": crafted.raw(),
}
SIZES = {
    "qcow2": 64 * MIB,
    "vmdk": 10 * MIB,
    "vdi": 10 * MIB,
    "vhdx": 64 * MIB,
    "vhd": 5 * MIB,
    "raw": 2 * MIB,
}
STREAM = DESCRIPTOR.replace("monolithicSparse", "streamOptimized")
AT_END = 0xFFFFFFFFFFFFFFFF


def look(image: bytes, format: str | None = None, **more: int) -> Header:
    return inspect(Memory(image), format, **more)


def streamed(**footer: int) -> bytes:
    """A VMDK whose directory is named in a footer only, as vSphere exports them."""
    same = {"flags": 0x30001, "compression": 1, "version": 3}
    foot = crafted.vmdk(STREAM, **{**same, "directory_offset": 26, **footer})[:512]
    return crafted.vmdk(STREAM, footer=foot, directory_offset=AT_END, **same)


def changed(old: str, new: str) -> bytes:
    assert old in DESCRIPTOR
    return crafted.vmdk(DESCRIPTOR.replace(old, new))


@pytest.mark.parametrize("format", SOUND)
def test_a_sound_image_of_each_format_is_taken(format: str) -> None:
    header = look(SOUND[format])
    assert (header.format, header.virtual_size) == (format, SIZES[format])
    assert look(SOUND[format], format) == header


def test_variants_of_sound_images_are_taken() -> None:
    assert look(crafted.qcow2(version=2)).version == "2"
    assert look(crafted.qcow2(incompatible=8, compression=1)).details["compression"] == "zstd"
    assert look(crafted.qcow2(incompatible=16)).details["extended_l2"] == 1
    assert (
        look(crafted.qcow2(extension=extension(0x6803F857, b"f" * 48) + extension(0, b""))).format
        == "qcow2"
    )
    assert look(streamed()).details["kind"] == "streamOptimized"
    assert (
        look(crafted.vdi(kind=2, size=MIB, allocated=1, length=MIB + 1024)).details["kind"]
        == "static"
    )
    assert look(crafted.vhdx(headers=(crafted.vhdx_header(3), bytes(4096)))).format == "vhdx"


QCOW2_REFUSED = {
    "IM1 backing file": (crafted.qcow2(backing_offset=400, backing_length=11),
    "names a backing file"),
    "IM1 backing offset alone": (crafted.qcow2(backing_offset=400), "names a backing file"),
    "IM1 backing length alone": (crafted.qcow2(backing_length=9), "names a backing file"),
    "IM1 backing file, version 2": (crafted.qcow2(version=2, backing_offset=400, backing_length=11),
    "names a backing file"),
    "IM1 backing format": (crafted.qcow2(extension=extension(0xE2792ACA, b"raw")),
    "format of a backing file"),
    "IM1 encrypted": (crafted.qcow2(encryption=1), "is encrypted"),
    "IM1 encrypted with LUKS": (crafted.qcow2(encryption=2), "is encrypted"),
    "IM1 LUKS extension": (crafted.qcow2(extension=extension(0x0537BE77, bytes(16))),
    "header of an encryption"),
    "IM1 unknown bit": (crafted.qcow2(incompatible=1 << 5), "features unknown here"),
    "IM1 unknown high bit": (crafted.qcow2(incompatible=1 << 63), "features unknown here"),
    "IM2 data file bit": (crafted.qcow2(incompatible=4), "keeps its data in another file"),
    "IM2 data file name": (crafted.qcow2(extension=extension(0x44415441, b"/etc/passwd")),
    "names an external data file"),
    "IM2 data file behind others": (
        crafted.qcow2(extension=extension(0x6803F857, bytes(48)) + extension(0x44415441, b"x")),
        "names an external data file",
    ),
    "dirty": (crafted.qcow2(incompatible=1), "not closed cleanly"),
    "damaged": (crafted.qcow2(incompatible=2), "marked as damaged"),
    "version 1": (crafted.qcow2(version=1), "version 1 is not supported"),
    "version 4": (crafted.qcow2(version=4), "version 4 is not supported"),
    "IM6 tiny clusters": (crafted.qcow2(cluster_bits=8), "clusters have 2\\^8"),
    "IM6 giant clusters": (crafted.qcow2(cluster_bits=22), "clusters have 2\\^22"),
    "IM6 absurd clusters": (crafted.qcow2(cluster_bits=0xFFFFFFFF), "clusters have"),
    "IM6 refcount order": (crafted.qcow2(refcount_order=7), "reference counts have 2\\^7"),
    "IM6 L1 too large": (crafted.qcow2(l1_entries=0xFFFFFFFF), "L1 table has 4294967295"),
    "L1 too small": (crafted.qcow2(size=1024 * MIB, l1_entries=1), "needs 2"),
    "L1 outside": (crafted.qcow2(l1_offset=65536 * 9), "L1 table of the qcow2 image lies outside"),
    "L1 unaligned": (crafted.qcow2(l1_offset=65536 + 512), "does not begin at a cluster"),
    "L1 in the header": (crafted.qcow2(l1_offset=0), "does not begin at a cluster"),
    "refcounts outside": (crafted.qcow2(refcount_offset=65536 * 9),
    "refcount table of the qcow2 image lies outside"),
    "no refcounts": (crafted.qcow2(refcount_clusters=0), "refcount table has 0"),
    "IM6 refcounts too large": (crafted.qcow2(refcount_clusters=0xFFFF),
    "refcount table has 65535"),
    "IM6 snapshots": (crafted.qcow2(snapshots=70000), "70000 snapshots"),
    "snapshots outside": (crafted.qcow2(snapshots=2, snapshots_offset=65536 * 9),
    "snapshot table of the qcow2 image lies"),
    "header length": (crafted.qcow2(header_length=96), "header has 96 bytes"),
    "header length odd": (crafted.qcow2(header_length=105), "header has 105 bytes"),
    "header length huge": (crafted.qcow2(header_length=0xFFFFFFF8), "which is not possible"),
    "compression unknown": (crafted.qcow2(incompatible=8, compression=2), "compression type 2"),
    "compression without its bit": (crafted.qcow2(compression=1), "compression type 1"),
    "extension too long": (crafted.qcow2(extension=struct.pack(">II", 1, 0xFFFFFFF0)),
    "longer than its header"),
    "IM6 endless extensions": (crafted.qcow2(extension=extension(1, b"") * 100),
    "more than 32 header extensions"),
    "extended L2, small clusters": (crafted.qcow2(incompatible=16, cluster_bits=12), "extended L2"),
    "IM7 17 TiB": (crafted.qcow2(size=17 * 2**40, length=4 * MIB), "17 TiB, more than the 16 TiB"),
    "IM7 8 EiB": (crafted.qcow2(size=2**63, l1_entries=1), "more than the 16 TiB"),
    "no size": (crafted.qcow2(size=0), "a disk of no size"),
    "odd size": (crafted.qcow2(size=1000), "not a multiple of 512"),
    "cut header": (crafted.qcow2()[:512][:90] + b"", "too few"),
    "cut file": (crafted.qcow2(length=65536), "lies outside"),
}  # fmt: skip

VMDK_REFUSED = {
    "IM3 flat extent": (changed('SPARSE "disk.vmdk"', 'FLAT "/etc/passwd" 0'), "FLAT extent"),
    "IM3 vmfs extent": (changed('SPARSE "disk.vmdk"', 'VMFS "disk-flat.vmdk"'), "VMFS extent"),
    "IM3 zero extent": (changed('SPARSE "disk.vmdk"', "ZERO"), "ZERO extent"),
    "IM3 path": (changed('"disk.vmdk"', '"/etc/passwd"'), "named by a path"),
    "IM3 path upwards": (changed('"disk.vmdk"', '"../other.vmdk"'), "named by a path"),
    "IM3 protocol": (changed('"disk.vmdk"', '"nbd:host"'), "named by a path"),
    "IM3 json name": (changed('"disk.vmdk"', '"json:{}"'), "named by a path"),
    "IM3 empty name": (changed('"disk.vmdk"', '""'), "named by a path"),
    "IM3 offset": (changed('"disk.vmdk"', '"disk.vmdk" 0'), "may lie in another file"),
    "IM3 second extent": (
        changed("# The Disk", 'RW 1 SPARSE "b.vmdk"\n# The Disk'),
        "consists of 2 extents",
    ),
    "IM3 no extent": (changed('RW {sectors} SPARSE "disk.vmdk"', ""), "consists of 0 extents"),
    "IM3 monolithicFlat": (
        changed("monolithicSparse", "monolithicFlat"),
        "'monolithicFlat' are not accepted",
    ),
    "IM3 twoGbMaxExtentSparse": (
        changed("monolithicSparse", "twoGbMaxExtentSparse"),
        "'twoGbMaxExtentSparse' are not",
    ),
    "IM3 twoGbMaxExtentFlat": (
        changed("monolithicSparse", "twoGbMaxExtentFlat"),
        "are not accepted",
    ),
    "IM3 vmfs": (changed("monolithicSparse", "vmfs"), "'vmfs' are not accepted"),
    "IM3 fullDevice": (changed("monolithicSparse", "fullDevice"), "are not accepted"),
    "IM3 no kind": (changed('createType="monolithicSparse"', ""), "are not accepted"),
    "IM3 parent": (changed("parentCID=ffffffff", "parentCID=12345678"), "difference to a parent"),
    "IM3 no parent field": (changed("parentCID=ffffffff", ""), "difference to a parent"),
    "IM3 parent name": (
        changed("# The Disk", 'parentFileNameHint="/etc/passwd"\n#'),
        "names a parent disk",
    ),
    "IM3 parent name behind the end": (
        put(crafted.vmdk(descriptor_size=1), 512 + 4000, b'parentFileNameHint="/etc/passwd"'),
        "names a parent disk",
    ),
    "IM3 tracking file": (changed("# The Disk", 'changeTrackPath="x"\n#'), "'changetrackpath'"),
    "IM3 native snapshot": (
        changed("# The Disk", 'isNativeSnapshot="yes"\n#'),
        "lives in its storage system",
    ),
    "IM3 kind twice": (changed("# The Disk", 'createType="monolithicSparse"\n#'), "twice"),
    "IM3 unknown line": (changed("# The Disk", "load /etc/passwd now\n#"), "not understood"),
    "IM3 capacity 0 means a descriptor": (crafted.vmdk(capacity=0), "has 0 sectors"),
    "IM3 descriptor elsewhere": (crafted.vmdk(descriptor_offset=2), "no descriptor of its own"),
    "IM3 no descriptor": (crafted.vmdk(""), "has no descriptor"),
    "descriptor longer than said": (
        crafted.vmdk(DESCRIPTOR + "#" * 600, descriptor_size=1),
        "does not end where",
    ),
    "descriptor not text": (
        crafted.vmdk()[:600] + b"\xff\xfe" + crafted.vmdk()[602:],
        "is not text",
    ),
    "sectors differ": (changed("{sectors}", "999"), "says 999 sectors"),
    "version": (crafted.vmdk(version=4), "version 4"),
    "unclean": (crafted.vmdk(unclean=1), "not closed cleanly"),
    "text transfer": (crafted.vmdk(newlines=b"\n \n\n"), "transferred as text"),
    "grain": (crafted.vmdk(grain=100), "grains have 100"),
    "IM6 tables": (crafted.vmdk(per_table=1024), "grain tables have 1024"),
    "IM6 directory": (
        crafted.vmdk(sectors=1 << 40, grain=8, per_table=1),
        "more than any sound image",
    ),
    "directory outside": (crafted.vmdk(directory_offset=1 << 40), "lies outside"),
    "second directory outside": (crafted.vmdk(redundant_offset=1 << 40), "lies outside"),
    "directory in the header": (crafted.vmdk(directory_offset=0), "lies in its header"),
    "compression": (crafted.vmdk(compression=2), "compression 2"),
    "IM3 footer differs": (streamed(capacity=1), "contradict each other"),
    "IM3 footer with other descriptor": (streamed(descriptor_offset=9), "contradict each other"),
    "no footer": (crafted.vmdk(STREAM, directory_offset=AT_END), "no footer"),
    "IM7 17 TiB": (crafted.vmdk(sectors=17 * 2**31, grain=16384), "more than the 16 TiB"),
}

VDI_REFUSED = {
    "differencing": (crafted.vdi(kind=4), "difference to a parent"),
    "undo": (crafted.vdi(kind=3), "difference to a parent"),
    "unknown kind": (crafted.vdi(kind=9), "kind 9 is unknown"),
    "parent": (crafted.vdi(parent=b"p" * 16), "names a parent disk"),
    "link": (crafted.vdi(link=b"p" * 16), "names a parent disk"),
    "version": (crafted.vdi(version=0x00000001), "version 0.1"),
    "sector size": (crafted.vdi(sector_size=4096), "sector or block sizes"),
    "block size": (crafted.vdi(block_size=4096), "sector or block sizes"),
    "IM6 blocks": (crafted.vdi(blocks=0xFFFFFFFF), "does not fit its disk"),
    "allocated": (crafted.vdi(allocated=11), "does not fit its disk"),
    "map outside": (crafted.vdi(map_offset=512 * MIB, data_offset=600 * MIB), "lies outside"),
    "overlap": (crafted.vdi(map_offset=1024, data_offset=1024), "overlap"),
    "header size": (crafted.vdi(header_size=1 << 30), "which is not possible"),
    "static, cut": (crafted.vdi(kind=2), "data of the static VDI lies outside"),
    "IM7 size": (crafted.vdi(size=2**63, blocks=1), "more than the 16 TiB"),
    "no size": (crafted.vdi(size=0), "a disk of no size"),
}

_UNKNOWN = uuid.UUID(int=7).bytes_le
_ENTRY = struct.pack("<16sQII", _UNKNOWN, 3 * MIB, MIB, 1)
VHDX_REFUSED = {
    "differencing": (
        crafted.vhdx(metadata=crafted.vhdx_metadata(flags=2)),
        "difference to a parent",
    ),
    "parent locator": (
        crafted.vhdx(
            metadata=crafted.vhdx_metadata(
                extra=(struct.pack("<16sIIII", PARENT_LOCATOR.bytes_le, 65536, 8, 4, 0),)
            )
        ),
        "names a parent disk",
    ),
    "log to replay": (
        crafted.vhdx(headers=(crafted.vhdx_header(1), crafted.vhdx_header(2, log=b"l" * 16))),
        "waits to be replayed",
    ),
    "no valid header": (crafted.vhdx(headers=(bytes(4096), bytes(4096))), "no valid header"),
    "two equal sequence numbers": (
        crafted.vhdx(headers=(crafted.vhdx_header(5), crafted.vhdx_header(5, version=2))),
        "contradict",
    ),
    "version": (
        crafted.vhdx(headers=(crafted.vhdx_header(1), crafted.vhdx_header(2, version=2))),
        "version 2",
    ),
    "region checksum": (
        put(crafted.vhdx(), 196608 + 4, b"XXXX"),
        "region table of the VHDX is damaged",
    ),
    "regions differ": (
        crafted.vhdx(regions=(crafted.vhdx_regions(), crafted.vhdx_regions(bat=(1 * MIB, MIB)))),
        "contradict",
    ),
    "unknown region": (
        crafted.vhdx(regions=(crafted.vhdx_regions(_ENTRY),) * 2),
        "region unknown here",
    ),
    "same region twice": (
        crafted.vhdx(regions=(crafted.vhdx_regions(crafted.vhdx_regions()[16:48]),) * 2),
        "same region twice",
    ),
    "region outside": (
        crafted.vhdx(regions=(crafted.vhdx_regions(bat=(40 * MIB, MIB)),) * 2),
        "lies outside",
    ),
    "region in the headers": (
        crafted.vhdx(regions=(crafted.vhdx_regions(bat=(0, MIB)),) * 2),
        "whole MiB",
    ),
    "regions overlap": (
        crafted.vhdx(regions=(crafted.vhdx_regions(bat=(2 * MIB, MIB)),) * 2),
        "overlap",
    ),
    "unknown item": (
        crafted.vhdx(
            metadata=crafted.vhdx_metadata(
                extra=(struct.pack("<16sIIII", _UNKNOWN, 65536, 8, 4, 0),)
            )
        ),
        "metadata item unknown here",
    ),
    "metadata gone": (crafted.vhdx(metadata=b"x" * 65536), "metadata of the VHDX is damaged"),
    "block size": (crafted.vhdx(metadata=crafted.vhdx_metadata(block=3 * MIB)), "blocks have"),
    "sector size": (crafted.vhdx(metadata=crafted.vhdx_metadata(sector=1000)), "sectors have 1000"),
    "IM7 size": (crafted.vhdx(metadata=crafted.vhdx_metadata(size=2**62)), "more than the 16 TiB"),
    "IM6 block table too short": (
        crafted.vhdx(metadata=crafted.vhdx_metadata(size=2**40)),
        "block table of the VHDX is too short",
    ),
    "cut": (crafted.vhdx()[:300000], "ends in the middle"),
}


def _vhd(kind: str = "dynamic", **fields: Any) -> bytes:
    return crafted.vhd(kind, **fields)


VHD_REFUSED = {
    "no footer": (crafted.vhd()[:-512], "does not end with its footer"),
    "another footer at its beginning": (put(crafted.vhd(), 30, b"x"), "contradict"),
    "a wrong checksum": (put(put(crafted.vhd(), 30, b"x"), len(crafted.vhd()) - 512 + 30, b"x"),
    "checksum"),
    "a parent": (_vhd(kind_number=4), "difference to a parent"),
    "another kind": (_vhd(kind_number=7), "kind 7 is unknown"),
    "another version": (_vhd(version=0x20000), "version 2"),
    "saved while it ran": (_vhd(saved=1), "saved while it ran"),
    "no size": (_vhd(size=0), "no size"),
    "half a sector": (_vhd(size=4 * MIB + 100), "multiple of 512"),
    "larger than may be": (_vhd(size=2**60), "more than the"),
    "fixed, and shorter than its disk": (_vhd("fixed", size=64 * MIB), "more than the file"),
    "a header elsewhere": (_vhd(data_offset=7), "does not lie where it may"),
    "a header behind the end": (_vhd(data_offset=2**40), "middle of the VHD header"),
    "a damaged header": (put(crafted.vhd(), 512 + 40, b"x"), "header of the VHD is damaged"),
    "blocks of odd size": (_vhd(block=3 * MIB), "says its blocks have"),
    "too few blocks": (_vhd(entries=1), "does not fit its disk"),
    "too many blocks": (_vhd(entries=2**30), "does not fit its disk"),
    "a table behind the end": (_vhd(table=2**40), "block table of the VHD lies outside"),
}  # fmt: skip
OTHERS_REFUSED = {
    "qed": (put(bytes(1024), 0, b"QED\0"), "format qed"),
    "vhd of long ago": (put(crafted.raw(), 2 * MIB - 511, b"conectix"), "before 2004"),
    "parallels": (put(bytes(1024), 0, b"WithoutFreeSpace"), "format parallels"),
    "parallels extended": (put(bytes(1024), 0, b"WithouFreSpacExt"), "format parallels"),
    "luks": (put(bytes(1024), 0, b"LUKS\xba\xbe"), "format luks"),
    "cloop": (put(bytes(1024), 0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop"), "format cloop"),
    "dmg": (put(crafted.raw(), 2 * MIB - 512, b"koly\0\0\0\x04\0\0\x02\0"), "format dmg"),
    "bochs": (put(bytes(1024), 0, b"Bochs Virtual HD Image"), "format bochs"),
    "ESX sparse": (put(bytes(1024), 0, b"COWD"), "ESX sparse"),
    "IM3 bare descriptor": (DESCRIPTOR.encode().ljust(1024, b"\n"), "descriptor only"),
    "IM3 bare descriptor without title": (
        b'#\n\nversion=1\nRW 1 FLAT "/etc/passwd" 0\n'.ljust(1024),
        "descriptor only",
    ),
    "IM3 bare descriptor on a disk": (
        put(b"version=1\n" + bytes(4096), 510, b"\x55\xaa"),
        "descriptor only",
    ),
    "gzip": (put(bytes(1024), 0, b"\x1f\x8b\x08"), "packed \\(gzip\\)"),
    "xz": (put(bytes(1024), 0, b"\xfd7zXZ\0"), "packed \\(xz\\)"),
    "zstd": (put(bytes(1024), 0, b"\x28\xb5\x2f\xfd"), "packed \\(zstd\\)"),
    "zip": (put(bytes(1024), 0, b"PK\x03\x04"), "packed \\(zip\\)"),
    "bzip2": (put(bytes(1024), 0, b"BZh9"), "packed \\(bzip2\\)"),
    "ova": (put(bytes(1024), 257, b"ustar"), "packed \\(tar or OVA\\)"),
    "iso": (put(bytes(65536), 32769, b"CD001"), "CD or DVD image"),
    "nothing": (bytes(4096), "no disk image known here"),
    "text": (b"hello world\n" * 100, "no disk image known here"),
    "short": (b"QFI\xfb", "too few"),
    "empty": (b"", "too few"),
    "odd raw": (crafted.raw() + b"x", "not a multiple of 512"),
}

REFUSED = {
    f"{group}: {name}": case
    for group, cases in (
        ("qcow2", QCOW2_REFUSED), ("vmdk", VMDK_REFUSED), ("vdi", VDI_REFUSED), ("vhdx",
        VHDX_REFUSED), ("vhd", VHD_REFUSED), ("other", OTHERS_REFUSED),
    )
    for name, case in cases.items()
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_each_crafted_image_is_refused_with_its_sentence(name: str) -> None:
    image, sentence = REFUSED[name]
    with pytest.raises(Invalid, match=sentence):
        look(image)


SIGNS = {
    "qcow2": (0, crafted.qcow2()),
    "iso": (32769, b"CD001"),
    "vdi": (64, crafted.vdi()[64:512]),
    "mbr": (510, b"\x55\xaa"),
    "gpt": (512, b"EFI PART"),
    "tar": (257, b"ustar"),
    "vhd": (-512, b"conectix"),
    "dmg": (-512, b"koly\0\0\0\x04\0\0\x02\0"),
}
BASES = {
    "qcow2": crafted.qcow2(),
    "vmdk": crafted.vmdk(),
    "vhdx": crafted.vhdx(),
    "vdi": crafted.vdi(),
}


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("base", BASES)
def test_im5_a_file_that_is_two_things_is_refused(base: str, sign: str) -> None:
    offset, piece = SIGNS[sign]
    image = BASES[base]
    if base == sign or offset == 0 or (base, sign) == ("vmdk", "gpt"):
        pytest.skip("not two things, or both at one place")
    spoiled = put(image, offset if offset > 0 else len(image) + offset, piece)
    for stated in (None, base, "raw"):
        with pytest.raises(Invalid, match="several things at once"):
            look(spoiled, stated)


def test_im5_raw_as_said_is_still_refused_when_it_carries_another_signature() -> None:
    for image in (crafted.qcow2(), crafted.vmdk(), DESCRIPTOR.encode().ljust(1024, b"\n")):
        with pytest.raises(Invalid):
            look(image, "raw")


def test_raw_is_taken_on_the_callers_word() -> None:
    assert look(bytes(4096), "raw").virtual_size == 4096
    assert look(put(bytes(65536), 32769, b"CD001"), "raw").format == "raw"
    with pytest.raises(Invalid, match="not a multiple"):
        look(bytes(1000), "raw")


def test_a_wrongly_named_format_is_refused() -> None:
    with pytest.raises(Invalid, match="said to be vmdk, but is qcow2"):
        look(crafted.qcow2(), "vmdk")
    with pytest.raises(Invalid, match="not an image format"):
        look(crafted.qcow2(), "qed")


def test_im7_the_size_limit_is_the_callers() -> None:
    for image in SOUND.values():
        with pytest.raises(Invalid, match="more than the 1 MiB allowed"):
            look(image, max_virtual_size=MIB)


def test_refusals_carry_a_hint_where_there_is_a_way_out() -> None:
    for name in (
        "qcow2: IM1 backing file",
        "vmdk: IM3 flat extent",
        "other: gzip",
        "other: iso",
        "vdi: differencing",
    ):
        with pytest.raises(Invalid) as caught:
            look(REFUSED[name][0])
        assert caught.value.hint


def test_im1_canary_no_sentence_shows_what_a_named_file_holds(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_bytes(CANARY)
    name = str(canary).encode()
    backed = put(crafted.qcow2(backing_offset=400, backing_length=len(name)), 400, name)
    flat = crafted.vmdk(DESCRIPTOR.replace('SPARSE "disk.vmdk"', f'FLAT "{canary}" 0'))
    for image in (backed, flat):
        before = canary.stat().st_atime_ns
        with pytest.raises(Invalid) as caught:
            look(image)
        assert "canary-of-the-host" not in str(caught.value.problem())
        assert canary.stat().st_atime_ns == before


def test_open_reader_takes_regular_files_only(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(crafted.raw())
    with open_reader(image) as reader:
        assert inspect(reader).format == "raw"
    (tmp_path / "link").symlink_to(image)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "absent", "."):
        with pytest.raises(Invalid):
            open_reader(tmp_path / name)
    descriptor = os.open(image, os.O_RDONLY)
    with open_reader(descriptor) as reader:
        assert inspect(reader).virtual_size == 2 * MIB
    os.close(descriptor)  # was left open: it is the caller's


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("qcow2", ""), ("qcow2", "compat=0.10"), ("qcow2", "compression_type=zstd"),
        ("qcow2", "extended_l2=on,cluster_size=128k"),
        ("qcow2", "cluster_size=512"), ("qcow2", "cluster_size=2M"), ("qcow2", "preallocation=metadata"),
        ("vmdk", "subformat=monolithicSparse"), ("vmdk", "subformat=streamOptimized"), ("vdi", ""), ("vdi", "static=on"),
        ("vhdx", ""), ("vhdx", "subformat=fixed"), ("raw", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [3 * MIB, 1536 * MIB])
def test_images_made_by_qemu_img_are_taken(
    tmp_path: Path, format: str, options: str, size: int
) -> None:
    image = tmp_path / "disk"
    more = ["-o", options] if options else []
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", format, *more, str(image), str(size)], check=True
    )
    with open_reader(image) as reader:
        header = inspect(reader, format)
    assert (header.format, header.virtual_size) == (format, size)


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
@pytest.mark.parametrize(
    "subformat", ["monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"]
)
def test_im3_vmdk_kinds_of_several_files_made_by_qemu_img_are_refused(
    tmp_path: Path, subformat: str
) -> None:
    image = tmp_path / "disk.vmdk"
    subprocess.run(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "vmdk",
            "-o",
            f"subformat={subformat}",
            str(image),
            "4M",
        ],
        check=True,
    )
    with open_reader(image) as reader, pytest.raises(Invalid):
        inspect(reader)


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed")
@pytest.mark.parametrize("format", ["qcow2", "vmdk", "qed", "parallels", "luks"])
def test_im1_overlays_and_foreign_formats_made_by_qemu_img_are_refused(
    tmp_path: Path, format: str
) -> None:
    base, image = tmp_path / "base", tmp_path / "disk"
    secret = (
        ["--object", "secret,id=s,data=x", "-o", "key-secret=s,iter-time=10"]
        if format == "luks"
        else []
    )
    backing = ["-b", str(base), "-F", format] if format in ("qcow2", "vmdk") else []
    if backing:
        subprocess.run(["qemu-img", "create", "-q", "-f", format, str(base), "4M"], check=True)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", format, *secret, *backing, str(image), "4M"], check=True
    )
    with open_reader(image) as reader, pytest.raises(Invalid):
        inspect(reader)


def _mutated(image: bytes, changes: list[tuple[int, bytes]], cut: int | None) -> bytes:
    for offset, piece in changes:
        image = put(image, offset, piece)
    return image if cut is None else image[:cut]


SMALL = {
    "qcow2": crafted.qcow2(),
    "vmdk": crafted.vmdk(),
    "streamed": streamed(),
    "vdi": crafted.vdi(),
    "raw": crafted.raw(8192),
}
_change = st.tuples(
    st.one_of(st.integers(0, 128), st.integers(0, 1400)),
    st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\x80" + bytes(7)]),
    ),
)
_quick = settings(max_examples=300, deadline=500, suppress_health_check=[HealthCheck.too_slow])


def _only_invalid(image: bytes, stated: str | None = None) -> None:
    try:
        header = look(image, stated)
    except Invalid as error:
        assert error.sentence and "\n" not in error.sentence
    else:
        assert 0 < header.virtual_size <= 16 * 2**40


@_quick
@given(
    st.sampled_from(sorted(SMALL)),
    st.lists(_change, max_size=6),
    st.one_of(st.none(), st.integers(0, 140_000)),
)
@pytest.mark.slow
def test_fuzz_changed_headers_are_taken_or_refused(
    base: str, changes: list[tuple[int, bytes]], cut: int | None
) -> None:
    _only_invalid(_mutated(SMALL[base], changes, cut))


@_quick
@given(
    st.binary(max_size=2048),
    st.sampled_from(
        [b"", b"QFI\xfb", b"KDMV", b"vhdxfile", b"conectix", b"# Disk DescriptorFile\n"]
    ),
)
def test_fuzz_random_bytes_are_taken_or_refused(content: bytes, start: bytes) -> None:
    _only_invalid(start + content)
    _only_invalid(start + content, "raw")


@settings(max_examples=60, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from([65536, 131072, 196608, 2 * MIB]),
    st.integers(0, 300),
    st.binary(min_size=1, max_size=8),
)
@pytest.mark.slow
def test_fuzz_changed_vhdx_tables_are_taken_or_refused(
    table: int, offset: int, piece: bytes
) -> None:
    image = put(crafted.vhdx(), table + offset, piece)
    length = {65536: 4096, 131072: 4096, 196608: 65536}.get(table)
    if length:  # with the checksum made to fit again, so that the fields behind it are reached
        image = put(image, table, crafted.summed(image[table : table + length]))
        if table == 196608:
            image = put(image, 262144, image[table : table + length])
    _only_invalid(image)


@settings(max_examples=100, deadline=500)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=900))
def test_fuzz_vmdk_descriptors_are_taken_or_refused(text: str) -> None:
    _only_invalid(crafted.vmdk("# Disk DescriptorFile\n" + text))
    _only_invalid(crafted.vmdk(DESCRIPTOR + text))


def test_im6_refusing_takes_no_time() -> None:
    begin = time.process_time()
    for image, _ in REFUSED.values():
        with pytest.raises(Invalid):
            look(image)
    assert time.process_time() - begin < 5


def test_crc32c_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283
