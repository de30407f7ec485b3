"""Secrets on disk: sealed while they are kept, gone when they were removed, and honest about a key
that is lost.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from virtuary.base.errors import Failed
from virtuary.store.api import Record
from virtuary.store.memory import MemoryStore
from virtuary.store.sealed import SealedStore
from virtuary.store.sqlite import SqliteStore

SECRET = b"#!/bin/sh\necho correct horse battery staple\n"
LONG = b"#!/bin/sh\n" + b"correct horse battery staple\n" * 5000


def on_disk(folder: Path) -> bytes:
    """All bytes of all files of the store, the write-ahead log's too."""
    return b"".join(path.read_bytes() for path in folder.iterdir())


def sealed(folder: Path) -> SealedStore:
    return SealedStore(SqliteStore(folder / "db"), folder / "secret.key")


@pytest.mark.parametrize("secret", [SECRET, LONG], ids=["short", "over many pages"])
async def test_a_secret_is_read_as_it_was_written_and_lies_sealed_on_disk(
    tmp_path: Path, secret: bytes
) -> None:
    store = sealed(tmp_path)
    revision = await store.txn({}, {"secret/a": secret, "vm/a": b"{}"})
    assert (
        store.get("secret/a")
        == Record("secret/a", secret, revision)
        == store.list("secret/").records[0]
    )
    assert b"correct horse" not in on_disk(tmp_path)
    await store.close()
    again = sealed(tmp_path)
    assert again.get("secret/a") == Record("secret/a", secret, revision) and again.get(
        "vm/a"
    ) == Record("vm/a", b"{}", revision)
    await again.close()


@pytest.mark.parametrize("secret", [SECRET, LONG], ids=["short", "over many pages"])
async def test_of_a_removed_secret_no_byte_is_left_even_where_it_was_not_sealed(
    tmp_path: Path, secret: bytes
) -> None:
    store = SqliteStore(tmp_path / "db")
    await store.txn({}, {"secret/a": secret, "secret/b": b"#!other", "vm/a": b"{}"})
    await store.txn({}, {"vm/a": b"1"})
    assert b"correct horse" in on_disk(tmp_path), "the test looks where it lies"
    await store.txn({}, {}, ["secret/a", "vm/a"])
    assert b"correct horse" not in on_disk(tmp_path) and b"#!other" in on_disk(tmp_path)
    assert (tmp_path / "db-wal").stat().st_size == 0
    await store.close()


async def test_of_a_removed_secret_not_even_what_was_sealed_is_left(tmp_path: Path) -> None:
    store = sealed(tmp_path)
    await store.txn({}, {"secret/a": LONG})
    with sqlite3.connect(tmp_path / "db") as db:
        value = db.execute("select value from object where key = 'secret/a'").fetchone()[0]

    def left() -> int:
        found = on_disk(tmp_path)
        return sum(value[at : at + 32] in found for at in range(0, len(value), 512))

    assert left() > 200
    await store.txn({}, {}, ["secret/a"])
    assert left() == 0
    await store.close()


async def test_a_secret_of_a_daemon_that_was_killed_after_removing_it_is_gone_with_the_next_start(
    tmp_path: Path,
) -> None:
    code = (
        "import asyncio, os, sys; from pathlib import Path; from virtuary.store import sqlite\n"
        "async def main():\n"
        "    store = sqlite.SqliteStore(Path(sys.argv[1]))\n"
        "    await store.txn({}, {'secret/a': b'correct horse' * 100})\n"
        # a reader holds the log
        "    held = store._reader.execute('begin'); store._reader.execute('select 1 from "
        "object').fetchone()\n"
        "    store._writer.execute('pragma busy_timeout=0')\n"
        "    await store.txn({}, {}, ['secret/a'])\n"
        "    os._exit(9)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "db")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 9, done.stderr
    assert b"correct horse" in on_disk(tmp_path), "the write-ahead log was held by a reader"
    store = SqliteStore(tmp_path / "db")
    assert b"correct horse" not in on_disk(tmp_path)
    await store.close()


@pytest.mark.parametrize(
    "make",
    [lambda folder: MemoryStore(), lambda folder: SqliteStore(folder / "db")],
    ids=["memory", "sqlite"],
)
async def test_secrets_are_neither_remembered_nor_told(
    tmp_path: Path, make: type[MemoryStore]
) -> None:
    store = make(tmp_path)  # type: ignore[arg-type]
    live = store.watch("", 0)
    await store.txn({}, {"secret/a": SECRET, "vm/a": b"1"})
    await store.txn({}, {"vm/a": b"2"}, ["secret/a"])
    assert [(await anext(live)).key for _ in range(2)] == ["vm/a", "vm/a"]
    await store.txn({}, {"secret/b": SECRET})
    await store.txn({}, {"vm/a": b"3"})
    assert (await anext(live)).value == b"3"
    await store.close()


async def test_the_key_is_the_daemons_alone_is_made_once_and_with_the_first_secret(
    tmp_path: Path,
) -> None:
    os.umask(0o022)
    store, key = sealed(tmp_path), tmp_path / "secret.key"
    await store.txn({}, {"vm/a": b"1"})
    assert not key.exists()
    await store.txn({}, {"secret/a": SECRET})
    content = key.read_bytes()
    assert (
        stat.S_IMODE(key.stat().st_mode) == 0o600
        and len(content) == 32
        and key.stat().st_nlink == 1
    )
    await store.txn({}, {"secret/b": SECRET})
    assert key.read_bytes() == content and not list(tmp_path.glob(".secret*"))
    await store.close()


async def test_no_secret_can_be_put_in_the_place_of_another(tmp_path: Path) -> None:
    inner = MemoryStore()
    store = SealedStore(inner, tmp_path / "secret.key")
    await store.txn({}, {"secret/a": SECRET, "secret/b": SECRET})
    record = inner.get("secret/a")
    assert record and record.value != getattr(inner.get("secret/b"), "value", None)
    await inner.txn({}, {"secret/b": record.value})
    with pytest.raises(Failed, match="can't be read"):
        store.get("secret/b")


async def test_what_an_older_virtuary_wrote_is_read_sealed_and_left_nowhere(tmp_path: Path) -> None:
    old = SqliteStore(tmp_path / "db")
    await old.txn({}, {"secret/a": SECRET, "vm/a": b"1"})
    await old.close()
    # as format 1 was: remembered, and deleted ones left behind
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute("pragma secure_delete=off")
        db.execute("insert into log values(1, 'secret/a', ?)", (SECRET,))
        db.execute("insert into log values(1, 'secret/gone', ?)", (LONG,))
        db.execute("insert into object values('secret/gone', ?, 1)", (LONG,))
        db.execute("delete from object where key = 'secret/gone'")
        db.execute("pragma user_version = 1")
    db.close()
    store = sealed(tmp_path)
    assert store.get("secret/a") == Record("secret/a", SECRET, 1)
    await store.seal_all()
    assert (
        getattr(store.get("secret/a"), "value", b"") == SECRET
        and getattr(store.get("vm/a"), "value", b"") == b"1"
    )
    assert b"correct horse" not in on_disk(tmp_path)
    before = store.revision
    await store.seal_all()
    assert store.revision == before, "there is nothing more to seal"
    await store.close()


async def test_a_lost_key_says_what_is_lost_and_what_to_do(tmp_path: Path) -> None:
    store, key = sealed(tmp_path), tmp_path / "secret.key"
    assert store.find_loss() is None
    await store.txn({}, {"secret/a": SECRET, "vm/a": b"1"})
    await store.close()
    content = key.read_bytes()
    key.unlink()
    store = sealed(tmp_path)
    assert "(of so many: 1)" in (store.find_loss() or "") and str(key) in (store.find_loss() or "")
    for again in (store.get, lambda key: store.list("secret/")):
        with pytest.raises(Failed, match=r"secret\.key is missing") as caught:
            again("secret/a")
        assert "put the file back" in str(caught.value.hint) and "create the server anew" in str(
            caught.value.hint
        )
    with pytest.raises(Failed, match="is missing"):
        await store.txn({}, {"secret/b": SECRET})
    assert not key.exists() and getattr(store.get("vm/a"), "value", b"") == b"1"
    key.write_bytes(content)
    assert getattr(store.get("secret/a"), "value", b"") == SECRET
    key.unlink()
    await store.txn({}, {}, ["secret/a"])
    await store.txn({}, {"secret/b": SECRET})
    assert getattr(store.get("secret/b"), "value", b"") == SECRET, (
        "with nothing left that is lost a new key is made"
    )
    await store.close()


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"y" * 32], ids=["empty", "cut", "another"])
async def test_another_key_opens_nothing(tmp_path: Path, content: bytes) -> None:
    store, key = sealed(tmp_path), tmp_path / "secret.key"
    await store.txn({}, {"secret/a": SECRET})
    await store.close()
    key.write_bytes(content)
    store = sealed(tmp_path)
    with pytest.raises(Failed, match="missing or another"):
        store.get("secret/a")
    if len(content) != 32:
        with pytest.raises(Failed, match="missing or another"):
            await store.txn({}, {"secret/b": SECRET})
    await store.close()


def test_the_library_is_loaded_with_the_first_secret_only() -> None:
    code = (
        "import sys, virtuary.daemon; print([name for name in sys.modules if "
        "name.startswith('cryptography')])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
