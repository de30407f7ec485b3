"""Which images can be had by a name alone, and how. Pure tables; `debian` is an alias of a
version.
"""

from __future__ import annotations

import difflib

from virtuary.base.errors import NotFound
from virtuary.images import catalogue
from virtuary.model.image import ImageSource

DEBIAN = "12"
BUILT: dict[str, ImageSource] = {
    "tiny": ImageSource(kind="build", recipe="tiny", release=DEBIAN),
    "debian:12": ImageSource(kind="build", recipe="debian", release="12"),
    "debian:13": ImageSource(kind="build", recipe="debian", release="13"),
}
"""What this host can make by itself from signed packages; preferred over pulling."""
ALIASES = {**catalogue.aliases(), "debian": f"debian:{DEBIAN}"}


def canonical(name: str) -> str:
    """The name an image is kept under."""
    lowered = name.strip().lower()
    return ALIASES.get(lowered, lowered)


def names() -> list[str]:
    """Every name that works without anything being imported first."""
    return sorted({*BUILT, *catalogue.names()})


def find_source(name: str) -> ImageSource:
    """How the image `name` can be had; raises NotFound with what was perhaps meant."""
    wanted = canonical(name)
    if wanted in BUILT:
        return BUILT[wanted]
    if wanted in catalogue.names():
        return ImageSource(kind="pull", entry=wanted)
    close = difflib.get_close_matches(wanted, [*names(), *ALIASES], 1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(names())}"
    raise NotFound(f"there is no image named {name[:80]!r}", hint)
