"""The tiny image: Debian's cloud kernel, busybox, dropbear and the guest agent on a small
persistent root disk.

Nothing is installed in the sense of dpkg: the packages are only extracted, and the few files that
are used are picked from them, with their copyright files. It boots by -kernel and -initrd only;
tests and quick experiments live on it.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from virtuary.base.errors import Failed
from virtuary.base.units import MIB
from virtuary.images import build_tree
from virtuary.images.build_elf import Modules, libraries_of
from virtuary.images.build_sources import CODENAMES

PACKAGES = (
    "linux-image-cloud-amd64",
    "busybox-static",
    "dropbear-bin",
    "qemu-guest-agent",
    "e2fsprogs",
    "openssh-sftp-server",
    "openssh-client",
)
# scp and sftp-server come from OpenSSH, so that both `scp` and `scp -O` work; `cat` and `tar` over
# ssh are busybox's
PROGRAMS = ("busybox", "dropbear", "dropbearkey", "qemu-ga", "resize2fs", "scp")
FIRST_MODULES = ("virtio_pci", "virtio_blk", "virtio_console")
ROOT_MODULES = (
    *FIRST_MODULES, "virtio_net", "virtio_rng", "virtio_balloon", "virtio_mem", "virtio_scsi",
    "virtio_pmem", "virtio_input",
    "vmgenid", "button", "evdev", "pvpanic_pci", "virtiofs", "9p", "9pnet_virtio",
    "vmw_vsock_virtio_transport", "overlay", "isofs", "vfat",
    "nls_ascii", "nls_cp437", "sd_mod", "sr_mod", "nvme", "ahci", "i6300esb", "e1000", "e1000e",
    "8021q", "bridge", "dummy",
    "tun", "loop", "ext4", "squashfs", "xfs",
)  # fmt: skip
OWN_WORDS = ("poweroff", "reboot", "halt", "shutdown")
DISK_SIZE = 256 * MIB
KERNEL_ARGS = (
    "console=ttyS0 root=/dev/vda rw quiet random.trust_cpu=on no_timer_check cryptomgr.notests "
    "i8042.noaux 8250.nr_uarts=1"
    # a machine that can grow beyond 4 GiB would put 64 MiB aside for devices it has not
    " swiotlb=noforce"
)
PLACES = {
    "inittab": "etc/inittab", "profile": "etc/profile", "shutdown": "usr/sbin/shutdown",
    "power-button": "etc/acpi/PWRF/00000080",
    **{name: f"etc/init.d/{name}" for name in ("boot", "agent", "network", "lease", "ssh", "power",
    "autologin", "stop")},
}  # fmt: skip
TEXTS = {
    "etc/hostname": "tiny\n",
    "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/shells": "/bin/sh\n",
    "etc/fstab": "/dev/root / ext4 rw,noatime 0 1\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
    "etc/ld.so.conf": "/usr/lib/x86_64-linux-gnu\n",
    "etc/udhcpc/default.script": '#!/bin/sh\nexec /etc/init.d/lease "$@"\n',
}
FOLDERS = (
    "dev",
    "proc",
    "sys",
    "run",
    "tmp",
    "root",
    "mnt",
    "etc/dropbear",
    "var/lib",
    "var/log",
    "usr/share/doc",
    "usr/lib/x86_64-linux-gnu",
)


def pretty_name(release: str) -> str:
    return f"Virtuary tiny (Debian {release} {CODENAMES[release]} packages)"


def release_text(release: str) -> str:
    return (
        f'PRETTY_NAME="{pretty_name(release)}"\nNAME="Virtuary '
        f'tiny"\nID=virtuary-tiny\nID_LIKE=debian\nVERSION_ID="{release}"\n'
    )


def find_in(tree: Path, name: str) -> Path:
    for folder in ("usr/bin", "bin", "usr/sbin", "sbin", "usr/lib/openssh"):
        if (path := tree / folder / name).is_file():
            return path
    raise Failed(
        f"the packages lack the program {name}",
        "this is a defect of Virtuary's list of packages for the tiny image",
    )


def guest_file(kind: str, name: str) -> bytes:
    return (resources.files("virtuary.images.guest_files") / kind / name).read_bytes()


def put(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file of the guest with the mode it has there, whatever the caller's umask is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def make_root(tree: Path, root: Path, release: str, modules: Modules, version: str) -> None:
    """Fill `root` with what the image holds, picked from the extracted packages in `tree`."""
    for folder in ("", *FOLDERS, "usr/bin", "usr/sbin", "usr/lib64"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for link in ("bin", "sbin", "lib", "lib64"):
        (root / link).symlink_to(f"usr/{link}")
    programs = [find_in(tree, name) for name in (*PROGRAMS, "sftp-server")]
    for program in programs[:-1]:
        put(root / "usr/bin" / program.name, program.read_bytes(), 0o755)
    put(root / "usr/lib/openssh/sftp-server", programs[-1].read_bytes(), 0o755)
    (root / "usr/lib/sftp-server").symlink_to("openssh/sftp-server")
    for name, library in libraries_of(tree, programs).items():
        put(root / "usr/lib/x86_64-linux-gnu" / name, library.read_bytes(), 0o755)
    (root / "usr/lib64/ld-linux-x86-64.so.2").symlink_to(
        "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    )
    link_applets(root)
    for name, place in PLACES.items():
        put(
            root / place,
            guest_file("tiny", name),
            0o644 if name in ("inittab", "profile") else 0o755,
        )
    for name in OWN_WORDS[:-1]:
        (root / "usr/sbin" / name).symlink_to("shutdown")
    for place, text in {**TEXTS, "etc/os-release": release_text(release)}.items():
        put(
            root / place,
            text.encode(),
            0o755 if place.endswith(".script") else 0o600 if place == "etc/shadow" else 0o644,
        )
    (root / "etc/resolv.conf").symlink_to("../run/resolv.conf")
    (root / "etc/mtab").symlink_to("../proc/self/mounts")
    (root / "var/run").symlink_to("../run")
    (root / "var/tmp").symlink_to("../tmp")
    copy_modules(root / "usr/lib/modules" / version, modules)
    copy_licences(tree, root)
    fix_modes(root)


def link_applets(root: Path) -> None:
    """A link in /usr/bin or /usr/sbin for each of busybox's commands, as busybox itself lists
    them.
    """
    listed = subprocess.run(
        [root / "usr/bin/busybox", "--list-full"],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    ).stdout.split()
    for place in [*listed, "sbin/init"]:
        folder, _, name = place.rpartition("/")
        path = root / ("usr/sbin" if folder.endswith("sbin") else "usr/bin") / name
        # the link's target is on the guest's side, not here
        if name not in OWN_WORDS and not os.path.lexists(path):
            path.symlink_to("/usr/bin/busybox")


def copy_modules(target: Path, modules: Modules) -> None:
    """The modules worth having, decompressed, with the modules.dep that busybox's modprobe
    reads.
    """
    lines = []
    for name in modules.ordered(ROOT_MODULES):
        put(target / f"{name}.ko", modules.content(name))
        chain = [f"{other}.ko" for other in reversed(modules.ordered(modules.needs(name)))]
        lines.append(f"{name}.ko: {' '.join(chain)}\n")
    put(target / "modules.dep", "".join(lines).encode())


def copy_licences(tree: Path, root: Path) -> None:
    for notice in sorted((tree / "usr/share/doc").glob("*/copyright")):
        if notice.is_file():
            put(root / "usr/share/doc" / notice.parent.name / "copyright", notice.read_bytes())


def fix_modes(root: Path) -> None:
    """Folders as a server has them, whatever the caller's umask is."""
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o755)  # noqa: S103
    os.chmod(root / "root", 0o700)
    os.chmod(root / "tmp", 0o1777)  # noqa: S103


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """An initramfs archive ("newc") of (name, mode, content); everything belongs to root."""
    out = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        raw = name.encode() + b"\0"
        # the only device ever put in is the console
        device = (5, 1) if stat.S_ISCHR(mode) else (0, 0)
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(raw), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)


def make_initrd(busybox: bytes, modules: Modules) -> bytes:
    """The initial RAM disk: busybox, the drivers of the root disk and of the agent, one script; not
    compressed (fastest).
    """
    entries = [(folder, stat.S_IFDIR | 0o755, b"") for folder in ("bin", "dev", "proc", "m", "new")]
    entries.append(("dev/console", stat.S_IFCHR | 0o600, b""))
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, busybox))
    entries.append(("init", stat.S_IFREG | 0o755, guest_file("tiny", "initrd-init")))
    for number, name in enumerate(modules.ordered(FIRST_MODULES)):
        entries.append((f"m/{number:02d}-{name}", stat.S_IFREG | 0o644, modules.content(name)))
    return cpio(entries)


async def make(
    release: str, arch: str, scratch: Path, into: Path, report: build_tree.Report
) -> tuple[Path, Path, Path]:
    """Build in `scratch`; returns the raw disk, the kernel and the initrd, the last two in
    `into`.
    """
    words = ["--variant=extract", f"--include={','.join(PACKAGES)}"]
    tree = await build_tree.bootstrap(
        scratch, release, arch, words, report, lines=60, span=(0.02, 0.7)
    )
    report("picking files", 0.72)
    kernel = next((tree / "boot").glob("vmlinuz-*"))
    version = kernel.name.removeprefix("vmlinuz-")
    modules = Modules(
        next(
            path
            for path in (tree / "usr/lib/modules" / version, tree / "lib/modules" / version)
            if path.is_dir()
        )
    )
    root = scratch / "root"
    make_root(tree, root, release, modules, version)
    shutil.copyfile(kernel, into / "kernel")
    (into / "initrd").write_bytes(make_initrd((root / "usr/bin/busybox").read_bytes(), modules))
    report("writing the disk", 0.85)
    disk = scratch / "disk.raw"
    with open(disk, "wb") as handle:
        handle.truncate(DISK_SIZE)
    await build_tree.fill_filesystem(root, disk, DISK_SIZE, 0, label="tiny")
    return disk, into / "kernel", into / "initrd"
