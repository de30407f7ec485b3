"""Addresses that mean something else than a server on the internet, and the ways in which one
address stands for another.

Tables, as the registries have them: IANA's IPv4 and IPv6 Special-Purpose Address Registries
(October 2025), of which those that are not globally reachable; multicast; what was deprecated and
may still be routed; and the addresses at which clouds answer their own machines. Of IPv6 only
2000::/3 is global unicast at all (IANA IPv6 Address Space): everything else is private here.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

CLOUD = "a cloud's own"
NEVER = {
    "0.0.0.0/8": "unspecified", "169.254.0.0/16": "link-local", "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
    "168.63.129.16/32": CLOUD, "100.100.100.200/32": CLOUD, "192.0.0.192/32": CLOUD,
    "fd00:ec2::/32": CLOUD, "fd20:ce::/32": CLOUD,
    "::/128": "unspecified", "fe80::/10": "link-local", "fec0::/10": "site-local",
    "ff00::/8": "multicast",
    "64:ff9b:1::/48": "a translator's", "100::/64": "discarded", "100:0:0:1::/64": "discarded",
    "5f00::/16": "a segment's",
}  # fmt: skip
"""What is never fetched from, also where private addresses are allowed."""
PRIVATE = (
    *(
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
    ),
    *("192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
    *("2001::/23", "2001:db8::/32", "3fff::/20"),
)
REACHABLE = (
    *(
        "192.0.0.9/32",
        "192.0.0.10/32",
        "2001:1::1/128",
        "2001:1::2/128",
        "2001:1::3/128",
        "2001:3::/32",
        "2001:4:112::/48",
    ),
    *("2001:20::/28", "2001:30::/28"),
)
"""Parts of the private ones that the registries call globally reachable."""
GLOBAL_UNICAST = IPv6Network("2000::/3")
EMBEDDED = ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")
"""Whose last 32 bits are an IPv4 address: compatible, mapped, translated, NAT64."""
TEREDO, SIX_TO_FOUR, ISATAP = (
    IPv6Network("2001::/32"),
    IPv6Network("2002::/16"),
    (0x00005EFE, 0x02005EFE),
)

_never = {ipaddress.ip_network(text): why for text, why in NEVER.items()}
_private = tuple(map(ipaddress.ip_network, PRIVATE))
_reachable = tuple(map(ipaddress.ip_network, REACHABLE))
_embedded = tuple(IPv6Network(text) for text in EMBEDDED)


def inside(address: Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 address stands for, and nothing else; none for one that is
    itself. Pure.
    """
    if isinstance(address, IPv4Address):
        return ()
    number = int(address)
    if any(address in net for net in _embedded) and number > 1:
        return (IPv4Address(number & 0xFFFFFFFF),)
    if address in SIX_TO_FOUR:
        return (IPv4Address(number >> 80 & 0xFFFFFFFF),)
    if address in TEREDO:
        return IPv4Address(number >> 64 & 0xFFFFFFFF), IPv4Address(~number & 0xFFFFFFFF)
    return ()


def behind(address: Address) -> tuple[IPv4Address, ...]:
    """The IPv4 address to which a router of the address's own network may lead it (ISATAP): both
    count then. Pure.
    """
    number = int(address)
    tunnelled = isinstance(address, IPv6Address) and number >> 32 & 0xFFFFFFFF in ISATAP
    return (IPv4Address(number & 0xFFFFFFFF),) if tunnelled else ()


def why_never(address: Address) -> str | None:
    """What this address is that nothing is ever fetched from; None for others. Pure."""
    return next((why for net, why in _never.items() if address in net), None)


def is_private(address: Address) -> bool:
    """Whether this address, taken as itself, is none of a server on the internet. Pure."""
    if any(address in net for net in _reachable):
        return False
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return True
    return any(address in net for net in _private)
