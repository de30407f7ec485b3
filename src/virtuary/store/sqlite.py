"""The store of one host: a SQLite file, WAL, synchronous=FULL, written by one thread of one daemon.

A transaction is durable before it is acknowledged. Reads are small and inline, on a connection of
their own, and never wait for a write. A file written by a newer Virtuary is refused. After an
input/output error the store is read-only: a retry that seems to work would prove nothing.

What is deleted is overwritten with zeros; after a transaction that deletes or rewrites a secret the
write-ahead log, which holds pages as they were, is emptied before it is acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import HostLacks, StoreAway, VirtuaryError
from virtuary.store.api import (
    SECRETS,
    Change,
    Compacted,
    Page,
    Record,
    conflict,
    told,
)
from virtuary.store.ballast import Ballast
from virtuary.store.feed import Feed
from virtuary.store.limits import check

VERSION = 2
"""1: secrets were remembered, and left behind when they were deleted."""
LOG_LENGTH = 10_000
BROKEN = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""After these nothing is written any more."""
declare("store.before_commit", "store.after_commit")

_SCHEMA = """
create table object(key text primary key, value blob not null, revision integer not null) strict, without rowid;
create table log(revision integer not null, key text not null, value blob, primary key(revision, key)) strict, without rowid;
create table counter(id integer primary key check (id = 1), revision integer not null, compacted integer not null) strict;
insert into counter values(1, 0, 0);
"""


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's number of the kind of an error; 0 for one that SQLite did not raise."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # what is above says more of the same kind


class SqliteStore:
    def __init__(self, path: Path, ballast: Ballast | None = None) -> None:
        """Open or make the store at `path`; `ballast` is given up when the disk is full. Raises
        HostLacks for a newer file, StoreAway for a damaged one.
        """
        self._path, self._ballast = path, ballast
        try:
            self._writer = _connect(path)
            _migrate(self._writer, path)
            self._reader = _connect(path)
            damage = self._reader.execute("pragma quick_check(1)").fetchone()[0]
        except sqlite3.Error as error:
            raise StoreAway(
                f"the store {path} can't be opened: {error}",
                "restore it from a copy, or move it away",
            ) from error
        if damage != "ok":
            raise StoreAway(
                f"the store {path} is damaged: {damage}", "restore it from a copy, or move it away"
            )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._feed = Feed(self.changes)
        self._broken: str | None = None
        self._order = asyncio.Lock()

    @property
    def revision(self) -> int:
        return int(self._reader.execute("select revision from counter").fetchone()[0])

    def get(self, key: str) -> Record | None:
        row = self._reader.execute(
            "select value, revision from object where key = ?", (key,)
        ).fetchone()
        return Record(key, row[0], row[1]) if row else None

    def list(self, prefix: str, after: str = "", limit: int | None = None) -> Page:
        low = max(prefix, after)
        self._reader.execute("begin")
        try:
            rows = self._reader.execute(
                "select key, value, revision from object where key >= ? and key < ? and key > ? "
                "order by key limit ?",
                (low, prefix + "\U0010ffff", after, -1 if limit is None else limit),
            ).fetchall()
            return Page([Record(*row) for row in rows], self.revision)
        finally:
            self._reader.execute("commit")

    async def txn(
        self, expect: Mapping[str, int], puts: Mapping[str, bytes], deletes: Sequence[str] = ()
    ) -> int:
        check(expect, puts, deletes)
        if self._broken:
            raise StoreAway(
                f"the store is read-only: {self._broken}", "mend the disk, then restart the daemon"
            )
        async with self._order:
            crashpoint("store.before_commit")
            work = asyncio.get_running_loop().run_in_executor(
                self._thread, self._write, dict(expect), dict(puts), list(deletes)
            )
            try:
                changes = await asyncio.shield(work)
            except asyncio.CancelledError:
                with contextlib.suppress(VirtuaryError):
                    # committed all the same, so its changes must be heard of
                    self._feed.publish(told(await work))
                raise
            crashpoint("store.after_commit")
            self._feed.publish(told(changes))
            return changes[-1].revision if changes else self.revision

    def _write(
        self, expect: dict[str, int], puts: dict[str, bytes], deletes: Sequence[str]
    ) -> Sequence[Change]:
        while True:
            try:
                changes = self._commit(expect, puts, deletes)
                break
            except sqlite3.Error as error:
                code = primary_code(error)
                if code == sqlite3.SQLITE_FULL and self._ballast and self._ballast.give():
                    continue
                if code in BROKEN:
                    self._broken = str(error)
                raise StoreAway(
                    f"the store can't be written: {error}", "free some disk space and repeat"
                ) from error
        if self._ballast:
            self._ballast.fill()
        return changes

    def _commit(
        self, expect: dict[str, int], puts: dict[str, bytes], deletes: Sequence[str]
    ) -> Sequence[Change]:
        db = self._writer
        db.execute("begin immediate")
        try:
            changes = _apply(db, expect, puts, deletes)
            db.execute("commit")
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            raise
        if any(key.startswith(SECRETS) for key in (*puts, *deletes)):
            _empty_log(db)
        return changes

    def changes(self, since: int) -> Sequence[Change]:
        compacted = self._reader.execute("select compacted from counter").fetchone()[0]
        if since < compacted:
            raise Compacted(f"changes up to revision {compacted} are forgotten")
        rows = self._reader.execute(
            "select revision, key, value from log where revision > ? order by revision", (since,)
        )
        return [Change(*row) for row in rows.fetchall()]

    def watch(self, prefix: str, since: int) -> AsyncIterator[Change]:
        return self._feed.watch(prefix, since)

    async def close(self) -> None:
        self._feed.close()
        self._thread.shutdown(wait=True)
        self._writer.close()
        self._reader.close()


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    db.executescript(
        "pragma journal_mode=wal; pragma synchronous=full; pragma foreign_keys=on; pragma "
        "trusted_schema=off;"
        "pragma wal_autocheckpoint=1000; pragma journal_size_limit=16777216; pragma "
        "secure_delete=on; pragma temp_store=memory;"
    )
    return db


def _empty_log(db: sqlite3.Connection) -> None:
    """Move all of the write-ahead log into the store and cut it to nothing; waits for whoever is
    reading. When that can't be, the next transaction of its kind does it, or the next start.
    """
    with contextlib.suppress(sqlite3.Error):
        db.execute("pragma wal_checkpoint(truncate)").fetchone()


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    found = db.execute("pragma user_version").fetchone()[0]
    if found > VERSION:
        raise HostLacks(
            f"the store {path} was written by a newer Virtuary (format {found}, this one reads "
            f"{VERSION})",
            "use the newer Virtuary again",
        )
    if found == 0:
        db.executescript(f"begin immediate; {_SCHEMA} pragma user_version = {VERSION}; commit;")
    elif found == 1:
        db.execute("delete from log where key like ?", (SECRETS + "%",))
        db.executescript(f"vacuum; pragma user_version = {VERSION};")
    _empty_log(db)


def _apply(
    db: sqlite3.Connection, expect: dict[str, int], puts: dict[str, bytes], deletes: Sequence[str]
) -> list[Change]:
    for key, wanted in expect.items():
        row = db.execute("select revision from object where key = ?", (key,)).fetchone()
        found = row[0] if row else 0
        if found != wanted:
            raise conflict(key, wanted, found)
    revision = db.execute(
        "update counter set revision = revision + 1 returning revision"
    ).fetchone()[0]
    changes = [Change(revision, key, value) for key, value in puts.items()]
    for key, value in puts.items():
        db.execute("insert or replace into object values(?, ?, ?)", (key, value, revision))
    for key in deletes:
        if db.execute("delete from object where key = ?", (key,)).rowcount:
            changes.append(Change(revision, key, None))
    db.executemany("insert into log values(?, ?, ?)", told(changes))
    if revision % 256 == 0:
        db.execute("update counter set compacted = max(compacted, ?)", (revision - LOG_LENGTH,))
        db.execute("delete from log where revision <= (select compacted from counter)")
    return changes
