"""The VMDK header, read before any tool sees the file.

Accepted are the two kinds that are one file: monolithicSparse and streamOptimized, with their
descriptor embedded and exactly one extent, which is this very file. Everything that could lead to
another file is refused: descriptors on their own, flat and split extents, ESX formats, parents.
Layout: "Virtual Disk Format 5.0" (VMware technical note).
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from virtuary.images.header import (
    SECTOR,
    Bytes,
    Header,
    check_virtual_size,
    inside,
    is_power_of_two,
    refuse,
    take,
)

MAGIC = b"KDMV"
DESCRIPTOR_OFFSET = SECTOR  # where QEMU looks for it, whatever the header says
DESCRIPTOR_READ = 20 * SECTOR  # what QEMU reads of it, whatever the header says
MAX_DESCRIPTOR = 128 * SECTOR
MAX_DIRECTORY_BYTES = 32 * 1024 * 1024
AT_END = 0xFFFFFFFFFFFFFFFF  # "the directory is named in the footer"
FLAG_REDUNDANT, FLAG_COMPRESSED, FLAG_MARKERS = 1 << 1, 1 << 16, 1 << 17
KINDS = ("monolithicSparse", "streamOptimized")
CONVERT = (
    "make one self-contained file of it: qemu-img convert -O vmdk -o "
    "subformat=streamOptimized IMAGE NEW"
)

_ASSIGNMENT = re.compile(
    r'^([A-Za-z][A-Za-z0-9._]{0,63})\s*=\s*(?:"([^"]{0,512})"|([^"\s]{0,512}))$'
)
_EXTENT = re.compile(
    r'^(RW|RDONLY|NOACCESS)\s+(\d{1,18})\s+([A-Z]+)(?:\s+"([^"]*)")?(?:\s+(\d+))?$'
)
_KEYS = {"version", "encoding", "cid", "parentcid", "createtype", "isnativesnapshot"}


class _Fields(NamedTuple):
    magic: bytes
    version: int
    flags: int
    capacity: int  # sectors, as all that follows
    grain: int
    descriptor_offset: int
    descriptor_size: int
    per_table: int
    redundant_offset: int
    directory_offset: int
    overhead: int
    unclean: int
    newlines: bytes
    compression: int


def read_vmdk(reader: Bytes, max_virtual_size: int) -> Header:
    """The header of a VMDK that is one sparse file; raises Invalid for any other."""
    fields = _parse(take(reader, 0, SECTOR, "the VMDK header"))
    _check_fields(fields)
    directory = _footer(reader, fields) if fields.directory_offset == AT_END else fields
    _check_directory(reader, directory)
    check_virtual_size(fields.capacity * SECTOR, max_virtual_size)
    kind = _check_descriptor(_descriptor(reader, fields), fields)
    details: dict[str, int | str] = {"kind": kind, "grain_size": fields.grain * SECTOR}
    return Header("vmdk", fields.capacity * SECTOR, str(fields.version), reader.size, details)


def _parse(sector: bytes) -> _Fields:
    return _Fields._make(struct.unpack_from("<4sIIQQQQIQQQB4sH", sector))


def _check_fields(fields: _Fields) -> None:
    if fields.version not in (1, 2, 3):
        refuse(f"VMDK version {fields.version} is not supported", CONVERT)
    if fields.newlines != b"\n \r\n":
        refuse(
            "the VMDK was transferred as text, which damages it", "transfer it again in binary mode"
        )
    if fields.unclean:
        refuse(
            "the VMDK was not closed cleanly",
            "start and stop the virtual machine it belongs to, then export it again",
        )
    # a capacity of 0 would make QEMU open the descriptor as a list of other files
    if not 0 < fields.capacity < 1 << 54:
        refuse(f"the VMDK says its disk has {fields.capacity} sectors, which is not possible")
    if not is_power_of_two(fields.grain) or not 8 <= fields.grain <= 16384:
        refuse(f"the VMDK says its grains have {fields.grain} sectors, which is not possible")
    if not is_power_of_two(fields.per_table) or fields.per_table > 512:
        refuse(
            f"the VMDK says its grain tables have {fields.per_table} entries; at most 512 are "
            "possible"
        )
    if fields.compression > 1 or (fields.flags & FLAG_COMPRESSED and fields.compression != 1):
        refuse(f"the VMDK uses compression {fields.compression}, which does not fit its flags")
    if fields.descriptor_offset != 1 or not 0 < fields.descriptor_size * SECTOR <= MAX_DESCRIPTOR:
        refuse("the VMDK has no descriptor of its own at the place where it belongs", CONVERT)


def _footer(reader: Bytes, head: _Fields) -> _Fields:
    """The copy of the header at the end of a streamed file; it may differ in nothing but where the
    directory lies.
    """
    piece = take(reader, reader.size - 3 * SECTOR, 3 * SECTOR, "the VMDK footer")
    foot = _parse(piece[SECTOR : 2 * SECTOR])
    if foot.magic != MAGIC:
        refuse("the VMDK has no footer", "it was probably not transferred completely")
    moved = foot._replace(
        directory_offset=head.directory_offset, redundant_offset=head.redundant_offset
    )
    if moved != head or foot.directory_offset == AT_END:
        refuse("header and footer of the VMDK contradict each other")
    return foot


def _check_directory(reader: Bytes, fields: _Fields) -> None:
    entries = -(-fields.capacity // (fields.grain * fields.per_table))
    if entries * 4 > MAX_DIRECTORY_BYTES:
        refuse(
            f"the VMDK would need a grain directory of {entries} entries, more than any sound "
            "image has"
        )
    places = [fields.directory_offset]
    if fields.flags & FLAG_REDUNDANT and fields.redundant_offset != AT_END:
        places.append(fields.redundant_offset)
    for sector in places:
        if sector < 2:
            refuse("the grain directory of the VMDK lies in its header")
        inside(reader, sector * SECTOR, entries * 4, "the grain directory of the VMDK")


def _descriptor(reader: Bytes, fields: _Fields) -> str:
    """The embedded descriptor: all that any reader might take for it, cut at its end mark."""
    length = max(fields.descriptor_size * SECTOR, DESCRIPTOR_READ)
    piece = reader.read(DESCRIPTOR_OFFSET, length)
    if b"parentfilenamehint" in piece.lower():
        refuse("the VMDK names a parent disk", CONVERT)
    text, _, _ = piece.partition(b"\0")
    if len(text) > fields.descriptor_size * SECTOR:
        refuse("the descriptor of the VMDK does not end where its header says")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        refuse("the descriptor of the VMDK is not text")


def _check_descriptor(text: str, fields: _Fields) -> str:
    """Check each line of the descriptor and return the kind; unknown lines are refused."""
    lines = [line.strip() for line in text.splitlines()]
    if not lines or lines[0].lower() != "# disk descriptorfile":
        refuse("the VMDK has no descriptor", CONVERT)
    values: dict[str, str] = {}
    extents = []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        if extent := _EXTENT.match(line):
            extents.append(extent)
        elif assignment := _ASSIGNMENT.match(line):
            _note(values, assignment[1].lower(), assignment[2] or assignment[3] or "")
        else:
            refuse(
                f"the descriptor of the VMDK has a line that is not understood: {line[:60]!r}",
                CONVERT,
            )
    kind = values.get("createtype", "")
    if kind not in KINDS:
        refuse(
            f"VMDK images of the kind {kind[:40]!r} are not accepted; they need other files",
            CONVERT,
        )
    if values.get("parentcid", "").lower() != "ffffffff":
        refuse("the VMDK is the difference to a parent disk", CONVERT)
    if values.get("isnativesnapshot", "no").lower() != "no":
        refuse("the VMDK is a snapshot that lives in its storage system", CONVERT)
    _check_extent(extents, fields)
    return kind


def _note(values: dict[str, str], key: str, value: str) -> None:
    if key.startswith("ddb."):
        return
    if key not in _KEYS:
        refuse(
            f"the descriptor of the VMDK has a field that is not accepted: {key[:40]!r}", CONVERT
        )
    if key in values:
        refuse(f"the descriptor of the VMDK has the field {key!r} twice")
    values[key] = value


def _check_extent(extents: list[re.Match[str]], fields: _Fields) -> None:
    """There is one extent, it is sparse, and it is this file: a bare name, the whole capacity, no
    offset.
    """
    if len(extents) != 1:
        refuse(
            f"the VMDK consists of {len(extents)} extents; exactly one, in the file itself, is "
            "accepted",
            CONVERT,
        )
    access, sectors, kind, name, offset = extents[0].groups()
    if kind != "SPARSE" or offset is not None or access == "NOACCESS":
        refuse(
            f"the VMDK has a {kind[:20]} extent, which may lie in another file; only SPARSE is "
            "accepted",
            CONVERT,
        )
    if not name or re.search(r"[/\\:\x00-\x1f]", name) or name in (".", ".."):
        refuse("the extent of the VMDK is named by a path, not by a plain file name", CONVERT)
    if int(sectors) != fields.capacity:
        refuse(f"the descriptor of the VMDK says {sectors} sectors, its header {fields.capacity}")
