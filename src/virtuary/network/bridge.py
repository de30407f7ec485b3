"""Bridges of the host and the taps of servers on them, by the kernel's own calls: a tap is ready in
less than a millisecond.

A tap lives as long as a descriptor of it is open, and QEMU has the only one; what is left all the
same is removed by its name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from virtuary.base.errors import Failed, HostLacks
from virtuary.base.proc import run

TUNSETIFF, TAP, NO_HEADER, VIRTIO_HEADER = 0x400454CA, 0x0002, 0x1000, 0x4000
ADD_BRIDGE, REMOVE_BRIDGE, ADD_PORT = 0x89A0, 0x89A1, 0x89A2
GET_FLAGS, SET_FLAGS, UP = 0x8913, 0x8914, 0x1
SET_ADDRESS, ETHERNET, SET_MTU = 0x8924, 1, 0x8922
SET_LINK, DELETE_LINK, REQUEST_ACK, PORT_INFO, PORT_HAIRPIN, PORT_ISOLATED = (
    19,
    17,
    0x0005,
    0x8000 | 12,
    4,
    33,
)
NET, IPV4, IPV6 = Path("/sys/class/net"), Path("/proc/sys/net/ipv4"), Path("/proc/sys/net/ipv6")
FILTERED = tuple(
    Path("/proc/sys/net/bridge") / f"bridge-nf-call-{family}tables" for family in ("ip", "ip6")
)
SETTLED = {
    # servers can't hear each other: the host answers for all, and passes on
    "ipv4/conf/{}/proxy_arp_pvlan": "1",
    "ipv4/neigh/{}/proxy_delay": "0",  # and at once
    "ipv4/conf/{}/send_redirects": "0",
    # ports published on 127.0.0.1; what servers send there is dropped
    "ipv4/conf/{}/route_localnet": "1",
    "ipv6/conf/{}/accept_ra": "0",
    "ipv6/conf/{}/accept_dad": "0",
}
"""What is set of a bridge whose servers' traffic the host passes on."""


def open_tap(name: str, bridge: str, *, apart: bool, mtu: int | None = None) -> int:
    """A descriptor of a new tap on `bridge`, up; the caller's to hand over and close. Raises
    Failed.

    `apart`: its frames go to no other tap that is set apart, only to the host and the physical
    network. `mtu`: that of the bridge, which would else take over a smaller one.
    """
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(
            handle,
            TUNSETIFF,
            struct.pack("16sH22x", name.encode(), TAP | NO_HEADER | VIRTIO_HEADER),
        )
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            # the host itself has no business on it
            (IPV6 / "conf" / name / "disable_ipv6").write_text("1")
        attach(name, bridge, apart=apart, mtu=mtu)
    except OSError as error:
        os.close(handle)
        raise Failed(f"a network interface can't be made on {bridge}: {error.strerror}") from error
    return handle


def attach(tap: str, bridge: str, *, apart: bool, mtu: int | None = None) -> None:
    """Put a tap onto a bridge, up. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        keep_mtu(control, tap, mtu)
        fcntl.ioctl(
            control, ADD_PORT, struct.pack("16si20x", bridge.encode(), socket.if_nametoindex(tap))
        )
        keep_apart(tap, apart)
        raise_link(control, tap)


def keep_apart(tap: str, apart: bool) -> None:
    """Have its frames go to the host only, or to everybody on its bridge. Repeats harmlessly;
    raises OSError.

    Where the kernel shows bridged frames to the packet filter (br_netfilter, with Docker for one)
    it bridges by itself what a server sends to a published port of a neighbour, so the ports can't
    be isolated there: the rules drop what else goes between them.
    """
    filtered = apart and any(_reads(place) for place in FILTERED)
    wanted = {"isolated": apart and not filtered, "hairpin_mode": filtered}
    if any(_reads(NET / tap / "brport" / name) != on for name, on in wanted.items()):
        _set_port(
            socket.if_nametoindex(tap), isolated=wanted["isolated"], hairpin=wanted["hairpin_mode"]
        )


def _set_port(index: int, *, isolated: bool, hairpin: bool) -> None:
    """What a bridge does with one of its ports' frames. By netlink: the files of a user's own
    network namespace are root's to write.
    """
    options = b"".join(
        struct.pack("HHB3x", 5, kind, on)
        for kind, on in ((PORT_HAIRPIN, hairpin), (PORT_ISOLATED, isolated))
    )
    _demand(
        SET_LINK, socket.AF_BRIDGE, index, struct.pack("HH", 4 + len(options), PORT_INFO) + options
    )


def _demand(what: int, family: int, index: int, options: bytes = b"") -> None:
    """Ask the kernel for a change of one interface. Raises OSError."""
    body = struct.pack("BxHiII", family, 0, index, 0, 0) + options
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as link:
        link.send(struct.pack("IHHII", 16 + len(body), what, REQUEST_ACK, 1, 0) + body)
        failed = -struct.unpack_from("i", link.recv(4096), 16)[0]
    if failed:
        raise OSError(failed, os.strerror(failed))


def remove_tap(name: str) -> None:
    """Remove a tap whose machine is over, whoever still has a descriptor of it; none of that name
    is no failure. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        index = int((NET / name / "ifindex").read_text(encoding="ascii"))
        try:
            _demand(DELETE_LINK, socket.AF_UNSPEC, index)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise


async def keep_taps(
    bridge: str,
    taps: Iterable[str],
    *,
    apart: bool,
    trunk: Iterable[tuple[int, int]],
    mtu: int | None = None,
) -> None:
    """Have these taps, as far as they are there, on the bridge and as they shall be. Raises OSError
    or Failed.

    One whose machine ends meanwhile is no failure.
    """
    there = ports_of(bridge)
    for tap in taps:
        try:
            if tap in there:
                keep_apart(tap, apart)
                with socket.socket(
                    socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
                ) as control:
                    keep_mtu(control, tap, mtu)
            elif not is_port(tap):  # the bridge is a new one, its servers run on
                attach(tap, bridge, apart=apart, mtu=mtu)
                await allow_tags(tap, bridge, trunk)
        except (OSError, Failed):
            if is_there(tap):
                raise


async def allow_tags(tap: str, bridge: str, trunk: Iterable[tuple[int, int]]) -> None:
    """Have a bridge that tells VLANs apart pass these ranges of tags to a tap; others pass all.
    Raises Failed.
    """
    if not _reads(NET / bridge / "bridge/vlan_filtering"):
        return
    for first, last in trunk:
        await run(
            "bridge",
            "vlan",
            "add",
            "dev",
            tap,
            "vid",
            f"{first}-{last}" if last > first else str(first),
        )


def _reads(place: Path) -> bool:
    try:
        return place.read_text().strip() == "1"
    except OSError:
        return False


def raise_link(control: socket.socket, name: str) -> None:
    """Set an interface up. Raises OSError."""
    request = fcntl.ioctl(control, GET_FLAGS, struct.pack("16sH22x", name.encode(), 0))
    flags = struct.unpack_from("H", request, 16)[0]
    if not flags & UP:
        fcntl.ioctl(control, SET_FLAGS, struct.pack("16sH22x", name.encode(), flags | UP))


def keep_mtu(control: socket.socket, name: str, mtu: int | None) -> None:
    """Have an interface send packets of so many bytes at most; as it is where nobody says. Raises
    OSError.
    """
    if mtu is not None and read_mtu(name) != mtu:
        fcntl.ioctl(control, SET_MTU, struct.pack("16si20x", name.encode(), mtu))


def read_mtu(name: str, net: Path = NET) -> int | None:
    """Bytes of the largest packet that an interface sends; None when it is not there."""
    try:
        return int((net / name / "mtu").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def read_traffic(tap: str, net: Path = NET) -> tuple[int, int] | None:
    """Bytes that a tap's guest received and sent since it is there; None when it is not."""
    try:
        place = net / tap / "statistics"
        return int((place / "tx_bytes").read_text()), int((place / "rx_bytes").read_text())
    except OSError:
        return None


def is_there(name: str, net: Path = NET) -> bool:
    return (net / name).exists()


def ports_of(bridge: str, net: Path = NET) -> set[str]:
    """The interfaces that are on a bridge; empty when there is none of that name."""
    try:
        return set(os.listdir(net / bridge / "brif"))
    except OSError:
        return set()


def is_port(name: str) -> bool:
    """Whether an interface is on a bridge, any one."""
    return (NET / name / "master").exists()


def is_bridge(name: str, net: Path = NET) -> bool:
    return (net / name / "bridge").is_dir()


async def ensure_bridge(
    name: str,
    addresses: Sequence[str],
    *,
    passing: bool = True,
    look: bool = True,
    mtu: int | None = None,
) -> None:
    """Make the bridge as it shall be: up, with these addresses (with prefix length). Repeats
    harmlessly; raises Failed.

    `passing`: the host passes traffic on between it and its other interfaces afterwards, as far as
    rules allow. `look`: also give the addresses to one that is there, from which somebody may have
    taken them; that starts a program.
    """
    fresh = not is_there(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        try:
            if fresh:
                fcntl.ioctl(control, ADD_BRIDGE, name.encode() + b"\0")
                fcntl.ioctl(
                    control,
                    SET_ADDRESS,
                    struct.pack("16sH6s8x", name.encode(), ETHERNET, _address_of(name)),
                )
            for place, value in SETTLED.items() if passing else ():
                with contextlib.suppress(FileNotFoundError):
                    _set(Path("/proc/sys/net") / place.format(name), value)
            keep_mtu(control, name, mtu)
            raise_link(control, name)
        except OSError as error:
            raise Failed(f"the bridge {name} can't be made: {error.strerror}") from error
    lines = [
        f"address replace {address} dev {name}{' nodad' if ':' in address else ''}"
        for address in addresses
    ]
    if lines and (fresh or look):
        await run("ip", "-batch", "-", stdin="\n".join(lines).encode())
    if passing:
        pass_on(ipv6=any(":" in address for address in addresses))


def has_ipv6() -> bool:
    """Whether this host has IPv6, and gives it to new interfaces."""
    try:
        return all(
            (IPV6 / "conf" / which / "disable_ipv6").read_text().strip() == "0"
            for which in ("all", "default")
        )
    except OSError:
        return False  # a kernel without it


def _address_of(name: str) -> bytes:
    """The MAC address of a bridge of ours: one that is made anew is the same router to its servers,
    not a second one. Locally administered.
    """
    return b"\x02" + hashlib.sha256(name.encode()).digest()[:5]


def pass_on(*, ipv6: bool) -> None:
    """Let the kernel pass packets on between interfaces. Whoever learnt its routes from router
    advertisements goes on doing so.
    """
    _set(IPV4 / "ip_forward", "1")
    if not ipv6 or (IPV6 / "conf/all/forwarding").read_text().strip() == "1":
        return
    for place in (IPV6 / "conf").iterdir():
        if place.name not in ("all", "lo") and (place / "accept_ra").read_text().strip() == "1":
            # with 1 a host that passes on would listen to them no more
            _set(place / "accept_ra", "2")
    _set(IPV6 / "conf/all/forwarding", "1")


def _set(place: Path, value: str) -> None:
    if place.read_text().strip() != value:
        place.write_text(value)


def remove_bridge(name: str) -> None:
    """Remove a bridge of ours; none of that name is no failure."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control,
        contextlib.suppress(OSError),
    ):
        request = fcntl.ioctl(control, GET_FLAGS, struct.pack("16sH22x", name.encode(), 0))
        flags = struct.unpack_from("H", request, 16)[0]
        fcntl.ioctl(control, SET_FLAGS, struct.pack("16sH22x", name.encode(), flags & ~UP))
        fcntl.ioctl(control, REMOVE_BRIDGE, name.encode() + b"\0")


def find_bridges(prefix: str) -> set[str]:
    """The bridges whose names begin so."""
    return {place.name for place in NET.glob(f"{prefix}*") if (place / "bridge").is_dir()}


async def prove() -> str | None:
    """Whether this host lets us make networks, tried in a network namespace of its own. None, or
    why not.
    """
    if not os.access(IPV4 / "ip_forward", os.W_OK):
        return "the kernel's network settings can't be written here (a container?)"
    try:
        await run("dnsmasq", "--version")
        await run(
            "unshare", "-n", "sh", "-c",
            "ip link add vbtry type bridge && ip tuntap add vttry mode tap && nft add table inet "
            "virtuary && nft add table bridge virtuary",
        )  # fmt: skip
    except (Failed, HostLacks) as error:
        return error.sentence
    return None
