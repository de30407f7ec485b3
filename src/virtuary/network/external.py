"""Addresses outside that lead to servers: the host answers for those on its own links, and forgets
them when they lead nowhere.

An address that is routed to the host from further away needs nothing; one that the host had already
is its administrator's to keep.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Sequence
from typing import Any

from virtuary.base.proc import run

Placed = tuple[str, str]
"""An interface of the host, and an address that was given to it."""


def parse_held(listing: bytes) -> set[str]:
    """Every address the host has, from `ip -j address show`."""
    return {
        info["local"]
        for link in json.loads(listing or b"[]")
        for info in link.get("addr_info", ())
        if "local" in info
    }


def parse_link(route: bytes) -> str | None:
    """The interface on whose link an address lies, from `ip -j route get`; None when it lies behind
    a router, or nowhere.
    """
    found: list[dict[str, Any]] = json.loads(route or b"[]")
    ways = [
        way
        for way in found
        if way.get("type", "unicast") == "unicast" and "gateway" not in way and "via" not in way
    ]
    return ways[0]["dev"] if ways and ways[0].get("dev") != "lo" else None


async def plan(wanted: Iterable[str], known: Sequence[Placed]) -> tuple[Placed, ...]:
    """Where the wanted addresses are to be: as they are `known` to have been placed, else on the
    interface on whose link they lie.
    """
    addresses = sorted(set(wanted))
    kept = {address: interface for interface, address in known}
    strange = [address for address in addresses if address not in kept]
    held = parse_held((await run("ip", "-j", "address", "show")).stdout) if strange else set()
    for address in strange:
        if address in held:
            continue
        route = await run("ip", "-j", "route", "get", address, check=False)
        if route.status == 0 and (link := parse_link(route.stdout)):
            kept[address] = link
    return tuple((kept[address], address) for address in addresses if address in kept)


async def place(placed: Sequence[Placed]) -> None:
    """Have the interfaces have these addresses. Repeats harmlessly; raises Failed."""
    if not placed:
        return
    held = parse_held((await run("ip", "-j", "address", "show")).stdout)
    for interface, address in placed:
        if address in held:
            continue
        whole, odd = (
            (f"{address}/32", ())
            if ipaddress.ip_address(address).version == 4
            else (f"{address}/128", SIX)
        )
        await run("ip", "address", "replace", whole, "dev", interface, *odd)


SIX = ("nodad", "preferred_lft", "0")
"""Ready at once, and never what the host itself calls from."""


async def take_away(placed: Iterable[Placed]) -> None:
    """Take the addresses from their interfaces, which may be gone."""
    for interface, address in placed:
        length = 32 if ipaddress.ip_address(address).version == 4 else 128
        await run("ip", "address", "delete", f"{address}/{length}", "dev", interface, check=False)
