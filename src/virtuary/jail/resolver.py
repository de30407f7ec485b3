"""The host's resolvers as programs of ours see them: a copy of the host's file, in a folder of its
own, that follows it.

A jail shows and allows what was there at its start, and the host's file is often another one later:
renewed by renaming, made late, or a link to what is not there yet. The copy is always there, and a
new one appears in the folder that the jail shows.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from virtuary.base import resolv

PAUSE = 1.0
"""Seconds between two looks at the host's file."""


class Resolver:
    def __init__(self, host: Path = resolv.HOST) -> None:
        self._host = host
        self.folder: Path | None = None
        """Where the copy is kept; None where none is."""

    @property
    def file(self) -> Path:
        """The copy; the host's own file where none is kept."""
        return self.folder / "resolv.conf" if self.folder else self._host

    def begin(self, folder: Path) -> None:
        """Keep the copy in this folder from now on. Raises OSError."""
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.chmod(0o755)  # whoever asks is another user
        self.folder = folder
        self.follow()

    def follow(self) -> bool:
        """Have the copy say what the host's file says now; whether that was something else. Raises
        OSError.
        """
        text, copy = resolv.sift(resolv.read(self._host)), self.file
        if copy == self._host or (copy.exists() and resolv.read(copy) == text):
            return False
        beside = copy.with_name(".new")
        beside.write_text(text, encoding="ascii")
        beside.chmod(0o644)
        beside.replace(copy)
        return True

    async def keep(self) -> None:
        """Follow the host's file, until cancelled."""
        while True:
            await asyncio.sleep(PAUSE)
            try:
                self.follow()
            except OSError:
                continue  # a full disk: what was known goes on to serve

    def shown(self, *, empty_root: bool) -> tuple[list[Path], dict[str, str]]:
        """What whoever looks names up needs: files and folders to be read, and links to be made in
        an empty root.
        """
        if self.folder and empty_root:
            return [self.folder], {str(self._host): str(self.file)}
        place = Path(os.path.realpath(self._host))
        if empty_root and place.is_relative_to("/run"):
            return [place.parent], {str(self._host): str(place)}
        return [place.parent if place.is_relative_to("/run") else self._host], {}


RESOLVER = Resolver()
"""This daemon's."""
