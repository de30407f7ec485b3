"""Ports of the host that are published through the packet filter, held as long as they are: nobody
listens at them, and nobody else can.

A program of the host that listened there would get nothing, without a word; so it fails to start
instead, and a port that a program has already is not published.
"""

from __future__ import annotations

import errno
from collections.abc import Collection
from socket import socket
from typing import NamedTuple

from virtuary.base import ports


class Place(NamedTuple):
    """A port of the host's."""

    protocol: str
    address: str
    port: int


class Holder:
    def __init__(self) -> None:
        self._held: dict[Place, socket] = {}
        self.refused: dict[Place, str] = {}
        """Those that can't be held, and why."""

    @property
    def places(self) -> Collection[Place]:
        return self._held.keys()

    def keep(self, wanted: Collection[Place]) -> None:
        """Hold these and no others. Those that can't be are tried again each time."""
        for place in self._held.keys() - set(wanted):
            self._held.pop(place).close()
        self.refused = {}
        for place in wanted:
            if place not in self._held:
                try:
                    self._held[place] = ports.take(*place)
                except OSError as error:
                    if error.errno == errno.EADDRNOTAVAIL:
                        # an address that comes and goes: what is led in from it meanwhile is
                        # nobody's
                        continue
                    self.refused[place] = ports.why_not(error, place.address, place.port)[0]
