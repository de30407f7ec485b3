"""Secrets are sealed on their way into a store and opened on their way out, under a key of this
host; all else passes as it is.

A secret is sealed for its key in the store (ChaCha20-Poly1305, a random nonce each time), so that
none can be put in another's place. What an older Virtuary wrote in the open is read as well, until
`seal_all` has sealed it. The library is loaded with the first secret.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from virtuary.base.errors import Failed
from virtuary.base.files import sync_dir
from virtuary.store.api import SECRETS, Change, Page, Record, Store
from virtuary.store.limits import in_parts

MAGIC = b"\0sealed1\0"
"""No user data begins so."""
NONCE, KEY = 12, 32


class SealedStore:
    """Raises Failed for a secret that can't be opened, and for one more while the key of others is
    lost.
    """

    def __init__(self, store: Store, key: Path) -> None:
        self._store, self._path = store, key
        self._key = b""

    @property
    def revision(self) -> int:
        return self._store.revision

    def get(self, key: str) -> Record | None:
        record = self._store.get(key)
        return self._opened(record) if record else None

    def list(self, prefix: str, after: str = "", limit: int | None = None) -> Page:
        page = self._store.list(prefix, after, limit)
        return Page([self._opened(record) for record in page.records], page.revision)

    async def txn(
        self, expect: Mapping[str, int], puts: Mapping[str, bytes], deletes: Sequence[str] = ()
    ) -> int:
        sealed = {
            key: self._seal(key, value) if key.startswith(SECRETS) else value
            for key, value in puts.items()
        }
        return await self._store.txn(expect, sealed, deletes)

    def changes(self, since: int) -> Sequence[Change]:
        return self._store.changes(since)

    def watch(self, prefix: str, since: int) -> AsyncIterator[Change]:
        return self._store.watch(prefix, since)

    async def close(self) -> None:
        await self._store.close()

    async def seal_all(self) -> None:
        """Seal what was written in the open. To be called once, before anybody else writes."""
        found = self._store.list(SECRETS).records
        open_ones = {record.key: record.value for record in found if not _is_sealed(record)}
        for part in in_parts(open_ones):
            await self.txn({}, part)

    def find_loss(self) -> str | None:
        """What can't be read because the key of this host is lost, and what to do, in words."""
        sealed = sum(_is_sealed(record) for record in self._store.list(SECRETS).records)
        lost = self._lost()
        return (
            f"{lost.sentence} (of so many: {sealed}); {lost.hint}"
            if sealed and not self._path.exists()
            else None
        )

    def _opened(self, record: Record) -> Record:
        if not (record.key.startswith(SECRETS) and _is_sealed(record)):
            return record
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        nonce, text = record.value[len(MAGIC) :][:NONCE], record.value[len(MAGIC) + NONCE :]
        try:
            return record._replace(
                value=ChaCha20Poly1305(self._read_key()).decrypt(nonce, text, record.key.encode())
            )
        except InvalidTag as error:
            raise self._lost() from error

    def _seal(self, key: str, value: bytes) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        if not self._path.exists():
            if any(map(_is_sealed, self._store.list(SECRETS).records)):
                raise self._lost()
            _make_key(self._path)
            self._key = b""
        nonce = os.urandom(NONCE)
        return (
            MAGIC + nonce + ChaCha20Poly1305(self._read_key()).encrypt(nonce, value, key.encode())
        )

    def _read_key(self) -> bytes:
        if not self._key:
            try:
                found = self._path.read_bytes()
            except OSError as error:
                raise self._lost() from error
            if len(found) != KEY:
                raise self._lost()
            self._key = found
        return self._key

    def _lost(self) -> Failed:
        return Failed(
            f"user data can't be read: its key {self._path} is missing or another one",
            "put the file back from a copy of the host's state; without it create the server "
            "anew with its user data",
        )


def _is_sealed(record: Record) -> bool:
    return record.value.startswith(MAGIC)


def _make_key(path: Path) -> None:
    """Write a new key, durably; never over one that is there. Others see all of it or nothing."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, os.urandom(KEY))
        os.fsync(handle)
    finally:
        os.close(handle)
    os.link(partial, path)
    partial.unlink()
    sync_dir(path.parent)
