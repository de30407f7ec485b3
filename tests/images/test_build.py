"""Building images: what is decided without building, and (live) that the tiny image boots and obeys
its agent.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from virtuary.base.errors import Failed, HostLacks, Invalid, NoRoom
from virtuary.base.units import GIB, MIB
from virtuary.images import (
    bootdisk,
    build,
    build_debian,
    build_elf,
    build_sources,
    build_tiny,
    build_tree,
)

DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main contrib

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] https://vendor.example/apt stable-vendor main
deb http://old.example/debian/ bookworm main non-free # trailing
deb-src http://old.example/debian bookworm main
"""


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a",
        "-y",
        "--option=x",
        "Upper",
        "a b",
        "a,b",
        "a;reboot",
        "$(id)",
        "../etc",
        "a/b",
        "a=1",
        "a\n",
        "?name(x)",
        "~nx",
        "bash-",
        "é1",
        "x" * 200,
    ],
)
def test_hostile_package_names_are_refused(name: str) -> None:
    with pytest.raises(Invalid):
        build.Recipe("debian", packages=(name,))


@pytest.mark.parametrize(
    "name", ["postgresql", "g++", "libstdc++6", "python3.11", "0ad", "linux-image-6.1.0-9-amd64"]
)
def test_ordinary_package_names_are_taken(name: str) -> None:
    assert build.Recipe("debian", packages=(name,)).packages == (name,)


@pytest.mark.parametrize(
    "words",
    [
        {"kind": "huge"},
        {"kind": "debian", "release": "11"},
        {"kind": "tiny", "arch": "m68k"},
        {"kind": "tiny", "packages": ("nano",)},
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(words: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        build.Recipe(**words)  # type: ignore[arg-type]


def test_package_names_reach_mmdebstrap_as_one_word() -> None:
    include = [
        word
        for word in build_debian.mmdebstrap_words(("postgresql", "g++"))
        if word.startswith("--include=")
    ]
    assert len(include) == 1 and include[0].endswith(",postgresql,g++")


def test_deb822_is_read_without_disabled_entries() -> None:
    entries = list(build_sources.parse_deb822(DEB822))
    assert [(entry.uri, entry.suite) for entry in entries] == [
        ("http://mirror.example/debian", "bookworm"),
        ("http://mirror.example/debian", "bookworm-updates"),
        ("http://mirror.example/debian-security", "bookworm-security"),
    ]
    assert entries[0].signed_by == build_sources.KEYRING and entries[2].signed_by is None


def test_one_line_entries_are_read_with_their_options() -> None:
    vendor, old = build_sources.parse_list(ONE_LINE)
    assert vendor.signed_by == "/k.gpg"
    assert old == build_sources.Entry("http://old.example/debian", "bookworm", ("main", "non-free"))


def test_the_guests_release_replaces_the_hosts_and_vendors_are_left_out() -> None:
    entries = [*build_sources.parse_list(ONE_LINE), *build_sources.parse_deb822(DEB822)]
    chosen = build_sources.choose_entries(entries, "13")
    assert [(entry.uri, entry.suite) for entry in chosen] == [
        ("http://old.example/debian", "trixie"),
        ("http://mirror.example/debian", "trixie-updates"),
        ("http://mirror.example/debian-security", "trixie-security"),
    ]


def test_a_host_that_is_not_debian_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "apt").mkdir()
    (tmp_path / "apt/sources.list").write_text(ONE_LINE)
    (tmp_path / "os-release").write_text("ID=ubuntu\nID_LIKE=debian\n")
    assert build_sources.host_entries("12", tmp_path) == []
    (tmp_path / "os-release").write_text('ID="debian"\n')
    assert [entry.suite for entry in build_sources.host_entries("12", tmp_path)] == ["bookworm"]


def test_boot_sector_is_told_where_the_core_image_starts() -> None:
    boot = bytes(range(256)) + bytes(254) + b"\x55\xaa"
    patched = bootdisk.patch_boot(boot, 2048)
    assert len(patched) == 440
    assert struct.unpack_from("<Q", patched, 0x5C) == (2048,)
    assert patched[0x66:0x68] == b"\x90\x90"
    changed = {place for place in range(440) if patched[place] != boot[place]}
    assert changed <= {*range(0x5C, 0x64), 0x66, 0x67}


def test_core_image_is_told_where_its_rest_is() -> None:
    patched = bootdisk.patch_core(bytes(1300), 2048, MIB)
    assert len(patched) == 1536
    assert struct.unpack_from("<QHH", patched, 500) == (2049, 2, 0x820)


def test_what_is_not_grub_is_refused() -> None:
    for boot in (b"", bytes(512)):
        with pytest.raises(Failed):
            bootdisk.patch_boot(boot, 1)
    with pytest.raises(Failed):
        bootdisk.patch_core(bytes(2 * MIB), 2048, MIB)
    with pytest.raises(Failed):
        bootdisk.patch_core(bytes(100), 2048, MIB)


def test_partitions_do_not_overlap_and_the_root_is_last() -> None:
    layout = bootdisk.plan_layout(4 * GIB)
    parts = [layout.bios, layout.esp, layout.root]
    assert all(a.start + a.size <= b.start for a, b in itertools.pairwise(parts))
    assert all(part.start % MIB == 0 for part in parts)
    assert layout.root.start + layout.root.size <= layout.size - 33 * 512


@pytest.mark.skipif(
    not shutil.which("sfdisk", path="/usr/sbin:/sbin:/usr/bin"), reason="sfdisk is missing"
)
@pytest.mark.slow
async def test_grub_is_placed_around_the_partition_table(tmp_path: Path) -> None:
    disk, layout = tmp_path / "disk", bootdisk.plan_layout(256 * MIB)
    await bootdisk.make_table(disk, layout)
    before = disk.read_bytes()
    bootdisk.place_grub(disk, layout, bytes(510) + b"\x55\xaa", b"\xeb" * 1024)
    after = disk.read_bytes()
    assert after[440 : layout.bios.start] == before[440 : layout.bios.start]
    assert after[layout.bios.start + 512 : layout.bios.start + 1024] == b"\xeb" * 512


def test_disk_leaves_room_beyond_large_packages() -> None:
    assert build_debian.size_for(800 * MIB) == 4 * GIB
    assert build_debian.size_for(10 * GIB) == 12 * GIB


def test_every_guest_file_is_readable_as_package_data() -> None:
    for name in build_debian.FILES:
        assert build_tiny.guest_file("debian", name)
    for name in (*build_tiny.PLACES, "initrd-init"):
        assert build_tiny.guest_file("tiny", name)


def test_shell_scripts_of_the_guests_are_well_formed() -> None:
    for kind, names in (
        ("debian", build_debian.RUNNABLE),
        ("tiny", {*build_tiny.PLACES, "initrd-init"} - {"inittab", "profile"}),
    ):
        for name in names:
            subprocess.run(["sh", "-n"], input=build_tiny.guest_file(kind, name), check=True)


def test_initrd_is_a_newc_archive() -> None:
    archive = build_tiny.cpio([("init", 0o100755, b"#!/bin/sh\n")])
    assert archive[:6] == b"070701" and len(archive) % 4 == 0
    assert archive.endswith(b"TRAILER!!!\0\0\0\0") or b"TRAILER!!!" in archive


def test_libraries_of_a_real_program_are_found() -> None:
    names = build_elf.needed(Path("/bin/sh").read_bytes())
    assert any(name.startswith("libc.so") for name in names)
    assert build_elf.needed(b"#!/bin/sh") == []


def test_modules_are_loaded_after_what_they_need(tmp_path: Path) -> None:
    for name, needs in {
        "virtio-pci": "virtio,virtio_ring",
        "virtio_ring": "virtio",
        "virtio": "",
    }.items():
        (tmp_path / f"{name}.ko").write_bytes(
            b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0"
        )
    assert build_elf.Modules(tmp_path).ordered(["virtio_pci", "built_in"]) == [
        "virtio",
        "virtio_ring",
        "virtio_pci",
    ]


def test_progress_grows_and_speaks() -> None:
    said: list[tuple[str, float | None]] = []
    progress = build_tree.Progress(lambda text, done: said.append((text, done)), 3, 0.1, 0.5)
    for line in (
        "I: running apt-get update...",
        "Unpacking nano (7.2-1) ...",
        "Setting up nano (7.2-1) ...",
        "Get:1 x",
        "Get:2 x",
    ):
        progress.last = 0
        progress.line(line)
    fractions = [done for _, done in said if done is not None]
    assert fractions == sorted(fractions) and fractions[-1] == 0.5
    assert said[2][0] == "setting up nano"


def test_apts_complaint_becomes_the_sentence() -> None:
    failure = build_tree.explain(
        ["Unable to locate package nosuch", "apt-get failed"], Failed("mmdebstrap failed")
    )
    assert failure.sentence == "the archive has no package nosuch"


def test_what_is_missing_comes_with_the_command_that_mends_it() -> None:
    with pytest.raises(HostLacks) as caught:
        build_tree.require(["mcopy", "newgidmap"])
    assert caught.value.hint == "apt install mtools uidmap"
    build_tree.require([])


async def test_a_folder_that_is_not_empty_or_too_small_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = build.Recipe("tiny")
    monkeypatch.setattr(build, "estimate_space", lambda _: 2**60)
    with pytest.raises(NoRoom):
        build.check_folder(recipe, tmp_path)
    (tmp_path / "mine").touch()
    with pytest.raises(Invalid):
        build.check_folder(recipe, tmp_path)


@pytest.mark.parametrize(
    "error", [Failed("no"), OSError(28, "No space left on device"), asyncio.CancelledError()]
)
async def test_failure_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    async def break_off(
        release: str, arch: str, scratch: Path, into: Path, report: build_tree.Report
    ) -> None:
        (scratch / "tree").mkdir()
        (into / "kernel").touch()
        raise error

    monkeypatch.setattr(build_tree, "missing_programs", lambda _: [])
    monkeypatch.setattr(build_tiny, "make", break_off)
    with pytest.raises((Failed, asyncio.CancelledError)):
        await build.build(build.Recipe("tiny"), tmp_path, lambda text, done: None)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> build.Built:
    recipe = build.Recipe("tiny")
    if missing := build.missing_programs(recipe):
        pytest.skip(f"this host lacks {', '.join(missing)}")
    return asyncio.run(
        build.build(recipe, tmp_path_factory.mktemp("tiny"), lambda text, done: None)
    )


class Agent:
    """The least that speaks to qemu-ga: one request, one reply."""

    def __init__(self, path: Path, deadline: float) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        until = time.monotonic() + deadline
        while not path.exists():
            time.sleep(0.05)
            assert time.monotonic() < until
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")
        self.ask("guest-sync", id=7)  # waits in the port until the agent is there

    def ask(self, command: str, **arguments: object) -> Any:
        self.socket.settimeout(40)
        self.socket.sendall(
            json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
        )
        return json.loads(self.file.readline())


@pytest.fixture
def guest(tiny: build.Built, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    overlay, size = tmp_path / "overlay.qcow2", "512M"
    subprocess.run(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            str(tiny.disk),
            "-F",
            "qcow2",
            str(overlay),
            size,
        ],
        check=True,
    )
    process = subprocess.Popen(
        [
            "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
            "-m", "256", "-nodefaults",
            "-display", "none", "-kernel", str(tiny.kernel), "-initrd", str(tiny.initrd), "-append",
            tiny.kernel_args,
            "-drive", f"if=none,id=root,file={overlay},format=qcow2", "-device",
            "virtio-blk-pci,drive=root",
            "-device", "virtio-serial-pci", "-chardev",
            f"socket,id=agent,path={tmp_path}/agent,server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0", "-serial",
            "null",
        ]
    )  # fmt: skip
    yield process, tmp_path / "agent"
    if process.poll() is None:
        process.kill()
    process.wait()


@pytest.mark.live
def test_tiny_image_has_what_it_promises(tiny: build.Built) -> None:
    assert tiny.agent and not tiny.cloud_init and tiny.firmware == () and tiny.user == "root"
    assert (
        tiny.kernel
        and tiny.initrd
        and sorted(os.listdir(tiny.disk.parent)) == ["disk.qcow2", "initrd", "kernel"]
    )
    assert subprocess.run(["qemu-img", "check", "-q", str(tiny.disk)]).returncode == 0


@pytest.mark.live
def test_tiny_guest_answers_grows_and_powers_off(
    guest: tuple[subprocess.Popen[bytes], Path],
) -> None:
    process, path = guest
    agent = Agent(path, deadline=40)
    assert agent.ask(
        "guest-ssh-add-authorized-keys", username="root", keys=["ssh-ed25519 AAAA x"]
    ) == {"return": {}}
    until = time.monotonic() + 15
    while time.monotonic() < until:
        root = agent.ask("guest-get-fsinfo")["return"]
        if root[0]["total-bytes"] > 400 * MIB:
            break
        time.sleep(0.5)
    assert root[0]["total-bytes"] > 400 * MIB
    agent.socket.sendall(b'{"execute": "guest-shutdown"}\n')
    assert process.wait(20) == 0
