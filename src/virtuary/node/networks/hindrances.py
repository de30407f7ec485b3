"""What on this host is in the way of a network or of one server's packets, and what was looked at
where nothing is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import NamedTuple

from virtuary.base.errors import VirtuaryError
from virtuary.model.network import Network, Nic, tap_of
from virtuary.model.vm import Vm
from virtuary.network import bridge, foreign, ruleset, ways
from virtuary.network.foreign import Packet
from virtuary.network.obstacles import find_obstacles
from virtuary.network.ways import Hindrance
from virtuary.node.networks.networks import Networks

LEFT = "what is left is further on, and in the guest: its firewall and routes"


class Place(NamedTuple):
    """Where a server stands."""

    vm: Vm
    nic: Nic
    network: Network


async def find(networks: Networks, place: Place, *packets: Packet) -> Hindrance:
    """What stops these packets of a server's, or what was looked at and is in order."""
    tried: list[str] = []
    for what, looks in (("its cable", _cable), ("our own rules", _rules)):
        if found := await looks(networks, place):
            return found
        tried.append(what)
    if not networks.netns.private:
        try:
            if other := await _on_the_host(place, packets, tried):
                return other
        except VirtuaryError as error:
            tried.append(f"other firewalls, which can't be asked ({error.sentence})")
    return Hindrance(f"nothing found on this host; what was tried: {', '.join(tried)}", LEFT)


async def _cable(networks: Networks, place: Place) -> Hindrance | None:
    tap, name = tap_of(place.vm.id, place.nic.number), place.network.status.bridge
    if tap in bridge.ports_of(name, networks.netns.net):
        return None
    return Hindrance(
        f"its cable {tap} is not on the bridge {name}", "it is put back within seconds"
    )


async def _rules(networks: Networks, place: Place) -> Hindrance | None:
    wanted = networks.rules.wanted()
    if wanted is None or await networks.rules.is_applied(ruleset.fingerprint(wanted.script)):
        return None
    return Hindrance(
        "the packet filter does not hold the rules of ours",
        "they are put back within seconds; nft list ruleset",
    )


async def _on_the_host(
    place: Place, packets: Sequence[Packet], tried: list[str]
) -> Hindrance | None:
    name = place.network.status.bridge
    own = [address for address in (place.nic.ipv4, place.nic.ipv6) if address]
    if found := await ways.astray(name, own):
        return found[0]
    tried.append("routes to it")
    for packet in packets:
        if packet.way == "forward" and (
            off := ways.not_passed_on((packet.iif, packet.oif), packet.version)
        ):
            return off[0]
    if any(packet.way == "forward" for packet in packets):
        tried.append("whether packets are passed on")
    rules = await foreign.read()
    for packet in packets:
        if stops := ways.stopped(rules, packet, "it"):
            return stops[0]
    hooks = {packet.way for packet in packets}
    for obstacle in await find_obstacles([name]):
        if obstacle.chain.hook in hooks:
            return Hindrance(obstacle.sentence, f"let it accept that of {name}")
    tried.append("other firewalls' rules")
    return None


async def survey(networks: Networks, network: Network, addresses: Sequence[str]) -> tuple[str, ...]:
    """What is in the way of a network, whatever its servers do, in words; nothing in a user's own,
    where nobody else has rules.
    """
    if networks.netns.private or network.spec.kind == "bridge" or not network.gateways:
        return ()
    sentences: list[str] = []
    try:
        await networks.rules.pass_obstacles()
    except VirtuaryError as error:
        sentences.append(error.sentence)
    # a packet filter that can't be asked is told where ours is loaded
    with contextlib.suppress(VirtuaryError):
        where = [*addresses, *_example(network)]
        found = await ways.survey(
            network.bridge, network.gateways[0], where, outside=network.spec.kind == "nat"
        )
        sentences += [item.sentence for item in found]
    return tuple(dict.fromkeys(sentences))


def _example(network: Network) -> list[str]:
    """An address that a server could have."""
    return [str(IPv4Network(network.spec.ipv4)[2])] if network.spec.ipv4 else []
