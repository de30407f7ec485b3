"""The file that names a host's resolvers (resolv.conf(5)), whatever else stands in it."""

from __future__ import annotations

import contextlib
import ipaddress
from pathlib import Path

HOST = Path("/etc/resolv.conf")
LONGEST = 1 << 16
"""Bytes of such a file that are read."""
_KEPT = ("search", "domain", "options", "sortlist")


def read(place: Path = HOST) -> str:
    """What the file says; nothing where it is not there, leads nowhere or can't be read."""
    try:
        with place.open("rb") as file:
            return file.read(LONGEST).decode("ascii", errors="replace")
    except OSError:
        return ""


def nameservers(text: str) -> list[str]:
    """The addresses of the resolvers, with their scope where they have one; what is no address is
    passed over, as libraries do. Pure.
    """
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                found.append(str(ipaddress.ip_address(words[1])))
    return found


def sift(text: str) -> str:
    """The same file without the lines that mean nothing. Pure."""
    others = [
        line.strip()
        for line in text.splitlines()
        if line.split()[:1] and line.split()[0] in _KEPT and line.isprintable()
    ]
    return "".join(
        f"{line}\n"
        for line in [*others, *(f"nameserver {address}" for address in nameservers(text))]
    )
