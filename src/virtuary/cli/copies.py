"""The command that copies servers."""

from __future__ import annotations

from typing import Any

import click

from virtuary.base.errors import Invalid
from virtuary.cli.follow import follow
from virtuary.cli.options import DETACH, ROOT_DISK, SHAPE, complete_names, idempotency, shape_wish
from virtuary.cli.output import emit, output_option, say, tell
from virtuary.client.start import connect
from virtuary.client.wire import path_part


@click.command()
@click.argument("name", metavar="SOURCE", shell_complete=complete_names)
@click.argument("new", required=False)
@click.option(
    "--full",
    is_flag=True,
    help="A disk of its own, that shares nothing with the source's; takes time and space.",
)
@click.option(
    "--live",
    is_flag=True,
    help="Of a server that runs: its memory and disk at one instant. The copy runs too.",
)
@click.option("--start", is_flag=True, help="Start the copy of a stopped server.")
@SHAPE
@ROOT_DISK
@click.option("--dry-run", is_flag=True, help="Show what stands against it; change nothing.")
@DETACH
@output_option
def copy_command(
    name: str, new: str | None, full: bool, live: bool, start: bool, **given: Any
) -> None:
    """Copy a server: a machine of its own, with what is on the source's disk.

    The copy of a stopped server is there at once: what both have stays in one place, what either
    writes is its own. It has another id, hardware address, machine-id and other SSH host keys,
    given at its first start; an image without a guest agent leaves that to cloud-init. Ports that
    the source publishes are not taken over. --live copies one that runs, which stands still for a
    moment only.

    \b
    Examples:
      virtuary copy web1 web2
      virtuary copy web1 web2 --start --publish 8081:80
      virtuary copy web1 archive --full
      virtuary copy web1 trial --live
    """
    if full and live:
        raise Invalid(
            "--full and --live exclude each other",
            "a live copy can be stopped and copied with --full",
        )
    wire = connect()
    mode = "full" if full else "live" if live else "overlay"
    wish = {
        **shape_wish(given),
        "mode": mode,
        **({"name": new} if new else {}),
        **({"start": True} if start else {}),
    }
    target = f"/v1/vms/{path_part(name)}/actions/copy"
    if given["dry_run"]:
        return _show_plan(
            wire.call("POST", target, wish, query={"dry_run": "true"}), given["output"]
        )
    answer = wire.call("POST", target, wish, headers=idempotency())
    vm, operation = answer["vm"], answer["operation"]
    copy = vm["meta"]["name"]
    if given["detach"]:
        return emit(
            answer,
            given["output"],
            lambda: tell(operation["meta"]["id"]),
            lambda item: str(item["vm"]["meta"]["name"]),
        )
    say(f"copying {name} to {copy}")
    follow(wire, operation, quiet=given["output"] != "table")
    then = f"virtuary {'shell' if start or live else 'start'} {copy}"
    emit(
        wire.call("GET", f"/v1/vms/{path_part(vm['meta']['id'])}"),
        given["output"],
        lambda: tell(f"{copy} is a copy of {name}: {then}"),
    )


def _show_plan(answer: dict[str, Any], form: str) -> None:
    def table() -> None:
        for blocker in answer["blockers"]:
            say(
                f"blocker: {blocker['detail']}"
                + (f" ({blocker['hint']})" if blocker.get("hint") else "")
            )
        if not answer["blockers"]:
            tell(f"{answer['vm']['meta']['name']} can be made")

    emit(answer, form, table)
    if answer["blockers"]:
        raise click.exceptions.Exit(4)
