"""Commands about images."""

from __future__ import annotations

import os
import re
from typing import Any

import click

from virtuary.base.errors import Invalid
from virtuary.base.units import MIB, format_size
from virtuary.cli.follow import follow
from virtuary.cli.look import every
from virtuary.cli.options import DETACH, Size, idempotency, options
from virtuary.cli.output import ago, ask, emit, output_option, print_fields, print_table, tell
from virtuary.cli.vmdk_set import find_extents, read_disk, size_of
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
    wire = connect()
    items = sorted(every(wire, "/v1/images"), key=lambda item: item["meta"]["name"])
    templates = every(wire, "/v1/templates")
    rows = [
        [
            item["meta"]["name"],
            item["status"]["state"],
            format_size(item["status"]["size"]) if item["status"]["size"] else "-",
            format_size(item["status"]["virtual_size"]) if item["status"]["virtual_size"] else "-",
            warmth(item, templates) or "-",
            item["status"]["os"] or "-",
            item["spec"]["source"]["kind"],
            ago(item["status"]["made"]),
        ]
        for item in items
    ]
    head = ["NAME", "STATE", "SIZE", "DISK", "WARM", "SYSTEM", "FROM", "AGE"]
    found = [
        {
            **item,
            "templates": [
                each for each in templates if each["spec"]["image_id"] == item["meta"]["id"]
            ],
        }
        for item in items
    ]
    emit(
        found,
        output,
        lambda: print_table(head, rows, "no images yet: virtuary launch debian makes the first"),
    )


def warmth(image: dict[str, Any], templates: list[dict[str, Any]]) -> str:
    """The warm templates of an image in words: the memory each begins with and what it takes on
    disk.
    """
    words = []
    for item in templates:
        status = item["status"]
        if item["spec"]["image_id"] == image["meta"]["id"] and status["state"] != "retired":
            size = (
                f" ({format_size(status['size'])})"
                if status["state"] == "ready"
                else f" {status['state']}"
            )
            words.append(format_size(item["spec"]["memory"]) + size)
    return ", ".join(words)


@image_command.command("show")
@click.argument("name")
@output_option
def show_image(name: str, output: str) -> None:
    """Show an image.

    \b
    Example:
      virtuary image show debian:12
    """
    wire = connect()
    item = wire.call("GET", f"/v1/images/{path_part(name)}")
    templates = [
        each
        for each in every(wire, "/v1/templates")
        if each["spec"]["image_id"] == item["meta"]["id"]
    ]
    reasons = [each["status"]["reason"] for each in templates if each["status"]["reason"]]
    status, source = item["status"], item["spec"]["source"]

    def table() -> None:
        print_fields(
            [
                ("name", item["meta"]["name"]),
                ("state", status["state"] + (f": {status['reason']}" if status["reason"] else "")),
                ("system", status["os"] or "-"),
                (
                    "disk",
                    f"{format_size(status['virtual_size'])}, {format_size(status['size'])} on "
                    f"disk, {status['format']}",
                ),
                ("sha256", status["sha256"] or "-"),
                ("firmware", ", ".join(status["firmware"])),
                ("agent", "yes" if status["agent"] else "no"),
                (
                    "warm",
                    (warmth(item, templates) or "no")
                    + "".join(f"; {reason}" for reason in reasons),
                ),
                ("cloud-init", "yes" if status["cloud_init"] else "no"),
                ("login", status["user"]),
                ("source", source_words(source)),
            ]
        )

    emit({**item, "templates": templates}, output, table)


def source_words(source: dict[str, Any]) -> str:
    """Where an image comes from, for people."""
    release = f":{source['release']}" if source["release"] else ""
    words = {
        "build": f"built of {source['recipe']}{release}",
        "pull": f"pulled as {source['entry']}",
        "url": f"fetched from {source['url']}",
        "file": "imported from a file",
    }[source["kind"]]
    facts = [("packages", ", ".join(source["packages"]))]
    facts += [(key, source[key]) for key in ("format", "sha256", "firmware", "user")]
    return "; ".join([words, *(f"{key} {value}" for key, value in facts if value)])


FACTS = options(
    click.option("--user", help="Whom the shell logs in as; root when not given."),
    click.option(
        "--firmware", type=click.Choice(["bios", "uefi"]), help="The only firmware it starts by."
    ),
    click.option("--agent/--no-agent", default=None, help="It brings the QEMU guest agent."),
    click.option(
        "--cloud-init/--no-cloud-init", default=None, help="It brings cloud-init (assumed)."
    ),
)


def _given(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value is not None}


def _make(wire: Wire, name: str, source: dict[str, Any], detach: bool, output: str) -> None:
    answer = wire.call(
        "POST", "/v1/images", {"name": name, "source": source}, headers=idempotency()
    )
    _follow(wire, answer, detach, output)


def _follow(wire: Wire, answer: dict[str, Any], detach: bool, output: str) -> None:
    if detach:
        tell(answer["operation"]["meta"]["id"])
        return
    follow(wire, answer["operation"], quiet=output != "table")
    name = answer["operation"]["spec"]["target_name"]
    item = wire.call("GET", f"/v1/images/{path_part(name)}")
    emit(item, output, lambda: tell(f"the image {name} is ready: virtuary launch {name}"))


@image_command.command("build")
@click.argument("name")
@click.option(
    "--from", "base", default=None, help="What it is made of: debian:12, debian:13 or tiny."
)
@click.option(
    "--package", "packages", multiple=True, help="A package to add; may be repeated or hold commas."
)
@DETACH
@output_option
def build_image(
    name: str, base: str | None, packages: tuple[str, ...], detach: bool, output: str
) -> None:
    """Build an image on this host from signed packages.

    \b
    Examples:
      virtuary image build debian:12
      virtuary image build db --from debian:12 --package postgresql,postgresql-contrib
    """
    words = [word.strip() for text in packages for word in text.split(",") if word.strip()]
    kind, _, release = (base or name).lower().partition(":")
    source: dict[str, Any] = {
        "kind": "build",
        "recipe": kind,
        "release": release,
        "packages": words,
    }
    _make(connect(), name, source, detach, output)


@image_command.command("pull")
@click.argument("image")
@click.option("--as", "name", help="Keep it under another name.")
@click.option("--sha256", default="", help="Digest of the file, needed for an address.")
@FACTS
@DETACH
@output_option
def pull_image(
    image: str, name: str | None, sha256: str, detach: bool, output: str, **facts: Any
) -> None:
    """Pull an official cloud image by name, or any image by its https address and digest.

    \b
    Examples:
      virtuary image pull ubuntu:24.04
      virtuary image pull https://example.org/disk.qcow2 --as mine --sha256 DIGEST
    """
    wire = connect()
    if "://" not in image:
        return _make(wire, name or image, {"kind": "pull", "entry": image}, detach, output)
    if not name:
        raise Invalid("an image from an address needs a name", "--as NAME")
    _make(
        wire, name, {"kind": "url", "url": image, "sha256": sha256, **_given(facts)}, detach, output
    )


@image_command.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--name", help="Name of the image; made of the file's name when not given.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["qcow2", "raw", "vmdk", "vhdx", "vhd", "vdi"]),
    help="State the format; needed for a bare raw disk.",
)
@click.option("--sha256", help="Digest the file must have.")
@FACTS
@DETACH
@output_option
def import_image(
    file: str,
    name: str | None,
    form: str | None,
    sha256: str | None,
    detach: bool,
    output: str,
    **facts: Any,
) -> None:
    """Import a disk: qcow2, raw, vmdk, vhdx, vhd or vdi. It is checked before any tool opens it,
    then converted.

    Of a VMDK of several files the descriptor is named, and the others lie beside it.

    \b
    Example:
      virtuary image import old-server.vmdk
    """
    if os.path.exists(file) and not os.path.isfile(file):
        raise Invalid(
            f"{file} is not a regular file", "give an image file, not a folder, pipe or device"
        )
    name = name or name_of(file)
    wire = connect()
    if extents := find_extents(file):
        if sha256:
            raise Invalid("a VMDK of several files has no digest of its own", "leave out --sha256")
        query = {**_given(facts), "format": "raw"}
        target = f"/v1/images/{path_part(name)}/content"
        pieces = read_disk(file, extents)
        return _follow(
            wire, wire.upload(target, _lowered(query), pieces, size_of(extents)), detach, output
        )
    query = {
        **_given(facts),
        **({"format": form} if form else {}),
        **({"sha256": sha256} if sha256 else {}),
    }
    with open(file, "rb") as handle:
        answer = wire.upload(
            f"/v1/images/{path_part(name)}/content", _lowered(query), handle, os.path.getsize(file)
        )
    _follow(wire, answer, detach, output)


def _lowered(query: dict[str, Any]) -> dict[str, Any]:
    return {key: str(value).lower() for key, value in query.items()}


def name_of(file: str) -> str:
    """The name an image has after its file: `Old Server.vmdk` is old-server. Raises Invalid where
    nothing of it can be one.
    """
    base = os.path.basename(file).lower()
    for ending in (".qcow2", ".img", ".raw", ".vmdk", ".vhdx", ".vhd", ".vdi"):
        base = base.removesuffix(ending)
    name = re.sub(r"[^a-z0-9.]+", "-", base).strip("-.")[:60].rstrip("-.")
    if not name:
        raise Invalid(f"no name can be made of {file}", "--name NAME")
    return name


@image_command.command("warm")
@click.argument("name")
@click.option(
    "--memory", type=Size(), help="Memory its copies begin with; they can grow from there."
)
@DETACH
@output_option
def warm_image(name: str, memory: int | None, detach: bool, output: str) -> None:
    """Make an image warm: boot it once and save it with its memory. Servers then start by resuming
    copies of it.

    After the first launch of an image this happens by itself in the background.

    \b
    Examples:
      virtuary image warm debian
      virtuary image warm debian --memory 4GiB
    """
    wire = connect()
    body = {"memory": -(-memory // MIB) * MIB} if memory else {}
    answer = wire.call(
        "POST", f"/v1/images/{path_part(name)}/actions/warm", body, headers=idempotency()
    )
    if detach:
        tell(answer["operation"]["meta"]["id"])
        return
    follow(wire, answer["operation"], quiet=output != "table")
    found = [
        item
        for item in every(wire, "/v1/templates")
        if item["meta"]["id"] == answer["template"]["meta"]["id"]
    ]
    emit(
        found[0] if found else answer["template"],
        output,
        lambda: tell(f"the image {name} is warm: virtuary launch {name}"),
    )


@image_command.command("cool")
@click.argument("name")
def cool_image(name: str) -> None:
    """Remove an image's warm templates. Servers that run from them run on; the next launch boots.

    \b
    Example:
      virtuary image cool debian
    """
    found = connect().call("POST", f"/v1/images/{path_part(name)}/actions/cool", {})["items"]
    freed = format_size(sum(item["status"]["size"] for item in found))
    tell(
        f"{len(found)} warm template{'' if len(found) == 1 else 's'} of {name} removed"
        + (f", {freed}" if found else "")
    )


@image_command.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def delete_image(names: tuple[str, ...], yes: bool) -> None:
    """Delete images that no server uses.

    \b
    Example:
      virtuary image delete db --yes
    """
    wire = connect()
    for name in names if not yes else ():
        wire.call(
            "DELETE", f"/v1/images/{path_part(name)}", query={"dry_run": "true"}
        )  # what can't be deleted is not asked about
    if not yes:
        ask(f"Remove the image{'s' if len(names) > 1 else ''} {', '.join(names)} for good?")
    for name in names:
        follow(
            wire,
            wire.call("DELETE", f"/v1/images/{path_part(name)}", headers=idempotency())[
                "operation"
            ],
        )
        tell(f"the image {name} is gone")
