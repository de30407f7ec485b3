"""What a server may send at all: its own addresses, no other kinds of frames, no DHCP server's and
no router's messages.

The table of bridged frames, asked for each frame that comes from a tap, before anything else looks
at it. Pure. One element of a set for each address, so a frame costs the same however many servers
there are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address

from virtuary.base.errors import Invalid
from virtuary.model.firewall import Address, Match
from virtuary.network.nft import chain, check_address, check_interface, lines, named_set, quoted

CHECKS = ("mac", "arp", "ipv4", "ipv6", "dhcp", "ra", "vlan", "ethertype")
"""What frames of a server are checked for. `ipv6` holds neighbour discovery, `dhcp` and `ra`: being
a server or router.
"""
TAPS = "vt"
"""What the names of all taps of servers begin with, see model.network.tap_of."""
TRANSLATED = "0x02000000"
"""The bit of a packet's mark that tells the bridge that it was translated and judged."""

_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")


@dataclass(frozen=True)
class Port:
    """A server's network card on this host: its tap, and what it may be. `rules` are those of its
    groups, in order.
    """

    interface: str
    bridge: str
    mac: str
    addresses: tuple[Address, ...] = ()
    unguarded: frozenset[str] = frozenset()
    """Names of `CHECKS` that its frames are not held to."""
    rules: tuple[Match, ...] = ()
    trunk: tuple[tuple[int, int], ...] = ()
    """Ranges of the VLAN tags that its frames may have."""

    def __post_init__(self) -> None:
        check_interface(self.interface)
        if not _MAC.fullmatch(self.mac):
            raise Invalid(
                f"{self.mac[:40]!r} is no card's MAC address: six pairs of lower-case "
                "hexadecimal digits, not a group's"
            )
        if unknown := self.unguarded - set(CHECKS):
            raise Invalid(f"{min(unknown)[:40]!r} is no check: they are {', '.join(CHECKS)}")
        if not all(0 < first <= last < 4095 for first, last in self.trunk):
            raise Invalid("tags of VLANs lie from 1 to 4094, the smaller one first")
        for address in self.addresses:
            check_address(address)
        _check_rules(self.rules)

    @property
    def link_local(self) -> IPv6Address:
        """The IPv6 address its MAC stands for on its link (EUI-64)."""
        parts = bytes.fromhex(self.mac.replace(":", ""))
        return IPv6Address(
            b"\xfe\x80" + bytes(6) + bytes([parts[0] ^ 2]) + parts[1:3] + b"\xff\xfe" + parts[3:]
        )


_checked: dict[int, tuple[Match, ...]] = {}
"""Rules that were checked, by their identity, which is theirs as long as they are kept here."""


def _check_rules(rules: tuple[Match, ...]) -> None:
    """Check the peers of rules, once for the many cards that share them: a peer may stand for every
    server there is.
    """
    if _checked.get(id(rules)) is rules:
        return
    for rule in rules:
        for net in rule.peers or ():
            check_address(net)
    if len(_checked) >= 256:
        _checked.clear()
    _checked[id(rules)] = rules


def bridge_table(ports: list[Port], routed: set[str]) -> str:
    """The table's body; `routed` are the bridges whose servers reach each other only through the
    host's IP stack.
    """
    free = "".join(
        named_set(
            f"free_{check}",
            "type ifname",
            quoted(port.interface for port in ports if check in port.unguarded),
        )
        for check in CHECKS
    )
    return "".join(
        (
            named_set("taps", "type ifname", quoted(port.interface for port in ports)),
            named_set(
                "routed",
                "type ifname",
                quoted(port.interface for port in ports if port.bridge in routed),
            ),
            free,
            _identities(ports),
            _HEARD,
            _trunks(ports),
            _GUARDS,
        )
    )


def _identities(ports: list[Port]) -> str:
    """What each tap may call itself. Neighbour discovery names addresses in its payload, where nft
    reads plain numbers.
    """
    arp, four, six, targets, links = [], [], [], [], []
    for port in ports:
        name, number = f'"{port.interface}"', port.mac.replace(":", "")
        links.append(f"{name} . 0x{number}")
        arp.append(f"{name} . {port.mac} . 0.0.0.0")  # a probe for an address (RFC 5227)
        for address in (*port.addresses, port.link_local):
            if address.version == 4:
                arp.append(f"{name} . {port.mac} . {address}")
                four.append(f"{name} . {address}")
            else:
                six.append(f"{name} . {address}")
                targets.append(f"{name} . 0x{int(address):032x}")
    return "".join(
        (
            named_set(
                "macs",
                "type ifname . ether_addr",
                (f'"{port.interface}" . {port.mac}' for port in ports),
            ),
            named_set("arps", "typeof iifname . arp saddr ether . arp saddr ip", arp),
            named_set("four", "type ifname . ipv4_addr", four),
            named_set("six", "type ifname . ipv6_addr", six),
            named_set("targets", "typeof iifname . @th,64,128", targets),
            named_set("links", "typeof iifname . @th,208,48", links),
        )
    )


def _trunks(ports: list[Port]) -> str:
    """Tagged frames: those of a trunk's VLANs pass its cards, all others none, whoever sends
    them.
    """
    trunks = sorted({port.trunk for port in ports if port.trunk})
    sets, come, go = [], [], []
    for number, trunk in enumerate(trunks):
        sets.append(
            named_set(
                f"trunk_{number}",
                "type ifname",
                quoted(port.interface for port in ports if port.trunk == trunk),
            )
        )
        tags = ", ".join(
            str(first) if first == last else f"{first}-{last}" for first, last in trunk
        )
        come.append(f"iifname @trunk_{number} vlan id {{ {tags} }} goto guard_source_mac")
        go.append(f"oifname @trunk_{number} vlan id {{ {tags} }} return")
    tagged = "ether type { 0x8100, 0x88a8 } drop"
    return "".join(
        (
            *sets,
            chain("guard", *come, f"iifname != @free_vlan {tagged}", "goto guard_source_mac"),
            chain("deliver", *go, f"oifname @taps oifname != @free_vlan {tagged}"),
        )
    )


HEARD = ("heard4", "heard6")
"""Sets of what taps whose addresses nobody gave call themselves, for as long as they go on doing
so.
"""
_HEARD = "".join(
    f"    set {name} {{\n{lines((kind, 'size 4096', 'flags dynamic,timeout', 'timeout 10m'))}    "
    "}\n"
    for name, kind in zip(
        HEARD, ("typeof iifname . arp saddr ip", "typeof iifname . ip6 saddr"), strict=True
    )
)

# Checks let pass what they know and drop the rest, so that a frame too short to be read is dropped
# as well. An option of
# neighbour discovery is one unit of 8 bytes: type, length, address; only messages with none or one
# are let pass.
_TARGET = "iifname . @th,64,128 @targets"
_GUARDS = "".join(
    (
        # A tap that belongs to nobody we know passes nothing: it outlived its server, or is not
        # known yet.
        chain(
            "frames",
            "iifname @taps goto guard",
            f'iifname "{TAPS}*" drop',
            hook="filter hook prerouting priority -310",
        ),
        chain(
            "guard_source_mac",
            "iifname != @free_mac iifname . ether saddr != @macs drop",
            "meta protocol vmap { arp : goto guard_arp, ip : goto guard_four, ip6 : goto "
            "guard_six }",
            "iifname @free_ethertype accept",
            "drop",
        ),
        chain(
            "guard_arp",
            "iifname @free_arp arp saddr ip != 0.0.0.0 update @heard4 { iifname . arp saddr ip }",
            "iifname @free_arp accept",
            "arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4 iifname . arp saddr ether . arp "
            "saddr ip @arps accept",
            "drop",
        ),
        chain(
            "guard_four",
            "iifname != @free_dhcp udp sport 67 drop",
            "iifname != @free_mac udp dport 67 jump guard_request",
            "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
            "iifname @free_ipv4 accept",
            "iifname . ip saddr @four accept",
            "drop",
        ),
        # Whose address it is stands in the request itself (chaddr). A relay, which is free to be a
        # server, asks for others.
        chain(
            "guard_request",
            "iifname @free_dhcp return",
            "iifname . @th,288,48 @links return",
            "drop",
        ),
        chain(
            "guard_six",
            "iifname != @free_dhcp udp sport 547 drop",
            "meta l4proto ipv6-icmp goto guard_icmp",
            "goto guard_source",
        ),
        chain(
            "guard_icmp",
            # neighbour discovery in fragments (RFC 6980)
            "ip6 hoplimit 255 exthdr frag exists drop",
            "iifname != @free_ra icmpv6 type { nd-router-advert, nd-redirect } drop",
            "iifname @free_ipv6 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } "
            "ip6 saddr != { ::, fe80::/10 } update @heard6 { iifname . ip6 saddr }",
            "iifname @free_ipv6 accept",
            "icmpv6 type nd-neighbor-solicit goto guard_solicit",
            "icmpv6 type nd-neighbor-advert goto guard_advert",
            "icmpv6 type nd-router-solicit goto guard_router_solicit",
            "ip6 saddr :: icmpv6 type { mld-listener-report, mld-listener-done, "
            "mld2-listener-report } accept",
            "goto guard_source",
        ),
        chain(
            "guard_source", "iifname @free_ipv6 accept", "iifname . ip6 saddr @six accept", "drop"
        ),
        chain(
            "guard_solicit",
            f"ip6 saddr :: ip6 length 24 {_TARGET} accept",  # is my address taken?
            # the same with a nonce (RFC 7527)
            f"ip6 saddr :: ip6 length 32 @th,192,16 0x0e01 {_TARGET} accept",
            "iifname . ip6 saddr != @six drop",
            "ip6 length 24 accept",
            "ip6 length 32 @th,192,16 0x0101 iifname . @th,208,48 @links accept",
            "drop",
        ),
        chain(
            "guard_advert",
            "iifname . ip6 saddr != @six drop",
            f"ip6 length 24 {_TARGET} accept",
            f"ip6 length 32 @th,192,16 0x0201 iifname . @th,208,48 @links {_TARGET} accept",
            "drop",
        ),
        chain(
            "guard_router_solicit",
            "ip6 saddr :: ip6 length 8 accept",
            "iifname . ip6 saddr != @six drop",
            "ip6 length 8 accept",
            "ip6 length 16 @th,64,16 0x0101 iifname . @th,80,48 @links accept",
            "drop",
        ),
        # These two hold also where a port was not made an isolated one, or is no longer known, or a
        # bridge passes such frames on.
        chain(
            "between",
            f"iifname @routed meta mark and {TRANSLATED} == 0 drop",
            f"oifname @routed meta mark and {TRANSLATED} == 0 drop",
            f'oifname "{TAPS}*" oifname != @taps drop',
            "jump deliver",
            hook="filter hook forward priority -310",
        ),
        chain(
            "link_local",
            "iifname @taps ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop",
            hook="filter hook input priority -310",
        ),
    )
)
