"""Interfaces of the host that a bridge of servers joins: which can be taken without harm, and how
they are given back as they were.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
from pathlib import Path

from virtuary.base.errors import Failed
from virtuary.base.proc import run
from virtuary.network import bridge
from virtuary.network.bridge import NET

GET_ADDRESS, NAME_LENGTH = 0x8915, 15
NEW_LINK, GET_LINK, REQUEST, ALT_NAME = 16, 18, 1, 53
"""Of rtnetlink(7): messages, a flag of theirs, and the attribute IFLA_ALT_IFNAME."""
PROC = Path("/proc/net")


def find_fault(
    interface: str, own: str | None, *, tagged: bool, net: Path = NET, proc: Path = PROC
) -> tuple[str, str] | None:
    """Why servers can't join this interface, with what would happen, and what helps; None when they
    can.

    `own`: the bridge made for them, on which it may be already. `tagged`: they join a VLAN of it,
    which takes nothing else away.
    """
    interface = real_name(interface, net)
    if not bridge.is_there(interface, net):
        return f"this host has no network interface {interface}", "ip link shows them"
    master = master_of(interface, net)
    if master and master != own and not bridge.is_bridge(master, net):
        return f"{interface} is a part of {master}, which would lose it", f"name {master}"
    if tagged or bridge.is_bridge(interface, net):
        return None
    if master and master != own:
        return (
            f"{interface} is on the bridge {master}, whose hosts would lose it",
            f"name {master}, or use --vlan",
        )
    what = "has the host's own addresses" if has_addresses(interface, proc) else ""
    if has_default_route(interface, proc):
        what = what or "is the host's way out"
    if not what:
        return None
    hint = f"make a bridge of the host's with {interface} on it and name that, or use --vlan"
    return (
        f"{interface} {what}, which it would lose on a bridge: the host could be reached no more",
        hint,
    )


def real_name(interface: str, net: Path = NET) -> str:
    """The name under which the kernel lists an interface that may have been called by another one
    of its names (altname).
    """
    if not interface or bridge.is_there(interface, net):
        return interface
    name = interface.encode() + b"\0"
    attribute = struct.pack("=HH", 4 + len(name), ALT_NAME) + name + b"\0" * (-len(name) % 4)
    ask = (
        struct.pack("=IHHIIBxHiII", 32 + len(attribute), GET_LINK, REQUEST, 1, 0, 0, 0, 0, 0, 0)
        + attribute
    )
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as link:
        link.settimeout(1)
        try:
            link.send(ask)
            answer = link.recv(65536)
        except OSError:
            return interface
    kind, index = struct.unpack_from("=4xH14xi", answer) if len(answer) >= 24 else (0, 0)
    with contextlib.suppress(OSError):
        return socket.if_indextoname(index) if kind == NEW_LINK else interface
    return interface


def master_of(interface: str, net: Path = NET) -> str | None:
    """The bridge, bond or team that an interface is on."""
    try:
        return os.path.basename(os.readlink(net / interface / "master"))
    except OSError:
        return None


def has_addresses(interface: str, proc: Path = PROC) -> bool:
    """Whether the host has an address on it that others know: link-local ones count for nothing."""
    for line in _lines(proc / "if_inet6"):
        words = line.split()
        if words[-1] == interface and words[3] == "00":
            return True
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control,
        contextlib.suppress(OSError),
    ):
        fcntl.ioctl(control, GET_ADDRESS, struct.pack("16s24x", interface.encode()[:NAME_LENGTH]))
        return True
    return False


def has_default_route(interface: str, proc: Path = PROC) -> bool:
    four = (line.split() for line in _lines(proc / "route")[1:])
    six = (line.split() for line in _lines(proc / "ipv6_route"))
    return any(
        words[0] == interface and int(words[1], 16) == 0 == int(words[7], 16) for words in four
    ) or any(
        words[-1] == interface and not int(words[0], 16) and not int(words[1], 16) for words in six
    )


def is_up(interface: str, net: Path = NET) -> bool:
    try:
        return bool(int((net / interface / "flags").read_text(), 16) & bridge.UP)
    except OSError:
        return False


async def join(interface: str, own: str, vlan: int | None, tagged: str) -> str:
    """The bridge on which servers meet the physical network. `own`: the name of one made for them;
    `tagged`: of an interface for their VLAN.

    Repeats harmlessly; raises Failed where the interface can't be joined.
    """
    if fault := find_fault(interface, own, tagged=vlan is not None):
        raise Failed(*fault)
    if vlan is None and bridge.is_bridge(interface):
        return interface
    await bridge.ensure_bridge(own, (), passing=False)
    port = interface
    if vlan is not None:
        port = tagged
        if not bridge.is_there(port):
            await run(
                "ip",
                "link",
                "add",
                "link",
                interface,
                "name",
                port,
                "type",
                "vlan",
                "id",
                str(vlan),
            )
    if master_of(port) != own or not is_up(port):
        await run("ip", "link", "set", "dev", port, "master", own, "up")
    return own


async def leave(interface: str, own: str, tagged: str, *, was_up: bool) -> None:
    """Give the interface back as it was. Repeats harmlessly."""
    if bridge.is_there(tagged):
        await run("ip", "link", "delete", "dev", tagged)
    elif interface in bridge.ports_of(own):
        await run("ip", "link", "set", "dev", interface, "nomaster", *(() if was_up else ("down",)))


def _lines(place: Path) -> list[str]:
    try:
        return place.read_text(encoding="ascii").splitlines()
    except OSError:
        return []  # a kernel without this family
