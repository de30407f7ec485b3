"""A real dnsmasq on the first network of the lab, and guests that ask it for addresses and
names.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from pathlib import Path

from netlab import Lab, mac, v4, v6
from virtuary.network import dhcp
from virtuary.network.dhcp import Reservation, Service

SERVICE = Service("vbr1", "virtuary", "10.1.0.0/24", "fd01::/64", outside=True)
GATEWAYS = ("10.1.0.1", "fd01::1")
RESERVED = [
    Reservation("web1", mac("a"), v4("a"), v6("a")),
    Reservation("db1", mac("b"), v4("b"), v6("b")),
]
DISCOVER, OFFER, REQUEST, ACK, REFUSED = 1, 2, 3, 5, 6


@contextlib.contextmanager
def served(
    lab: Lab,
    folder: Path,
    *more: str,
    service: Service = SERVICE,
    reserved: list[Reservation] = RESERVED,
) -> Iterator[Path]:
    """A dnsmasq for network 1, told so much more. It has a user of its own, who has to come to
    `folder`.
    """
    place = folder / "net"
    dhcp.write(place, service, GATEWAYS, reserved)
    with open(place / "dnsmasq.conf", "a", encoding="utf-8") as conf:
        conf.writelines(f"{line}\n" for line in more)
    identity = lab.on_host(dhcp.start, place, 0.3)
    try:
        for _ in range(100):  # until it listens
            with contextlib.suppress(ConnectionError):
                assert look_up(lab, f"host.{service.domain}") == [GATEWAYS[0]]
                break
            time.sleep(0.1)
        yield place
    finally:
        os.kill(identity.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(identity.pid, 0)


def ask_address(
    lab: Lab, place: str, own: bytes, *options: bytes, tries: int = 20, patience: float = 1
) -> tuple[str, int] | None:
    """The address that a guest is given, and the kind of the last answer; None when nobody answers
    so many tries of a second.
    """
    with card(lab, place, patience) as sock:
        offered = _exchange(sock, tries, own, DISCOVER, *options)
        if offered is None or offered[1] != OFFER:
            return offered
        wanted = bytes([50, 4]) + IPv4Address(offered[0]).packed
        return _exchange(
            sock,
            tries,
            own,
            REQUEST,
            wanted,
            bytes([54, 4]) + IPv4Address(GATEWAYS[0]).packed,
            *options,
        )


def confirm_address(
    lab: Lab, place: str, own: bytes, address: str, tries: int = 20, patience: float = 1
) -> tuple[str, int] | None:
    """What is answered to a guest that knows its address, as a copy of a running one does, and asks
    whether it may go on with it.
    """
    with card(lab, place, patience) as sock:
        return _exchange(sock, tries, own, REQUEST, bytes([50, 4]) + IPv4Address(address).packed)


@contextlib.contextmanager
def card(lab: Lab, place: str, patience: float) -> Iterator[socket.socket]:
    """A socket of who has no address yet."""
    sock = lab.socket(place, socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, 25, b"eth0\0")  # SO_BINDTODEVICE
    sock.bind(("", 68))
    sock.settimeout(patience)
    try:
        yield sock
    finally:
        sock.close()
        lab.open.remove(sock)


def _exchange(
    sock: socket.socket, tries: int, own: bytes, kind: int, *options: bytes
) -> tuple[str, int] | None:
    number = random.randrange(2**32)
    for _ in range(tries):
        sock.sendto(message(own, number, kind, *options), ("255.255.255.255", 67))
        with contextlib.suppress(TimeoutError):
            while True:
                answer = sock.recv(2000)
                if struct.unpack(">I", answer[4:8])[0] == number:
                    place = answer.index(bytes([53, 1]), 240)
                    return str(IPv4Address(answer[16:20])), answer[place + 2]
    return None


def message(own: bytes, number: int, kind: int, *options: bytes) -> bytes:
    head = struct.pack(
        ">BBBBIHH16x16s64x128xI", 1, 1, 6, 0, number, 0, 0x8000, own.ljust(16, b"\0"), 0x63825363
    )
    return head + bytes([53, 1, kind]) + b"".join(options) + b"\xff"


def look_up(lab: Lab, name: str, kind: int = 1) -> list[str]:
    """The addresses of a name (kind 1), or the names of an address (kind 12)."""
    sock = lab.socket("a", socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(20)
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    sock.sendto(
        struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0)
        + labels
        + b"\0"
        + struct.pack(">HH", kind, 1),
        (GATEWAYS[0], 53),
    )
    answer = sock.recv(2000)
    sock.close()
    count, place = struct.unpack(">H", answer[6:8])[0], 12 + len(labels) + 5
    found = []
    for _ in range(count):
        _, what, _, _, length = struct.unpack(">HHHIH", answer[place : place + 12])
        data = answer[place + 12 : place + 12 + length]
        found.append(str(ip_address(data)) if what in (1, 28) else ".".join(labels_of(data)))
        place += 12 + length
    return found


def labels_of(data: bytes) -> Iterator[str]:
    while data and 0 < data[0] < 64:
        yield data[1 : data[0] + 1].decode()
        data = data[data[0] + 1 :]


def own(server: str) -> bytes:
    return bytes.fromhex(mac(server).replace(":", ""))
