"""What comes out of a server goes into a folder of this machine: files and folders, then links;
devices, sockets and pipes are left out.

The root user of the guest makes the archive, so its names, order, kinds, number and sizes are
hostile. Where each thing may go is base/beneath's; here stands what becomes of it. Links are made
when all else is there. What is refused is told, and the rest is copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from virtuary.base.beneath import Beneath, Path, named, split
from virtuary.base.errors import Failed, Refused
from virtuary.base.tar import Archive, Entry
from virtuary.cli.packing import leads_out

HELD_CAP = 256 * 1024 * 1024
"""Bytes of names that are held until the end: those of folders and links."""
TOLD_CAP = 20
"""How many sentences about what was refused are told."""


class Unpacking:
    """Puts the folder that an archive holds into a folder of this machine, as `into`."""

    def __init__(self, archive: Archive, beneath: Beneath, into: Path) -> None:
        self._archive, self._beneath, self._into = archive, beneath, into
        self._links: dict[Path, Entry] = {}
        self._folders: dict[Path, tuple[int | None, int]] = {}
        self._inodes: set[int] = set()
        self._held = 0
        self.special: list[str] = []
        """The first names of what was left out because it is neither file nor folder nor link."""
        self.left_out = 0
        self.leading_out: list[str] = []
        """Links that lead to what was not copied with them and is not here."""
        self.told: dict[str, None] = {}
        """Sentences about what was refused, each once, not all of them."""
        self.refused = 0

    def folder(self, first: Entry, rest: Iterator[Entry]) -> None:
        """A folder with all that is in it. Raises Refused when there can't be such a folder, Failed
        when the archive is broken.
        """
        top = split(first.name)
        self._folder(self._into, first)
        for entry in rest:
            try:
                self._take(self._place(top, entry.name), top, entry)
            except Refused as error:
                self._refuse(error)
        self._settle()

    def _place(self, top: Path, name: bytes) -> Path:
        """Where here what is named so in the archive goes."""
        parts = split(name)
        if parts[: len(top)] != top:
            raise Refused(f"{named(name)} is not in the folder that was asked for")
        return self._into + parts[len(top) :]

    def _take(self, path: Path, top: Path, entry: Entry) -> None:
        if entry.kind == "special":
            self.left_out += 1
            self.special += [named(entry.name)] if self.left_out <= 3 else []
            return
        if entry.kind == "folder":
            return self._folder(path, entry)
        if path == self._into:
            raise Refused(f"{named(entry.name)} is a folder first, and then it is none")
        source = self._place(top, entry.target) if entry.kind == "hard link" else None
        link = entry if entry.kind == "link" else self._links.get(source) if source else None
        self._links.pop(path, None)  # of two things of one name the later one counts
        if link:
            self._hold(len(entry.name) + len(link.target))
            self._links[path] = link
        elif source is not None:
            self._beneath.hard_link(path, source, self._inodes)
        else:
            self._inodes.add(
                self._beneath.write(path, entry.mode, entry.modified, self._archive.content())
            )

    def _folder(self, path: Path, entry: Entry) -> None:
        self._links.pop(path, None)
        self._hold(len(entry.name))
        if path:
            mode = self._beneath.make_folder(path, entry.mode)
            if mode is None and path in self._folders:
                mode = self._folders[path][0]
            self._folders[path] = (mode, entry.modified)

    def _hold(self, size: int) -> None:
        self._held += size + 256
        if self._held > HELD_CAP:
            raise Failed("the archive has more folders and links than can be kept in mind")

    def _refuse(self, error: Refused) -> None:
        self.refused += 1
        if len(self.told) < TOLD_CAP:
            self.told[error.sentence] = None

    def _look_where_it_leads(self, path: Path, target: str) -> None:
        inside = os.fsdecode(b"/".join(path[len(self._into) :]))
        if leads_out(inside, target) and not (target.startswith("/") and os.path.lexists(target)):
            self.leading_out.append(named(path))

    def _settle(self) -> None:
        """Links, then what folders are to be, those that lie deepest first."""
        for path, entry in self._links.items():
            try:
                self._beneath.link(path, entry.target, entry.modified)
                self._look_where_it_leads(path, os.fsdecode(entry.target))
            except Refused as error:
                self._refuse(error)
        for path in sorted(self._folders, key=len, reverse=True):
            try:
                self._beneath.settle_folder(path, *self._folders[path])
            except Refused as error:
                self._refuse(error)
