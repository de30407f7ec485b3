"""Commands about disks that are no server's root disk."""

from __future__ import annotations

import sys
from typing import Any

import click

from virtuary.base.errors import VirtuaryError
from virtuary.base.units import MIB, format_size
from virtuary.cli.follow import follow
from virtuary.cli.lifecycle import keep_first
from virtuary.cli.look import every
from virtuary.cli.options import Size, complete_names, idempotency, parse_labels
from virtuary.cli.output import ago, ask, emit, output_option, print_fields, print_table, tell
from virtuary.client.start import connect
from virtuary.client.wire import Wire, path_part

DISK = click.argument("name", metavar="DISK")
DISKS = click.argument("names", nargs=-1, required=True, metavar="DISK...")


@click.group()
def disk_command() -> None:
    """Create, attach, detach, grow and delete disks. A disk outlives the servers it is attached to;
    a server's root disk is made with the server, and is none of these.

    \b
    Examples:
      virtuary disk create data 20GiB
      virtuary disk attach data web1
      virtuary disk resize data 40GiB
      virtuary launch debian db1 --disk db1-data=50GiB
    """


@disk_command.command("list")
@click.option("--trash", is_flag=True, help="Show deleted disks instead.")
@output_option
def list_disks(trash: bool, output: str) -> None:
    """List disks.

    \b
    Example:
      virtuary disk list
    """
    wire = connect()
    items = sorted(
        every(wire, "/v1/disks", trash=str(trash).lower()), key=lambda item: item["meta"]["name"]
    )
    names = _servers(wire)
    rows = [
        [
            item["meta"]["name"],
            _state(item),
            format_size(item["spec"]["size"]),
            ", ".join(names.get(held["server"], "?") for held in item["spec"]["attached"]) or "-",
            ago(item["meta"]["deleted"] if trash else item["meta"]["created"]),
        ]
        for item in items
    ]
    head = ["NAME", "STATE", "SIZE", "ATTACHED TO", "DELETED" if trash else "AGE"]
    empty = "the trash is empty" if trash else "no disks yet: virtuary disk create data 20GiB"
    emit(items, output, lambda: print_table(head, rows, empty))


def _servers(wire: Wire) -> dict[str, str]:
    """Names of all servers, those in the trash too, by their ids."""
    found = [*every(wire, "/v1/vms"), *every(wire, "/v1/vms", trash="true")]
    return {vm["meta"]["id"]: vm["meta"]["name"] for vm in found}


def _state(item: dict[str, Any]) -> str:
    return "trashed" if item["meta"]["deleted"] else str(item["status"]["state"])


@disk_command.command("show")
@DISK
@output_option
def show_disk(name: str, output: str) -> None:
    """Show everything about a disk: its size, what it occupies, and who has it.

    \b
    Example:
      virtuary disk show data
    """
    wire = connect()
    item = wire.call("GET", f"/v1/disks/{path_part(name)}")
    emit(item, output, lambda: print_fields(_facts(wire, item)))


def _facts(wire: Wire, item: dict[str, Any]) -> list[tuple[str, str]]:
    meta, spec, status = item["meta"], item["spec"], item["status"]
    why = f": {status['reason']}" if status["reason"] else ""
    facts = [
        ("name", meta["name"]),
        ("id", meta["id"]),
        ("state", _state(item) + why),
        ("pool", _pool(wire, spec["pool"])),
        ("size", format_size(spec["size"])),
        ("used", "-" if item["used"] is None else format_size(item["used"])),
    ]
    for held in spec["attached"]:
        vm = wire.call("GET", f"/v1/vms/{path_part(held['server'])}")
        disk = next((each for each in vm["spec"]["disks"] if each["volume"] == meta["id"]), None)
        words = "leaving" if disk is None else f"/dev/disk/by-id/virtio-{disk['serial']}"
        only = ", read-only" if disk and disk["read_only"] else ""
        since = ago(held["since"])
        facts.append(("attached to", f"{vm['meta']['name']} as {words}{only} (for {since})"))
    labels = ", ".join(f"{key}={value}" for key, value in meta["labels"].items())
    return [*facts, ("labels", labels or "-")]


def _pool(wire: Wire, identity: str) -> str:
    """The name of a pool."""
    if not identity:
        return "default"
    return str(wire.call("GET", f"/v1/pools/{path_part(identity)}")["meta"]["name"])


@disk_command.command("create")
@DISK
@click.argument("size", type=Size())
@click.option("--pool", help="The pool it lies in; the default one when not given.")
@click.option("--label", "-l", multiple=True, metavar="KEY=VALUE", help="A label.")
@click.option("--dry-run", is_flag=True, help="Show what stands against it; change nothing.")
@output_option
def create_disk(
    name: str, size: int, pool: str | None, label: tuple[str, ...], dry_run: bool, output: str
) -> None:
    """Make an empty disk. It takes space as it is written to.

    \b
    Example:
      virtuary disk create data 20GiB
    """
    wire = connect()
    wish: dict[str, Any] = {"name": name, "size": -(-size // MIB) * MIB}
    if pool:
        wish["pool"] = pool
    if label:
        wish["labels"] = parse_labels(label)
    if dry_run:
        answer = wire.call("POST", "/v1/disks", wish, query={"dry_run": "true"})
        lines = [blocker["detail"] for blocker in answer["blockers"]] or ["nothing is in the way"]
        emit(answer, output, lambda: tell("\n".join(lines)))
        sys.exit(4 if answer["blockers"] else 0)
    answer = wire.call("POST", "/v1/disks", wish, headers=idempotency())
    item = _after(wire, answer, output)
    said = f"{item['meta']['name']} has {format_size(item['spec']['size'])}"
    emit(item, output, lambda: tell(f"{said}: virtuary disk attach {item['meta']['name']} SERVER"))


def _after(wire: Wire, answer: dict[str, Any], output: str) -> dict[str, Any]:
    """The disk, once its operation has ended."""
    follow(wire, answer["operation"], quiet=output != "table")
    return dict(wire.call("GET", f"/v1/disks/{path_part(answer['disk']['meta']['id'])}"))


@disk_command.command("attach")
@DISK
@click.argument("server", shell_complete=complete_names)
@click.option(
    "--serial",
    help="What its guest knows it by (/dev/disk/by-id/virtio-SERIAL); its name when not given.",
)
@click.option("--read-only", is_flag=True, help="Its guest can't write to it.")
@output_option
def attach_disk(name: str, server: str, serial: str | None, read_only: bool, output: str) -> None:
    """Give a server a disk, also while it runs.

    \b
    Example:
      virtuary disk attach data web1
    """
    wire = connect()
    wish: dict[str, Any] = {"server": server}
    wish |= {"serial": serial} if serial else {}
    wish |= {"read_only": True} if read_only else {}
    target = f"/v1/disks/{path_part(name)}/actions/attach"
    item = _after(wire, wire.call("POST", target, wish, headers=idempotency()), output)
    vm = wire.call("GET", f"/v1/vms/{path_part(server)}")
    known = next(
        (disk["serial"] for disk in vm["spec"]["disks"] if disk["volume"] == item["meta"]["id"]),
        "?",
    )
    said = f"{name} is attached to {vm['meta']['name']} as /dev/disk/by-id/virtio-{known}"
    emit(item, output, lambda: tell(said))


@disk_command.command("detach")
@DISK
@click.option("--force", is_flag=True, help="Also one that its guest uses just now.")
@output_option
def detach_disk(name: str, force: bool, output: str) -> None:
    """Take a disk from its server. While that runs its guest has to let go of it; one that it
    uses, mounted or otherwise, is refused.

    \b
    Example:
      virtuary disk detach data
    """
    wire = connect()
    answer = wire.call(
        "POST",
        f"/v1/disks/{path_part(name)}/actions/detach",
        {},
        query={"force": str(force).lower()},
        headers=idempotency(),
    )
    item = _after(wire, answer, output)
    emit(item, output, lambda: tell(f"{name} is detached"))


@disk_command.command("resize")
@DISK
@click.argument("size", type=Size())
@output_option
def resize_disk(name: str, size: int, output: str) -> None:
    """Make a disk larger, also while a server has it: its guest sees it at once, and grows what
    lies on it itself. Disks never become smaller.

    \b
    Example:
      virtuary disk resize data 40GiB
    """
    wire = connect()
    wish = {"size": -(-size // MIB) * MIB}
    answer = wire.call("PATCH", f"/v1/disks/{path_part(name)}", wish, headers=idempotency())
    item = _after(wire, answer, output) if "operation" in answer else answer
    emit(item, output, lambda: tell(f"{name} has {format_size(item['spec']['size'])}"))


@disk_command.command("delete")
@DISKS
@click.option("--now", is_flag=True, help="Remove for good instead of moving to the trash.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before removing for good.")
@output_option
def delete_disk(names: tuple[str, ...], now: bool, yes: bool, output: str) -> None:
    """Move disks to the trash, from which they come back for 7 days; with --now remove them for
    good. One that a server has is refused.

    \b
    Examples:
      virtuary disk delete data
      virtuary disk delete data --now
    """
    wire = connect()
    if now and not yes:
        for name in names:
            wire.call("DELETE", f"/v1/disks/{path_part(name)}", query={"dry_run": "true"})
        ask(f"Remove {', '.join(names)} for good?")
    failure, done = None, []
    for name in names:
        try:
            answer = wire.call(
                "DELETE",
                f"/v1/disks/{path_part(name)}",
                query={"now": str(now).lower()},
                headers=idempotency(),
            )
            if "operation" in answer:
                follow(wire, answer["operation"], quiet=output != "table")
            done.append(answer.get("disk", answer))
            if output == "table":
                back = f"lies in the trash for 7 days: virtuary disk undelete {name}"
                tell(f"{name} {'is gone' if 'operation' in answer else back}")
        except VirtuaryError as error:
            failure = keep_first(failure, error, len(names))
    if done or not failure:
        emit(done[0] if len(names) == 1 else done, output, None)
    if failure:
        raise failure


@disk_command.command("undelete")
@DISK
@click.option("--as", "new_name", help="Under another name.")
@output_option
def undelete_disk(name: str, new_name: str | None, output: str) -> None:
    """Take a disk back from the trash.

    \b
    Example:
      virtuary disk undelete data
    """
    target = f"/v1/disks/{path_part(name)}/actions/undelete"
    item = connect().call("POST", target, {"name": new_name} if new_name else {})
    emit(item, output, lambda: tell(f"{item['meta']['name']} is back"))


@disk_command.command("purge")
@DISK
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def purge_disk(name: str, yes: bool) -> None:
    """Remove a disk in the trash for good.

    \b
    Example:
      virtuary disk purge data --yes
    """
    wire = connect()
    target = f"/v1/disks/{path_part(name)}/actions/purge"
    if not yes:
        wire.call("POST", target, {}, query={"dry_run": "true"})
        ask(f"Remove {name} for good?")
    follow(wire, wire.call("POST", target, {})["operation"])
    tell(f"{name} is gone")
