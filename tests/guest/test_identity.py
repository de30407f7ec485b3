"""The script that makes a copy a machine of its own: run for real against a folder, and closed to
hostile text.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.errors import Invalid
from virtuary.guest.identity import (
    Identity,
    Place,
    Renewal,
    copy_lines,
    dropbear_key,
    renewed_dmi,
    script,
    settle_script,
    strip_script,
)

KEYS = ("ssh-ed25519 AAAA ada@home", "ssh-ed25519 BBBB $(reboot) `id` {0} \\ '\"")


def give(root: Path, identity: Identity) -> None:
    """Run the script as a guest would, but with /etc, /root and /proc below `root` and no right to
    name the machine.
    """
    text = script(identity).decode()
    for folder in ("/etc", "/root", "/proc/sys/kernel"):
        (root / folder[1:]).mkdir(parents=True, exist_ok=True)
    text = (
        text.replace("/etc/", f"{root}/etc/")
        .replace("/root/", f"{root}/root/")
        .replace("/proc/", f"{root}/proc/")
    )
    text = text.replace('hostname "$hostname" 2>', "false 2>").replace("\nsync\n", "\n")
    done = subprocess.run(["/bin/sh"], input=text, text=True, capture_output=True, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_guest_becomes_who_it_is_told_to_be(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").write_text(
        "127.0.0.1 localhost\n127.0.1.1 template\n192.0.2.1 friend\n"
    )
    give(tmp_path, Identity("web1", KEYS))
    assert (tmp_path / "etc/hostname").read_text() == "web1\n"
    assert (tmp_path / "proc/sys/kernel/hostname").read_text() == "web1\n"
    assert (
        tmp_path / "etc/hosts"
    ).read_text() == "127.0.0.1 localhost\n192.0.2.1 friend\n127.0.1.1 web1\n"
    assert (tmp_path / "root/.ssh/authorized_keys").read_text() == "\n".join(KEYS) + "\n"
    modes = [
        (tmp_path / name).stat().st_mode & 0o777
        for name in ("root/.ssh", "root/.ssh/authorized_keys", "etc/hosts", "etc/hostname")
    ]
    assert modes == [0o700, 0o600, 0o644, 0o644]


def test_giving_it_twice_or_anew_changes_nothing_else(tmp_path: Path) -> None:
    give(tmp_path, Identity("web1", KEYS))
    once = {
        path: sorted(path.read_bytes().splitlines())
        for path in tmp_path.rglob("*")
        if path.is_file()
    }
    give(tmp_path, Identity("web1", KEYS))
    assert {
        path: sorted(path.read_bytes().splitlines())
        for path in tmp_path.rglob("*")
        if path.is_file()
    } == once
    give(tmp_path, Identity("web2", KEYS[:1]))
    assert (tmp_path / "etc/hosts").read_text() == "127.0.0.1 localhost\n127.0.1.1 web2\n"
    assert (tmp_path / "root/.ssh/authorized_keys").read_text().splitlines() == list(KEYS)
    assert not list(tmp_path.rglob("*.virtuary"))


OURS = ("ssh-ed25519 CCCC virtuary", KEYS[0])


def test_who_else_may_log_in_is_left_to_the_guest(tmp_path: Path) -> None:
    place = tmp_path / "root/.ssh/authorized_keys"
    place.parent.mkdir(parents=True)
    place.write_text(
        '# mine\nssh-rsa OWN me@home\nssh-ed25519 OLD virtuary\nfrom="10.0.0.1" ssh-ed25519 AAAA '
        "ada@home\nssh-rsa LAST"
    )
    for name in ("web1", "www"):
        give(tmp_path, Identity(name, OURS))
        lines = place.read_text().splitlines()
        assert sorted(lines) == sorted(
            [
                "# mine",
                "ssh-rsa OWN me@home",
                'from="10.0.0.1" ssh-ed25519 AAAA ada@home',
                "ssh-rsa LAST",
                "ssh-ed25519 CCCC virtuary",
            ]
        )


def test_a_disk_that_is_full_leaves_all_as_it_was(tmp_path: Path) -> None:
    for name, text in (
        ("etc/hostname", "web1\n"),
        ("etc/hosts", "127.0.0.1 localhost\n"),
        ("root/.ssh/authorized_keys", "ssh-rsa OWN me\n"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for spoiled in before:
        (tmp_path / f"{spoiled}.virtuary").symlink_to("/dev/full")
        text = script(Identity("www", OURS)).decode()
        text = (
            text.replace("/etc/", f"{tmp_path}/etc/")
            .replace("/root/", f"{tmp_path}/root/")
            .replace('hostname "$', 'false "$')
        )
        text = text.replace("chmod", "true").replace('echo "$hostname" > /proc', "exit 9 # ")
        done = subprocess.run(["/bin/sh"], input=text, text=True, capture_output=True, cwd=tmp_path)
        assert done.returncode not in (0, 9) and "No space left" in done.stderr
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_link_in_the_place_of_a_file_stays_one(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/real").write_text("old\n")
    (tmp_path / "etc/hostname").symlink_to("real")
    give(tmp_path, Identity("web1", KEYS))
    assert (tmp_path / "etc/hostname").is_symlink() and (
        tmp_path / "etc/real"
    ).read_text() == "web1\n"


@pytest.mark.parametrize(
    "shell", [["sh"], ["dash"], ["busybox", "sh"], ["bash", "--posix"]], ids=" ".join
)
def test_every_shell_of_a_guest_can_read_it(shell: list[str]) -> None:
    if not shutil.which(shell[0]):
        pytest.skip(f"{shell[0]} is not installed")
    done = subprocess.run([*shell, "-n"], input=script(Identity("web1", KEYS)), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "name", ["", "a b", "a;reboot", "$(id)", "a\nb", "`id`", "a'b", "../x", "a\0b", "-", "--"]
)
def test_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        script(Identity(name, ()))


@pytest.mark.parametrize(
    "key", ["a\nEND-OF-KEYS\nreboot", "END-OF-KEYS", "a\x1b[2J", "a\0b", "a\rb", "a\u2028b"]
)
def test_a_hostile_key_is_refused(key: str) -> None:
    with pytest.raises(Invalid):
        script(Identity("web1", (key,)))


@given(st.text(max_size=20), st.lists(st.text(max_size=40), max_size=3))
def test_whatever_is_taken_stays_in_its_place(name: str, keys: list[str]) -> None:
    try:
        text = script(Identity(name, tuple(keys))).decode()
    except Invalid:
        return
    head, _, rest = text.partition("<<'END-OF-KEYS'\n")
    body, _, tail = rest.partition("\nEND-OF-KEYS\n")
    assert body == "\n".join(keys) and tail.endswith("\nsync\n") and tail.startswith(")\n")
    assert head.splitlines()[2] == f"hostname={name}" and name.replace("-", "").isalnum()


# ---- copies

RENEWAL = Renewal(
    uuid="5f3c5a80-2a6b-4a5e-9d8e-0123456789ab", old_mac="52:54:00:00:00:01",
    mac="52:54:00:00:00:02", machine_id="a" * 32,
    boot_id="b" * 36, host_key="-----BEGIN\nx'y\n-----END", host_key_public="ssh-ed25519 AAAA it's",
    entropy="0f" * 64, now=1.5,
)  # fmt: skip
FULL = replace(
    RENEWAL,
    host_key=RENEWAL.host_key,
    cpus=4,
    grown=2**32,
    dmi=bytes(range(256)),
    seed=(("user-data", b"#cloud-config\n'\n"),),
)


def a_key(folder: Path) -> str:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "it's", "-f", folder / "key"],
        check=True,
        timeout=20,
    )
    return (folder / "key").read_text().strip()


@pytest.mark.parametrize(
    "shell", [["sh"], ["dash"], ["busybox", "sh"], ["bash", "--posix"]], ids=" ".join
)
@pytest.mark.parametrize("text", ["settle", "strip"])
def test_every_shell_can_read_what_a_template_is_told(shell: list[str], text: str) -> None:
    if not shutil.which(shell[0]):
        pytest.skip(f"{shell[0]} is not installed")
    told = {"settle": settle_script(), "strip": strip_script()}[text]
    done = subprocess.run([*shell, "-n"], input=told, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def parse(told: bytes) -> list[tuple[str, bytes]]:
    """Lines for awaken.c as it reads them: each with the bytes that follow it."""
    found = []
    while told:
        line, _, told = told.partition(b"\n")
        words = line.decode().split(" ")
        size = (
            int(words[{"f": 2, "o": 2, "e": 2, "x": 1, "z": 1}[words[0]]])
            if words[0] in "foexz"
            else None
        )
        found.append((line.decode(), told[:size] if size is not None else b""))
        if size is not None:
            assert told[size : size + 1] == b"\n"
            told = told[size + 1 :]
    return found


def test_a_copy_is_told_all_that_it_is(tmp_path: Path) -> None:
    renewal = replace(
        FULL,
        host_key=a_key(tmp_path),
        place=Place("10.1.2.3/24", "10.1.2.1", "10.1.2.1", "lan"),
        lag=0.25,
    )
    lines = parse(copy_lines(Identity("web1", KEYS), renewal))
    told = [line for line, _ in lines]
    assert told[0] == "n 525400000001", "the interface is looked for before anything is done"
    assert told[1:6] == [
        f"s {'0f' * 64}",
        "t 1 500000000 250000000",
        "h web1",
        "m 525400000002",
        "a 0a010203 ffffff00 0a010201",
    ]
    assert told[-3:] == ["y", "w 5000", "l 2000 /etc/dropbear"]
    files = {
        line.split(" ")[3]: (line.split(" ")[1], content)
        for line, content in lines
        if line[0] in "foe"
    }
    assert files["/etc/hostname"] == ("644", b"web1\n") and files["/etc/machine-id"] == (
        "644",
        b"a" * 32 + b"\n",
    )
    assert files["/root/.ssh/authorized_keys"] == (
        "600",
        "".join(f"{key}\n" for key in KEYS).encode(),
    )
    assert files["/etc/ssh/ssh_host_ed25519_key"] == ("600", renewal.host_key.encode() + b"\n")
    assert files["/run/virtuary/DMI"] == ("400", bytes(range(256)))
    assert files["/var/lib/cloud/seed/nocloud/user-data"] == ("600", b"#cloud-config\n'\n")
    assert files["/run/resolv.conf"][1] == b"search lan\nnameserver 10.1.2.1\n"
    scripts = [content.decode() for line, content in lines if line[0] in "xz"]
    for each in scripts:
        assert subprocess.run(["sh", "-n"], input=each.encode(), capture_output=True).stderr == b""
    assert (
        sum("cpu$number" in each for each in scripts)
        == sum("resize2fs" in each for each in scripts)
        == 1
    )


def test_a_copy_alone_on_its_network_keeps_its_address(tmp_path: Path) -> None:
    renewal = replace(RENEWAL, host_key=a_key(tmp_path))
    told = [line for line, _ in parse(copy_lines(Identity("web1", KEYS), renewal))]
    assert [line.split(" ")[2:] for line in told if line[0] == "z"] == [
        ["15", "/run/systemd/system"],
        ["15", "/run/virtuary/udhcpc"],
    ]
    seeded = copy_lines(Identity("web1", KEYS), replace(renewal, seed=FULL.seed))
    assert [line.split(" ")[2] for line, _ in parse(seeded) if line[0] == "z"] == ["5", "5"], (
        "somebody waits for cloud-init"
    )
    assert "M 525400000002" in told and not [line for line in told if line.startswith(("m ", "a "))]
    assert "t 1 500000000 " in told, "without a lag its clock can't tell how late the lines are"


def test_a_host_key_has_the_form_dropbear_reads(tmp_path: Path) -> None:
    text = a_key(tmp_path)
    kind, rest = _take(dropbear_key(text))
    both, rest = _take(rest)
    public = base64.b64decode((tmp_path / "key.pub").read_text().split()[1])
    assert kind == b"ssh-ed25519" and len(both) == 64 and rest == b"" and public.endswith(both[32:])


def _take(data: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(data[:4], "big")
    return data[4 : 4 + size], data[4 + size :]


def test_the_machine_s_tables_show_the_copy_s_uuid() -> None:
    old, new = "00112233-4455-6677-8899-aabbccddeeff", "5f3c5a80-2a6b-4a5e-9d8e-0123456789ab"
    tables = b"\1\x1b\0\1" + bytes.fromhex("33221100554477668899aabbccddeeff") + b"rest"
    assert (
        renewed_dmi(tables, old, new)
        == b"\1\x1b\0\1" + bytes.fromhex("805a3c5f6b2a5e4a9d8e0123456789ab") + b"rest"
    )
