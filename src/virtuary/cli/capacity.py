"""Commands about what this host has, what is promised of it, and what it still has room for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from virtuary.base.units import format_bandwidth, format_duration, format_size
from virtuary.cli.output import emit, output_option, print_fields, print_table, tell
from virtuary.cli.resources import parse_shape
from virtuary.client.start import connect

NAMES = {
    "cpus": "virtual CPUs", "floor_cpu": "guaranteed CPU", "memory": "memory",
    "floor_memory": "guaranteed memory", "disk": "disks",
    "bandwidth": "guaranteed bandwidth", "huge_pages": "memory in huge pages",
}  # fmt: skip


def amount(resource: str, number: int) -> str:
    """An amount of a resource for people."""
    match resource:
        case "cpus":
            return str(number)
        case "floor_cpu":
            return f"{number} %"
        case "bandwidth":
            return format_bandwidth(number)
    return format_size(number)


@click.command()
@output_option
def host_command(output: str) -> None:
    """Show this virtualization host: what it has, what is promised of it, and how it runs servers.

    \b
    Example:
      virtuary host
    """
    host = connect().call("GET", "/v1/host")

    def table() -> None:
        print_fields(_facts(host))
        tell()
        print_table(["PROMISED", "", "OF", "LEFT", "MOST OF IT TO"], [*_rows(host)], "")

    emit(host, output, table, lambda item: str(item["id"]))


def _facts(host: dict[str, Any]) -> list[tuple[str, str]]:
    kept = host["reserve_memory"]
    used = host["memory"] - host["memory_available"]
    links = ", ".join(
        link["name"] + (f" {link['speed'] // 10**6} Mbit/s" if link["speed"] else "")
        for link in host["links"]
    )
    huge = ", ".join(
        f"{item['free']} of {item['total']} of {format_size(item['size'])}"
        for item in host["huge_pages"]
    )
    pressure = ", ".join(f"{name} {value:.0f} %" for name, value in host["pressure"].items())
    rows = [
        ("system", f"{host['system']}, Linux {host['kernel']}"),
        (
            "mode",
            {"system": "system mode (root)", "user": "user mode (no root needed)"}[host["mode"]],
        ),
        (
            "cpus",
            f"{host['cpus']} ({host['cores']} cores, {len(host['numa']) or 1} NUMA "
            f"node{'s' * (len(host['numa']) > 1)})",
        ),
        (
            "memory",
            f"{format_size(host['memory'])}: {format_size(kept)} kept for the host, "
            f"{format_size(used)} in use",
        ),
        (
            "promised",
            ", ".join(
                f"{name} × {host['policy'][f'{name}_overcommit']:g}"
                for name in ("cpu", "memory", "disk")
            ),
        ),
        *_nodes(host["numa"]),
        ("huge pages", huge + " free" if huge else ""),
        ("waiting", pressure and f"{pressure} of the last ten seconds"),
        *(("pool " + pool["name"], _pool(pool, host["reserve_disk"])) for pool in host["pools"]),
        ("links", links),
        ("servers", f"{host['vms']}, {host['vms_running']} running"),
        ("accelerator", host["accel_reason"]),
        ("isolation", f"level {host['level']}"),
        ("qemu", host["qemu"]),
        ("virtuary", host["version"]),
    ]
    return [(name, text) for name, text in rows if text]


def _nodes(nodes: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What each NUMA node has, where there is more than one."""
    described = [
        (f"NUMA node {node['number']}", f"{len(node['cpus'])} CPUs, {format_size(node['memory'])}")
        for node in nodes
    ]
    return described if len(nodes) > 1 else []


def _pool(pool: dict[str, Any], kept: int) -> str:
    size, free, disks = (
        format_size(pool["size"]),
        format_size(pool["free"]),
        format_size(pool["allocated"]),
    )
    end = (
        f"; full in {format_duration(pool['full_in'])} at the pace of the last week"
        if pool["full_in"] is not None
        else ""
    )
    return (
        f"{free} free of {size}, {disks} in disks; nothing is made below {format_size(kept)}{end}"
    )


def _rows(host: dict[str, Any]) -> Iterator[list[str]]:
    """The account, resource by resource; of networks those that floors are promised of."""
    for resource, balance in host["account"].items():
        if balance["usable"] or balance["promised"] or resource != "huge_pages":
            yield _row(NAMES[resource], resource, balance)
    for network, directions in host["bandwidth"].items():
        for direction, balance in directions.items():
            if balance["promised"]:
                yield _row(f"{network}, {direction}", "bandwidth", balance)


def _row(name: str, resource: str, balance: dict[str, Any]) -> list[str]:
    left = balance["usable"] - balance["promised"]
    holders = ", ".join(
        f"{name} {amount(resource, number)}" for name, number in balance["holders"].items()
    )
    return [
        name, amount(resource, balance["promised"]), amount(resource, balance["usable"]),
        amount(resource, max(left, 0)), holders,
    ]  # fmt: skip


@click.command()
@click.option(
    "--what-if",
    "shape",
    metavar="SHAPE",
    default="",
    help="A server to think of, for example "
    "cpus=4,memory=8GiB,disk=20GiB,bandwidth=50Mbit,count=10.",
)
@output_option
def capacity_command(shape: str, output: str) -> None:
    """Show how many more servers this host has room for, and what runs out first.

    Ends with 4 when fewer fit than `count` asks for.

    \b
    Examples:
      virtuary capacity
      virtuary capacity --what-if cpus=4,memory=8GiB,count=10
      virtuary capacity --what-if bandwidth=50Mbit,network=lab
    """
    answer = connect().call("GET", "/v1/capacity", query=parse_shape(shape))

    def table() -> None:
        each = ", ".join(
            f"{amount(name, number)} {NAMES[name]}"
            for name, number in answer["each"].items()
            if number
        )
        tell(f"each takes {each}, its emulation included")
        tell(f"{answer['servers']} more fit; {NAMES[answer['limit']]} would be used up first")
        for name, number in sorted(answer["by"].items(), key=lambda item: item[1]):
            tell(f"  {NAMES[name]}: room for {number}")
        if answer["wanted"] is not None:
            tell(
                f"{answer['wanted']} fit"
                if answer["fits"]
                else f"{answer['wanted']} do not fit: {answer['missing']}"
            )

    emit(answer, output, table, lambda item: str(item["servers"]))
    if answer["fits"] is False:
        raise SystemExit(4)
