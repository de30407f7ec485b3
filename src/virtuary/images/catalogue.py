"""The official cloud images people ask for by name, and where their publishers keep them.

A table and a lookup; nothing here touches the network. Each image lies in a folder of its publisher
next to the file with its checksum and, where there is one, the signature of that. Debian and
Alpine: no signature we could check (Debian publishes none for cloud images; Alpine's key is in no
keyring), so https and the checksum have to do. For the others the signature is checked when a
keyring with the publisher's key is found; see `find_keyring`.

Facts about publishers were collected in November 2026 from public recipes that use these images; a
publisher who moves a file makes the fetch fail, never the check pass.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from virtuary.base.errors import Invalid, NotFound
from virtuary.images.checksums import Kind

Arch = Literal["amd64", "arm64"]
Firmware = Literal["bios", "uefi"]
ARCHES: tuple[Arch, ...] = ("amd64", "arm64")
ARCH_ALIASES: dict[str, Arch] = {
    "amd64": "amd64",
    "x86_64": "amd64",
    "x64": "amd64",
    "arm64": "arm64",
    "aarch64": "arm64",
}
_RED_HAT_ARCH = {"amd64": "x86_64", "arm64": "aarch64"}

# where distributions keep public keys; the last ones are what the package distribution-gpg-keys and
# rpm systems have
KEYRING_FOLDERS = (
    Path("/etc/virtuary/keyrings"),
    Path("/usr/share/keyrings"),
    Path("/usr/share/distribution-gpg-keys/fedora"),
    Path("/usr/share/distribution-gpg-keys/alma"),
    Path("/usr/share/distribution-gpg-keys/rocky"),
    Path("/etc/pki/rpm-gpg"),
)


@dataclass(frozen=True)
class Signature:
    """How the checksum file is signed, by which key, and in which keyring files that key is usually
    found.
    """

    kind: Literal["detached", "clearsigned"]
    file: str  # of the detached signature; for clearsigned the checksum file itself
    fingerprint: str  # of the primary key, 40 hexadecimal digits
    keyrings: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One image for one architecture."""

    name: str  # "debian:13"
    title: str
    arch: Arch
    folders: tuple[str, ...]  # URLs ending in "/", tried in this order when a file is not found
    image: str
    checksums: str
    checksum_kind: Kind
    signature: Signature | None
    user: str  # who cloud-init creates
    firmware: tuple[Firmware, ...]
    agent: bool  # the QEMU guest agent is installed
    cpu: str = ""  # least CPU the image runs on, as x86-64 psABI level; "" where any will do
    cloud_init: bool = True
    format: str = "qcow2"

    @property
    def url(self) -> str:
        return self.folders[0] + self.image


class _Release(NamedTuple):
    name: str
    aliases: tuple[str, ...]
    entries: tuple[Entry, ...]


def names() -> list[str]:
    """The full names ("debian:13"), newest release of each distribution first."""
    return [release.name for release in _RELEASES]


def aliases() -> dict[str, str]:
    """Every short or other name and the full name it stands for now."""
    return {alias: release.name for release in _RELEASES for alias in release.aliases}


def entries() -> list[Entry]:
    return [entry for release in _RELEASES for entry in release.entries]


def find(name: str, arch: str = "amd64") -> Entry:
    """The entry called `name` ("debian", "ubuntu:24.04", "noble"); raises NotFound with the names
    that come close.
    """
    wanted = name.strip().lower()
    full = aliases().get(wanted, wanted)
    machine = ARCH_ALIASES.get(arch.lower())
    if machine is None:
        raise Invalid(
            f"there are no images for the architecture {arch!r}", f"known are {', '.join(ARCHES)}"
        )
    for entry in entries():
        if entry.name == full and entry.arch == machine:
            return entry
    raise NotFound(f"there is no image called {name!r} in the catalogue", _did_you_mean(wanted))


def _did_you_mean(wanted: str) -> str:
    close = difflib.get_close_matches(wanted, [*names(), *aliases()], n=3, cutoff=0.6)
    distribution = wanted.partition(":")[0]
    close = close or [name for name in names() if name.startswith(distribution + ":")]
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(names())}"


def mirrored(url: str, mirrors: Mapping[str, str]) -> str:
    """`url`, or the same path on the mirror given for its host: {"cloud.debian.org":
    "http://mirror:8080"}.
    """
    parts = urlsplit(url)
    base = mirrors.get(parts.hostname or "")
    return url if base is None else base.rstrip("/") + parts.path


def find_keyring(signature: Signature, folders: Iterable[Path] = KEYRING_FOLDERS) -> Path | None:
    """The first keyring file for this signature that is there; None when the machine has none."""
    return next(
        (
            folder / name
            for folder in folders
            for name in signature.keyrings
            if (folder / name).is_file()
        ),
        None,
    )


def _debian(number: str, codename: str, *more: str) -> _Release:
    # "generic", not "genericcloud": the kernel of the latter lacks SATA, display and sound drivers
    name = f"debian:{number}"
    entries = tuple(
        Entry(
            name=name,
            title=f"Debian {number} ({codename})",
            arch=arch,
            folders=(f"https://cloud.debian.org/images/cloud/{codename}/latest/",),
            image=f"debian-{number}-generic-{arch}.qcow2",
            checksums="SHA512SUMS",
            checksum_kind="sums",
            signature=None,
            user="debian",
            firmware=_firmware(arch),
            agent=False,
        )
        for arch in ARCHES
    )
    return _Release(name, (codename, f"debian:{codename}", *more), entries)


def _ubuntu(number: str, codename: str, *more: str) -> _Release:
    name = f"ubuntu:{number}"
    # "UEC Image Automatic Signing Key"
    signature = Signature(
        "detached",
        "SHA256SUMS.gpg",
        "D2EB44626FDDC30B513D5BB71A5D6C4C7DB87C81",
        ("ubuntu-cloudimage-keyring.gpg",),
    )
    entries = tuple(
        Entry(
            name=name,
            title=f"Ubuntu {number} LTS ({codename})",
            arch=arch,
            folders=(f"https://cloud-images.ubuntu.com/releases/{codename}/release/",),
            image=f"ubuntu-{number}-server-cloudimg-{arch}.img",
            checksums="SHA256SUMS",
            checksum_kind="sums",
            signature=signature,
            user="ubuntu",
            firmware=_firmware(arch),
            agent=False,
        )
        for arch in ARCHES
    )
    return _Release(name, (codename, f"ubuntu:{codename}", *more), entries)


def _fedora(number: str, compose: str, fingerprint: str, *more: str) -> _Release:
    def entry(arch: Arch) -> Entry:
        theirs = _RED_HAT_ARCH[arch]
        path = f"fedora/linux/releases/{number}/Cloud/{theirs}/images/"
        checksums = f"Fedora-Cloud-{number}-{compose}-{theirs}-CHECKSUM"
        return Entry(
            name=f"fedora:{number}",
            title=f"Fedora {number} Cloud",
            arch=arch,
            # releases move to the archive when their time is over
            folders=(
                f"https://dl.fedoraproject.org/pub/{path}",
                f"https://dl.fedoraproject.org/pub/archive/{path}",
            ),
            image=f"Fedora-Cloud-Base-Generic-{number}-{compose}.{theirs}.qcow2",
            checksums=checksums,
            checksum_kind="bsd",
            signature=Signature(
                "clearsigned",
                checksums,
                fingerprint,
                (f"RPM-GPG-KEY-fedora-{number}-primary", "fedora.gpg"),
            ),
            user="fedora",
            firmware=_firmware(arch),
            agent=True,
        )

    return _Release(f"fedora:{number}", more, tuple(entry(arch) for arch in ARCHES))


def _almalinux(number: str, fingerprint: str, cpu: str, *more: str) -> _Release:
    def entry(arch: Arch) -> Entry:
        theirs = _RED_HAT_ARCH[arch]
        return Entry(
            name=f"almalinux:{number}",
            title=f"AlmaLinux {number}",
            arch=arch,
            folders=(f"https://repo.almalinux.org/almalinux/{number}/cloud/{theirs}/images/",),
            image=f"AlmaLinux-{number}-GenericCloud-latest.{theirs}.qcow2",
            checksums="CHECKSUM",
            checksum_kind="sums",
            signature=Signature(
                "detached",
                "CHECKSUM.asc",
                fingerprint,
                (f"RPM-GPG-KEY-AlmaLinux-{number}", "almalinux.gpg"),
            ),
            user="almalinux",
            firmware=_firmware(arch),
            agent=True,
            cpu=cpu if arch == "amd64" else "",
        )

    return _Release(
        f"almalinux:{number}", (f"alma:{number}", *more), tuple(entry(arch) for arch in ARCHES)
    )


def _rocky(number: str, fingerprint: str, cpu: str, *more: str) -> _Release:
    def entry(arch: Arch) -> Entry:
        theirs = _RED_HAT_ARCH[arch]
        return Entry(
            name=f"rocky:{number}",
            title=f"Rocky Linux {number}",
            arch=arch,
            folders=(f"https://dl.rockylinux.org/pub/rocky/{number}/images/{theirs}/",),
            image=f"Rocky-{number}-GenericCloud-Base.latest.{theirs}.qcow2",
            checksums="CHECKSUM",
            checksum_kind="bsd",
            signature=Signature(
                "detached",
                "CHECKSUM.asc",
                fingerprint,
                (f"RPM-GPG-KEY-Rocky-{number}", "rocky.gpg"),
            ),
            user="rocky",
            firmware=_firmware(arch),
            agent=True,
            cpu=cpu if arch == "amd64" else "",
        )

    return _Release(
        f"rocky:{number}", (f"rockylinux:{number}", *more), tuple(entry(arch) for arch in ARCHES)
    )


def _alpine(number: str, point: str, *more: str) -> _Release:
    def entry(arch: Arch) -> Entry:
        # one image per firmware; BIOS starts faster where there is a choice
        firmware: Firmware = "bios" if arch == "amd64" else "uefi"
        image = (
            f"generic_alpine-{number}.{point}-{_RED_HAT_ARCH[arch]}-{firmware}-cloudinit-r0.qcow2"
        )
        return Entry(
            name=f"alpine:{number}",
            title=f"Alpine Linux {number}",
            arch=arch,
            folders=(f"https://dl-cdn.alpinelinux.org/alpine/v{number}/releases/cloud/",),
            image=image,
            checksums=f"{image}.sha512",
            checksum_kind="single",
            signature=None,
            user="alpine",
            firmware=(firmware,),
            agent=False,
        )

    return _Release(f"alpine:{number}", more, tuple(entry(arch) for arch in ARCHES))


def _firmware(arch: Arch) -> tuple[Firmware, ...]:
    return ("bios", "uefi") if arch == "amd64" else ("uefi",)


_RELEASES = (
    _debian("13", "trixie", "debian"),
    _debian("12", "bookworm"),
    _ubuntu("24.04", "noble", "ubuntu"),
    _ubuntu("22.04", "jammy"),
    _fedora("43", "1.6", "C6E7F081CF80E13146676E88829B606631645531", "fedora"),
    _fedora("42", "1.1", "B0F4950458F69E1150C6C5EDC8AC4916105EF944"),
    _fedora("41", "1.4", "466CF2D8B60BC3057AA9453ED0622462E99D6AD1"),
    _almalinux("10", "EE6DB7B98F5BF5EDD9DA0DE5DEE5C11CC2A1E572", "x86-64-v3", "almalinux", "alma"),
    _almalinux("9", "BF18AC2876178908D6E71267D36CB86CB86B3716", "x86-64-v2"),
    _rocky("10", "FC226859C0860BF0DDB95B085B106C736FEDFC85", "x86-64-v3", "rocky", "rockylinux"),
    _rocky("9", "21CB256AE16FC54C6E652949702D426D350D275D", "x86-64-v2"),
    _alpine("3.22", "5", "alpine"),
    _alpine("3.21", "7"),
)
