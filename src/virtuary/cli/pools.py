"""Commands about pools."""

from __future__ import annotations

import os
from typing import Any

import click

from virtuary.base.errors import Invalid
from virtuary.base.units import format_size
from virtuary.cli.options import Size, idempotency
from virtuary.cli.output import emit, output_option, print_fields, print_table, tell
from virtuary.client.start import connect
from virtuary.client.wire import path_part

RESERVE = click.option("--reserve", type=Size(), help="What stays free in it; a twentieth by rule.")
RATIO = click.option(
    "--ratio", type=click.FloatRange(1, 100), help="How many times its space may be promised; 1."
)


@click.group()
def pool_command() -> None:
    """Make directories of this host pools, in which disks lie; list, change and forget them. The
    default one is in the state folder (virtuary host shows it).

    \b
    Examples:
      virtuary pool create fast /srv/fast
      virtuary disk create data 20GiB --pool fast
    """


@pool_command.command("list")
@output_option
def list_pools(output: str) -> None:
    """List pools and their space.

    \b
    Example:
      virtuary pool list
    """
    items = connect().call("GET", "/v1/pools")["items"]
    rows = [
        [
            item["meta"]["name"],
            item["state"],
            _size(item["size"]),
            _size(item["free"]),
            _size(item["promised"]),
            str(item["disks"]),
            item["spec"]["path"],
        ]
        for item in items
    ]
    head = ["NAME", "STATE", "SIZE", "FREE", "PROMISED", "DISKS", "PATH"]
    emit(items, output, lambda: print_table(head, rows, "no pools besides the default one"))


def _size(amount: int | None) -> str:
    return "-" if amount is None else format_size(amount)


@pool_command.command("show")
@click.argument("name")
@output_option
def show_pool(name: str, output: str) -> None:
    """Show a pool.

    \b
    Example:
      virtuary pool show fast
    """
    item = connect().call("GET", f"/v1/pools/{path_part(name)}")
    spec = item["spec"]
    why = f": {item['reason']}" if item["reason"] else ""
    facts = [
        ("name", item["meta"]["name"]),
        ("path", spec["path"]),
        ("state", item["state"] + why),
        ("size", _size(item["size"])),
        ("free", f"{_size(item['free'])}, of which {_size(item['kept'])} are kept"),
        ("promised", f"{_size(item['promised'])}, to {item['disks']} of its disks"),
        ("ratio", f"{spec['ratio']:g}"),
    ]
    emit(item, output, lambda: print_fields(facts))


@pool_command.command("create")
@click.argument("name")
@click.argument("path")
@RESERVE
@RATIO
@output_option
def create_pool(
    name: str, path: str, reserve: int | None, ratio: float | None, output: str
) -> None:
    """Make an empty directory of this host a pool.

    \b
    Example:
      virtuary pool create fast /srv/fast --reserve 10GiB
    """
    wish: dict[str, Any] = {"name": name, "path": os.path.abspath(path)}
    wish |= {"reserve": reserve} if reserve is not None else {}
    wish |= {"ratio": ratio} if ratio is not None else {}
    item = connect().call("POST", "/v1/pools", wish, headers=idempotency())
    said = f"{item['meta']['name']} is at {item['spec']['path']}"
    emit(item, output, lambda: tell(f"{said}: virtuary disk create data 20GiB --pool {name}"))


@pool_command.command("set")
@click.argument("name")
@RESERVE
@RATIO
@output_option
def set_pool(name: str, reserve: int | None, ratio: float | None, output: str) -> None:
    """Change what stays free of a pool, and how far it may be promised.

    \b
    Example:
      virtuary pool set fast --ratio 2
    """
    wish: dict[str, Any] = {"reserve": reserve} if reserve is not None else {}
    wish |= {"ratio": ratio} if ratio is not None else {}
    if not wish:
        raise Invalid("nothing to change was given", "virtuary pool set fast --ratio 2")
    item = connect().call("PATCH", f"/v1/pools/{path_part(name)}", wish, headers=idempotency())
    emit(item, output, lambda: tell(f"{name} changed: {', '.join(wish)}"))


@pool_command.command("delete")
@click.argument("name")
@output_option
def delete_pool(name: str, output: str) -> None:
    """Forget a pool that no disk lies in; its directory stays.

    \b
    Example:
      virtuary pool delete fast
    """
    item = connect().call("DELETE", f"/v1/pools/{path_part(name)}", headers=idempotency())
    emit(item, output, lambda: tell(f"{name} is no pool any more"))
