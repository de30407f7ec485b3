"""The scripts that make a copied guest a machine of its own: run for real against a folder, and
closed to hostile text.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from virtuary.base.errors import Invalid
from virtuary.guest.identity import (
    FOLDER,
    Fresh,
    Identity,
    Renewal,
    copy_lines,
    dropbear_key,
    fresh_script,
    live_script,
)

WHO = Identity("web2", ("ssh-ed25519 AAAA ada@home",))
ID = "5f3c5a80-2a6b-4a5e-9d8e-0123456789ab"


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    place = tmp_path_factory.mktemp("keys") / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(place)], check=True
    )
    return place.read_text().rstrip("\n"), place.with_suffix(".pub").read_text().strip()


@pytest.fixture
def fresh(keys: tuple[str, str]) -> Fresh:
    return Fresh("0" * 32, "ab" * 64, *keys)


@pytest.fixture
def renewal(keys: tuple[str, str]) -> Renewal:
    return Renewal(
        ID,
        "52:54:00:00:00:01",
        "52:54:00:00:00:02",
        "0" * 32,
        ID,
        *keys,
        entropy="ab" * 128,
        now=1e9,
    )


def become(root: Path, text: bytes, awaken: str = "exit 1") -> subprocess.CompletedProcess[str]:
    """Run a script as a guest would, with every folder of a guest below `root`.

    The program it brings is another one here, this shell script: no replacing of paths would keep
    that from this machine.
    """
    script = text.decode()
    (root / "awaken").write_text(f"#!/bin/sh\n{awaken}\n")
    own = f"chmod 755 {FOLDER}/awaken.new"
    assert text.count(b"/awaken\n") == 0 or own in script
    script = script.replace(own, f"cp {root}/awaken {FOLDER}/awaken.new\n{own}")
    for folder in ("/etc/", "/root/", "/var/", "/run/", "/proc/", "/dev/urandom"):
        script = script.replace(folder, f"{root}{folder}")
    script = (
        script.replace(f"{root}/dev/urandom", "/dev/null")
        .replace('hostname "$hostname" 2>', "false 2>")
        .replace("\nsync\n", "\n")
    )
    for folder in ("etc", "root", "proc/sys/kernel", "run", "var/lib/dbus"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    return subprocess.run(["/bin/sh"], input=script, text=True, capture_output=True, cwd=root)


def test_a_guest_with_openssh_gets_the_key_it_is_given_and_no_other_stays(
    tmp_path: Path, fresh: Fresh
) -> None:
    for name in (
        "etc/ssh/ssh_host_rsa_key",
        "etc/ssh/ssh_host_ed25519_key.pub",
        "var/lib/systemd/random-seed",
        "etc/machine-id",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("its source's\n")
    (tmp_path / "var/lib/dbus").mkdir(parents=True)
    (tmp_path / "var/lib/dbus/machine-id").write_text("its source's\n")
    done = become(tmp_path, fresh_script(WHO, fresh))
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "etc/machine-id").read_text() == "0" * 32 + "\n"
    assert (tmp_path / "var/lib/dbus/machine-id").is_symlink()
    assert sorted(path.name for path in (tmp_path / "etc/ssh").iterdir()) == [
        "ssh_host_ed25519_key",
        "ssh_host_ed25519_key.pub",
    ]
    assert (tmp_path / "etc/ssh/ssh_host_ed25519_key").read_text() == fresh.host_key + "\n"
    assert (tmp_path / "etc/ssh/ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "var/lib/systemd/random-seed").exists()
    assert (tmp_path / "etc/hostname").read_text() == "web2\n"


def test_a_guest_with_dropbear_gets_it_in_dropbears_form(tmp_path: Path, fresh: Fresh) -> None:
    (tmp_path / "etc/dropbear").mkdir(parents=True)
    (tmp_path / "etc/dropbear/dropbear_rsa_host_key").write_text("its source's")
    assert become(tmp_path, fresh_script(WHO, fresh)).returncode == 0
    assert [path.name for path in (tmp_path / "etc/dropbear").iterdir()] == [
        "dropbear_ed25519_host_key"
    ]
    assert (tmp_path / "etc/dropbear/dropbear_ed25519_host_key").read_bytes() == dropbear_key(
        fresh.host_key
    )
    assert not (tmp_path / "etc/machine-id").exists(), "a guest without one needs none"


def test_giving_it_twice_is_harmless(tmp_path: Path, fresh: Fresh) -> None:
    (tmp_path / "etc/ssh").mkdir(parents=True)
    for _ in range(2):
        assert become(tmp_path, fresh_script(WHO, fresh)).returncode == 0
    assert (tmp_path / "etc/ssh/ssh_host_ed25519_key").read_text() == fresh.host_key + "\n"


def test_a_live_copy_that_has_become_itself_is_left_alone(tmp_path: Path, renewal: Renewal) -> None:
    (tmp_path / "run/virtuary").mkdir(parents=True)
    (tmp_path / f"run/virtuary/begun-{ID}").mkdir()
    (tmp_path / f"run/virtuary/is-{ID}").touch()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hostname").write_text("web2 already\n")
    done = become(tmp_path, live_script(WHO, renewal))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "etc/hostname").read_text() == "web2 already\n"


@pytest.mark.parametrize("failed", [0, 1])
def test_a_live_copy_is_itself_when_all_of_it_was_done(
    tmp_path: Path, renewal: Renewal, failed: int
) -> None:
    done = become(
        tmp_path, live_script(WHO, renewal), f"cat > {tmp_path}/lines; echo said; exit {failed}"
    )
    assert (done.returncode, done.stdout, done.stderr) == (failed, "said\n", "")
    assert (tmp_path / f"run/virtuary/is-{ID}").exists() is not bool(failed)
    assert (tmp_path / "lines").read_bytes() == copy_lines(WHO, renewal, keys=False)


@pytest.mark.parametrize(
    "shell", [["sh"], ["dash"], ["busybox", "sh"], ["bash", "--posix"]], ids=" ".join
)
def test_every_shell_of_a_guest_can_read_them(
    shell: list[str], fresh: Fresh, renewal: Renewal
) -> None:
    if not shutil.which(shell[0]):
        pytest.skip(f"{shell[0]} is not installed")
    for text in (fresh_script(WHO, fresh), live_script(WHO, renewal)):
        done = subprocess.run([*shell, "-n"], input=text, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("name", ["", "a b", "a;reboot", "$(id)", "a\nb", "a'b"])
def test_a_hostile_name_is_refused(name: str, fresh: Fresh, renewal: Renewal) -> None:
    for call in (
        lambda: fresh_script(Identity(name, ()), fresh),
        lambda: live_script(Identity(name, ()), renewal),
    ):
        with pytest.raises(Invalid):
            call()


def test_a_host_key_does_not_leave_its_place(tmp_path: Path, keys: tuple[str, str]) -> None:
    (tmp_path / "etc/ssh").mkdir(parents=True)
    hostile = f"ssh-ed25519 AAAA '; touch {tmp_path}/out; '"
    assert (
        become(tmp_path, fresh_script(WHO, Fresh("0" * 32, "ab", keys[0], hostile))).returncode == 0
    )
    assert (tmp_path / "etc/ssh/ssh_host_ed25519_key.pub").read_text() == hostile + "\n" and not (
        tmp_path / "out"
    ).exists()
