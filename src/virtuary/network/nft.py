"""Words of nftables: how sets and chains are written, what may stand in them, and how a script is
loaded.

Statements stand on lines of their own: nft 1.0.6 refuses others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from virtuary.base.errors import Failed, Invalid
from virtuary.base.proc import last_line, run
from virtuary.model.firewall import Address, Subnet

_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}")


def check_interface(name: str) -> str:
    """The name of a network interface as it may stand in a script; raises Invalid."""
    if not _INTERFACE.fullmatch(name):
        raise Invalid(f"{name[:40]!r} is no interface's name")
    return name


def check_address(address: Address | Subnet) -> None:
    """Raises Invalid for an address with a scope: that would be a text."""
    if not isinstance(address, IPv4Address | IPv6Address):
        address = address.network_address
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise Invalid(f"the address {str(address)[:80]!r} has a scope")


def lines(texts: Iterable[str]) -> str:
    """What stands in a chain or set, each on a line of its own."""
    return "".join(f"        {line}\n" for line in texts)


def chain(name: str, *rules: str, hook: str = "") -> str:
    """A chain; with `hook` (type, hook and priority) one that the kernel asks."""
    head = (f"type {hook}", "policy accept") if hook else ()
    return f"    chain {name} {{\n{lines((*head, *rules))}    }}\n"


def named_set(
    name: str, kind: str, elements: Iterable[str], *, word: str = "set", flags: str = ""
) -> str:
    """A set, or with `word` a map; elements given twice stand there once."""
    texts = [kind]
    if flags:
        texts.append(f"flags {flags}")
    listed = list(dict.fromkeys(elements))
    if listed:
        texts += [
            "elements = {",
            *(f"    {element}," for element in listed[:-1]),
            f"    {listed[-1]}",
            "}",
        ]
    return f"    {word} {name} {{\n{lines(texts)}    }}\n"


def quoted(interfaces: Iterable[str]) -> list[str]:
    """Names of interfaces as elements."""
    return [f'"{name}"' for name in interfaces]


async def load(script: str) -> None:
    """Load a script, wholly or not at all; raises Failed with nft's own words, its first
    finding.
    """
    done = await run("nft", "-f", "-", stdin=script.encode(), check=False)
    if done.status != 0:
        # Below each finding nft repeats the line and points at the place, so the last line says
        # nothing.
        told = [line for line in done.stderr.splitlines() if b"rror:" in line]
        raise Failed(
            "nft failed: "
            f"{last_line(told[0] if told else done.stderr) or f'exit status {done.status}'}",
            status=done.status,
        )
