"""Where a URL of a user may lead: parsed strictly, its host resolved once, every address checked
(attack row SF1).

The fetcher connects to the addresses returned here and never resolves the name again, so a name
server that changes its mind in between gains nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

from virtuary.base.errors import Invalid, Refused
from virtuary.images import special
from virtuary.images.special import Address, Network

MAX_URL = 2048
PORTS = {"http": 80, "https": 443}
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
    """The URL meant by `text`; raises Invalid for other schemes, user names in it, and anything
    that could be read two ways.
    """
    if len(text) > MAX_URL or not text.isascii() or re.search(r"[\x00-\x20\x7f\\<>\"]", text):
        raise Invalid(
            "the URL is too long or has characters that do not belong in a URL",
            "write other characters in %-notation",
        )
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise Invalid("the URL has a host or port that is not understood") from error
    if parts.scheme not in PORTS:
        raise Invalid(
            f"URLs of the kind {parts.scheme[:20]!r} are not fetched", "give an http or https URL"
        )
    if "@" in parts.netloc:
        raise Invalid(
            "the URL has a user name or password in it", "publish the file where none is needed"
        )
    host = (parts.hostname or "").rstrip(".")
    if not host or not (_HOST.match(host) or literal(host)):
        raise Invalid("the URL has no host that is understood")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(parts.scheme, host, PORTS[parts.scheme] if port is None else port, target)


def follow(url: Url, location: str) -> Url:
    """Where a redirect from `url` leads."""
    return parse_url(urljoin(str(url), location))


PRIVATE = "is a private address"


def why_not(address: Address, allow_private: bool, deny: Sequence[Network] = ()) -> str | None:
    """Why nothing is fetched from `address`, taken as itself and as every address that it stands
    for; None when it may be. Pure.
    """
    if any(address in network for network in deny):
        return "belongs to this cluster"
    if never := special.why_never(address):
        return f"is {never}"
    for inner in (*special.inside(address), *special.behind(address)):
        if why := why_not(inner, allow_private, deny):
            return why
    if special.inside(address):
        return None
    if not allow_private and special.is_private(address):
        return PRIVATE
    return None


def check_addresses(
    url: Url, found: Sequence[Address], allow_private: bool = False, deny: Sequence[Network] = ()
) -> None:
    """Raise Refused if a single one of these addresses of the URL's host is not allowed."""
    for address in found:
        if reason := why_not(address, allow_private, deny):
            hint = (
                "an administrator can allow private addresses: images.allow_private = true in "
                "virtuary.toml"
            )
            raise Refused(
                f"{url.host} is not fetched from: its address {reason}",
                hint if reason == PRIVATE else None,
            )


def literal(host: str) -> Address | None:
    """The address that a host is written as, in any notation that the C library takes; None for a
    name. Pure.
    """
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    with contextlib.suppress(OSError):
        return ipaddress.IPv4Address(socket.inet_aton(host))
    return None
