"""Making images: one task an image, from `absent` to `ready` or `failed`. The only writer of an
image's status.

An image is made in a folder `.making-ID` and renamed into place when it is whole; what a crash left
behind is removed at the next start and made again. A cancelled or failed making leaves nothing but
its operation.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from virtuary.base.crash import crashpoint, declare
from virtuary.base.errors import Invalid, VirtuaryError
from virtuary.base.files import sync_dir, sync_file
from virtuary.base.log import say
from virtuary.images import making
from virtuary.model.image import Image
from virtuary.model.meta import utcnow
from virtuary.node import operations
from virtuary.node.loop import FOR_EVER, Loop
from virtuary.node.making.tasks import Unwanted, carry_out
from virtuary.node.site import Site
from virtuary.storage.directory import allocated
from virtuary.store import documents, servers

logger = logging.getLogger("virtuary.images")
AGAIN = 5.0
"""Seconds until a step that failed is tried again."""
declare(
    "image.before_make", "image.after_make", "image.before_rename", "image.after_rename",
    "image.after_record", "image.after_remove",
)  # fmt: skip


class ImageWorker(Loop[Image]):
    def __init__(self, site: Site, image_id: str) -> None:
        super().__init__(site, Image, image_id)

    async def step(self, document: Image) -> float:
        if document.meta.purge:
            await self._forget(document)
        elif document.status.state in ("absent", "making"):
            await self._make(document)
        else:
            return FOR_EVER
        return 0

    async def failed(self, document: Image, error: VirtuaryError | OSError) -> float:
        say(logger, "image step failed", logging.WARNING, image=document.name, error=error)
        return AGAIN

    async def _make(self, image: Image) -> None:
        """Make it as a task of its own, so that a wish to cancel can end it."""
        active = operations.open_operations(self.site.store, self.key)
        operation = active[0].key if active else None
        await self.write(state="making", reason=None)
        try:
            what = f"the image {image.name}"
            await carry_out(
                what,
                self._make_whole(image, operation),
                self.woken,
                lambda: self._cancelled(operation),
            )
        except Unwanted:
            await self._drop(operation, None)
        except VirtuaryError as error:
            await self._drop(operation, error)

    def _cancelled(self, operation: str | None) -> bool:
        found = operations.load(self.site.store, operation) if operation else None
        return bool(found and found.spec.cancel)

    async def _make_whole(self, image: Image, operation: str | None) -> None:
        final = self.site.paths.image(image.id)
        partial = final.with_name(f".making-{image.id}")
        if not final.exists():
            shutil.rmtree(partial, ignore_errors=True)
            report = operations.reporter(self.site.store, operation)
            try:
                partial.mkdir(mode=0o700)
                crashpoint("image.before_make")
                made = await making.make(image.spec, partial, self._means(), report)
                crashpoint("image.after_make")
                report("making it durable", None)
                await asyncio.to_thread(_seal, partial, made)
                crashpoint("image.before_rename")
                os.replace(partial, final)
                sync_dir(final.parent)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            crashpoint("image.after_rename")
        self._drop_upload(image)
        facts = making.read_facts(final)
        await self.write(
            ends=operation,
            **facts,
            state="ready",
            reason=None,
            size=allocated(final),
            made=utcnow(),
        )
        crashpoint("image.after_record")
        say(logger, "image ready", image=image.name)

    def _means(self) -> making.Means:
        settings = self.site.settings.images
        return making.Means(
            self.site.paths.downloads, settings.mirrors, settings.allow_private, self.site.kept
        )

    async def _drop(self, operation: str | None, error: VirtuaryError | None) -> None:
        """The making ended badly: the operation tells why, and the image is gone as if never asked
        for.
        """
        image = self.load()
        if image is None or image.status.state == "ready":
            return
        shutil.rmtree(self.site.paths.image(image.id), ignore_errors=True)
        self._drop_upload(image)
        puts: dict[str, bytes] = {}
        found = operations.load(self.site.store, operation) if operation else None
        if found and not found.ended:
            puts[found.key] = operations.finished(found, error, cancelled=error is None).dump()
        if servers.on_image(self.site.store, image.id):
            reason = error.sentence if error else "its making was cancelled"
            puts |= documents.written(self.site.store, image.seen(state="failed", reason=reason))
            await self.site.store.txn({self.key: image.meta.revision}, puts)
            return
        expect, gone = documents.removed(self.site.store, image)
        await self.site.store.txn(expect, puts, gone)

    async def _forget(self, image: Image) -> None:
        shutil.rmtree(self.site.paths.image(image.id), ignore_errors=True)
        crashpoint("image.after_remove")
        puts = {
            item.key: operations.finished(item).dump()
            for item in operations.open_operations(self.site.store, self.key)
        }
        expect, gone = documents.removed(self.site.store, image)
        await self.site.store.txn(expect, puts, gone)

    def _drop_upload(self, image: Image) -> None:
        """What was sent for an import is of no more use."""
        if image.spec.source.kind == "file" and image.spec.source.path:
            (self.site.paths.downloads / image.spec.source.path).unlink(missing_ok=True)


def _seal(folder: Path, facts: dict[str, Any]) -> None:
    """Write the facts beside the files, make every file read-only and durable."""
    making.write_facts(folder, facts)
    for path in folder.iterdir():
        if not path.is_file():
            raise Invalid(f"the image's folder holds {path.name}, which is not a file")
        os.chmod(path, 0o444)
        sync_file(path)
    sync_dir(folder)
    os.chmod(folder, 0o711)  # noqa: S103  (its kernel is read by the machine's own user)
