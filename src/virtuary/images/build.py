"""Images built on this host from Debian's signed packages: `tiny` (seconds) and `debian` (a server
that boots on its own).

No root is needed, no loop device, no mount on the host: the tree is made by mmdebstrap inside
namespaces (build_tree.py), file systems are filled by mke2fs and mtools, the boot loader is placed
by our own code (bootdisk.py). Everything happens below the given folder; what is left at the end is
the result alone, after a failure nothing.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from virtuary.base.errors import Failed, Invalid, NoRoom, VirtuaryError
from virtuary.base.units import GIB, MIB, format_size
from virtuary.images import build_debian, build_tiny, build_tree, convert
from virtuary.images.formats import inspect, open_reader

Kind = Literal["tiny", "debian"]
Release = Literal["12", "13"]
MAX_PACKAGES = 200
# Debian Policy 5.6.7, with a bound on the length
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.\-]{1,127}", re.ASCII)


@dataclass(frozen=True)
class Recipe:
    """What to build; raises Invalid when it can't be meant."""

    kind: Kind
    release: Release = "12"
    arch: str = "amd64"
    packages: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise Invalid(
                f"there is no kind of image {self.kind!r}", f"one of: {', '.join(get_args(Kind))}"
            )
        if self.release not in get_args(Release):
            raise Invalid(
                f"Debian {self.release!r} can't be built", f"one of: {', '.join(get_args(Release))}"
            )
        if self.arch != "amd64":
            raise Invalid(
                f"images for {self.arch!r} can't be built", "amd64 is the only architecture so far"
            )
        if self.kind == "tiny" and self.packages:
            raise Invalid("the tiny image takes no packages", "build debian instead")
        check_packages(self.packages)


@dataclass(frozen=True)
class Built:
    """The result; paths lie in the folder given to `build`."""

    disk: Path  # qcow2
    size: int  # virtual, bytes
    kernel: Path | None
    initrd: Path | None
    kernel_args: str
    firmware: tuple[str, ...]
    agent: bool
    cloud_init: bool
    user: str
    os_release: str


def check_packages(names: tuple[str, ...]) -> None:
    """Raise Invalid unless each is a plain package name: no version, no option, no pattern, no
    trailing + or - of apt's.
    """
    if len(names) > MAX_PACKAGES:
        raise Invalid(
            f"{len(names)} packages are more than the {MAX_PACKAGES} allowed",
            "install the rest inside the server",
        )
    for name in names:
        if not isinstance(name, str) or not _PACKAGE.fullmatch(name):
            raise Invalid(
                f"{name!r:.80} is not a Debian package name",
                "small letters, digits, '+', '-' and '.', at least two characters",
            )
        if name.endswith("-"):
            raise Invalid(f"{name!r:.80} would ask apt to remove a package", "give the plain name")


def missing_programs(recipe: Recipe) -> list[str]:
    """Programs the host lacks for this recipe; for an ordinary user also /etc/subuid and
    /etc/subgid without a range.
    """
    return build_tree.missing_programs(build_debian.PROGRAMS if recipe.kind == "debian" else ())


def estimate_space(recipe: Recipe) -> int:
    """Bytes needed below the folder while building; the result takes about a third of it."""
    if recipe.kind == "tiny":
        return 700 * MIB
    return 4 * GIB + len(recipe.packages) * 100 * MIB


async def build(recipe: Recipe, into: Path, report: Callable[[str, float | None], None]) -> Built:
    """Build `recipe` in the empty folder `into`; takes half a minute (tiny) to a few minutes.

    `report` gets what is being done and the fraction done. Raises a VirtuaryError and leaves `into`
    empty when it fails, also when it is cancelled.
    """
    build_tree.require(missing_programs(recipe))
    check_folder(recipe, into)
    into = into.resolve()
    scratch = into / "scratch"
    scratch.mkdir(mode=0o700)
    done = False
    try:
        result = await _build(recipe, scratch, into, report)
        done = True
        return result
    except OSError as error:
        raise Failed(f"building the image failed: {error}") from error
    finally:
        try:
            await build_tree.remove_tree(scratch)
        finally:
            if not done:
                _remove_results(into)


def check_folder(recipe: Recipe, into: Path) -> None:
    """Raise unless `into` is an empty folder with room enough."""
    if not into.is_dir() or any(into.iterdir()):
        raise Invalid(f"{into} is not an empty folder", "give a new folder for the build")
    free, need = shutil.disk_usage(into).free, estimate_space(recipe)
    if free < need:
        raise NoRoom(
            f"building needs {format_size(need)}, and {format_size(free)} are free at {into}",
            "free some space",
        )


async def _build(recipe: Recipe, scratch: Path, into: Path, report: build_tree.Report) -> Built:
    report("reading package lists", 0.0)
    disk = into / "disk.qcow2"
    if recipe.kind == "tiny":
        raw, kernel, initrd = await build_tiny.make(
            recipe.release, recipe.arch, scratch, into, report
        )
        size, name = build_tiny.DISK_SIZE, build_tiny.pretty_name(recipe.release)
        await _to_qcow2(raw, disk, report)
        return Built(
            disk, size, kernel, initrd, build_tiny.KERNEL_ARGS, (), True, False, "root", name
        )
    raw, size, name = await build_debian.make(
        recipe.release, recipe.arch, recipe.packages, scratch, report
    )
    await _to_qcow2(raw, disk, report)
    return Built(disk, size, None, None, "", ("bios", "uefi"), True, True, "root", name)


async def _to_qcow2(raw: Path, disk: Path, report: build_tree.Report) -> None:
    report("converting the disk", 0.95)
    with open_reader(raw) as reader:
        header = inspect(reader, "raw")
    await convert.to_qcow2(raw, header, disk, lambda text, fraction: None)
    report("done", 1.0)


def _remove_results(into: Path) -> None:
    for name in ("disk.qcow2", "kernel", "initrd"):
        with suppress(OSError):
            (into / name).unlink()


__all__ = [
    "Built",
    "Recipe",
    "VirtuaryError",
    "build",
    "check_packages",
    "estimate_space",
    "missing_programs",
]
