"""Who a process is: told by what was written down before it began, and by its user; never by what
it says of itself.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from virtuary.base.known import RECORD, adopt, end_recorded, of_user, recorded, recording, users_of
from virtuary.base.proc import Identity, boot_id, end, identify, start_time, wait_end

SLEEP = ("/usr/bin/env", sys.executable, "-c", "import time; time.sleep(60)")


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(recording(tmp_path / RECORD, *SLEEP))
    while not recorded(tmp_path / RECORD):
        time.sleep(0.001)
    yield process
    process.kill()
    process.wait()


async def test_the_same_process_is_adopted_and_its_end_noticed(
    sleeper: subprocess.Popen[bytes],
) -> None:
    identity = identify(sleeper.pid)
    assert identity
    handle = adopt(identity, os.getuid())
    assert handle is not None
    end(handle)
    await asyncio.wait_for(wait_end(handle), 5)
    assert identify(sleeper.pid) is None, "a zombie counts as gone"
    end(handle)  # harmless
    os.close(handle)


@pytest.mark.parametrize("case", ["reused pid", "another user's", "gone"])
def test_a5_a_process_that_is_not_ours_is_not_adopted(
    sleeper: subprocess.Popen[bytes], case: str
) -> None:
    identity = identify(sleeper.pid)
    assert identity
    before = len(os.listdir("/proc/self/fd"))
    if case == "reused pid":
        assert adopt(Identity(identity.pid, identity.start - 1)) is None
    elif case == "gone":
        sleeper.kill()
        sleeper.wait()
        assert adopt(identity) is None
    else:
        assert adopt(identity, os.getuid() + 1) is None
    assert len(os.listdir("/proc/self/fd")) == before, "nothing stays open"


async def test_a_process_is_found_by_its_record_whatever_it_says_of_itself(tmp_path: Path) -> None:
    record = tmp_path / RECORD
    hiding = (
        "import ctypes, time; libc = ctypes.CDLL(None); libc.prctl(15, b'kworker', 0, 0, 0);"
        "begin = int(open('/proc/self/stat').read().rpartition(')')[2].split()[45]); "
        "ctypes.memset(begin, 0, 20); time.sleep(60)"
    )
    process = subprocess.Popen(recording(record, "/usr/bin/env", sys.executable, "-c", hiding))
    try:
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"\0"):
            time.sleep(0.005)
        assert recorded(record) == [identify(process.pid)]
        ending = asyncio.create_task(end_recorded(record))
        await asyncio.to_thread(process.wait)
        await ending
        assert recorded(record) == []
    finally:
        process.kill()
        process.wait()


async def test_somebody_with_the_same_words_is_left_alone(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    stranger = subprocess.Popen(SLEEP)
    try:
        ending = asyncio.create_task(end_recorded(tmp_path / RECORD))
        await asyncio.to_thread(sleeper.wait)
        await ending
        assert start_time(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


LINES = {
    "another boot": "0 {pid} (sh) S " + "1 " * 17 + "{start}",
    "another moment": "{boot} {pid} (sh) S " + "1 " * 17 + "1",
    "no number": "{boot} x (sh) S",
    "nothing": "",
    "half a line": "{boot} {pid}",
    "noise": "\0\x1b[31m" * 9,
}


@pytest.mark.parametrize("case", LINES)
def test_a_record_that_is_not_true_names_nobody(tmp_path: Path, case: str) -> None:
    own = identify(os.getpid())
    assert own
    record = tmp_path / RECORD
    record.write_text(LINES[case].format(boot=boot_id(), pid=own.pid, start=own.start) + "\n")
    assert recorded(record) == []
    assert recorded(tmp_path / "no such file") == []


@pytest.mark.host
def test_all_processes_of_a_user_are_found(tmp_path: Path) -> None:
    process = subprocess.Popen(["/usr/bin/sleep", "60"], user=2_000_059_999)
    try:
        assert of_user(2_000_059_999) == [identify(process.pid)] and users_of(process.pid) == {
            2_000_059_999
        }
    finally:
        process.kill()
        process.wait()
    assert of_user(2_000_059_999) == [] and users_of(process.pid) == set()
