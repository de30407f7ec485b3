"""Where a URL of a user may lead: parsed strictly, its host resolved once, every address checked (attack row SF1).

The fetcher connects to the addresses returned here and never resolves the name again, so a name server that changes its
mind in between gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from virtuary.base.errors import Invalid, PeerAway, Refused

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
MAX_URL = 2048
PORTS = {"http": 80, "https": 443}
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # NAT64: the last 32 bits are an IPv4 address
_HOST = re.compile(r"^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})$")


class Url(NamedTuple):
    """An http or https URL without user, password and fragment."""

    scheme: str
    host: str  # lower case name or address, IPv6 without brackets
    port: int
    target: str  # path and query as sent

    @property
    def authority(self) -> str:
        """What goes into the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def at(self, address: str) -> str:
        """This URL with the name replaced by an address of it."""
        host = f"[{address}]" if ":" in address else address
        return f"{self.scheme}://{host}:{self.port}{self.target}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_url(text: str) -> Url:
    """The URL meant by `text`; raises Invalid for other schemes, user names in it, and anything that could be read two ways."""
    if len(text) > MAX_URL or not text.isascii() or re.search(r"[\x00-\x20\x7f\\<>\"]", text):
        raise Invalid("the URL is too long or has characters that do not belong in a URL", "write other characters in %-notation")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise Invalid("the URL has a host or port that is not understood") from error
    if parts.scheme not in PORTS:
        raise Invalid(f"URLs of the kind {parts.scheme[:20]!r} are not fetched", "give an http or https URL")
    if "@" in parts.netloc:
        raise Invalid("the URL has a user name or password in it", "publish the file where none is needed")
    host = (parts.hostname or "").rstrip(".")
    if not host or not (_HOST.match(host) or _is_address(host)):
        raise Invalid("the URL has no host that is understood")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(parts.scheme, host, PORTS[parts.scheme] if port is None else port, target)


def follow(url: Url, location: str) -> Url:
    """Where a redirect from `url` leads."""
    return parse_url(urljoin(str(url), location))


def why_not(address: Address, allow_private: bool, deny: Sequence[Network] = ()) -> str | None:
    """Why nothing is fetched from `address`; None when it may be. Pure.

    Multicast, link-local (cloud metadata services live there) and unspecified addresses are never allowed.
    """
    inner = _inside(address)
    if inner is not None:
        return why_not(inner, allow_private, deny)
    if any(address in network for network in deny):
        return "belongs to this cluster"
    if address.is_multicast or address.is_unspecified or address.is_link_local or str(address) == "255.255.255.255":
        return "is a multicast, link-local or unspecified address"
    if not allow_private and not address.is_global:
        return "is a private address"
    return None


async def resolve(url: Url, allow_private: bool = False, deny: Sequence[Network] = (), patience: float = 15) -> list[str]:
    """Addresses of the URL's host, all of them checked; raises Refused if a single one is not allowed."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(patience):
            answers = await loop.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # TimeoutError is an OSError
        raise PeerAway(f"the name {url.host} can't be resolved", "check the name and this host's name service") from error
    found = list(dict.fromkeys(str(answer[4][0]) for answer in answers))
    for text in found:
        if reason := why_not(ipaddress.ip_address(text), allow_private, deny):
            raise Refused(f"{url.host} is not fetched from: its address {reason}", "an administrator can allow private addresses")
    return found


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _inside(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address an IPv6 address stands for: mapped, 6to4, Teredo, NAT64."""
    if address.version == 4:
        return None
    if address.ipv4_mapped or address.sixtofour:
        return address.ipv4_mapped or address.sixtofour
    if address.teredo:
        return address.teredo[1]
    if address in _TRANSLATED or (int(address) >> 32 == 0 and int(address) > 1):  # ::a.b.c.d, but not :: and ::1
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None
