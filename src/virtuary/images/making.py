"""Makes an image in a folder, whichever of the four ways it comes: built, pulled, from an address,
from a file.

The folder then holds disk.qcow2, perhaps kernel and initrd, and facts.json; nothing else. What was
not built here is read by our own header parser before any tool sees it, and converted, so that its
format is known from then on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virtuary.base.errors import Invalid, PeerAway, VirtuaryError
from virtuary.base.files import remove, write_whole
from virtuary.base.units import GIB
from virtuary.images import catalogue, fetch
from virtuary.images.addresses import check_addresses, literal, parse_url
from virtuary.images.checksums import Digest, hash_file
from virtuary.images.formats import inspect
from virtuary.images.header import open_reader
from virtuary.images.sources import BUILT
from virtuary.model.image import ImageSource, ImageSpec

Report = Callable[[str, float | None], None]
MAX_DOWNLOAD = 64 * GIB


@dataclass(frozen=True)
class Means:
    """Where downloads lie, and how the world outside is reached."""

    downloads: Path
    mirrors: Mapping[str, str] = field(default_factory=dict)
    allow_private: bool = False
    kept: int | None = None
    """Bytes of the pool that stay free; None: by rule."""


async def make(spec: ImageSpec, folder: Path, means: Means, report: Report) -> dict[str, Any]:
    """Make the image in `folder` (empty, private) and return its facts: the fields of an image's
    status.
    """
    source = spec.source
    match source.kind:
        case "build":
            return await _build(source, folder, report)
        case "pull":
            return await _pull(source, folder, means, report)
        case "url":
            return await _fetch(source, folder, means, report)
        case "file":
            return await _import(source, folder, means, report)


async def _build(source: ImageSource, folder: Path, report: Report) -> dict[str, Any]:
    from virtuary.images import build  # large, and this may never be asked of the daemon

    release: build.Release = "13" if source.release == "13" else "12"
    recipe = build.Recipe(kind=source.recipe or "debian", release=release, packages=source.packages)
    built = await build.build(recipe, folder, report)
    report("computing the digest", None)
    with built.disk.open("rb") as handle:
        digest = hash_file(handle.fileno())["sha256"]
    return {
        "format": "qcow2",
        "virtual_size": built.size,
        "sha256": digest,
        "boot": "direct" if built.kernel else "disk",
        "kernel_args": built.kernel_args,
        "firmware": list(built.firmware) or ["bios"],
        "agent": built.agent,
        "cloud_init": built.cloud_init,
        "user": built.user,
        "os": built.os_release,
    }


async def _pull(source: ImageSource, folder: Path, means: Means, report: Report) -> dict[str, Any]:
    """From its publisher; a publisher that can't be reached is replaced by building, where that is
    possible.
    """
    entry = catalogue.find(source.entry, "amd64")
    download = means.downloads / f"{entry.name.replace(':', '-')}.download"
    try:
        await fetch.pull(
            entry,
            download,
            report=report,
            mirrors=means.mirrors,
            allow_private=means.allow_private,
            kept=means.kept,
        )
    except PeerAway as error:
        if entry.name not in BUILT:
            raise
        report(f"{error.sentence}: building it here instead", None)
        return await _build(BUILT[entry.name], folder, report)
    facts = await _adopt(download, folder, entry.format, means, report)
    return {
        **facts,
        "firmware": list(entry.firmware),
        "agent": entry.agent,
        "cloud_init": entry.cloud_init,
        "user": entry.user,
        "os": entry.title,
    }


def check_source(source: ImageSource, allow_private: bool) -> None:
    """Raise Invalid or Refused for an address that can't be meant, before anything is begun. Names
    are looked up later.
    """
    if source.kind != "url":
        return
    url = parse_url(source.url)
    address = literal(url.host)
    # first: whoever then has found the digest is not to be told so only then
    if address and not allow_private:
        check_addresses(url, [address], allow_private)
    if not source.sha256:
        raise Invalid(
            "an image from an address needs its digest",
            "--sha256 DIGEST, as its publisher tells it",
        )
    if address:
        check_addresses(url, [address], allow_private)


async def _fetch(source: ImageSource, folder: Path, means: Means, report: Report) -> dict[str, Any]:
    digest = Digest.parse(f"sha256:{source.sha256}")
    download = means.downloads / f"{digest.value}.download"
    await fetch.fetch(
        source.url,
        download,
        digest=digest,
        max_size=MAX_DOWNLOAD,
        report=report,
        allow_private=means.allow_private,
        kept=means.kept,
    )
    return {
        **await _adopt(download, folder, source.format or None, means, report),
        **_stated(source),
    }


async def _import(
    source: ImageSource, folder: Path, means: Means, report: Report
) -> dict[str, Any]:
    # it stays until the image is in its place: a crash before that begins afresh
    upload = means.downloads / source.path
    if source.sha256:
        report("comparing the digest", None)
        _compare(upload, source.sha256)
    return {
        **await _adopt(upload, folder, source.format or None, means, report, keep=True),
        **_stated(source),
    }


def _stated(source: ImageSource) -> dict[str, Any]:
    """What only whoever brings an image can know."""
    return {
        "firmware": [source.firmware] if source.firmware else ["bios", "uefi"],
        "agent": source.agent,
        "cloud_init": source.cloud_init,
        "user": source.user or "root",
    }


async def _adopt(
    file: Path,
    folder: Path,
    stated: str | None,
    means: Means,
    report: Report,
    *,
    keep: bool = False,
) -> dict[str, Any]:
    """Read the header of a foreign file, convert it, and remove it unless told to `keep` it; it is
    gone as well when it is refused.
    """
    from virtuary.images import convert

    try:
        with open_reader(file) as reader:
            # a log's checksums take a while
            header = await asyncio.to_thread(inspect, reader, stated)
        disk = folder / "disk.qcow2"
        digest = await convert.to_qcow2(file, header, disk, report, means.kept)
    except VirtuaryError:
        remove(file)
        raise
    if not keep:
        remove(file)
    return {
        "format": "qcow2",
        "virtual_size": header.virtual_size,
        "sha256": digest,
        "boot": "disk",
        "kernel_args": "",
    }


def _compare(file: Path, wanted: str) -> None:
    with file.open("rb") as handle:
        found = hash_file(handle.fileno())["sha256"]
    if found != wanted.lower():
        raise Invalid(
            f"the file's SHA-256 is {found}, not {wanted.lower()}", "fetch the file again"
        )


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    write_whole(folder / "facts.json", json.dumps(facts, indent=1).encode())


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts of a finished image."""
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return facts
