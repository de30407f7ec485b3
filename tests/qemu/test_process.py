"""The jail: chosen by a table, and looked at from outside while a real QEMU sits in it, as root and
as an ordinary user.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from virtuary.base.errors import Failed, HostLacks
from virtuary.jail.walls import Capabilities, Jail, choose_jail
from virtuary.qemu.parts import Grant, Mode
from virtuary.qemu.process import Launch, listening_socket, start

ALL = ("mnt", "pid", "ipc", "uts", "net")
JAILS: dict[str, tuple[Capabilities, tuple[Any, ...]]] = {
    # root, namespaces, landlock -> level, own user namespace, namespaces, empty root, landlock,
    # gaps
    "root with everything": (Capabilities(True, True, 6), ("L3", False, ALL, True, True, 0)),
    "root without Landlock": (Capabilities(True, True, 0), ("L2", False, ALL, True, False, 1)),
    "user with everything": (Capabilities(False, True, 6), ("L1", True, ALL, True, True, 0)),
    "user without Landlock": (Capabilities(False, True, 0), ("L1", True, ALL, True, False, 1)),
    "root without namespaces": (
        Capabilities(True, False, 6, "denied"),
        ("L0", False, (), False, True, 1),
    ),
    "user with nothing": (
        Capabilities(False, False, 0, "denied"),
        ("L0", False, (), False, False, 2),
    ),
}


@pytest.mark.parametrize("case", JAILS)
def test_the_jail_is_the_strongest_this_host_allows(case: str) -> None:
    host, wanted = JAILS[case]
    jail = choose_jail(host, 4711)
    found = (
        jail.level,
        jail.own_user_namespace,
        jail.namespaces,
        jail.empty_root,
        jail.landlock,
        len(jail.gaps),
    )
    assert found == wanted and jail.uid == 4711
    assert host.namespaces or "denied" in jail.gaps[0]


def test_the_networks_helper_keeps_the_hosts_network_and_nothing_more() -> None:
    jail = choose_jail(Capabilities(True, True, 6), 4711, reach="internet")
    assert "net" not in jail.namespaces and set(jail.namespaces) == {"mnt", "pid", "ipc", "uts"}
    assert jail.landlock and jail.empty_root and jail.level == "L3"


PEOPLE = ["root", "user"]


@pytest.fixture(scope="module", params=PEOPLE)
def told(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What jailed.py told, run as this person."""
    folder = Path("/tmp") / f"vt-jail-{request.param}-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        words = [sys.executable, str(Path(__file__).with_name("jailed.py")), str(folder)]
        if request.param == "user":
            os.chown(folder, 65534, 65534)
            if not shutil.which("setpriv"):
                pytest.skip("needs setpriv")
            words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *words]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd="/")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if (
        request.param == "user"
        and "Permission denied" in done.stderr
        and "Traceback" not in done.stderr
    ):
        pytest.skip("the source is closed to other users here")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    if found["level"] == "L0":
        pytest.skip(f"no jail here: {found['gaps']}")
    return found


host_and_qemu = [pytest.mark.host, pytest.mark.qemu]


class TestARealMachine:
    pytestmark = host_and_qemu

    def test_waits_in_its_jail_and_answers(self, told: dict[str, Any]) -> None:
        assert told["status"] == "prelaunch" and told["level"] in ("L1", "L2", "L3")

    def test_has_a_user_of_its_own_and_no_power(self, told: dict[str, Any]) -> None:
        process = told["process"]
        assert process["Uid"] == [str(told["uid"])] * 4 and len(set(process["Gid"])) == 1
        assert process["Groups"] == ["2000000777"] or told["level"] == "L1", (
            "the group it was given, and no other"
        )
        assert int(process["CapEff"][0], 16) == int(process["CapPrm"][0], 16) == 0
        assert process["NoNewPrivs"] == ["1"] and process["Seccomp"] == ["2"]

    def test_has_namespaces_of_its_own(self, told: dict[str, Any]) -> None:
        assert set(told["process"]["foreign namespaces"]) >= {"mnt", "net", "pid", "ipc", "uts"}

    def test_sees_an_empty_root(self, told: dict[str, Any]) -> None:
        given = {"readable", "writable"}
        beyond = {path for path in told["process"]["root"] if Path(path).name not in given}
        assert beyond == {"etc/ld.so.cache", "dev/null", "dev/urandom"}
        assert not told["process"]["home"]

    def test_has_an_empty_environment_a_session_and_leaves_no_core(
        self, told: dict[str, Any]
    ) -> None:
        process = told["process"]
        assert (process["environment"], process["session"], process["cores"]) == ("", True, "0")

    def test_can_open_nothing_it_was_not_given(self, told: dict[str, Any]) -> None:
        """Not even when its monitor is told to: QMP in the wrong hands is not the host's files."""
        assert len(told["refused"]) == 4
        assert all(
            "Could not open" in sentence or "Permission denied" in sentence
            for sentence in told["refused"]
        )

    def test_opens_what_it_was_given_to_read_or_to_write(self, told: dict[str, Any]) -> None:
        assert told["opened to write"] == ["writable"] and told["opened to read"] == [
            "readable",
            "writable",
        ]

    def test_leaves_no_descriptor_open_in_the_daemon(self, told: dict[str, Any]) -> None:
        assert told["left open"] == 0

    def test_holds_the_lock_of_its_disk_while_it_lives_and_no_longer(
        self, told: dict[str, Any]
    ) -> None:
        assert told["gone"]
        assert not told["free while alive"] and told["free afterwards"]

    def test_tells_what_it_disliked_in_its_own_words(self, told: dict[str, Any]) -> None:
        assert "no-such-cpu" in told["words"]


@pytest.mark.parametrize(
    ("mode", "access"), [("ro", os.O_RDONLY), ("wo", os.O_WRONLY), ("rw", os.O_RDWR)]
)
def test_a_grant_opens_its_file_for_what_it_says_and_no_more(mode: Mode, access: int) -> None:
    assert Grant("state", 20, Path("state"), mode).flags == access | os.O_CLOEXEC


NO_JAIL = Jail(os.getuid(), os.getgid(), False, (), False, False)


async def test_a_file_that_is_not_there_stops_the_start_and_leaves_nothing_open(
    short: Path,
) -> None:
    grants = [
        Grant("serial", 20, short / "serial", "socket"),
        Grant("disk0", 21, short / "nothing", "rw"),
    ]
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Failed, match="disk0 can't be opened: No such file"):
        await start(Launch(["/bin/true"], grants, [], NO_JAIL, short))
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_disk_that_is_a_link_is_not_followed(short: Path) -> None:
    (short / "link").symlink_to("/etc/passwd")
    with pytest.raises(Failed, match="disk0 can't be opened"):
        await start(
            Launch(["/bin/true"], [Grant("disk0", 20, short / "link", "ro")], [], NO_JAIL, short)
        )


async def test_a_program_that_is_not_there_is_a_fault_of_the_jail(short: Path) -> None:
    with pytest.raises(HostLacks, match="No such file"):
        await start(Launch(["/no/such/program"], [], [], NO_JAIL, short))


def test_a_socket_at_which_qemu_listens_does_not_block_it(short: Path) -> None:
    """Two threads of a QEMU that starts may see one caller: the second would wait for ever, and
    nobody would be answered.
    """
    handle = listening_socket(short / "qmp")
    try:
        assert not os.get_blocking(handle)
    finally:
        os.close(handle)
