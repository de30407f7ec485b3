"""The script that makes a copy a machine of its own: run for real against a folder, and closed to hostile text."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtuary.base.errors import Invalid
from virtuary.guest.identity import Identity, script

KEYS = ("ssh-ed25519 AAAA ada@home", "ssh-ed25519 BBBB $(reboot) `id` {0} \\ '\"")


def give(root: Path, identity: Identity) -> None:
    """Run the script as a guest would, but with /etc, /root and /proc below `root` and no right to name the machine."""
    text = script(identity).decode()
    for folder in ("/etc", "/root", "/proc/sys/kernel"):
        (root / folder[1:]).mkdir(parents=True, exist_ok=True)
    text = text.replace("/etc/", f"{root}/etc/").replace("/root/", f"{root}/root/").replace("/proc/", f"{root}/proc/")
    text = text.replace('hostname "$hostname" 2>', "false 2>").replace("\nsync\n", "\n")
    done = subprocess.run(["/bin/sh"], input=text, text=True, capture_output=True, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_guest_becomes_who_it_is_told_to_be(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 template\n192.0.2.1 friend\n")
    give(tmp_path, Identity("web1", KEYS))
    assert (tmp_path / "etc/hostname").read_text() == "web1\n"
    assert (tmp_path / "proc/sys/kernel/hostname").read_text() == "web1\n"
    assert (tmp_path / "etc/hosts").read_text() == "127.0.0.1 localhost\n192.0.2.1 friend\n127.0.1.1 web1\n"
    assert (tmp_path / "root/.ssh/authorized_keys").read_text() == "\n".join(KEYS) + "\n"
    modes = [
        (tmp_path / name).stat().st_mode & 0o777
        for name in ("root/.ssh", "root/.ssh/authorized_keys", "etc/hosts", "etc/hostname")
    ]
    assert modes == [0o700, 0o600, 0o644, 0o644]


def test_giving_it_twice_or_anew_changes_nothing_else(tmp_path: Path) -> None:
    give(tmp_path, Identity("web1", KEYS))
    once = {path: sorted(path.read_bytes().splitlines()) for path in tmp_path.rglob("*") if path.is_file()}
    give(tmp_path, Identity("web1", KEYS))
    assert {path: sorted(path.read_bytes().splitlines()) for path in tmp_path.rglob("*") if path.is_file()} == once
    give(tmp_path, Identity("web2", KEYS[:1]))
    assert (tmp_path / "etc/hosts").read_text() == "127.0.0.1 localhost\n127.0.1.1 web2\n"
    assert (tmp_path / "root/.ssh/authorized_keys").read_text() == KEYS[0] + "\n"


@pytest.mark.parametrize("shell", [["sh"], ["dash"], ["busybox", "sh"], ["bash", "--posix"]], ids=" ".join)
def test_every_shell_of_a_guest_can_read_it(shell: list[str]) -> None:
    if not shutil.which(shell[0]):
        pytest.skip(f"{shell[0]} is not installed")
    done = subprocess.run([*shell, "-n"], input=script(Identity("web1", KEYS)), capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", ["", "a b", "a;reboot", "$(id)", "a\nb", "`id`", "a'b", "../x", "a\0b", "-", "--"])
def test_a_hostile_name_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        script(Identity(name, ()))


@pytest.mark.parametrize("key", ["a\nEND-OF-KEYS\nreboot", "END-OF-KEYS", "a\x1b[2J", "a\0b", "a\rb", "a\u2028b"])
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
    assert body == "\n".join(keys) and tail == "sync\n"
    assert head.splitlines()[2] == f"hostname={name}" and name.replace("-", "").isalnum()
