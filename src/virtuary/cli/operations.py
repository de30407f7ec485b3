"""Commands about operations."""

from __future__ import annotations

from typing import Any

import click

from virtuary.cli.follow import follow
from virtuary.cli.look import every
from virtuary.cli.options import Duration
from virtuary.cli.output import ago, emit, output_option, print_fields, print_table, tell
from virtuary.client.start import connect
from virtuary.client.wire import path_part


@click.group()
def operation_command() -> None:
    """List, show, wait for and cancel operations.

    \b
    Example:
      virtuary operation list
    """


def _short(operation: dict[str, Any]) -> str:
    return str(operation["meta"]["id"][:8])


@operation_command.command("list")
@click.option("--all", "everything", is_flag=True, help="Also those that have ended.")
@output_option
def list_operations(everything: bool, output: str) -> None:
    """List operations that are under way, the newest first.

    \b
    Example:
      virtuary operation list --all
    """
    items = every(connect(), "/v1/operations")
    items.sort(key=lambda item: item["meta"]["created"], reverse=True)
    shown = [
        item for item in items if everything or item["status"]["phase"] in ("pending", "running")
    ]
    rows = [
        [_short(item), item["spec"]["deed"]["kind"], item["spec"]["target_name"],
        item["status"]["phase"],
        item["status"]["stage"], ago(item["meta"]["created"]), item["spec"]["actor"]]
        for item in shown
    ]  # fmt: skip
    head = ["ID", "KIND", "TARGET", "PHASE", "STAGE", "AGE", "BY"]
    emit(
        shown,
        output,
        lambda: print_table(head, rows, "nothing is under way"),
        lambda item: str(item["meta"]["id"]),
    )


@operation_command.command("show")
@click.argument("identity", metavar="ID")
@output_option
def show_operation(identity: str, output: str) -> None:
    """Show an operation with its log.

    \b
    Example:
      virtuary operation show 3f2a91c0
    """
    item = connect().call("GET", f"/v1/operations/{path_part(identity)}")

    def table() -> None:
        status = item["status"]
        print_fields(
            [
                ("id", item["meta"]["id"]),
                ("kind", item["spec"]["deed"]["kind"]),
                ("target", item["spec"]["target_name"]),
                ("by", item["spec"]["actor"]),
                ("phase", status["phase"]),
                ("stage", status["stage"] or "-"),
            ]
        )
        for line in status["log"]:
            tell(f"  {line['at'][11:19]}  {line['text']}")

    emit(item, output, table, lambda found: str(found["meta"]["id"]))


@operation_command.command("wait")
@click.argument("identity", metavar="ID")
@click.option("--timeout", type=Duration(), help="Stop waiting after so long.")
@output_option
def wait_operation(identity: str, timeout: float | None, output: str) -> None:
    """Follow an operation to its end; ends with its outcome.

    \b
    Example:
      virtuary operation wait 3f2a91c0
    """
    wire = connect()
    item = wire.call("GET", f"/v1/operations/{path_part(identity)}")
    item = follow(wire, item, quiet=output != "table", limit=timeout)
    spec = item["spec"]
    words = f"{spec['deed']['kind']} {spec['target_name']}: {item['status']['phase']}"
    emit(item, output, lambda: tell(words))


@operation_command.command("cancel")
@click.argument("identity", metavar="ID")
def cancel_operation(identity: str) -> None:
    """End an operation; what it began is undone.

    \b
    Example:
      virtuary operation cancel 3f2a91c0
    """
    item = connect().call("POST", f"/v1/operations/{path_part(identity)}/actions/cancel", {})
    tell(f"{item['spec']['deed']['kind']} {item['spec']['target_name']} is being cancelled")
