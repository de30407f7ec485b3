"""Figures of usage as people read them: shares, rates, memory, and how old they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from virtuary.base.units import format_duration, format_size

OLD = 30.0
"""Seconds from which on a figure's age is worth a word."""


def share(value: float | None) -> str:
    """Processor time as percent of one processor."""
    return "-" if value is None else f"{value * 100:.0f} %"


def size(value: float | None) -> str:
    return "-" if value is None else format_size(int(value))


def rate(value: float | None) -> str:
    return "-" if value is None else f"{format_size(int(value))}/s"


def filled(usage: dict[str, Any], way: str) -> str:
    """What a server receives or sends, and how much of its limit that is where all its NICs have
    one.
    """
    value = (usage["network"] or {}).get(way)
    limits = [nic[f"limit_{way}"] for nic in usage["nics"]]
    return rate(value) + (
        f", {value / sum(limits):.0%}" if value is not None and limits and all(limits) else ""
    )


def times(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}/s"


def aged(text: str, age: float | None) -> str:
    """`text`, with its age where it is not new."""
    return f"{text}, {format_duration(age)} ago" if age is not None and age >= OLD else text


def facts(usage: dict[str, Any]) -> list[tuple[str, str]]:
    """What a server uses, for `show`."""
    if usage["age"] is None:
        return []
    guest, disk, network = usage["guest"], usage["disk"], usage["network"]
    held = f", {share(usage['throttled'])} held back by its limit" if usage["throttled"] else ""
    found = [
        (
            "cpu",
            f"{share(usage['cpu'])} of a processor, {share(usage['steal'])} waited for one{held}",
        ),
        (
            "memory",
            f"{size(usage['resident'])} of the host"
            + (f", {size(usage['promised'])} promised" if usage.get("promised") else ""),
        ),
    ]
    if guest:
        found.append(
            (
                "in the guest",
                aged(f"{size(guest['used'])} of {size(guest['total'])} memory used", guest["age"]),
            )
        )
    found.append(("disk", f"{rate(disk['read'])} read, {rate(disk['written'])} written"))
    if network:
        found.append(
            (
                "traffic",
                aged(
                    f"{filled(usage, 'received')} received, {filled(usage, 'sent')} sent",
                    network["age"],
                ),
            )
        )
    return found


HEAD = (
    "NAME",
    "STATE",
    "CPU",
    "STEAL",
    "MEMORY",
    "IN GUEST",
    "READ",
    "WRITTEN",
    "RECEIVED",
    "SENT",
)


def row(usage: dict[str, Any]) -> list[str]:
    """A server's line in the table of `top`."""
    guest = usage["guest"]
    return [
        usage["name"],
        usage["state"],
        share(usage["cpu"]),
        share(usage["steal"]),
        size(usage["resident"]),
        f"{size(guest['used'])} of {size(guest['total'])}" if guest else "-",
        rate(usage["disk"]["read"]),
        rate(usage["disk"]["written"]),
        filled(usage, "received"),
        filled(usage, "sent"),
    ]


def host_line(host: dict[str, Any]) -> str:
    """The host's figures in one line."""
    network, disk = host["network"] or {}, host["disk"]
    waits = ", ".join(f"{name} {value * 100:.0f} %" for name, value in host["pressure"].items())
    parts = [
        f"{share(host['cpu'])} of {host['cpus'] * 100} % cpu",
        *([f"{share(host['steal'])} stolen"] if (host["steal"] or 0) >= 0.01 else []),
        f"{size(host['available'])} of {size(host['memory'])} memory available",
        f"disk {rate(disk['read'])} read, {rate(disk['written'])} written",
        f"network {rate(network.get('received'))} in, {rate(network.get('sent'))} out",
        *([f"waits for {waits}"] if waits else []),
    ]
    return "; ".join(parts)


def _sum(*values: float | None) -> float:
    return sum(value or 0.0 for value in values)


ORDERS: dict[str, Callable[[dict[str, Any]], float]] = {
    "cpu": lambda usage: _sum(usage["cpu"]),
    "memory": lambda usage: _sum(usage["resident"]),
    "disk": lambda usage: _sum(usage["disk"]["read"], usage["disk"]["written"]),
    "network": lambda usage: _sum(
        *((usage["network"] or {}).get(way) for way in ("received", "sent"))
    ),
}
"""What servers can be sorted by, the highest first; by name else."""


def ordered(vms: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """Servers in the wanted order."""
    named = sorted(vms, key=lambda usage: str(usage["name"]))
    return sorted(named, key=lambda usage: -ORDERS[by](usage)) if by in ORDERS else named
