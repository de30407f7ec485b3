"""Just enough of ELF: which shared libraries a program needs, and which modules a kernel module
needs.
"""

from __future__ import annotations

import lzma
import re
import struct
from collections.abc import Iterable
from pathlib import Path

from virtuary.base.errors import Failed

LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "lib/x86_64-linux-gnu",
    "usr/lib",
    "lib",
    "usr/lib64",
    "lib64",
)
_PT_DYNAMIC, _DT_NEEDED, _DT_STRTAB, _PT_LOAD = 2, 1, 5, 1


def needed(content: bytes) -> list[str]:
    """Names of the shared libraries a 64-bit little-endian ELF file asks for; empty for a static
    one.
    """
    if content[:6] != b"\x7fELF\x02\x01":
        return []
    table, size, count = (
        struct.unpack_from("<Q", content, 32)[0],
        *struct.unpack_from("<HH", content, 54),
    )
    headers = [
        struct.unpack_from("<IIQQQQQQ", content, table + number * size) for number in range(count)
    ]
    dynamic = next((header for header in headers if header[0] == _PT_DYNAMIC), None)
    if dynamic is None:
        return []
    pairs = list(
        struct.iter_unpack("<qQ", content[dynamic[2] : dynamic[2] + dynamic[5] // 16 * 16])
    )
    address = next((value for tag, value in pairs if tag == _DT_STRTAB), 0)
    load = next((h for h in headers if h[0] == _PT_LOAD and h[3] <= address < h[3] + h[5]), None)
    if load is None:
        return []
    strings = address - load[3] + load[2]
    return [
        content[strings + v : content.index(b"\0", strings + v)].decode()
        for tag, v in pairs
        if tag == _DT_NEEDED
    ]


def libraries_of(tree: Path, programs: Iterable[Path]) -> dict[str, Path]:
    """Every library the programs need, directly or not: name and file in `tree`."""
    found: dict[str, Path] = {}
    waiting = [name for program in programs for name in needed(program.read_bytes())]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = find_library(tree, name)
        waiting += needed(found[name].read_bytes())
    return found


def find_library(tree: Path, name: str) -> Path:
    for folder in LIBRARY_FOLDERS:
        path = tree / folder / name
        if path.exists():
            return path
    raise Failed(
        f"the packages lack the library {name}",
        "this is a defect of Virtuary's list of packages for the tiny image",
    )


class Modules:
    """The modules of one kernel in a tree, by name with underscores; what isn't here is built in or
    does not exist.
    """

    def __init__(self, folder: Path) -> None:
        paths = [path for path in folder.rglob("*.ko*") if path.is_file()]
        self.files = {path.name.partition(".ko")[0].replace("-", "_"): path for path in paths}

    def content(self, name: str) -> bytes:
        """The module itself, decompressed."""
        path = self.files[name]
        return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()

    def needs(self, name: str) -> list[str]:
        """Modules that must be loaded before `name`."""
        match = re.search(rb"\0depends=([^\0]*)\0", b"\0" + self.content(name))
        return (
            [word.replace("-", "_") for word in match.group(1).decode().split(",") if word]
            if match
            else []
        )

    def ordered(self, names: Iterable[str]) -> list[str]:
        """The modules `names` with all they need, in loading order; names the kernel has built in
        are left out.
        """
        order: list[str] = []

        def visit(name: str) -> None:
            if name in self.files and name not in order:
                for other in self.needs(name):
                    visit(other)
                order.append(name)

        for name in names:
            visit(name)
        return order
