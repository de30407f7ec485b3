"""Commands about images."""

from __future__ import annotations

from typing import Any

import click

from virtuary.base.units import format_size
from virtuary.cli.follow import follow
from virtuary.cli.lifecycle import DETACH, idempotency
from virtuary.cli.look import every
from virtuary.cli.output import ago, emit, output_option, print_fields, print_table
from virtuary.client.start import connect
from virtuary.client.wire import Wire, path_part


@click.group()
def image_command() -> None:
    """Build, pull, import, list and delete images.

    \b
    Examples:
      virtuary image list
      virtuary image build db --from debian:12 --package postgresql
    """


@image_command.command("list")
@output_option
def list_images(output: str) -> None:
    """List the images that are here.

    \b
    Example:
      virtuary image list
    """
    items = sorted(every(connect(), "/v1/images"), key=lambda item: item["meta"]["name"])
    rows = [
        [
            item["meta"]["name"],
            item["status"]["state"],
            format_size(item["status"]["size"]) if item["status"]["size"] else "-",
            format_size(item["status"]["virtual_size"]) if item["status"]["virtual_size"] else "-",
            item["status"]["os"] or "-",
            item["spec"]["source"]["kind"],
            ago(item["status"]["made"]),
        ]
        for item in items
    ]
    head = ["NAME", "STATE", "SIZE", "DISK", "SYSTEM", "FROM", "AGE"]
    emit(items, output, lambda: print_table(head, rows, "no images yet: virtuary launch debian makes the first"))


@image_command.command("show")
@click.argument("name")
@output_option
def show_image(name: str, output: str) -> None:
    """Show an image.

    \b
    Example:
      virtuary image show debian:12
    """
    item = connect().call("GET", f"/v1/images/{path_part(name)}")
    status, source = item["status"], item["spec"]["source"]

    def table() -> None:
        origin = {key: value for key, value in source.items() if value and key != "kind"}
        print_fields(
            [
                ("name", item["meta"]["name"]),
                ("state", status["state"] + (f": {status['reason']}" if status["reason"] else "")),
                ("system", status["os"] or "-"),
                ("disk", f"{format_size(status['virtual_size'])}, {format_size(status['size'])} on disk, {status['format']}"),
                ("sha256", status["sha256"] or "-"),
                ("firmware", ", ".join(status["firmware"])),
                ("agent", "yes" if status["agent"] else "no"),
                ("cloud-init", "yes" if status["cloud_init"] else "no"),
                ("login", status["user"]),
                ("source", source["kind"] + (f" {origin}" if origin else "")),
            ]
        )

    emit(item, output, table)


def _make(wire: Wire, name: str, source: dict[str, Any], detach: bool, output: str) -> None:
    answer = wire.call("POST", "/v1/images", {"name": name, "source": source}, headers=idempotency())
    _follow(wire, answer, detach, output)


def _follow(wire: Wire, answer: dict[str, Any], detach: bool, output: str) -> None:
    if detach:
        print(answer["operation"]["meta"]["id"])
        return
    follow(wire, answer["operation"], quiet=output != "table")
    name = answer["operation"]["spec"]["target_name"]
    item = wire.call("GET", f"/v1/images/{path_part(name)}")
    emit(item, output, lambda: print(f"the image {name} is ready: virtuary launch {name}"))


@image_command.command("build")
@click.argument("name")
@click.option("--from", "base", default=None, help="What it is made of: debian:12, debian:13 or tiny.")
@click.option("--package", "packages", multiple=True, help="A package to add; may be repeated or hold commas.")
@DETACH
@output_option
def build_image(name: str, base: str | None, packages: tuple[str, ...], detach: bool, output: str) -> None:
    """Build an image on this host from signed packages.

    \b
    Examples:
      virtuary image build debian:12
      virtuary image build db --from debian:12 --package postgresql,postgresql-contrib
    """
    words = [word.strip() for text in packages for word in text.split(",") if word.strip()]
    kind, _, release = (base or name).lower().partition(":")
    source: dict[str, Any] = {"kind": "build", "recipe": kind, "release": release, "packages": words}
    _make(connect(), name, source, detach, output)


@image_command.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def delete_image(names: tuple[str, ...]) -> None:
    """Delete images that no server uses.

    \b
    Example:
      virtuary image delete db
    """
    wire = connect()
    for name in names:
        follow(wire, wire.call("DELETE", f"/v1/images/{path_part(name)}", headers=idempotency())["operation"])
        print(f"the image {name} is gone")
