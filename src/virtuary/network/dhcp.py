"""Addresses and names of one network: its dnsmasq, whose configuration is written from typed values
only.

Every server's address is fixed before it asks: who is not in the list gets none. dnsmasq reads the
list again on SIGHUP. It writes down who it is before it begins (base/known.py), and outlives the
daemon as machines do.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import ipaddress
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virtuary.base.errors import Failed
from virtuary.base.known import RECORD, recording
from virtuary.base.proc import ENVIRONMENT, Identity, bounded, find_program, identify, last_line
from virtuary.base.units import GIB, MIB

LEASE = "1h"
USER = "nobody"
RIGHTS = ("net_bind_service", "net_admin", "net_raw", "setuid", "setgid")
"""All that dnsmasq is started with: it becomes USER and keeps the first three, without which it
serves no DHCP.
"""
MEMORY, LARGEST = GIB, 64 * MIB
"""Bytes of address space that dnsmasq may have, and of each file it writes, the leases."""
WORDS = 4096
"""Bytes of what dnsmasq says that are kept; Linux rounds up to a page."""


@dataclass(frozen=True)
class Reservation:
    """A server's place on the network. `name` is a checked name, see model.meta.check_name."""

    name: str
    mac: str
    ipv4: str | None
    ipv6: str | None


@dataclass(frozen=True)
class Service:
    """What one dnsmasq serves."""

    bridge: str
    domain: str
    ipv4: str | None
    """Subnet, of which the first address is the bridge's."""
    ipv6: str | None
    outside: bool
    """Whether names of elsewhere are asked for too, and a way out is told."""
    resolver: str | None = None
    """Who is asked for those; None: the host's own resolvers."""
    resolvers: Path | None = None
    """The file that names the host's resolvers."""
    mtu: int = 1500
    """Bytes of the largest packet, as servers are told."""


def config(service: Service, folder: Path) -> str:
    """dnsmasq's configuration file. Pure."""
    lines = [
        f"interface={service.bridge}", "except-interface=lo", "bind-dynamic", "keep-in-foreground",
        f"user={USER}",
        "pid-file", "no-hosts", "log-facility=-", "quiet-dhcp", "quiet-dhcp6", "quiet-ra",
        f"domain={service.domain}", "expand-hosts", f"servers-file={folder / 'own'}",
        "dhcp-authoritative", "dhcp-ignore-names", "dhcp-no-override", "dhcp-ignore-clid",
        "no-ping", "dhcp-sequential-ip", "cache-size=1000",
        f"dhcp-hostsfile={folder / 'hosts'}", f"addn-hosts={folder / 'names'}",
        f"dhcp-leasefile={folder / 'leases'}",
        "dhcp-lease-max=10000", "dns-loop-detect",
    ]  # fmt: skip
    if not service.outside:
        lines += ["no-resolv", "dhcp-option=option:router", "domain-needed", "bogus-priv"]
    elif service.resolver:
        lines += ["no-resolv", f"server={service.resolver}"]
    elif service.resolvers:
        lines += [f"resolv-file={service.resolvers}"]
    if service.ipv4:
        net = ipaddress.IPv4Network(service.ipv4)
        lines += [
            f"dhcp-range={net.network_address},static,{net.netmask},{LEASE}",
            f"local=/{_reverse(net)}/",
        ]
        lines += [f"dhcp-option=option:mtu,{service.mtu}"]
    if service.ipv6:
        net6 = ipaddress.IPv6Network(service.ipv6)
        lines += [
            "enable-ra",
            f"dhcp-range={net6.network_address},static,slaac,off-link,64,{LEASE}",
        ]
        lines += ["dhcp-option=option6:dns-server,[::]", f"local=/{_reverse(net6)}/"]
        # neighbours are reached by their host, also where nothing leads outside: whoever has a
        # better way out takes that for the rest
        lines += [
            f"ra-param={service.bridge},mtu:{service.mtu},"
            f"{'' if service.outside else 'low,'}60,1800"
        ]
    return "\n".join(lines) + "\n"


def _reverse(net: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    labels = net.network_address.reverse_pointer.split(".")
    unit = 8 if net.version == 4 else 4
    return ".".join(labels[(net.max_prefixlen - net.prefixlen) // unit :])


def hosts(reservations: Sequence[Reservation]) -> str:
    """The list of who gets which address. Pure."""
    lines = []
    for host in reservations:
        six = [f"[{host.ipv6}]"] if host.ipv6 else []
        lines.append(",".join([host.mac, *([host.ipv4] if host.ipv4 else []), *six, host.name]))
    return "".join(f"{line}\n" for line in lines)


def names(service: Service, gateways: Sequence[str], reservations: Sequence[Reservation]) -> str:
    """The names of servers that run, and the host's own, as a hosts file. Pure."""
    lines = [f"{address} host.{service.domain}" for address in gateways]
    for host in reservations:
        lines += [
            f"{address} {host.name}.{service.domain} {host.name}"
            for address in (host.ipv4, host.ipv6)
            if address
        ]
    return "".join(f"{line}\n" for line in lines)


def own(service: Service, gateways: Sequence[str], reservations: Sequence[Reservation]) -> str:
    """What nobody else is asked for, as a list of servers that are none. Pure.

    A domain of one word is the network's alone. Of another one, which may be a company's, only the
    names there are: else a question for an address of the other family would be answered with what
    the company calls so.
    """
    domains = [service.domain]
    if service.outside and "." in service.domain:
        served = [*(["host"] if gateways else []), *(host.name for host in reservations)]
        domains = [f"{name}.{service.domain}" for name in served]
    return "".join(f"server=/{domain}/\n" for domain in domains)


def write(
    folder: Path, service: Service, gateways: Sequence[str], reservations: Sequence[Reservation]
) -> tuple[bool, bool]:
    """Write its files where they differ; says whether the configuration did, and whether the lists
    did.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for place in (folder, folder.parent):
        place.chmod(0o711)  # dnsmasq is nobody when it reads its lists again
    (folder / "leases").touch(mode=0o644, exist_ok=True)
    configured = _write(folder / "dnsmasq.conf", config(service, folder))
    lists = {
        "hosts": hosts(reservations), "names": names(service, gateways, reservations),
        "own": own(service, gateways, reservations),
    }  # fmt: skip
    listed = [_write(folder / name, text) for name, text in lists.items()]
    return configured, any(listed)


def _write(place: Path, text: str) -> bool:
    with contextlib.suppress(OSError):
        if place.read_text(encoding="utf-8") == text:
            return False
    beside = place.with_name(f".{place.name}.new")
    # made again at every start of the host: it need not outlive a power cut
    beside.write_text(text, encoding="utf-8")
    beside.chmod(0o644)
    beside.replace(place)
    return True


async def start(folder: Path, settle: float = 0.05) -> Identity:
    """Start dnsmasq with the files of `folder`; raises Failed with its own words when it ends at
    once.
    """
    handle = _open_words()
    try:
        process = await asyncio.create_subprocess_exec(
            *recording(
                folder / RECORD, *bounded(MEMORY, LARGEST), find_program("setpriv"),
                "--no-new-privs", f"--bounding-set=-all,+{',+'.join(RIGHTS)}",
                find_program("dnsmasq"), f"--conf-file={folder / 'dnsmasq.conf'}",
            ),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=handle,
            env=ENVIRONMENT, start_new_session=True, cwd="/",
        )  # fmt: skip
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settle):
                await process.wait()
        if identity := identify(process.pid):
            return identity
        raise Failed(f"dnsmasq ended at once: {last_line(_read(handle)) or 'it said nothing'}")
    finally:
        os.close(handle)


def _open_words() -> int:
    """A descriptor for what dnsmasq says: of a pipe that is its own reader, so that it takes a page
    and no more, whoever listens.

    What guests send makes it complain, as often as they like. It drops what does not fit (EAGAIN),
    and goes on. Among /proc/PID/fd that pipe can be read.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, WORDS)
        return os.open(f"/proc/self/fd/{writer}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(reader)
        os.close(writer)


def _read(handle: int) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return os.read(handle, 1 << 20)
    return b""


def read_again(pid: int) -> None:
    """Have dnsmasq read its lists again."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGHUP)
