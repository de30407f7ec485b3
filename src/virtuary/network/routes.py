"""What is routed on this host, and by which address it is known itself: what networks must not
meet.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from pathlib import Path
from typing import Literal

from virtuary.base import resolv
from virtuary.network.bridge import NET, read_mtu


def find_routed(proc: Path = Path("/proc/net")) -> list[str]:
    """Every prefix in the host's routing tables, and its nameservers, as CIDR; without the default
    routes.
    """
    found: set[str] = set()
    for line in _lines(proc / "route")[1:]:
        _, target, _, _, _, _, _, mask, *_ = line.split()
        address = socket.inet_ntoa(struct.pack("<I", int(target, 16)))
        length = int(mask, 16).bit_count()
        if length:
            found.add(str(ipaddress.ip_network(f"{address}/{length}", strict=False)))
    for line in _lines(proc / "ipv6_route"):
        target, length6, *_ = line.split()
        if int(length6, 16):
            found.add(
                str(ipaddress.ip_network((bytes.fromhex(target), int(length6, 16)), strict=False))
            )
    return sorted(found)


def find_sources() -> list[str]:
    """The addresses by which this host reaches what is far away, one for each family that has a way
    there. No packet is sent.
    """
    found = []
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with (
            socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock,
            contextlib.suppress(OSError),
        ):
            sock.connect((far, 9))
            found.append(str(sock.getsockname()[0]))
    return found


def find_own(proc: Path = Path("/proc/net")) -> set[str]:
    """Every address this host has, on whatever interface."""
    found = {
        str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0])))
        for line in _lines(proc / "if_inet6")
    }
    leaf = ""
    for line in _lines(proc / "fib_trie"):
        words = line.split()
        if words[0] == "|--":
            leaf = words[1]
        elif words[0] == "/32" and words[-1] == "LOCAL":
            found.add(leaf)
    return found | set(find_sources())


def find_gateways(proc: Path = Path("/proc/net")) -> list[str]:
    """The host's IPv4 routers by which everything far away is reached."""
    rows = (line.split() for line in _lines(proc / "route")[1:])
    return [
        socket.inet_ntoa(struct.pack("<I", int(row[2], 16)))
        for row in rows
        if int(row[1], 16) == 0 and int(row[2], 16)
    ]


def find_gateways6(proc: Path = Path("/proc/net")) -> list[str]:
    """Its IPv6 routers likewise; without those that are known by a link-local address, which says
    nothing elsewhere.
    """
    rows = (line.split() for line in _lines(proc / "ipv6_route"))
    found = (ipaddress.IPv6Address(bytes.fromhex(row[4])) for row in rows if int(row[1], 16) == 0)
    return sorted(
        {str(address) for address in found if not (address.is_unspecified or address.is_link_local)}
    )


def find_nameservers(place: Path = resolv.HOST) -> list[str]:
    """The nameservers that the host asks, those on itself left out."""
    named = (text for text in resolv.nameservers(resolv.read(place)) if "%" not in text)
    return [text for text in named if not ipaddress.ip_address(text).is_loopback]


def find_mtu(proc: Path = Path("/proc/net"), net: Path = NET) -> int | None:
    """Bytes of the largest packet that passes all ways out of this host; None where it has none."""
    four = [
        row[0]
        for row in (line.split() for line in _lines(proc / "route")[1:])
        if int(row[1], 16) == int(row[7], 16) == 0
    ]
    rows = [line.split() for line in _lines(proc / "ipv6_route")]
    six = [
        row[-1] for row in rows if not int(row[0], 16) and not int(row[1], 16) and row[-1] != "lo"
    ]
    return min((mtu for name in {*four, *six} if (mtu := read_mtu(name, net))), default=None)


async def call(address: str, port: int, patience: float) -> Literal["answers", "refused", "silent"]:
    """Whether somebody listens on a TCP port, asked from where this runs. `patience` in seconds."""
    try:
        async with asyncio.timeout(patience):
            _, writer = await asyncio.open_connection(address, port)
    except TimeoutError:
        return "silent"
    except OSError:
        return "refused"
    writer.close()
    return "answers"


def _lines(place: Path) -> list[str]:
    try:
        return place.read_text(encoding="ascii").splitlines()
    except OSError:
        return []  # a kernel without this family
