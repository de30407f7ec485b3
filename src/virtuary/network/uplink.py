"""What leads out of a user's own network namespace, and into it: one interface, behind which QEMU's
user network opens connections.

The namespace is a host of its own: it translates what servers send to its address on that
interface, and what arrives there at a port to whoever published it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from virtuary.base.errors import Failed
from virtuary.base.proc import run
from virtuary.model.network import UPLINK
from virtuary.network.bridge import NO_HEADER, TAP, TUNSETIFF
from virtuary.network.filtered import Forward
from virtuary.network.nft import load
from virtuary.network.passt import ADDRESS, GATEWAY, PREFIX

NAME = "vuplink"
ANY = "0.0.0.0"  # noqa: S104  (as QEMU is told it)
IPV6 = Path("/proc/sys/net/ipv6/conf")
LINES = (
    f"address replace {ADDRESS}/{PREFIX} dev {NAME}\nlink set dev {NAME} up\nroute replace "
    f"default via {GATEWAY} dev {NAME}\n"
)
RULES = f"""
table inet virtuary_uplink
delete table inet virtuary_uplink
table inet virtuary_uplink {{
    chain keep {{
        type filter hook forward priority -1
        ct state established,related accept
        ip daddr {UPLINK[0]} drop
        ip6 daddr {UPLINK[1]} drop
    }}
}}
"""
"""Servers have no business with what QEMU's user network has besides a way out: one of its
addresses is the host's loopback.
"""
_HELD = re.compile(
    r"^ *(TCP|UDP)\[HOST_FORWARD\] +[0-9]+ +(\S+) +([0-9]{1,5}) +(\S+) +([0-9]{1,5})\s",
    re.MULTILINE,
)


async def open_link() -> int:
    """A descriptor of the interface, new and with its addresses; the caller's to hand over and
    close. Raises Failed.
    """
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH22x", NAME.encode(), TAP | NO_HEADER))
        with contextlib.suppress(FileNotFoundError):
            (IPV6 / NAME / "accept_ra").write_text("2")  # although this host passes packets on
        await run("ip", "-batch", "-", stdin=LINES.encode())
        await load(RULES)
    except OSError as error:
        os.close(handle)
        raise Failed(f"the way out of your networks can't be made: {error.strerror}") from error
    except BaseException:
        os.close(handle)
        raise
    return handle


class Held(NamedTuple):
    """A port of the host that is led to a port of the namespace."""

    protocol: str
    address: str
    host: int
    inner: int

    @property
    def place(self) -> str:
        return f"{self.protocol}:{self.address}:{self.host}"

    def add(self) -> str:
        """The words by which QEMU's monitor is told."""
        return f"hostfwd_add user {self.place}-{ADDRESS}:{self.inner}"

    def remove(self) -> str:
        return f"hostfwd_remove user {self.place}"


def parse_held(told: str) -> set[Held]:
    """What `info usernet` says of ports that are led in."""
    return {
        Held(protocol.lower(), ANY if address == "*" else address, int(host), int(inner))
        for protocol, address, host, _, inner in _HELD.findall(told)
    }


def lead(published: Iterable[Forward]) -> list[tuple[Held, Forward]]:
    """How each of these gets in: by a port of the namespace, from which the rules there lead on.
    Pure.

    That port has the same number where no other address of the host has it too.
    """
    found: list[tuple[Held, Forward]] = []
    taken: set[tuple[str, int]] = set()
    for forward in sorted(
        published, key=lambda item: (item.protocol, item.port, int(item.address))
    ):
        inner = forward.port if (forward.protocol, forward.port) not in taken else 65535
        while (forward.protocol, inner) in taken:
            inner -= 1
        taken.add((forward.protocol, inner))
        held = Held(forward.protocol, str(forward.address), forward.port, inner)
        found.append((held, replace(forward, address=IPv4Address(ADDRESS), port=inner)))
    return found
