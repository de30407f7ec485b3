"""A disk that boots on its own, written offline: partition table, GRUB for BIOS, GRUB behind shim
for UEFI.

grub-install wants the disk as a device; here its two patches are done by hand instead. Source of
the offsets: GRUB's include/grub/i386/pc/boot.h and util/setup.c. Positions and sizes are bytes
unless named sectors.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from virtuary.base import proc
from virtuary.base.errors import Failed
from virtuary.base.units import MIB
from virtuary.images.build_tree import BOUNDS, in_jail

SECTOR = 512
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
LINUX_ROOT = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
_KERNEL_SECTOR = 0x5C  # boot.img: where the core image starts on the disk, 64 bit
_DRIVE_CHECK = 0x66  # boot.img: a jump that is for floppies; two NOPs in its place
# boot.img has nothing of its own from here on: signature and the (protective) MBR table
_PARTITION_START = 0x1B8
# diskboot.img, the core image's first sector: start sector (64), length (16), segment (16)
_BLOCKLIST_END = SECTOR - 12
_SECOND_SEGMENT = 0x820


@dataclass(frozen=True)
class Part:
    start: int
    size: int


@dataclass(frozen=True)
class Layout:
    size: int
    bios: Part
    esp: Part
    root: Part


def plan_layout(size: int) -> Layout:
    """Where the partitions of a disk of `size` bytes lie; the root is last, so that it can grow."""
    bios = Part(1 * MIB, 1 * MIB)
    esp = Part(2 * MIB, 64 * MIB)
    root_start = esp.start + esp.size
    return Layout(size, bios, esp, Part(root_start, size - root_start - MIB))


def sfdisk_script(layout: Layout) -> str:
    rows = [
        (layout.bios, BIOS_BOOT, "bios"),
        (layout.esp, ESP, "esp"),
        (layout.root, LINUX_ROOT, "root"),
    ]
    lines = [
        f"start={p.start // SECTOR}, size={p.size // SECTOR}, type={kind}, name={name}"
        for p, kind, name in rows
    ]
    return "label: gpt\nunit: sectors\n" + "".join(f"{line}\n" for line in lines)


def patch_boot(boot: bytes, core_sector: int) -> bytes:
    """The first 440 bytes of the disk: boot.img told where the core image starts."""
    if len(boot) != SECTOR or boot[510:] != b"\x55\xaa":
        raise Failed(
            f"GRUB's boot.img is not a boot sector ({len(boot)} bytes)",
            "look at the package grub-pc-bin of the mirror",
        )
    patched = bytearray(boot)
    struct.pack_into("<Q", patched, _KERNEL_SECTOR, core_sector)
    patched[_DRIVE_CHECK : _DRIVE_CHECK + 2] = b"\x90\x90"
    return bytes(patched[:_PARTITION_START])


def patch_core(core: bytes, core_sector: int, room: int) -> bytes:
    """The core image told where its own second sector is; padded to whole sectors. `room` is its
    partition's size.
    """
    if len(core) > room:
        raise Failed(f"GRUB's core image has {len(core)} bytes, its partition {room}")
    if len(core) <= SECTOR:
        raise Failed(f"GRUB's core image has only {len(core)} bytes")
    patched = bytearray(core) + bytes(-len(core) % SECTOR)
    sectors = len(patched) // SECTOR - 1
    struct.pack_into("<QHH", patched, _BLOCKLIST_END, core_sector + 1, sectors, _SECOND_SEGMENT)
    return bytes(patched)


async def make_table(disk: Path, layout: Layout) -> None:
    """Make the sparse file `disk` with its partition table."""
    with open(disk, "wb") as handle:
        handle.truncate(layout.size)
    await proc.run(
        "sfdisk",
        "-q",
        "--no-reread",
        "--no-tell-kernel",
        str(disk),
        stdin=sfdisk_script(layout).encode(),
        deadline=30,
    )


def place_grub(disk: Path, layout: Layout, boot: bytes, core: bytes) -> None:
    """Put GRUB's boot sector and core image on the disk, around the partition table that is there
    already.
    """
    sector = layout.bios.start // SECTOR
    handle = os.open(disk, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(handle, patch_boot(boot, sector), 0)
        os.pwrite(handle, patch_core(core, sector, layout.bios.size), layout.bios.start)
    finally:
        os.close(handle)


async def make_esp(
    disk: Path, layout: Layout, tree: Path, volume_id: str, config: str, scratch: Path
) -> None:
    """Make the EFI system partition: shim, GRUB as Debian signed them, and the few lines GRUB reads
    there.
    """
    folder = scratch / "efi"
    for place, source in efi_files(tree).items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(source.read_bytes())
    # GRUB as signed by Debian looks at the second
    for place in ("EFI/BOOT/grub.cfg", "EFI/debian/grub.cfg"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(config, encoding="ascii")
    image = scratch / "esp.img"
    with open(image, "wb") as handle:
        handle.truncate(layout.esp.size)
    made = ("mkfs.vfat", "-F", "32", "-s", "1", "-n", "ESP", "-i", volume_id, str(image))
    await in_jail(made, BOUNDS, readable=[], writable=[image])
    filled = ("mcopy", "-s", "-i", str(image), str(folder / "EFI"), "::/")
    await in_jail(
        filled, BOUNDS, readable=[folder], writable=[image], environment={"MTOOLS_SKIP_CHECK": "1"}
    )
    with open(disk, "r+b") as handle:
        handle.seek(layout.esp.start)
        _copy_sparse(image, handle.fileno(), layout.esp.start)


def efi_files(tree: Path) -> dict[str, Path]:
    """Place on the EFI system partition -> file of the guest's packages."""
    shim, grub = tree / "usr/lib/shim", tree / "usr/lib/grub/x86_64-efi-signed"
    return {
        "EFI/BOOT/BOOTX64.EFI": shim / "shimx64.efi.signed",
        "EFI/BOOT/grubx64.efi": grub / "grubx64.efi.signed",
        "EFI/BOOT/mmx64.efi": shim / "mmx64.efi.signed",
    }


def _copy_sparse(source: Path, target: int, offset: int) -> None:
    """Copy a file into `target` at `offset`, leaving out what is zero there anyway."""
    with open(source, "rb") as handle:
        while chunk := handle.read(65536):
            if chunk.strip(b"\0"):
                os.pwrite(target, chunk, offset)
            offset += len(chunk)
