"""What dnsmasq remembers of who asked for which address, and how it is made to forget.

It gives an address to nobody else while somebody has a lease of it, whoever the list of
reservations says it is for now. So leases are released as soon as their NIC is gone: by the message
with which the guest itself would do that (RFC 2131, RFC 8415), which dnsmasq works off without a
pause; from the file while it does not run.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import secrets
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from virtuary.network.dhcp import Reservation

FILE = "leases"
RELEASE4, RELEASE6 = 7, 8
CLIENT_ID, SERVER_ID, ADDRESSES, ADDRESS = 1, 2, 3, 5
"""Options of DHCPv6."""
SERVERS6 = "ff02::1:2"
STEP, TRIES = 0.01, 50
"""Seconds between two looks at the file, longer than dnsmasq takes to write it; and how often it is
looked at whether it forgot.
"""


@dataclass(frozen=True)
class Taken:
    """A lease. `mac` is empty for one of IPv6, which has the number of the guest's interface and
    the identity of the guest instead.
    """

    mac: str
    address: str
    hostname: str
    number: int = 0
    client: str = ""


def written(folder: Path) -> tuple[int, int] | None:
    """When the leases were written last, in nanoseconds since 1970, and their size in bytes; None
    where there are none yet.
    """
    try:
        found = os.stat(folder / FILE)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def read(folder: Path) -> list[Taken]:
    """Every lease, as dnsmasq keeps them; what is none is passed over."""
    return [found for line in _lines(folder) if (found := parse(line))]


def parse(line: str) -> Taken | None:
    """The lease that a line of dnsmasq's file tells of; None for any other line. Pure."""
    words = line.split(" ")
    if len(words) < 5:
        return None
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(words[2])
        if address.version == 4 and len(words[1]) == 17 and ":" in words[1]:
            return Taken(words[1], str(address), words[3])
        if address.version == 6:
            return Taken("", str(address), words[3], int(words[1]), words[4])
    return None


def outlived(found: Iterable[Taken], reservations: Iterable[Reservation]) -> list[Taken]:
    """The leases whose NIC is gone or has another address now. Pure."""
    kept = {place for item in reservations for place in ((item.mac, item.ipv4), ("", item.ipv6))}
    return [item for item in found if (item.mac, item.address) not in kept]


def strike(folder: Path, gone: Iterable[Taken]) -> None:
    """Take leases out of the file of a dnsmasq that does not run."""
    away = set(gone)
    if not away:
        return
    beside = folder / f".{FILE}.new"
    beside.write_text(
        "".join(f"{line}\n" for line in _lines(folder) if parse(line) not in away), encoding="utf-8"
    )
    beside.chmod(0o644)
    beside.replace(folder / FILE)


async def release(folder: str, bridge: str, gateway: str | None, gone: Sequence[Taken]) -> bool:
    """Have the dnsmasq that runs on this bridge forget leases; whether it did. `gateway`: its IPv4
    address there.
    """
    place = Path(folder)
    identity = next((line.split(" ")[1] for line in _lines(place) if line.startswith("duid ")), "")
    for item in gone:
        with contextlib.suppress(OSError, ValueError):
            if item.mac and gateway:
                _send(socket.AF_INET, bridge, message4(item, gateway), (gateway, 67))
            elif identity and item.client:
                where = (SERVERS6, 547, 0, socket.if_nametoindex(bridge))
                _send(
                    socket.AF_INET6,
                    bridge,
                    message6(item, bytes.fromhex(identity.replace(":", ""))),
                    where,
                )
    away = set(gone)
    for _ in range(TRIES):
        if not away & set(await settled(place)):
            return True
    return False


async def settled(folder: Path) -> list[Taken]:
    """Every lease, read while nobody writes: dnsmasq empties its file and fills it again."""
    stamp, found = written(folder), read(folder)
    for _ in range(TRIES):
        await asyncio.sleep(STEP)
        if (now := written(folder)) == stamp:
            break
        stamp, found = now, read(folder)
    return found


def message4(lease: Taken, server: str) -> bytes:
    """DHCPRELEASE as the owner of this lease would send it. Raises ValueError. Pure."""
    own, held = (
        bytes.fromhex(lease.mac.replace(":", "")),
        ipaddress.IPv4Address(lease.address).packed,
    )
    head = struct.pack(
        ">BBBBIHH4s12x16s192xI", 1, 1, 6, 0, secrets.randbits(32), 0, 0, held, own, 0x63825363
    )
    return head + bytes([53, 1, RELEASE4, 54, 4]) + ipaddress.IPv4Address(server).packed + b"\xff"


def message6(lease: Taken, server: bytes) -> bytes:
    """Release of DHCPv6, likewise; `server` is the identity of dnsmasq. Raises ValueError. Pure."""
    address = _option(
        ADDRESS, struct.pack(">16sII", ipaddress.IPv6Address(lease.address).packed, 0, 0)
    )
    held = _option(ADDRESSES, struct.pack(">III", lease.number, 0, 0) + address)
    client = _option(CLIENT_ID, bytes.fromhex(lease.client.replace(":", "")))
    return (
        struct.pack(">I", RELEASE6 << 24 | secrets.randbits(24))
        + client
        + _option(SERVER_ID, server)
        + held
    )


def _option(number: int, data: bytes) -> bytes:
    return struct.pack(">HH", number, len(data)) + data


def _send(
    family: int, bridge: str, message: bytes, where: tuple[str, int] | tuple[str, int, int, int]
) -> None:
    """From the host to itself, as if it came from the bridge. Raises OSError."""
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode() + b"\0")
        sock.sendto(message, where)


def _lines(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        yield from (folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines()
