"""An ordinary user, without any right, gets a server: level L1, everything below the home folder, nothing left at the end."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from instances import SOURCE, Instance, command_lines, until, zombies

pytestmark = [pytest.mark.live, pytest.mark.host]


class User:
    """A user of this machine who can run the suite's Python and a copy of the source."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home = name, home
        self.uid = pwd.getpwnam(name).pw_uid
        self.root = home / "v"

    def run(self, *words: str, limit: float = 120) -> subprocess.CompletedProcess[str]:
        env = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "VIRTUARY_ROOT": str(self.root),
            "PYTHONPATH": str(self.home / "src"),
        }
        return subprocess.run(
            [sys.executable, *words], env=env, cwd=self.home, user=self.name, group=self.name, extra_groups=[], capture_output=True,
            text=True, timeout=limit, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def virtuary(self, *words: str) -> str:
        done = self.run("-m", "virtuary", *words)
        log = self.root / "state/daemon.log"
        assert done.returncode == 0, f"{words}: {done.stderr}\n{log.read_text() if log.exists() else ''}"
        return done.stdout

    def processes(self) -> list[int]:
        return [pid for pid, _ in command_lines() if os.stat(f"/proc/{pid}").st_uid == self.uid]


@pytest.fixture
def user(template: Path) -> Iterator[User]:
    name = f"vt{secrets.token_hex(4)}"
    home = Path("/tmp") / name
    made = subprocess.run(["useradd", "-m", "-d", home, "-s", "/bin/sh", name], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no user can be made here: {made.stderr.strip()}")
    try:
        found = User(name, home)
        shutil.copytree(SOURCE, home / "src", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(template / "state/images", home / "images")
        subprocess.run(["chown", "-R", f"{name}:", home], check=True)
        probe = found.run("-c", "import pydantic, uvicorn, virtuary; print(virtuary.__file__)")
        if probe.returncode or str(home) not in probe.stdout:
            pytest.skip(f"an ordinary user can't use this Python: {(probe.stderr or probe.stdout).strip().splitlines()[-1:]}")
        yield found
    finally:
        with contextlib.suppress(KeyError):
            uid = pwd.getpwnam(name).pw_uid
            for pid, _ in command_lines():
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{pid}").st_uid == uid:
                        os.kill(pid, 9)
        subprocess.run(["userdel", name], capture_output=True, check=False)
        shutil.rmtree(home, ignore_errors=True)


def test_an_ordinary_user_launches_uses_and_deletes_a_server(user: User, template: Path) -> None:
    prepared = Instance(root=user.root, template=template)  # only to copy the prepared state; its daemon is the user's own
    subprocess.run(["chown", "-R", f"{user.name}:", user.root], check=True)
    user.virtuary("launch", "tiny", "mine")
    shown = " ".join(user.virtuary("show", "mine").split())
    assert "isolation level L1" in shown and f", user {user.uid}" in shown
    assert user.virtuary("shell", "mine", "--", "id", "-u").strip() == "0"
    vm_id = next(iter(prepared.ids()))
    (machine,) = prepared.machines(vm_id)
    status = Path(f"/proc/{machine}/status").read_text()
    assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status
    assert os.readlink(f"/proc/{machine}/ns/net") != os.readlink("/proc/self/ns/net")
    user.virtuary("image", "warm", "tiny")
    user.virtuary("launch", "tiny", "copied")
    shown = user.virtuary("show", "copied")
    assert "as a copy of a warm template" in shown and "isolation    level L1" in shown
    assert user.virtuary("shell", "copied", "--", "hostname").strip() == "copied"
    user.virtuary("delete", "copied", "--now", "--force", "--yes")
    user.virtuary("image", "cool", "tiny")
    user.virtuary("stop", "mine")
    assert not prepared.machines(vm_id)
    user.virtuary("delete", "mine", "--now", "--yes")
    assert prepared.leaks() == [line for line in prepared.leaks() if "virtuary daemon" in line]
    lines = dict(command_lines())
    (daemon,) = [pid for pid in user.processes() if "virtuary daemon" in lines[pid]]
    until(lambda: not zombies(daemon), 5, "it asks about its ended children")
    os.kill(daemon, 15)
    until(lambda: not user.processes(), 10, "its launcher goes with it")
    assert sorted(path.name for path in user.home.iterdir() if not path.name.startswith(".")) == ["images", "src", "v"]
