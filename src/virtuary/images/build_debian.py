"""A Debian server on a disk of its own: GPT with BIOS boot partition, EFI system partition and an
ext4 root.

mmdebstrap installs the packages; what makes it a server of ours are the files below
guest_files/debian, put in place before the kernel's package is (its initial RAM disk is made once,
with them). Nothing in it is unique to one machine but the UUIDs.

The generic kernel is used. Measured under TCG (1 processor, 1 GiB, SeaBIOS, before units were
masked): 28 s to the agent's answer with the generic kernel, 20 s with the cloud kernel, which is
stored with a faster compression and finds fewer drivers to load. But the cloud kernel has neither
AHCI nor USB storage: no seed on a q35 machine's CD drive, no start from a physical disk. The
initial RAM disk is MODULES=list with the drivers of guest_files/debian/initramfs-hook: 8 MB.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from virtuary.base.errors import Failed
from virtuary.base.units import GIB
from virtuary.images import bootdisk, build_sources, build_tree
from virtuary.images.build_tiny import guest_file, put

PROGRAMS = ("sfdisk", "mkfs.vfat", "mcopy")
PACKAGES = (
    "systemd", "systemd-sysv", "systemd-resolved", "dbus", "udev", "iproute2", "iputils-ping",
    "ca-certificates",
    "less", "nano", "sudo", "fdisk", "e2fsprogs", "zstd", "linux-image-amd64", "initramfs-tools",
    "openssh-server", "qemu-guest-agent", "cloud-init", "cloud-guest-utils",
    "grub2-common", "grub-pc-bin", "grub-efi-amd64-bin", "grub-efi-amd64-signed", "shim-signed",
)  # fmt: skip
HOSTS = (
    b"127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost ip6-loopback\n"
    b"ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"
)
MIN_SIZE = 4 * GIB
KERNEL_ARGS = "quiet console=tty0 console=ttyS0,115200"
# file below guest_files/debian -> place in the guest; those that can be run are named in RUNNABLE
FILES = {
    "networkd.network": "etc/systemd/network/80-wired.network",
    "cloud.cfg": "etc/cloud/cloud.cfg.d/90_virtuary.cfg",
    "cloud-init-generator": "etc/systemd/system-generators/cloud-init-generator",
    "cidata.rules": "etc/udev/rules.d/99-virtuary-cidata.rules",
    "ssh-host-key.service": "etc/systemd/system/ssh-host-key.service",
    "sshd.conf": "etc/ssh/sshd_config.d/50-virtuary.conf",
    "virtuary-grow.service": "etc/systemd/system/virtuary-grow.service",
    "virtuary-grow": "usr/local/sbin/virtuary-grow",
    "initramfs-hook": "etc/initramfs-tools/hooks/virtuary",
    "initramfs.conf": "etc/initramfs-tools/conf.d/virtuary",
    "grub-default": "etc/default/grub",
    "modprobe.conf": "etc/modprobe.d/virtuary.conf",
    "journald.conf": "etc/systemd/journald.conf.d/50-virtuary.conf",
    "resolved.conf": "etc/systemd/resolved.conf.d/50-virtuary.conf",
    "qemu-guest-agent.service": "etc/systemd/system/qemu-guest-agent.service",
}
RUNNABLE = {"cloud-init-generator", "virtuary-grow", "initramfs-hook"}
ENABLED = {
    "multi-user.target.wants/virtuary-grow.service": "/etc/systemd/system/virtuary-grow.service",
    "multi-user.target.wants/qemu-guest-agent.service": "/etc/systemd/system/qemu-guest-agent.service",
    "ssh.service.wants/ssh-host-key.service": "/etc/systemd/system/ssh-host-key.service",
    "multi-user.target.wants/systemd-networkd.service": "/usr/lib/systemd/system/systemd-networkd.service",
    "sockets.target.wants/systemd-networkd.socket": "/usr/lib/systemd/system/systemd-networkd.socket",
}
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service",
    "man-db.timer",
    "systemd-pstore.service",
    "systemd-networkd-wait-online.service", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "grub-common.service",
    "sys-kernel-config.mount", "sys-fs-fuse-connections.mount", "systemd-repart.service",
    "modprobe@drm.service", "dpkg-db-backup.timer",
)  # fmt: skip
# generators for what this image has not: each is a process at every boot
NO_GENERATORS = (
    "bless-boot",
    "gpt-auto",
    "hibernate-resume",
    "import",
    "integritysetup",
    "ssh",
    "tpm2",
    "veritysetup",
)
SKIPPED_FILES = (
    "path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*", "path-include=/usr/share/locale/locale.alias",
    "path-include=/usr/share/locale/en*",
    "path-exclude=/usr/share/man/??/*", "path-exclude=/usr/share/man/??_*/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/lib/binfmt.d/python*",
)  # fmt: skip
GRUB_MKIMAGE = (
    "grub-mkimage -O i386-pc -o /boot/grub/core.img -p /boot/grub -c /boot/grub/early.cfg"
)
GRUB_MODULES = (
    "biosdisk part_gpt part_msdos ext2 search_fs_uuid normal linux configfile echo ls "
    "test minicmd serial terminal"
)


def fstab(root_uuid: str, esp_id: str) -> str:
    return (
        f"UUID={root_uuid} / ext4 noatime,errors=remount-ro 0 1\n"
        f"UUID={esp_id[:4]}-{esp_id[4:]} /boot/efi vfat "
        "umask=0077,noauto,nofail,x-systemd.automount,x-systemd.idle-timeout=60 0 0\n"
    )


def grub_config(root_uuid: str, version: str) -> str:
    """The menu of the first boot; the guest's own update-grub replaces it at its first kernel
    update.
    """
    return (
        "set timeout=0\nset timeout_style=hidden\n"
        f"search --no-floppy --fs-uuid --set=root {root_uuid}\n"
        f"menuentry 'Debian' {{\n  linux /boot/vmlinuz-{version} root=UUID={root_uuid} ro "
        f"{KERNEL_ARGS}\n"
        f"  initrd /boot/initrd.img-{version}\n}}\n"
    )


def early_config(root_uuid: str) -> str:
    """What GRUB reads first, from its core image (BIOS) or the EFI system partition."""
    return f"search.fs_uuid {root_uuid} root\nset prefix=($root)/boot/grub\n"


def make_overlay(overlay: Path, root_uuid: str, esp_id: str) -> None:
    """Files that must be there before the packages are set up."""
    for name, place in FILES.items():
        put(overlay / place, guest_file("debian", name), 0o755 if name in RUNNABLE else 0o644)
    put(overlay / "etc/fstab", fstab(root_uuid, esp_id).encode())
    put(overlay / "etc/hostname", b"debian\n")
    put(overlay / "etc/hosts", HOSTS)
    put(overlay / "boot/grub/early.cfg", early_config(root_uuid).encode())
    put(overlay / "etc/kernel-img.conf", b"do_symlinks = no\ndo_bootloader = no\n")
    for folder, _, _ in os.walk(overlay):
        os.chmod(folder, 0o755)  # noqa: S103


def finish_tree(tree: Path, release: str, root_uuid: str) -> None:
    """Everything after the packages: units on and off, boot menu, and whatever belongs to one
    machine only goes.
    """
    units = tree / "etc/systemd/system"
    for place, target in ENABLED.items():
        link(units / place, target)
    for name in MASKED:
        link(units / name, "/dev/null")
    for name in NO_GENERATORS:
        link(tree / f"etc/systemd/system-generators/systemd-{name}-generator", "/dev/null")
    link(tree / "etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    put(tree / "etc/machine-id", b"", 0o444)
    (tree / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    (tree / "var/lib/dbus").mkdir(exist_ok=True)
    link(tree / "var/lib/dbus/machine-id", "/etc/machine-id")
    (tree / "var/lib/systemd/random-seed").unlink(missing_ok=True)
    # four programs at every login, to say which kernel this is
    shutil.rmtree(tree / "etc/update-motd.d", ignore_errors=True)
    write_sources(tree, release)
    version = kernel_version(tree)
    put(tree / "boot/grub/grub.cfg", grub_config(root_uuid, version).encode(), 0o600)
    (tree / "boot/grub/early.cfg").unlink()
    (tree / "boot/efi").mkdir(exist_ok=True)
    shutil.copytree(
        tree / "usr/lib/grub/i386-pc",
        tree / "boot/grub/i386-pc",
        ignore=shutil.ignore_patterns("*.img", "*.module", "kernel.exec"),
    )
    log = tree / "var/log"
    for old in [*log.glob("*.log"), *(log / "apt").glob("*")]:
        old.unlink()
    mark_updated(tree)


def link(place: Path, target: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(target)


def write_sources(tree: Path, release: str) -> None:
    """apt of the guest asks the mirrors the host asks, and checks with the keyring of its own."""
    entries = build_sources.host_entries(release)
    if entries:
        lines = [build_sources.one_line(entry, build_sources.KEYRING) for entry in entries]
        put(tree / "etc/apt/sources.list", "".join(f"{line}\n" for line in lines).encode())


def kernel_version(tree: Path) -> str:
    kernels = sorted((tree / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise Failed(
            "the packages brought no kernel", "look at the package linux-image-amd64 of the mirror"
        )
    return kernels[-1].name.removeprefix("vmlinuz-")


def mark_updated(tree: Path) -> None:
    """Tell systemd that /etc and /var fit /usr: else the first boot rebuilds half a dozen caches
    (ConditionNeedsUpdate).
    """
    stamp = (tree / "usr").stat().st_mtime_ns
    for place in ("etc/.updated", "var/.updated"):
        put(tree / place, f"# made by Virtuary\nTIMESTAMP_NSEC={stamp}\n".encode())
        os.utime(tree / place, ns=(stamp, stamp))


def size_for(used: int) -> int:
    """Virtual size of the disk for a tree of `used` bytes: 4 GiB, or what leaves 1 GiB free, in
    whole GiB.
    """
    return max(MIN_SIZE, -(-(used * 11 // 10 + GIB) // GIB) * GIB)


def tree_size(tree: Path) -> int:
    return sum(
        os.lstat(os.path.join(folder, name)).st_blocks * 512
        for folder, _, names in os.walk(tree)
        for name in names
    )


def pretty_name(tree: Path) -> str:
    for line in (tree / "etc/os-release").read_text(encoding="utf-8").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return "Debian"


def mmdebstrap_words(packages: tuple[str, ...]) -> list[str]:
    """mmdebstrap's words; package names are checked before and stand in one word of their own."""
    return [
        "--variant=minbase",
        f"--include={','.join((*PACKAGES, *packages))}",
        "--dpkgopt=force-unsafe-io",
        "--dpkgopt=force-confold",
        *(f"--dpkgopt={text}" for text in SKIPPED_FILES),
        "--essential-hook=sync-in overlay /",
        f'--customize-hook=chroot "$1" {GRUB_MKIMAGE} {GRUB_MODULES}',
    ]


async def make(
    release: str, arch: str, packages: tuple[str, ...], scratch: Path, report: build_tree.Report
) -> tuple[Path, int, str]:
    """Build in `scratch`; returns the raw disk, its size and the system's name."""
    root_uuid, esp_id = str(uuid.uuid4()), uuid.uuid4().hex[:8].upper()
    make_overlay(scratch / "overlay", root_uuid, esp_id)
    words = mmdebstrap_words(packages)
    lines = 1150 + 15 * len(packages)
    tree = await build_tree.bootstrap(
        scratch, release, arch, words, report, lines=lines, span=(0.02, 0.85)
    )
    report("writing the disk", 0.86)
    finish_tree(tree, release, root_uuid)
    size = size_for(tree_size(tree))
    layout = bootdisk.plan_layout(size)
    disk = scratch / "disk.raw"
    grub = (tree / "boot/grub/core.img").read_bytes()
    (tree / "boot/grub/core.img").unlink()
    boot = (tree / "usr/lib/grub/i386-pc/boot.img").read_bytes()
    await bootdisk.make_table(disk, layout)
    bootdisk.place_grub(disk, layout, boot, grub)
    await bootdisk.make_esp(
        disk,
        layout,
        tree,
        esp_id,
        early_config(root_uuid) + "configfile $prefix/grub.cfg\n",
        scratch,
    )
    await build_tree.fill_filesystem(
        tree, disk, layout.root.size, layout.root.start, label="root", uuid=root_uuid
    )
    return disk, size, pretty_name(tree)
