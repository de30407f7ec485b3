"""`virtuary plan place`: where servers could go on hosts that are partly full."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

import click

from virtuary.base.errors import Invalid
from virtuary.base.units import format_bandwidth, format_size, parse_bandwidth, parse_size
from virtuary.cli.output import emit, output_option, print_fields, print_table, print_title, tell
from virtuary.client.start import connect

SHOWN = 12
"""Servers without a place that a table tells of."""
AMOUNTS: dict[str, Callable[[str], float]] = {
    "cpu": float, "memory": parse_size, "disk": parse_size, "iops": float,
    "network": parse_bandwidth,
}  # fmt: skip
HOST_COLUMNS = ("name", *AMOUNTS, "zone", "features")
SERVER_COLUMNS = ("name", *AMOUNTS, "features", "host", "group", "apart")


@click.command()
@click.argument(
    "servers", metavar="SERVERS", type=click.Path(exists=True, dir_okay=False, allow_dash=True)
)
@click.option(
    "--onto",
    "hosts",
    required=True,
    metavar="HOSTS",
    type=click.Path(exists=True, dir_okay=False),
    help="The hosts, as CSV.",
)
@output_option
def place_command(servers: str, hosts: str, output: str) -> None:
    """Say where servers could go on hosts that are partly full, and why not where they can't.

    Both files are CSV with a header. HOSTS has the columns name, cpu, memory, and where wanted
    disk, iops, network, zone and features (parted by blanks). SERVERS has the same amounts, and
    where wanted features it needs, host (where it is already, and stays), group and apart (`host`
    or `zone`: what servers of its group must not share). SERVERS may be - for stdin. Ends with 4
    when some server has no place.

    \b
    Examples:
      virtuary plan place servers.csv --onto hosts.csv
      printf 'name,cpu,memory\\nweb1,2,4GiB\\n' | virtuary plan place - --onto hosts.csv -o json
    """
    wish = {"hosts": read(hosts, HOST_COLUMNS), "servers": read(servers, SERVER_COLUMNS)}
    plan = connect().call("POST", "/v1/plans/placement", wish)
    emit(plan, output, lambda: show(plan), _names)
    if plan["unplaced"]:
        raise click.exceptions.Exit(4)


def read(file: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of a file as the API wants them; raises Invalid with the line."""
    with click.open_file(file, encoding="utf-8", errors="replace") as handle:
        return list(_rows(cast(TextIO, handle), "stdin" if file == "-" else file, columns))


def _rows(handle: TextIO, name: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    rows = csv.DictReader(handle, skipinitialspace=True)
    given = [(word or "").strip().lower() for word in rows.fieldnames or ()]
    known = {"cpus": "cpu"}
    heads = [known.get(word, word) for word in given]
    hint = f"the columns are {', '.join(columns)}"
    if unknown := [word for word in heads if word not in columns]:
        raise Invalid(f"{name} has a column {unknown[0][:40]!r} that nobody knows", hint)
    if missing := [word for word in ("name", "cpu", "memory") if word not in heads]:
        raise Invalid(f"{name} has no column {' or '.join(missing)}", hint)
    rows.fieldnames = heads
    for row in rows:
        where = f"{name}, line {rows.line_num}"
        if None in row:
            raise Invalid(f"{where}: more values than columns", hint)
        yield {
            key: _value(key, text.strip(), where)
            for key, text in row.items()
            if text and text.strip()
        }


def _value(key: str, text: str, where: str) -> Any:
    if key == "features":
        return text.split()
    if key not in AMOUNTS:
        return text
    try:
        return AMOUNTS[key](text)
    except (ValueError, Invalid) as error:
        hint = error.hint if isinstance(error, Invalid) else "a number such as 2 or 0.5"
        raise Invalid(f"{where}: {text[:40]!r} is no amount of {key}", hint) from None


def amount(part: str, value: float) -> str:
    """An amount of a resource, for people."""
    if part in ("memory", "disk"):
        return format_size(round(value))
    if part == "network":
        return format_bandwidth(round(value))
    return f"{value:g} CPUs" if part == "cpu" else f"{value:g} operations/s"


def _names(plan: dict[str, Any]) -> str:
    return "\n".join(
        f"{server} {host['name']}" for host in plan["hosts"] for server in new_ones(host)
    )


def new_ones(host: dict[str, Any]) -> list[str]:
    """The servers placed on a host now."""
    servers: list[str] = host["servers"]
    return servers[len(servers) - host["new"] :]


def show(plan: dict[str, Any]) -> None:
    waiting = plan["placed"] + len(plan["unplaced"])
    print_fields(
        [
            ("placed", f"{plan['placed']} of {waiting}"),
            ("hosts used", f"{plan['hosts_used']}; fewer than {plan['bound']} could not hold them"),
        ]
    )
    tell()
    rows = [
        [host["name"], host["zone"] or "-", amount("cpu", host["free"]["cpu"]), amount("memory",
        host["free"]["memory"]),
         str(len(host["servers"])), " ".join(new_ones(host)) or "-"]
        for host in plan["hosts"]
    ]  # fmt: skip
    print_table(
        ["HOST", "ZONE", "CPU FREE", "MEMORY FREE", "SERVERS", "NEW"], rows, "no server has a place"
    )
    if plan["unplaced"]:
        print_title("without a place")
        for item in plan["unplaced"][:SHOWN]:
            tell(f"  {item['server']}: {why_words(item['why'])}")
        if len(plan["unplaced"]) > SHOWN:
            tell(f"  and {len(plan['unplaced']) - SHOWN} more: -o json tells all")


def why_words(reasons: list[dict[str, Any]]) -> str:
    """Why hosts don't take a server."""
    words = []
    for reason in reasons:
        hosts = f"{reason['hosts']} host{'s' if reason['hosts'] != 1 else ''}"
        if reason["kind"] == "resource":
            needs, free = (
                amount(reason["what"], reason["needed"]),
                amount(reason["what"], reason["free"]),
            )
            words.append(
                f"{hosts} with less than "
                f"{needs}{' of ' + reason['what'] if reason['what'] != 'cpu' else ''} free (the "
                f"most: {free})"
            )
        elif reason["kind"] == "feature":
            words.append(f"{hosts} without {reason['what']}")
        else:
            words.append(f"{hosts} kept free of a second one of the group {reason['what']}")
    return "; ".join(words) or "no host takes it together with the others"
