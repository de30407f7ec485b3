"""Commands about firewall groups, and rules as people write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import click

from virtuary.base.errors import Invalid
from virtuary.cli.look import every
from virtuary.cli.options import idempotency, parse_labels
from virtuary.cli.output import ago, emit, output_option, print_fields, print_table, tell
from virtuary.client.start import connect
from virtuary.client.wire import Wire, path_part

WRITTEN = (
    "write DIRECTION ACTION [PROTOCOL [PORTS]] [from|to PEERS], for example: in allow tcp "
    "80,443 from 10.0.0.0/8,group:web"
)
RULE = click.option(
    "--rule", "rules", multiple=True, metavar="RULE",
    help='A rule, for example "in allow tcp 80,443 from group:web"; in the order they are asked.'
)  # fmt: skip
DESCRIPTION = click.option("--description", metavar="TEXT", help="What it is for.")


def parse_rule(text: str) -> dict[str, Any]:
    """`DIRECTION ACTION [PROTOCOL [PORTS]] [from|to PEERS]` as the API wants it; raises Invalid.
    Ports and peers are checked there.
    """
    words = text.lower().replace(", ", ",").split()
    peers: list[str] = []
    if len(words) >= 4 and words[-2] in ("from", "to"):
        *words, towards, listed = words
        peers = listed.split(",")
        if towards != {"in": "from", "out": "to"}.get(words[0], towards):
            raise Invalid(
                f"{text!r}: what comes in comes from a peer, what goes out goes to one", WRITTEN
            )
    direction, action, protocol, ports = (*words, *[""] * 4)[:4]
    known = (
        direction in ("in", "out")
        and action in ("allow", "deny", "reject")
        and protocol in ("", "tcp", "udp", "icmp", "any")
    )
    if not known or len(words) > 4 or ports in ("from", "to") or "" in peers:
        raise Invalid(f"{text!r} is no rule", WRITTEN)
    rule: dict[str, Any] = {"direction": direction, "action": action, "protocol": protocol or "any"}
    if ports:
        rule["ports"] = ports.split(",")
    return rule | ({"peers": peers} if peers else {})


def show_rule(rule: dict[str, Any], absent: Mapping[str, str] = MappingProxyType({})) -> str:
    """A rule as `parse_rule` reads it, but for peers that are servers no name leads to: `absent`
    says in words what they are, by id.
    """
    words = [rule["direction"], rule["action"], rule["protocol"]]
    words += [",".join(rule["ports"])] if rule["ports"] else []
    if rule["peers"]:
        told = [absent.get(peer.removeprefix("server:"), peer) for peer in rule["peers"]]
        joint = "," if told == rule["peers"] else "; "
        words += ["from" if rule["direction"] == "in" else "to", joint.join(told)]
    return " ".join(words)


def absent_servers(group: dict[str, Any]) -> dict[str, str]:
    """The servers that rules of a group name and that are nobody just now, in words, by id."""
    status = group["status"]
    trashed = {key: f"server {name}, in the trash" for key, name in status["trashed"].items()}
    return trashed | {key: f"server {name}, purged" for key, name in status["purged"].items()}


def rules_naming(wire: Wire, vm_id: str, name: str, so: str) -> Iterator[str]:
    """The firewall rules that have this server for a peer, by its name while that leads to it, else
    by its id; `so` says what becomes of them.
    """
    for group in every(wire, "/v1/firewalls"):
        absent = absent_servers(group)
        peer = f"server:{vm_id if vm_id in absent else name}"
        for number, rule in enumerate(group["spec"]["rules"], 1):
            if peer in rule["peers"]:
                where = f"rule {number} of firewall group {group['meta']['name']}"
                yield f"{where} {so}: {show_rule(rule, absent)}"


def parse_service(text: str) -> dict[str, Any]:
    """`PROTOCOL/PORT` or `icmp` as the API wants it; raises Invalid."""
    protocol, _, port = text.lower().partition("/")
    if (protocol, port) == ("icmp", ""):
        return {"protocol": "icmp"}
    if protocol not in ("tcp", "udp") or not (port.isascii() and port.isdigit()):
        raise Invalid(
            f"{text!r} is nothing to test", "tcp/PORT, udp/PORT or icmp, for example tcp/5432"
        )
    return {"protocol": protocol, "port": int(port)}


def attached(servers: list[dict[str, Any]], name: str) -> list[str]:
    """The servers with a NIC attached to a group."""
    return sorted(
        vm["meta"]["name"]
        for vm in servers
        if any(name in nic.get("groups", ()) for nic in vm["spec"]["nics"])
    )


@click.group()
def firewall_command() -> None:
    """Create, list, change, test and delete firewall groups.

    A group is a list of rules about who may open a connection. Servers are attached by --network
    NAME,firewall=GROUP. The first rule that fits decides, then the default of the network.

    \b
    Examples:
      virtuary firewall create web --rule "in allow tcp 80,443" --rule "in deny any"
      virtuary set web1 --network default,firewall=web
      virtuary firewall test 192.0.2.7 web1 tcp/80
    """


@firewall_command.command("list")
@output_option
def list_firewalls(output: str) -> None:
    """List firewall groups.

    \b
    Example:
      virtuary firewall list
    """
    wire = connect()
    items = sorted(every(wire, "/v1/firewalls"), key=lambda item: item["meta"]["name"])
    servers = every(wire, "/v1/vms")
    rows = [
        [
            item["meta"]["name"],
            str(len(item["spec"]["rules"])),
            str(len(attached(servers, item["meta"]["name"]))),
            item["spec"]["description"] or "-",
            ago(item["meta"]["created"]),
        ]
        for item in items
    ]
    head = ["NAME", "RULES", "SERVERS", "DESCRIPTION", "AGE"]
    emit(
        items,
        output,
        lambda: print_table(
            head, rows, "no firewall groups yet: virtuary firewall create makes one"
        ),
    )


@firewall_command.command("show")
@click.argument("name")
@output_option
def show_firewall(name: str, output: str) -> None:
    """Show a firewall group: its rules in order, and the servers attached to it.

    A server that a rule names and that is not there is said to be in the trash, or purged: no
    connection is that one's, whoever has its name now.

    \b
    Example:
      virtuary firewall show web
    """
    wire = connect()
    item = wire.call("GET", f"/v1/firewalls/{path_part(name)}")
    servers = attached(every(wire, "/v1/vms"), item["meta"]["name"])

    def table() -> None:
        labels = ", ".join(f"{key}={value}" for key, value in item["meta"]["labels"].items())
        facts = [("name", item["meta"]["name"]), ("servers", ", ".join(servers) or "none")]
        facts += (
            [("description", item["spec"]["description"])] if item["spec"]["description"] else []
        )
        facts += [("labels", labels)] if labels else []
        print_fields(facts)
        tell()
        rows = [
            [str(number), show_rule(rule, absent_servers(item))]
            for number, rule in enumerate(item["spec"]["rules"], 1)
        ]
        print_table(["#", "RULE"], rows, "no rules: the default of the network decides")

    emit({**item, "servers": servers}, output, table)


@firewall_command.command("create")
@click.argument("name")
@RULE
@DESCRIPTION
@click.option("--label", "-l", multiple=True, metavar="KEY=VALUE", help="A label.")
@output_option
def create_firewall(
    name: str, rules: tuple[str, ...], description: str | None, label: tuple[str, ...], output: str
) -> None:
    """Create a firewall group.

    A rule is DIRECTION ACTION [PROTOCOL [PORTS]] [from|to PEERS]: in or out; allow, deny or reject;
    tcp, udp, icmp or any; peers are addresses, networks, group:NAME or server:NAME.

    \b
    Examples:
      virtuary firewall create web --rule "in allow tcp 80,443" --rule "in allow tcp 22 from
      10.0.0.0/8" --rule "in deny any"
      virtuary firewall create quiet --rule "out deny any to 192.168.0.0/16"
      virtuary firewall create db --rule "in allow tcp 5432 from group:web" --rule "in reject any"
    """
    wish: dict[str, Any] = {"name": name, "rules": [parse_rule(text) for text in rules]}
    if description is not None:
        wish["description"] = description
    if label:
        wish["labels"] = parse_labels(label)
    item = connect().call("POST", "/v1/firewalls", wish, headers=idempotency())
    made = item["meta"]["name"]
    emit(
        item,
        output,
        lambda: tell(
            f"the firewall group {made} is there: virtuary set SERVER --network "
            f"NETWORK,firewall={made}"
        ),
    )


@firewall_command.command("set")
@click.argument("name")
@RULE
@click.option("--no-rules", is_flag=True, help="Leave it without rules.")
@DESCRIPTION
@click.option(
    "--label", "-l", multiple=True, metavar="KEY=VALUE", help="A label; they replace those it has."
)
@output_option
def set_firewall(
    name: str,
    rules: tuple[str, ...],
    no_rules: bool,
    description: str | None,
    label: tuple[str, ...],
    output: str,
) -> None:
    """Change a firewall group while servers are attached; the rules given replace all it has.

    The change counts at once, for connections that begin. Open ones stay.

    \b
    Example:
      virtuary firewall set web --rule "in allow tcp 443" --rule "in deny any"
    """
    if rules and no_rules:
        raise Invalid("--rule and --no-rules exclude each other", "give one of them")
    wish: dict[str, Any] = {}
    if rules or no_rules:
        wish["rules"] = [parse_rule(text) for text in rules]
    if description is not None:
        wish["description"] = description
    if label:
        wish["labels"] = parse_labels(label)
    if not wish:
        raise Invalid("nothing to change", "--rule, --no-rules, --description or --label")
    item = connect().call("PATCH", f"/v1/firewalls/{path_part(name)}", wish)
    emit(item, output, lambda: tell(f"the firewall group {item['meta']['name']} is changed"))


@firewall_command.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@output_option
def delete_firewall(names: tuple[str, ...], output: str) -> None:
    """Delete firewall groups that nothing uses.

    \b
    Example:
      virtuary firewall delete web
    """
    wire = connect()
    for name in names:
        wire.call("DELETE", f"/v1/firewalls/{path_part(name)}", headers=idempotency())
        if output == "table":
            tell(f"the firewall group {name} is gone")
    if output != "table":
        emit([{"name": name} for name in names], output, name=lambda item: str(item["name"]))


@firewall_command.command("test")
@click.argument("source")
@click.argument("destination")
@click.argument("service")
@output_option
def test_firewall(source: str, destination: str, service: str, output: str) -> None:
    """Test what would become of a connection, and which rule decides; nothing is sent.

    SOURCE and DESTINATION are servers or addresses, SERVICE is tcp/PORT, udp/PORT or icmp. Whether
    something listens is not looked at.

    \b
    Examples:
      virtuary firewall test web1 db1 tcp/5432
      virtuary firewall test 192.0.2.7 web1 tcp/80
      virtuary firewall test web1 198.51.100.1 icmp
    """
    query = {"source": source, "destination": destination, **parse_service(service)}
    verdict = connect().call("GET", "/v1/firewall-test", query=query)
    emit(verdict, output, lambda: tell(verdict["sentence"]), lambda item: str(item["action"]))
