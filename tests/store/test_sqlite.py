"""What SQLite adds: durable before it is acknowledged, and honest about a file it can't or must not
use.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from virtuary.base.errors import HostLacks, StoreAway
from virtuary.store.api import Change, Compacted, Record
from virtuary.store.ballast import PIECE, SIZE, Ballast
from virtuary.store.sqlite import LOG_LENGTH, VERSION, SqliteStore, primary_code


async def test_everything_is_there_again_after_a_restart(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "db")
    await store.txn({}, {"a": b"1", "b": b"2"})
    await store.txn({}, {"a": b"3"}, ["b"])
    await store.close()
    again = SqliteStore(tmp_path / "db")
    assert again.list("").records == [Record("a", b"3", 2)] and again.revision == 2
    changes = again.watch("", 1)
    assert {await anext(changes), await anext(changes)} == {
        Change(2, "a", b"3"),
        Change(2, "b", None),
    }
    await again.close()


async def test_a_file_of_a_newer_virtuary_is_refused_and_left_alone(tmp_path: Path) -> None:
    await SqliteStore(tmp_path / "db").close()
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute(f"pragma user_version = {VERSION + 1}")
    before = (tmp_path / "db").read_bytes()
    with pytest.raises(HostLacks, match="newer Virtuary") as caught:
        SqliteStore(tmp_path / "db")
    assert caught.value.hint and (tmp_path / "db").read_bytes() == before


@pytest.mark.parametrize("damage", ["no database", "cut", "scribbled"])
async def test_a_damaged_file_is_refused_with_a_way_out(tmp_path: Path, damage: str) -> None:
    place = tmp_path / "db"
    store = SqliteStore(place)
    for number in range(50):
        await store.txn({}, {f"key/{number}": os.urandom(500)})
    await store.close()
    content = place.read_bytes()
    if damage == "no database":
        place.write_bytes(b"this is a letter, not a store" * 100)
    elif damage == "cut":
        place.write_bytes(content[: len(content) // 2])
    else:
        place.write_bytes(content[:8192] + b"\xa5" * 8192 + content[16384:])
    with pytest.raises(StoreAway) as caught:
        SqliteStore(place)
    assert str(place) in caught.value.sentence and "restore it from a copy" in str(
        caught.value.hint
    )


async def test_a_store_that_is_nowhere_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreAway, match="can't be opened"):
        SqliteStore(tmp_path / "no" / "such" / "folder" / "db")


WRITER = """
import asyncio, sys
from pathlib import Path
from virtuary.store.sqlite import SqliteStore
async def main():
    store = SqliteStore(Path(sys.argv[1]))
    for number in range(100000):
        revision = await store.txn({}, {f"k/{number % 7}": b"%d" % number, f"n/{number}": b"x"})
        print(number, revision, flush=True)
asyncio.run(main())
"""


@pytest.mark.parametrize("after", [1, 20, 45])
async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path, after: int) -> None:
    place = tmp_path / "db"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(place)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout
        lines = [writer.stdout.readline() for _ in range(after)]
        writer.kill()
        lines += writer.stdout.read().splitlines(keepends=True)
    numbers = [int(line.split()[0]) for line in lines if line.endswith("\n")]
    store = SqliteStore(place)
    there = {record.key for record in store.list("n/", limit=None).records}
    assert {f"n/{number}" for number in numbers} <= there
    assert len(there) in (len(numbers), len(numbers) + 1), (
        "at most the one that was under way is there as well"
    )
    assert store.revision == len(there), "and no transaction is there by half"
    await store.close()


CRASH = """
import asyncio, sys
from pathlib import Path
from virtuary.store.sqlite import SqliteStore
async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.txn({}, {"first": b"1"})
    await store.txn({}, {"second": b"2"}, ["first"])
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("point", "keys"), [("store.before_commit:2", ["first"]), ("store.after_commit:2", ["second"])]
)
async def test_killed_around_the_commit_it_is_the_old_or_the_new(
    tmp_path: Path, point: str, keys: list[str]
) -> None:
    environment = {**os.environ, "VIRTUARY_CRASH": point}
    done = subprocess.run([sys.executable, "-c", CRASH, str(tmp_path / "db")], env=environment)
    assert done.returncode == -signal.SIGKILL
    store = SqliteStore(tmp_path / "db")
    assert [record.key for record in store.list("").records] == keys
    await store.close()


@pytest.mark.host
async def test_a_full_disk_is_told_and_nothing_is_changed(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", str(small)], check=True)
    try:
        store = SqliteStore(small / "db")
        first = await store.txn({}, {"kept": b"1"})
        with pytest.raises(StoreAway, match="can't be written"):
            await store.txn({"kept": first}, {"kept": b"2", "big": os.urandom(1_000_000)}, [])
        assert store.get("kept") == Record("kept", b"1", first) and store.get("big") is None
        assert store.revision == first
        assert await store.txn({"kept": first}, {"kept": b"3"}) == first + 1, (
            "when there is room it goes on"
        )
        await store.close()
        again = SqliteStore(small / "db")
        assert again.get("kept") == Record("kept", b"3", first + 1)
        await again.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.host
async def test_on_a_disk_that_others_filled_the_store_is_written_all_the_same(
    tmp_path: Path,
) -> None:
    """Whoever fills the disk goes on doing so: each piece that is given up may be taken by them."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "none", str(small)], check=True)
    try:
        ballast = Ballast(small / "ballast")
        store = SqliteStore(small / "db", ballast)
        with (small / "others").open("wb", buffering=0) as others:
            for number in range(10):
                with contextlib.suppress(OSError):
                    while others.write(bytes(64 * 1024)):
                        pass
                await store.txn({}, {f"key/{number % 4}": os.urandom(50_000)})
        assert 0 < (small / "ballast").stat().st_size < SIZE
        os.unlink(small / "others")
        assert (
            Ballast(small / "ballast").give() and (small / "ballast").stat().st_size == SIZE - PIECE
        ), "it was filled again"
        await store.close()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_what_went_wrong_is_told_by_its_number_and_not_by_its_words() -> None:
    error = sqlite3.OperationalError("the file system is in a bad mood")
    assert primary_code(error) == 0
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    assert primary_code(error) == sqlite3.SQLITE_IOERR


async def test_after_an_error_of_the_disk_nothing_is_written(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "db")

    def fail(*_: object) -> NoReturn:
        error = sqlite3.OperationalError("words of a later SQLite")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_WRITE
        raise error

    store._commit = fail  # type: ignore[method-assign]
    for match in ("can't be written", "is read-only"):
        with pytest.raises(StoreAway, match=match):
            await store.txn({}, {"key/1": b"1"})
    await store.close()


def test_a_disk_without_room_has_no_ballast(tmp_path: Path) -> None:
    assert not Ballast(tmp_path / "no" / "such" / "folder").give()


async def test_the_log_is_cut_and_what_is_cut_is_refused(tmp_path: Path) -> None:
    """An old store: its counter is put forward, so that the next transaction is one that cuts the
    log.
    """
    store = SqliteStore(tmp_path / "db")
    await store.txn({}, {"old": b"1"})
    await store.close()
    at = 256 * 100
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute("update counter set revision = ?", (at - 1,))
    store = SqliteStore(tmp_path / "db")
    assert await store.txn({}, {"new": b"2"}) == at
    with pytest.raises(Compacted):
        await anext(store.watch("", at - LOG_LENGTH - 1))
    assert await anext(store.watch("", at - LOG_LENGTH)) == Change(at, "new", b"2")
    assert store.get("old") == Record("old", b"1", 1), "documents are kept, only the log is cut"
    await store.close()


async def test_reading_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "db")
    await store.txn({}, {"a": b"1"})
    with sqlite3.connect(tmp_path / "db", isolation_level=None) as other:
        other.execute("begin immediate")
        work = asyncio.create_task(store.txn({}, {"a": b"2"}))
        await asyncio.sleep(0.05)
        assert store.get("a") == Record("a", b"1", 1) and len(store.list("").records) == 1
        other.execute("rollback")
        assert await work == 2
    await store.close()
