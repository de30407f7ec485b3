"""Commands about networks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any

import click

from virtuary.base.errors import Failed, Invalid, NotFound, Stale
from virtuary.cli.look import every
from virtuary.cli.options import BitRate, idempotency, parse_labels
from virtuary.cli.output import ago, emit, output_option, print_fields, print_table, tell
from virtuary.client.start import connect
from virtuary.client.wire import Wire, path_part

PATIENCE = 15.0
"""Seconds to wait for the host to make or remove a network."""
ACTION = click.Choice(["allow", "deny", "reject"])
DEFAULT_IN = click.option(
    "--default-in",
    type=ACTION,
    help="What becomes of a connection to a server that no firewall rule fits.",
)
DEFAULT_OUT = click.option(
    "--default-out", type=ACTION, help="The same of a connection that a server begins."
)


UNSTATED = -1
"""A speed or an MTU that is taken back."""


class Speed(BitRate):
    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        return UNSTATED if value == "none" else super().convert(value, param, ctx)


class Mtu(click.ParamType[int]):
    name = "bytes"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        return UNSTATED if value == "none" else int(click.INT.convert(value, param, ctx))


@click.group()
def network_command() -> None:
    """Create, list, change and delete networks.

    \b
    Examples:
      virtuary network list
      virtuary network create lab --ipv4 10.5.0.0/24
      virtuary launch debian web1 --network lab
      virtuary network forward 203.0.113.7 web1
    """


@network_command.command("list")
@output_option
def list_networks(output: str) -> None:
    """List the networks of this host.

    \b
    Example:
      virtuary network list
    """
    wire = connect()
    items = sorted(every(wire, "/v1/networks"), key=lambda item: item["meta"]["name"])
    servers = every(wire, "/v1/vms")
    rows = [
        [
            item["meta"]["name"],
            item["spec"]["kind"],
            item["status"]["state"],
            item["spec"]["ipv4"] or item["spec"]["interface"] or "-",
            item["spec"]["ipv6"] or "-",
            str(
                sum(
                    nic["network_id"] == item["meta"]["id"]
                    for vm in servers
                    for nic in vm["spec"]["nics"]
                )
            ),
            ago(item["meta"]["created"]),
        ]
        for item in items
    ]
    head = ["NAME", "KIND", "STATE", "IPV4", "IPV6", "NICS", "AGE"]
    emit(
        items,
        output,
        lambda: print_table(head, rows, "no networks yet: the first server on one makes it"),
    )


@network_command.command("show")
@click.argument("name")
@output_option
def show_network(name: str, output: str) -> None:
    """Show a network, and who has which address on it.

    \b
    Example:
      virtuary network show default
    """
    wire = connect()
    item = wire.call("GET", f"/v1/networks/{path_part(name)}")
    leases = wire.call("GET", f"/v1/networks/{path_part(name)}/leases")["items"]

    def table() -> None:
        _print(item)
        rows = [
            [
                each["vm"],
                each["mac"],
                each["ipv4"] or "-",
                each["ipv6"] or "-",
                "yes" if each["taken"] else "no",
            ]
            for each in leases
        ]
        if rows:
            tell()
            print_table(["SERVER", "MAC", "IPV4", "IPV6", "TAKEN"], rows, "")

    emit({**item, "leases": leases}, output, table)


def _print(item: dict[str, Any]) -> None:
    spec, status = item["spec"], item["status"]
    print_fields(
        [
            ("name", item["meta"]["name"]),
            ("kind", spec["kind"]),
            ("state", status["state"] + (f": {status['reason']}" if status["reason"] else "")),
            ("ipv4", spec["ipv4"] or "-"),
            ("ipv6", (spec["ipv6"] or "-") + (", routed" if spec["routed6"] else "")),
            ("domain", spec["domain"]),
            ("bridge", status["bridge"] or "-"),
            *([("interface", spec["interface"])] if spec["interface"] else []),
            *([("vlan", str(spec["vlan"]))] if spec["vlan"] else []),
            ("mtu", f"{status['mtu']} bytes" if status["mtu"] else "-"),
            *([("trunk", ", ".join(spec["trunk"]))] if spec["trunk"] else []),
            ("firewall", _firewall(spec)),
            ("host", _host(spec)),
            *(("not so", gap) for gap in status["gaps"]),
        ]
    )


def _firewall(spec: dict[str, Any]) -> str:
    if spec["kind"] == "bridge":
        return "none of this host's: servers are judged on the physical network"
    return f"in {spec['default_in']}, out {spec['default_out']}, where no rule fits"


def _host(spec: dict[str, Any]) -> str:
    if spec["kind"] == "bridge":
        return "its services are reached as from anywhere on the physical network"
    return "its services can be reached" if spec["host_access"] else "its services can't be reached"


@network_command.command("create")
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["nat", "isolated", "bridge"]),
    default="nat",
    show_default=True,
    help="What it leads to.",
)
@click.option(
    "--ipv4", metavar="CIDR", help="Its subnet; one that meets nothing is chosen when not given."
)
@click.option("--ipv6", metavar="CIDR", help="Its IPv6 subnet, of 64 bits.")
@click.option("--domain", help="Servers are known as NAME.DOMAIN; virtuary when not given.")
@click.option("--interface", help="For a bridge: the host's bridge or interface to join.")
@click.option("--vlan", type=int, help="For a bridge: the tag on the physical network.")
@click.option(
    "--trunk",
    metavar="TAGS",
    help="For a bridge: tags that the servers' own frames may have, for example 10,20-29.",
)
@click.option("--routed6", is_flag=True, help="Let IPv6 leave with the servers' own addresses.")
@click.option("--host-access", is_flag=True, help="Let servers reach the services of this host.")
@click.option(
    "--speed", type=BitRate(), help="Speed of the link that its servers share, for example 1Gbit."
)
@click.option(
    "--mtu", type=int, help="Bytes of the largest packet; as its way out has them when not given."
)
@DEFAULT_IN
@DEFAULT_OUT
@click.option("--label", "-l", multiple=True, metavar="KEY=VALUE", help="A label.")
@output_option
def create_network(name: str, output: str, label: tuple[str, ...], **given: Any) -> None:
    """Create a network.

    nat: servers reach the outside, and are reached by published ports. isolated: servers reach each
    other. bridge: servers are on the physical network.

    \b
    Examples:
      virtuary network create lab
      virtuary network create backend --kind isolated --default-in deny
      virtuary network create office --kind bridge --interface br0
      virtuary network create lab --kind bridge --interface eth1 --trunk 10,20-29
    """
    wire = connect()
    wish = {"name": name, **{key: value for key, value in given.items() if value}}
    if label:
        wish["labels"] = parse_labels(label)
    if "trunk" in wish:
        wish["trunk"] = wish["trunk"].split(",")
    wire.call("POST", "/v1/networks", wish, headers=idempotency())
    item = _settled(wire, name)
    emit(
        item,
        output,
        lambda: tell(f"the network {name} is ready: virtuary launch debian --network {name}"),
    )


def _settled(wire: Wire, name: str) -> dict[str, Any]:
    """The network once the host has made it; raises Failed with the reason where it can't."""
    until = time.monotonic() + PATIENCE
    while True:
        item: dict[str, Any] = wire.call("GET", f"/v1/networks/{path_part(name)}")
        if item["status"]["state"] == "ready":
            return item
        if item["status"]["state"] == "failed" or time.monotonic() > until:
            raise Failed(
                f"the network {name} is not there: "
                f"{item['status']['reason'] or 'the host is still making it'}",
                f"virtuary network show {name}, or delete it",
            )
        time.sleep(0.05)


@network_command.command("set")
@click.argument("name")
@click.option(
    "--routed6/--no-routed6", default=None, help="Let IPv6 leave with the servers' own addresses."
)
@click.option(
    "--host-access/--no-host-access",
    default=None,
    help="Let servers reach the services of this host.",
)
@click.option(
    "--speed",
    type=Speed(),
    help="Speed of the link that its servers share, for example 1Gbit; none: as it is found.",
)
@click.option(
    "--mtu", type=Mtu(), help="Bytes of the largest packet; none: as its way out has them."
)
@DEFAULT_IN
@DEFAULT_OUT
@click.option(
    "--label", "-l", multiple=True, metavar="KEY=VALUE", help="A label; they replace those it has."
)
@output_option
def set_network(name: str, output: str, label: tuple[str, ...], **given: Any) -> None:
    """Change a network while servers are on it.

    \b
    Examples:
      virtuary network set lab --host-access
      virtuary network set lab --default-in deny
      virtuary network set lab --speed none
    """
    wish = {
        key: None if value == UNSTATED else value
        for key, value in given.items()
        if value is not None
    }
    if label:
        wish["labels"] = parse_labels(label)
    item = connect().call("PATCH", f"/v1/networks/{path_part(name)}", wish)
    emit(item, output, lambda: tell(f"the network {name} is changed"))


@network_command.command("forward")
@click.argument("address")
@click.argument("server", required=False)
@click.option(
    "--network", help="The server's NIC on this network; its first one of kind nat when not given."
)
@click.option("--remove", is_flag=True, help="Let the address lead nowhere.")
@output_option
def forward(
    address: str, server: str | None, network: str | None, remove: bool, output: str
) -> None:
    """Let an address outside lead to one server, which is then seen there under that address.

    The address is one on a link of this host, which then answers for it, or one that is routed
    here. It works at once, for every protocol and port, as far as the server's firewall groups
    allow.

    \b
    Examples:
      virtuary network forward 203.0.113.7 web1
      virtuary network forward 203.0.113.7 --remove
    """
    if remove == bool(server):
        raise Invalid(
            "say the server that the address leads to, or --remove",
            f"virtuary network forward {address} web1",
        )
    wire, address = connect(), _canonical(address)
    kinds = {item["meta"]["id"]: item["spec"]["kind"] for item in every(wire, "/v1/networks")}
    for left in reversed(range(TRIES)):
        vm = wire.call("GET", f"/v1/vms/{path_part(server)}") if server else _led_to(wire, address)
        try:
            changed = _lead(
                wire, vm, _leading(vm, address, network, remove, kinds), address, remove
            )
            break
        except Stale:
            if not left:
                raise
    whither = "nowhere" if remove else f"to {changed['meta']['name']}"
    emit(changed, output, lambda: tell(f"{address} leads {whither}"))


def _lead(
    wire: Wire, vm: dict[str, Any], nic: dict[str, Any], address: str, remove: bool
) -> dict[str, Any]:
    """The server after its NIC was given the address, or lost it; raises Stale when the document
    `vm` is not the newest.
    """
    others = [other for other in nic["external"] if other != address]
    nic["external"] = others if remove else [*others, address]
    wish = {
        "nics": [
            {field: other[field] for field in WISHED if other[field] is not None}
            for other in vm["spec"]["nics"]
        ]
    }
    match = {"If-Match": f'"{vm["meta"]["revision"]}"'}
    changed: dict[str, Any] = wire.call(
        "PATCH", f"/v1/vms/{path_part(vm['meta']['name'])}", wish, headers=match
    )
    return changed


TRIES = 20
"""A server's document changes with its progress too."""


def _canonical(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise Invalid(f"{text[:60]!r} is no address", "for example 203.0.113.7") from None


WISHED = ("network", "mac", "ipv4", "unguarded", "groups", "bandwidth", "external")
"""What is wished of a NIC, the rest follows."""


def _led_to(wire: Wire, address: str) -> dict[str, Any]:
    for vm in every(wire, "/v1/vms"):
        if any(address in nic["external"] for nic in vm["spec"]["nics"]):
            return vm
    raise NotFound(f"{address} leads to no server", "virtuary network forward ADDRESS SERVER")


def _leading(
    vm: dict[str, Any], address: str, network: str | None, remove: bool, kinds: Mapping[str, str]
) -> dict[str, Any]:
    """The NIC that the address leads to, or shall lead to; `kinds`: of networks, by their ids."""
    nics: list[dict[str, Any]] = vm["spec"]["nics"]
    for nic in nics:
        fits = nic["network"] == network if network else kinds.get(nic["network_id"]) == "nat"
        if address in nic["external"] if remove else fits:
            return nic
    raise Invalid(
        f"{vm['meta']['name']} has no NIC "
        f"{f'on {network}' if network else 'on a network of kind nat'}",
        "virtuary show tells",
    )


@network_command.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def delete_network(names: tuple[str, ...]) -> None:
    """Delete networks that no server is on.

    \b
    Example:
      virtuary network delete lab
    """
    wire = connect()
    for name in names:
        wire.call("DELETE", f"/v1/networks/{path_part(name)}", headers=idempotency())
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                wire.call("GET", f"/v1/networks/{path_part(name)}")
            except NotFound:
                break
            time.sleep(0.05)
        else:
            raise Failed(f"the network {name} is still there", f"virtuary network show {name}")
        tell(f"the network {name} is gone")
