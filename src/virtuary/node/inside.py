"""A server's network tried from inside its guest: whether it has its address, and reaches its host, names and the outside.

Where it does not, whoever is in the way is looked for on the host and named. Nothing is changed, neither here nor in the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from virtuary.base.errors import Conflict, VirtuaryError
from virtuary.base.proc import run
from virtuary.guest.agent import WORDS_CAP, to_address
from virtuary.model.firewall import Address, Verdict
from virtuary.model.host import Check
from virtuary.model.network import USUAL_MTU, Network, Nic, tap_of
from virtuary.model.vm import Vm
from virtuary.network import bridge, ruleset
from virtuary.network.obstacles import Obstacle, find_obstacles
from virtuary.network.routes import call, find_gateways, find_gateways6, find_nameservers
from virtuary.node.node import Node
from virtuary.node.touch import execute

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


class Place(NamedTuple):
    """Where a server stands."""

    vm: Vm
    nic: Nic
    network: Network

    @property
    def gateway(self) -> str:
        return self.network.gateways[0]

    @property
    def mtu(self) -> int:
        return self.network.status.mtu or USUAL_MTU

    @property
    def gateway6(self) -> str | None:
        return next((address for address in self.network.gateways if self.nic.ipv6 and ":" in address), None)


async def examine(node: Node, vm: Vm, judge: Judge) -> list[Check]:
    """Try the network of a running server from inside. Raises Conflict where there is nothing to try, GuestSilent without its agent."""
    place = _place(node, vm)
    leads_out = place.network.spec.kind == "nat" and not node.site.networks.ground.private
    targets = [await _find_target(4), await _find_target(6) if place.gateway6 else None] if leads_out else [None, None]
    told = await _ask(node, place, *targets)
    if "addresses" not in told:
        raise Conflict(f"the guest of {vm.name} has no shell or no `ip` to try with", "its screen: virtuary console")
    checks = [_address(place, told)]
    checks.append(await _host(node, place, told) if checks[0].state == "ok" else _skipped("host"))
    works = checks[-1].state == "ok"
    checks.append(await _names(node, place, told) if works else _skipped("names"))
    checks.append(await _outside(node, place, told, targets[0], judge) if works else _skipped("outside"))
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
    raise Conflict(f"{vm.name} is on no network of kind nat or isolated", "try from the other end of its network instead")


async def _ask(node: Node, place: Place, target: str | None, target6: str | None) -> dict[str, list[str]]:
    tries = [f"try host ping_to {place.gateway}", f"try names look_up host.{place.network.spec.domain}"]
    others = (("outside", target), ("host6", place.gateway6), ("outside6", target6))
    tries += [f"try {what} ping_to {address}" for what, address in others if address]
    tries += [f"try large ping_large {target} {place.mtu - HEADERS}"] if target else []
    script = SCRIPT + "".join(f"{line} &\n" for line in tries) + "wait\n"
    outcome = await execute(node, place.vm, ["/bin/sh"], script.encode(), 60, WORDS_CAP)
    lines = outcome.stdout.decode(errors="replace").splitlines()
    return {words[0]: words[1:] for line in lines if (words := line.split())}


async def _find_target(version: int) -> str | None:
    """An address outside that answers the host itself: its router, or a nameserver."""
    for address in (text for text in (*find_gateways(), *find_gateways6(), *find_nameservers()) if version_of(text) == version):
        result = await run("ping", "-c", "1", "-W", "1", address, check=False)
        if result.status == 0:
            return address
    return None


def version_of(address: str) -> int:
    return ip_address(address).version


def _skipped(name: str) -> Check:
    return Check(name=name, state="note", found="not tried: what comes before it does not work")


def _address(place: Place, told: dict[str, list[str]]) -> Check:
    own = place.nic.ipv4 or ""
    if own in told["addresses"]:
        return Check(name="address", state="ok", found=f"the guest has its address {own}")
    others = [str(address) for text in told["addresses"] if (address := to_address(text))]
    found = f"the guest has not taken its address {own}" + (f", it has {', '.join(others[:4])}" if others else "")
    if why := place.network.status.reason:
        return Check(name="address", state="missing", found=f"{found}: the network {place.network.name} is not there ({why})")
    remedy = f"let it ask by DHCP on the NIC with the MAC of {place.vm.name}, or give it {own} by hand; no other passes"
    return Check(name="address", state="missing", found=found, remedy=remedy)


def _worked(told: dict[str, list[str]], name: str) -> bool | None:
    """Whether a try worked; None when the guest has nothing to try it with."""
    return None if told.get(name, [ABSENT]) == [ABSENT] else told[name] == ["0"]


async def _host(node: Node, place: Place, told: dict[str, list[str]]) -> Check:
    worked = _worked(told, "host")
    if worked is None:
        return Check(name="host", state="note", found="the guest has no ping to try with", remedy="install it there")
    if worked:
        return Check(name="host", state="ok", found=f"it reaches its host at {place.gateway}")
    tap = tap_of(place.vm.id, place.nic.number)
    if tap not in bridge.ports_of(place.network.status.bridge, node.site.networks.ground.net):
        found, remedy = f"its cable {tap} is not on the bridge {place.network.status.bridge}", "it is put back within seconds"
    elif not await _rules_are_there(node):
        found, remedy = "the packet filter does not hold the rules of ours", "they are put back within seconds; nft list ruleset"
    else:
        found, remedy = "nothing on the host stops it", "look at the guest's own firewall, MAC address and routes"
    return Check(name="host", state="missing", found=f"it does not reach its host at {place.gateway}: {found}", remedy=remedy)


async def _rules_are_there(node: Node) -> bool:
    wanted = node.site.networks.rules.wanted()
    return wanted is None or await node.site.networks.rules.is_applied(ruleset.fingerprint(wanted.script))


async def _names(node: Node, place: Place, told: dict[str, list[str]]) -> Check:
    name = f"host.{place.network.spec.domain}"
    if _worked(told, "names"):
        return Check(name="names", state="ok", found=f"it finds {name}")
    pid = place.network.status.pid
    if not pid or not Path(f"/proc/{pid}").exists():
        found, remedy = "dnsmasq of the network does not run", "it is started again within seconds; see virtuary network show"
    elif stopped := [item for item in await _obstacles(node, place) if item.chain.hook != "forward"]:
        found, remedy = stopped[0].sentence, "let it accept that of this bridge"
    else:
        asked = (
            ", ".join(str(address) for text in told.get("asks", []) if (address := to_address(text))) or "nobody it could reach"
        )
        found, remedy = f"it asks {asked}", f"let it ask {place.gateway}, as DHCP tells"
    return Check(name="names", state="missing", found=f"it does not find {name}: {found}", remedy=remedy)


async def _outside(node: Node, place: Place, told: dict[str, list[str]], target: str | None, judge: Judge) -> Check:
    if place.network.spec.kind == "isolated":
        return Check(name="outside", state="ok", found=f"not to be reached: {place.network.name} is isolated")
    if node.site.networks.ground.private:
        found = "not tried: networks of an ordinary user pass no pings on"
        return Check(name="outside", state="note", found=found, remedy="try a service there from inside it: virtuary exec")
    if target is None and not find_gateways():
        return Check(
            name="outside", state="missing", found="this host itself has no way out", remedy="mend that first: ip route",
        )  # fmt: skip
    if target is None:
        found = "not tried: neither the router of this host nor a nameserver answers its pings, which many never do"
        return Check(name="outside", state="note", found=found, remedy="try a service there from inside it: virtuary exec")
    worked = _worked(told, "outside")
    if worked is None:
        return Check(name="outside", state="note", found="the guest has no ping to try with", remedy="install it there")
    if worked:
        return Check(name="outside", state="ok", found=f"it reaches {target}, as this host does")
    found, remedy = await _stopper(node, place, target, judge)
    return Check(
        name="outside", state="missing", found=f"it does not reach {target}, which this host does: {found}", remedy=remedy
    )


def _large(place: Place, told: dict[str, list[str]], target: str | None) -> list[Check]:
    """Whether the largest packets pass where small ones do."""
    worked = _worked(told, "large") if target else None
    if worked is None:
        return []
    if worked:
        return [Check(name="large packets", state="ok", found=f"packets of {place.mtu} bytes reach {target}")]
    found = f"packets of {place.mtu} bytes do not reach {target}, as small ones do: somewhere the way is narrower"
    remedy = f"virtuary network set {place.network.name} --mtu 1400, or less"
    return [Check(name="large packets", state="missing", found=found, remedy=remedy)]


async def _by_ipv6(node: Node, place: Place, told: dict[str, list[str]], target: str | None, judge: Judge) -> list[Check]:
    """The same by IPv6, where the network has it, and the guest."""
    own = place.nic.ipv6
    if not place.gateway6:
        return []
    if own not in told["addresses"]:
        return [
            Check(name="IPv6", state="note", found=f"the guest has not taken its address {own}: it may have IPv6 switched off")
        ]
    tried = [(_worked(told, what), address) for what, address in (("host6", place.gateway6), ("outside6", target)) if address]
    for worked, address in tried:
        if worked is False:
            found, remedy = await _stopper(node, place, address, judge)
            return [Check(name="IPv6", state="missing", found=f"it does not reach {address}: {found}", remedy=remedy)]
    reached = [address for worked, address in tried if worked]
    if not reached:
        return [Check(name="IPv6", state="note", found="the guest has no ping to try with", remedy="install it there")]
    return [Check(name="IPv6", state="ok", found=f"it reaches {' and '.join(reached)}")]


async def _stopper(node: Node, place: Place, target: str, judge: Judge) -> tuple[str, str]:
    """Who stops what the server sends outside, and what helps."""
    with contextlib.suppress(VirtuaryError):
        verdict = judge(ip_address(target), "icmp", None)
        if verdict.action != "allow":
            return verdict.sentence, f"virtuary firewall test {place.vm.name} {target} icmp"
    family = "ipv4/ip_forward" if ip_address(target).version == 4 else "ipv6/conf/all/forwarding"
    if (Path("/proc/sys/net") / family).read_text().strip() != "1":
        return "this host passes no packets on", f"sysctl -w net.{family.replace('/', '.')}=1"
    for obstacle in await _obstacles(node, place):
        if obstacle.chain.hook == "forward":
            return obstacle.sentence, f"let it accept what comes from and goes to {place.network.status.bridge}"
    if not await _rules_are_there(node):
        return "the packet filter does not hold the rules of ours", "they are put back within seconds; nft list ruleset"
    return "nothing on this host stops it", "look at the guest's own firewall and routes, and at firewalls further on"


async def _port(node: Node, place: Place, port: int) -> Check:
    name, own = f"port {port}", place.nic.ipv4 or ""
    reached = await node.site.networks.ground.call(call, own, port, PATIENCE)
    if reached == "answers":
        return Check(name=name, state="ok", found=f"it listens on {port}, which is published")
    if reached == "silent":
        found, remedy = "the guest does not answer", "look at its own firewall"
    else:
        found, remedy = "nothing listens there in the guest", "start the service, on all addresses and not on loopback alone"
    return Check(name=name, state="missing", found=f"port {port} is published and can't be reached: {found}", remedy=remedy)


async def _obstacles(node: Node, place: Place) -> list[Obstacle]:
    """Other firewalls in the way; nobody else has any in a user's own networks."""
    return [] if node.site.networks.ground.private else list(await find_obstacles([place.network.status.bridge]))
