"""Makes an image in a folder, whichever of the four ways it comes: built, pulled, from an address, from a file.

The folder then holds disk.qcow2, perhaps kernel and initrd, and facts.json; nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from virtuary.base.errors import Bug
from virtuary.base.files import write_whole
from virtuary.images import build
from virtuary.model.image import ImageSource, ImageSpec

Report = Callable[[str, float | None], None]


async def make(spec: ImageSpec, folder: Path, downloads: Path, report: Report) -> dict[str, Any]:
    """Make the image in `folder` (empty, private) and return its facts: the fields of an image's status."""
    source = spec.source
    match source.kind:
        case "build":
            return await _build(source, folder, report)
    raise Bug(f"no way to make an image of kind {source.kind}")


async def _build(source: ImageSource, folder: Path, report: Report) -> dict[str, Any]:
    recipe = build.Recipe(kind=source.recipe or "debian", release="13" if source.release == "13" else "12", packages=source.packages)
    built = await build.build(recipe, folder, report)
    report("computing the digest", None)
    return {
        "format": "qcow2",
        "virtual_size": built.size,
        "sha256": digest(built.disk),
        "boot": "direct" if built.kernel else "disk",
        "kernel_args": built.kernel_args,
        "firmware": list(built.firmware) or ["bios"],
        "agent": built.agent,
        "cloud_init": built.cloud_init,
        "user": built.user,
        "os": built.os_release,
    }


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    write_whole(folder / "facts.json", json.dumps(facts, indent=1).encode())


def read_facts(folder: Path) -> dict[str, Any]:
    """The facts of a finished image."""
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    return facts
