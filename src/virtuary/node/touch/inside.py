"""A server's network tried from inside its guest: whether it has its address, and reaches its host,
names and the outside.

Where it does not, whoever is in the way is looked for on the host and named. Nothing is changed,
neither here nor in the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from ipaddress import IPv6Network, ip_address
from pathlib import Path

from virtuary.base.errors import Conflict, VirtuaryError
from virtuary.base.proc import run
from virtuary.guest.agent import WORDS_CAP, to_address
from virtuary.model.firewall import Address, Verdict
from virtuary.model.host import Check
from virtuary.model.network import USUAL_MTU
from virtuary.model.vm import Vm
from virtuary.network.foreign import Packet
from virtuary.network.routes import call, find_gateways, find_gateways6, find_nameservers
from virtuary.network.ways import EVERYBODY, NOBODY, Hindrance, find_devices
from virtuary.node.making.networks import NO_IPV6
from virtuary.node.networks import hindrances
from virtuary.node.node import Node
from virtuary.node.touch.touch import execute

Judge = Callable[[Address, str, int | None], Verdict]
"""What the firewall says of a call of the server to an address, by protocol and port."""
HEADERS = 28
"""Bytes of a ping that are not its load: of IPv4 and ICMP."""
PATIENCE = 3
"""Seconds that an answer may take."""
SCRIPT = r"""
has() { command -v "$1" >/dev/null 2>&1; }
ping_to() { case $1 in *:*) ping -6 -c 1 -W 3 "$1" ;; *) ping -c 1 -W 3 "$1" ;; esac; }
ping_large() { ping -c 2 -W 3 -s "$2" "$1"; }
look_up() { if has getent; then getent hosts "$1"; else nslookup "$1"; fi; }
try() { what=$1; shift; "$@" >/dev/null 2>&1; echo "$what $?"; }
echo "addresses" $(ip -o address show | awk '{sub("/.*", "", $4); print $4}')
echo "asks" $(awk '/^nameserver/ {print $2}' /etc/resolv.conf)
"""


ABSENT = "127"
"""How a shell ends that did not find a program."""


class Place(hindrances.Place):
    """Where a server stands, and what is there."""

    @property
    def gateway(self) -> str:
        return self.network.gateways[0]

    @property
    def mtu(self) -> int:
        return self.network.status.mtu or USUAL_MTU

    @property
    def gateway6(self) -> str | None:
        return next(
            (address for address in self.network.gateways if self.nic.ipv6 and ":" in address), None
        )


async def examine(node: Node, vm: Vm, judge: Judge) -> list[Check]:
    """Try the network of a running server from inside. Raises Conflict where there is nothing to
    try, GuestSilent without its agent.
    """
    place = _place(node, vm)
    leads_out = place.network.spec.kind == "nat" and not node.site.networks.netns.private
    targets = (
        [await _find_target(4), await _find_target(6) if place.gateway6 else None]
        if leads_out
        else [None, None]
    )
    told = await _ask(node, place, *targets)
    if "addresses" not in told:
        raise Conflict(
            f"the guest of {vm.name} has no shell or no `ip` to try with",
            "its screen: virtuary console",
        )
    checks = [await _address(node, place, told)]
    checks.append(await _host(node, place, told) if checks[0].state == "ok" else _skipped("host"))
    works = checks[-1].state == "ok"
    checks.append(await _names(node, place, told) if works else _skipped("names"))
    checks.append(
        await _outside(node, place, told, targets[0], judge) if works else _skipped("outside")
    )
    checks += _large(place, told, targets[0]) if checks[-1].state == "ok" else []
    checks += await _by_ipv6(node, place, told, targets[1], judge)
    ports = dict.fromkeys(item.guest for item in vm.spec.publish if item.protocol == "tcp")
    checks += await asyncio.gather(*(_port(node, place, port) for port in ports))
    return checks


def _place(node: Node, vm: Vm) -> Place:
    for nic in vm.nics:
        network = node.site.networks.load(nic.network_id) if nic.network_id else None
        if network and nic.ipv4:
            return Place(vm, nic, network)
    raise Conflict(
        f"{vm.name} is on no network of kind nat or isolated",
        "try from the other end of its network instead",
    )


async def _ask(
    node: Node, place: Place, target: str | None, target6: str | None
) -> dict[str, list[str]]:
    tries = [
        f"try host ping_to {place.gateway}",
        f"try names look_up host.{place.network.spec.domain}",
    ]
    others = (("outside", target), ("host6", place.gateway6), ("outside6", target6))
    tries += [f"try {what} ping_to {address}" for what, address in others if address]
    tries += [f"try large ping_large {target} {place.mtu - HEADERS}"] if target else []
    script = SCRIPT + "".join(f"{line} &\n" for line in tries) + "wait\n"
    outcome = await execute(node, place.vm, ["/bin/sh"], script.encode(), 60, WORDS_CAP)
    lines = outcome.stdout.decode(errors="replace").splitlines()
    return {words[0]: words[1:] for line in lines if (words := line.split())}


async def _find_target(version: int) -> str | None:
    """An address outside that answers the host itself: its router, or a nameserver."""
    for address in (
        text
        for text in (*find_gateways(), *find_gateways6(), *find_nameservers())
        if version_of(text) == version
    ):
        result = await run("ping", "-c", "1", "-W", "1", address, check=False)
        if result.status == 0:
            return address
    return None


def version_of(address: str) -> int:
    return ip_address(address).version


def _skipped(name: str) -> Check:
    return Check(name=name, state="note", found="not tried: what comes before it does not work")


async def _address(node: Node, place: Place, told: dict[str, list[str]]) -> Check:
    own = place.nic.ipv4 or ""
    if own in told["addresses"]:
        return Check(name="address", state="ok", found=f"the guest has its address {own}")
    others = [str(address) for text in told["addresses"] if (address := to_address(text))]
    found = f"the guest has not taken its address {own}" + (
        f", it has {', '.join(others[:4])}" if others else ""
    )
    if why := place.network.status.reason:
        return Check(
            name="address",
            state="missing",
            found=f"{found}: the network {place.network.name} is not there ({why})",
        )
    asked = Packet("input", place.network.status.bridge, "", NOBODY, EVERYBODY, "udp", 67, 68)
    why, remedy = await hindrances.find(node.site.networks, place, asked, _answers(place, 67))
    if remedy == hindrances.LEFT:
        remedy = (
            f"let it ask by DHCP on the NIC with the MAC of {place.vm.name}, or give it "
            f"{own} by hand; no other passes"
        )
    return Check(name="address", state="missing", found=f"{found}: {why}", remedy=remedy)


def _worked(told: dict[str, list[str]], name: str) -> bool | None:
    """Whether a try worked; None when the guest has nothing to try it with."""
    return None if told.get(name, [ABSENT]) == [ABSENT] else told[name] == ["0"]


async def _host(node: Node, place: Place, told: dict[str, list[str]]) -> Check:
    worked = _worked(told, "host")
    if worked is None:
        return Check(
            name="host",
            state="note",
            found="the guest has no ping to try with",
            remedy="install it there",
        )
    if worked:
        return Check(name="host", state="ok", found=f"it reaches its host at {place.gateway}")
    name, own = place.network.status.bridge, str(place.nic.ipv4)
    asked = Packet("input", name, "", own, place.gateway, "icmp")
    found, remedy = await hindrances.find(
        node.site.networks, place, asked, Packet("output", "", name, place.gateway, own, "icmp")
    )
    return Check(
        name="host",
        state="missing",
        found=f"it does not reach its host at {place.gateway}: {found}",
        remedy=remedy,
    )


async def _names(node: Node, place: Place, told: dict[str, list[str]]) -> Check:
    name = f"host.{place.network.spec.domain}"
    if _worked(told, "names"):
        return Check(name="names", state="ok", found=f"it finds {name}")
    pid = place.network.status.pid
    if not pid or not Path(f"/proc/{pid}").exists():
        found, remedy = (
            "dnsmasq of the network does not run",
            "it is started again within seconds; see virtuary network show",
        )
    else:
        found, remedy = await hindrances.find(
            node.site.networks, place, *_questions(place, 53), _answers(place, 53)
        )
        if remedy == hindrances.LEFT:
            asked = ", ".join(
                str(address) for text in told.get("asks", []) if (address := to_address(text))
            )
            found = (
                f"it asks {asked or 'nobody it could reach'}, and DHCP tells it to ask "
                f"{place.gateway}; {found}"
            )
    return Check(
        name="names", state="missing", found=f"it does not find {name}: {found}", remedy=remedy
    )


async def _outside(
    node: Node, place: Place, told: dict[str, list[str]], target: str | None, judge: Judge
) -> Check:
    if place.network.spec.kind == "isolated":
        return Check(
            name="outside", state="ok", found=f"not to be reached: {place.network.name} is isolated"
        )
    if node.site.networks.netns.private:
        found = "not tried: networks of an ordinary user pass no pings on"
        return Check(
            name="outside",
            state="note",
            found=found,
            remedy="try a service there from inside it: virtuary exec",
        )
    if target is None and not find_gateways():
        return Check(
            name="outside", state="missing", found="this host itself has no way out",
            remedy="mend that first: ip route",
        )  # fmt: skip
    if target is None:
        found = (
            "not tried: neither the router of this host nor a nameserver answers its pings, "
            "which many never do"
        )
        return Check(
            name="outside",
            state="note",
            found=found,
            remedy="try a service there from inside it: virtuary exec",
        )
    worked = _worked(told, "outside")
    if worked is None:
        return Check(
            name="outside",
            state="note",
            found="the guest has no ping to try with",
            remedy="install it there",
        )
    if worked:
        return Check(name="outside", state="ok", found=f"it reaches {target}, as this host does")
    found, remedy = await _stopper(node, place, target, judge)
    return Check(
        name="outside",
        state="missing",
        found=f"it does not reach {target}, which this host does: {found}",
        remedy=remedy,
    )


def _large(place: Place, told: dict[str, list[str]], target: str | None) -> list[Check]:
    """Whether the largest packets pass where small ones do."""
    worked = _worked(told, "large") if target else None
    if worked is None:
        return []
    if worked:
        return [
            Check(
                name="large packets",
                state="ok",
                found=f"packets of {place.mtu} bytes reach {target}",
            )
        ]
    found = (
        f"packets of {place.mtu} bytes do not reach {target}, as small ones do: somewhere "
        "the way is narrower"
    )
    remedy = f"virtuary network set {place.network.name} --mtu 1400, or less"
    return [Check(name="large packets", state="missing", found=found, remedy=remedy)]


async def _by_ipv6(
    node: Node, place: Place, told: dict[str, list[str]], target: str | None, judge: Judge
) -> list[Check]:
    """The same by IPv6, where the network has it, and the guest."""
    own = place.nic.ipv6
    if not place.gateway6:
        return []
    if NO_IPV6 in place.network.status.gaps:
        return [Check(name="IPv6", state="note", found=NO_IPV6)]
    others = _private_ones(place, told)
    if own not in told["addresses"] and not others:
        return [
            Check(
                name="IPv6",
                state="note",
                found=f"the guest has not taken its address {own}: it may have IPv6 switched off",
            )
        ]
    tried = [
        (_worked(told, what), address)
        for what, address in (("host6", place.gateway6), ("outside6", target))
        if address
    ]
    for worked, address in tried:
        if worked is False or (others and own not in told["addresses"]):
            found, remedy = others or await _stopper(node, place, address, judge)
            return [
                Check(
                    name="IPv6",
                    state="missing",
                    found=f"it does not reach {address}: {found}",
                    remedy=remedy,
                )
            ]
    reached = [address for worked, address in tried if worked]
    if not reached:
        return [
            Check(
                name="IPv6",
                state="note",
                found="the guest has no ping to try with",
                remedy="install it there",
            )
        ]
    return [Check(name="IPv6", state="ok", found=f"it reaches {' and '.join(reached)}")]


def _private_ones(place: Place, told: dict[str, list[str]]) -> Hindrance | None:
    """Addresses that the guest made for its privacy: our guard passes none of them."""
    net = IPv6Network(place.network.spec.ipv6 or "::/128")
    found = [
        address
        for text in told["addresses"]
        if (address := to_address(text)) and address.version == 6 and address in net
    ]
    others = [str(address) for address in found if str(address) != place.nic.ipv6]
    if not others or "ipv6" in place.nic.unguarded:
        return None
    what = (
        f"the guest calls from {others[0]}, which is not its own: {place.nic.ipv6} alone "
        "passes our guard"
    )
    return Hindrance(
        what,
        "switch privacy addresses off in the guest (use_tempaddr=0, addr_gen_mode=0), or "
        "--network ...,unguarded=ipv6",
    )


async def _stopper(node: Node, place: Place, target: str, judge: Judge) -> Hindrance:
    """Who stops what the server sends outside, and what helps."""
    with contextlib.suppress(VirtuaryError):
        verdict = judge(ip_address(target), "icmp", None)
        if verdict.action != "allow":
            return Hindrance(
                verdict.sentence, f"virtuary firewall test {place.vm.name} {target} icmp"
            )
    name, own = (
        place.network.status.bridge,
        place.nic.ipv4 if ip_address(target).version == 4 else place.nic.ipv6,
    )
    if target in place.network.gateways:
        return await hindrances.find(
            node.site.networks, place, Packet("input", name, "", str(own), target, "icmp")
        )
    device = (await find_devices([target])).get(target, "")
    return await hindrances.find(
        node.site.networks, place, Packet("forward", name, device, str(own), target, "icmp")
    )


def _questions(place: Place, port: int) -> list[Packet]:
    name, own = place.network.status.bridge, str(place.nic.ipv4)
    return [
        Packet("input", name, "", own, place.gateway, protocol, port, 40000)
        for protocol in ("udp", "tcp")
    ]


def _answers(place: Place, port: int) -> Packet:
    return Packet(
        "output",
        "",
        place.network.status.bridge,
        place.gateway,
        str(place.nic.ipv4),
        "udp",
        40000,
        port,
    )


async def _port(node: Node, place: Place, port: int) -> Check:
    name, own = f"port {port}", place.nic.ipv4 or ""
    reached = await node.site.networks.netns.call(call, own, port, PATIENCE)
    if reached == "answers":
        return Check(name=name, state="ok", found=f"it listens on {port}, which is published")
    if reached == "silent":
        called = Packet(
            "output", "", place.network.status.bridge, place.gateway, own, "tcp", port, 40000
        )
        found, remedy = await hindrances.find(node.site.networks, place, called)
        found = f"nobody answers; {found}"
    else:
        found, remedy = (
            "nothing listens there in the guest",
            "start the service, on all addresses and not on loopback alone",
        )
    return Check(
        name=name,
        state="missing",
        found=f"port {port} is published and can't be reached: {found}",
        remedy=remedy,
    )
