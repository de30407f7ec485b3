"""Which disk format a file is, and whether it is safe to hand to a tool: decided here, before any
tool sees the file.

`inspect` looks for the signatures of all formats at all their places. Exactly one may match: a file
that is two things at once (a polyglot) is refused, for the checker and the tool might then
disagree. Accepted are qcow2, vmdk, vhdx, vhd, vdi and raw; raw has no signature, so it needs the
traces of a disk (partition table, file system) or the caller's explicit word. Does not convert,
does not open anything an image names, does not trust file names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from virtuary.images.header import (
    MAX_VIRTUAL_SIZE,
    SECTOR,
    Bytes,
    File,
    Header,
    Memory,
    check_virtual_size,
    open_reader,
    refuse,
)
from virtuary.images.qcow2 import MAGIC as QCOW2
from virtuary.images.qcow2 import read_qcow2
from virtuary.images.vdi import MAGIC as VDI
from virtuary.images.vdi import MAGIC_OFFSET as VDI_OFFSET
from virtuary.images.vdi import read_vdi
from virtuary.images.vhd import MAGIC as VHD
from virtuary.images.vhd import read_vhd
from virtuary.images.vhdx import MAGIC as VHDX
from virtuary.images.vhdx import read_vhdx
from virtuary.images.vmdk import CONVERT as VMDK_HINT
from virtuary.images.vmdk import MAGIC as VMDK
from virtuary.images.vmdk import read_vmdk

__all__ = [
    "FORMATS",
    "MAX_VIRTUAL_SIZE",
    "Bytes",
    "File",
    "Header",
    "Memory",
    "inspect",
    "open_reader",
]

FORMATS = ("qcow2", "raw", "vmdk", "vhdx", "vhd", "vdi")

READERS: dict[str, Callable[[Bytes, int], Header]] = {
    "qcow2": read_qcow2,
    "vmdk": read_vmdk,
    "vhdx": read_vhdx,
    "vdi": read_vdi,
    "vhd": read_vhd,
}


class _Sign(NamedTuple):
    """One signature: at `offset` (from the end when negative) stand these bytes."""

    name: str
    offset: int
    magic: bytes


CONVERT = "convert it where it comes from: qemu-img convert -O qcow2 IMAGE NEW"
UNPACK = "unpack it first, then give the disk image in it"

_ACCEPTED = (
    _Sign("qcow2", 0, QCOW2),
    _Sign("vmdk", 0, VMDK),
    _Sign("vhdx", 0, VHDX),
    _Sign("vdi", VDI_OFFSET, VDI),
    _Sign("vhd", 0, VHD),
    _Sign("vhd", -512, VHD),
)
_DISK_FORMATS = (  # other disk formats: refused, whatever else matches
    _Sign("qed", 0, b"QED\0"),
    _Sign("vmdk (ESX sparse)", 0, b"COWD"),
    _Sign("vmdk (SE sparse)", 0, b"\xbe\xba\xfe\xca\0\0\0\0"),
    _Sign("vhd (of Virtual PC before 2004)", -511, VHD),
    _Sign("parallels", 0, b"WithoutFreeSpace"),
    _Sign("parallels", 0, b"WithouFreSpacExt"),
    _Sign("luks", 0, b"LUKS\xba\xbe"),
    _Sign("luks", 0, b"SKUL\xba\xbe"),
    _Sign("cloop", 0, b"#!/bin/sh\n#V2.0 Format\n"),
    _Sign("bochs", 0, b"Bochs Virtual HD Image"),
    _Sign("vma", 0, b"VMA\0"),
)
_PACKED = (
    _Sign("gzip", 0, b"\x1f\x8b"),
    _Sign("xz", 0, b"\xfd7zXZ\0"),
    _Sign("zstd", 0, b"\x28\xb5\x2f\xfd"),
    _Sign("zip", 0, b"PK\x03\x04"),
    _Sign("bzip2", 0, b"BZh"),
    _Sign("lz4", 0, b"\x04\x22\x4d\x18"),
    _Sign("7z", 0, b"7z\xbc\xaf\x27\x1c"),
    _Sign("tar or OVA", 257, b"ustar"),
)
_ISO = tuple(_Sign("ISO 9660", offset + 1, b"CD001") for offset in (32768, 34816, 36864))
_DISK_TRACES = (
    _Sign("mbr", 510, b"\x55\xaa"),
    _Sign("gpt", 512, b"EFI PART"),
    _Sign("gpt", 4096, b"EFI PART"),
    _Sign("ext", 1080, b"\x53\xef"),
    _Sign("xfs", 0, b"XFSB"),
    _Sign("btrfs", 65600, b"_BHRfS_M"),
    _Sign("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    _Sign("squashfs", 0, b"hsqs"),
    _Sign("lvm", 512, b"LABELONE"),
)
_KOLY = b"koly\0\0\0\x04\0\0\x02\0"  # trailer of an Apple disk image: name, version 4, length 512
_KOLY_WINDOW = 1536


def inspect(
    reader: Bytes, format: str | None = None, *, max_virtual_size: int = MAX_VIRTUAL_SIZE
) -> Header:
    """What disk image this is; raises Invalid, with a sentence and a hint, for everything that is
    not safe to open.

    `format` is what the caller was told; a file of another format is then refused, and "raw" is
    accepted without traces of a disk (not, however, if it carries the signature of another disk
    format). Reads at most a few hundred KiB.
    """
    if format is not None and format not in FORMATS:
        refuse(f"{format!r} is not an image format known here", f"known are {', '.join(FORMATS)}")
    if reader.size < SECTOR:
        refuse(f"the file has {reader.size} bytes, too few for a disk image")
    disk = _find(reader, _ACCEPTED)
    _refuse_others(reader, disk, format)
    found = disk[0] if disk else "raw"
    if format is not None and format != found:
        refuse(
            f"the file was said to be {format}, but is {found}",
            f"say {found}, or check that it is the right file",
        )
    if found == "raw":
        return _read_raw(reader, format == "raw", max_virtual_size)
    return READERS[found](reader, max_virtual_size)


def _refuse_others(reader: Bytes, disk: list[str], format: str | None) -> None:
    """Raise Invalid if any signature of something else is there besides (or instead of) the one
    accepted format.
    """
    foreign = _find(reader, _DISK_FORMATS) + _find_special(reader)
    packed, iso = _find(reader, _PACKED), _find(reader, _ISO)[:1]
    together = disk + foreign + packed + iso
    # a fixed one is a disk, and behind it a footer
    if disk and not (disk == ["vhd"] and reader.read(0, len(VHD)) != VHD):
        together += ["partitioned disk"] * bool(_find(reader, _DISK_TRACES[:3]))
    if len(together) > 1 and not (format == "raw" and not disk and not foreign and not packed):
        refuse(
            f"the file is several things at once: {', '.join(together)}",
            "such files are refused; make a clean copy of the disk",
        )
    if foreign:
        refuse(
            f"images of the format {foreign[0]} are not accepted",
            VMDK_HINT if "vmdk" in foreign[0] else CONVERT,
        )
    if packed:
        refuse(f"the file is packed ({packed[0]}), not a disk image", UNPACK)
    if iso and format != "raw":
        refuse(
            "the file is a CD or DVD image, not a disk",
            "attach it as a CD, or say that its format is raw (--format raw)",
        )


def _find(reader: Bytes, signs: tuple[_Sign, ...]) -> list[str]:
    """Names of the signatures that are there, each once, in the order of the table."""
    found = {sign.name: None for sign in signs if _is_there(reader, sign)}
    return list(found)


def _is_there(reader: Bytes, sign: _Sign) -> bool:
    offset = sign.offset if sign.offset >= 0 else reader.size + sign.offset
    return offset >= 0 and reader.read(offset, len(sign.magic)) == sign.magic


def _find_special(reader: Bytes) -> list[str]:
    """Formats whose mark has no fixed place: Apple disk images and bare VMDK descriptors."""
    found = []
    if _KOLY in reader.read(max(0, reader.size - _KOLY_WINDOW), _KOLY_WINDOW):
        found.append("dmg")
    if _is_descriptor(reader.read(0, 4096)):
        found.append("vmdk (descriptor only)")
    return found


def _is_descriptor(start: bytes) -> bool:
    """Whether text begins here that a tool would take for a VMDK descriptor: comments and blank
    lines, then `version=`.
    """
    if b"# disk descriptorfile" in start[:1024].lower():
        # inside an image that is a VMDK the descriptor is embedded, and begins at sector 1
        return not start.startswith(VMDK)
    for line in start.splitlines():
        words = line.strip().lower()
        if words and not words.startswith(b"#"):
            return words.replace(b" ", b"").startswith(b"version=")
    return False


def _read_raw(reader: Bytes, stated: bool, max_virtual_size: int) -> Header:
    traces = _find(reader, _DISK_TRACES)
    if not traces and not stated:
        refuse(
            "the file is no disk image known here: it has no signature, no partition table and "
            "no file system",
            "if it is a raw disk all the same, say so: --format raw",
        )
    if reader.size % SECTOR:
        refuse(
            f"the raw image has {reader.size} bytes, not a multiple of {SECTOR}",
            "it was probably not transferred completely",
        )
    check_virtual_size(reader.size, max_virtual_size)
    return Header("raw", reader.size, "", reader.size, {"traces": ", ".join(traces)})
