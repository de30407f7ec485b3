"""The ways of packets to servers and from them through this host, and what of it is in their way:
routes, forwarding, others' rules.

Nothing is changed, and nothing is sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from virtuary.base.proc import run
from virtuary.network import foreign
from virtuary.network.foreign import Packet, Ruleset

SETTINGS = Path("/proc/sys/net")
FAR = {4: "1.1.1.1", 6: "2606:4700:4700::1111"}
"""Addresses that are certainly outside, and in nobody's list of such as are not."""
NOBODY, EVERYBODY = "0.0.0.0", "255.255.255.255"  # noqa: S104
MOST = 64
"""Addresses whose routes are looked at together."""


class Hindrance(NamedTuple):
    """What is in the way, and what helps."""

    sentence: str
    remedy: str


async def find_devices(addresses: Sequence[str]) -> dict[str, str]:
    """The interface by which this host sends to each address; none for one that it can't reach.
    Policies of routing are followed.
    """
    found = {}
    for version, words in ((4, ("ip", "-4")), (6, ("ip", "-6"))):
        mine = [address for address in addresses if ip_address(address).version == version]
        lines = "".join(f"route get {address}\n" for address in mine)
        done = (
            await run(*words, "-j", "-force", "-batch", "-", stdin=lines.encode(), check=False)
            if mine
            else None
        )
        for line in done.stdout.splitlines() if done else ():
            for route in json.loads(line):
                if "dev" in route:
                    found[str(ip_address(route["dst"]))] = str(route["dev"])
    return found


async def astray(bridge: str, addresses: Sequence[str]) -> list[Hindrance]:
    """Addresses of servers that this host sends to elsewhere than to their bridge, as a VPN's
    routes have it.
    """
    chosen = list(addresses)[:MOST]
    devices = await find_devices(chosen)
    ways: dict[str, list[str]] = {}
    for address in chosen:
        if (device := devices.get(address)) not in (bridge, None):
            ways.setdefault(str(device), []).append(address)
    return [
        Hindrance(
            f"what goes to {', '.join(found[:3])}{' and others' if len(found) > 3 else ''} is "
            f"routed to {device}, and not to {bridge}",
            f"take that route away, a VPN's perhaps: ip route get {found[0]}",
        )
        for device, found in ways.items()
    ]


def not_passed_on(
    interfaces: Iterable[str], version: int, settings: Path = SETTINGS
) -> list[Hindrance]:
    """Interfaces from which this host passes nothing on."""
    family = f"ipv{version}"
    general = settings / ("ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding")
    if _is_off(general):
        name = "net.ipv4.ip_forward" if version == 4 else "net.ipv6.conf.all.forwarding"
        return [Hindrance("this host passes no packets on", f"sysctl -w {name}=1")]
    off = [
        name
        for name in interfaces
        if name and version == 4 and _is_off(settings / family / "conf" / name / "forwarding")
    ]
    return [
        Hindrance(
            f"this host passes nothing on that comes from {name}",
            f"sysctl -w net.{family}.conf.{name}.forwarding=1",
        )
        for name in off
    ]


def _is_off(place: Path) -> bool:
    try:
        return place.read_text().strip() == "0"
    except OSError:
        return False


def stopped(rules: Ruleset, packet: Packet, what: str, *, certain: bool = False) -> list[Hindrance]:
    """Whether other people's rules stop a packet; `what` it is, in words. `certain`: only where
    nothing is doubtful.
    """
    stop = rules.find_stop(packet)
    if stop is None or (certain and not stop.certain):
        return []
    word = "drops" if stop.certain else "may drop"
    return [
        Hindrance(
            f"{stop.owner} {word} {what} in {stop.where}",
            f"let it accept that of {packet.iif or packet.oif}",
        )
    ]


async def survey(
    bridge: str, gateway: str, addresses: Sequence[str], *, outside: bool
) -> list[Hindrance]:
    """What is in the way of a network whatever its servers do: of packets to them, of names and
    addresses, and `outside`. Raises Failed.
    """
    found = await astray(bridge, addresses)
    rules = await foreign.read()
    example = next((address for address in addresses if ":" not in address), None)
    if not rules.bases and not outside:
        return found
    if example:
        packets = {
            "questions for names": Packet("input", bridge, "", example, gateway, "udp", 53, 40000),
            "questions for addresses": Packet(
                "input", bridge, "", NOBODY, EVERYBODY, "udp", 67, 68
            ),
            "answers of names": Packet("output", "", bridge, gateway, example, "udp", 40000, 53),
        }
        found += [
            item
            for what, packet in packets.items()
            for item in stopped(rules, packet, what, certain=True)
        ]
    if outside:
        device = (await find_devices([FAR[4]])).get(FAR[4], "")
        found += not_passed_on((bridge, device), 4)
        for protocol, port in (("tcp", 443), ("icmp", None)) if example and device else ():
            packet = Packet(
                "forward",
                bridge,
                device,
                str(example),
                FAR[4],
                protocol,
                port,
                40000 if port else None,
            )
            found += stopped(rules, packet, f"what servers send outside ({protocol})", certain=True)
    return found
