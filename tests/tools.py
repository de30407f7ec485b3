"""Programs for tests that nobody wants installed, because their packages begin to serve: `./test`
unpacks them beside the environment.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

UNPACKED = Path(sys.prefix) / "packages"


def find_tool(name: str) -> str | None:
    """Where a program is: installed, or unpacked."""
    places = (
        os.environ.get("PATH", ""),
        "/usr/sbin",
        f"{UNPACKED}/usr/bin",
        f"{UNPACKED}/usr/sbin",
    )
    return shutil.which(name, path=":".join(places))


def with_libraries() -> dict[str, str]:
    """The environment in which an unpacked program finds its libraries."""
    return os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, UNPACKED.glob("usr/lib/*-linux-*")))}
