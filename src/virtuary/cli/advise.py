"""Advice on the size of servers, and its application."""

from __future__ import annotations

import sys
from typing import Any

import click

from virtuary.base.errors import Invalid, VirtuaryError
from virtuary.base.units import format_size
from virtuary.cli.options import Duration, complete_names
from virtuary.cli.output import emit, output_option, print_table, say, tell
from virtuary.client.start import connect
from virtuary.client.wire import Wire, path_part

WORDS = {"too-big": "too big", "too-small": "too small", "right": "right", "unknown": "not known"}


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=complete_names)
@click.option("--apply", "apply_it", is_flag=True, help="Make the changes.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before making them.")
@click.option(
    "--enough",
    type=Duration(),
    default="1d",
    help="How long a server must have been watched to be called too big.",
)
@output_option
def advise_command(
    names: tuple[str, ...], apply_it: bool, yes: bool, enough: float, output: str
) -> None:
    """Tell which servers are too big or too small, why, and the change that mends it.

    Judged by what they used while they ran. Without names all servers are looked at, and those on
    which there is nothing to say are counted.

    \b
    Examples:
      virtuary advise
      virtuary advise db1 --enough 1h
      virtuary advise db1 --apply
    """
    wire = connect()
    items = _ask(wire, names, enough)
    if not apply_it:
        return emit(
            items, output, lambda: _show(items, bool(names)), lambda item: str(item["name"])
        )
    wanted = [item for item in items if item["change"]]
    if output == "table":
        _show(items, bool(names))
    if wanted and not yes:
        _confirm(wanted)
    changed, failure = _apply(wire, wanted)
    emit(changed, output, lambda: _told(changed))
    if failure:
        raise failure


def _ask(wire: Wire, names: tuple[str, ...], enough: float) -> list[dict[str, Any]]:
    query = {"enough": enough}
    if names:
        return [
            wire.call("GET", f"/v1/vms/{path_part(name)}/advice", query=query) for name in names
        ]
    return sorted(
        wire.call("GET", "/v1/advice", query=query)["items"], key=lambda item: str(item["name"])
    )


def _show(items: list[dict[str, Any]], everything: bool) -> None:
    findings = [(item, finding) for item in items for finding in item["findings"]]
    shown = [
        pair for pair in findings if everything or pair[1]["verdict"] in ("too-big", "too-small")
    ]
    head = ["NAME", "WHAT", "IS", "HAS", "SHOULD HAVE", "CONFIDENCE", "BECAUSE"]
    print_table(
        head,
        [_row(item["name"], finding) for item, finding in shown],
        "no server is known to be too big or too small",
    )
    for item in items:
        if item["command"]:
            tell(f"{item['command']}   ({_saves(item['saves'])})")
    told = {item["name"] for item, _ in shown}
    quiet = [item for item in items if item["name"] not in told]
    unknown = sum(
        any(finding["verdict"] == "unknown" for finding in item["findings"]) for item in quiet
    )
    if unknown:
        say(
            f"of {unknown} {'server' if unknown == 1 else 'servers'} not enough is known: "
            "virtuary advise NAME tells what is missing"
        )


def _row(name: str, finding: dict[str, Any]) -> list[str]:
    known = finding["verdict"] != "unknown"
    return [
        name,
        finding["resource"],
        WORDS[finding["verdict"]],
        _amount(finding["resource"], finding["now"]),
        _amount(finding["resource"], finding["wanted"]) if finding["wanted"] is not None else "-",
        finding["confidence"] if known else "-",
        "; ".join(finding["evidence"]),
    ]


def _amount(resource: str, value: int) -> str:
    return format_size(value) if resource == "memory" else str(value)


def _saves(saves: dict[str, int]) -> str:
    given = [
        _amount(name, value) + (" memory" if name == "memory" else " cpus")
        for name, value in saves.items()
        if value > 0
    ]
    taken = [
        _amount(name, -value) + (" memory" if name == "memory" else " cpus")
        for name, value in saves.items()
        if value < 0
    ]
    return ", ".join(
        [
            *([f"gives back {' and '.join(given)}"] if given else []),
            *([f"takes {' and '.join(taken)}"] if taken else []),
        ]
    )


def _confirm(wanted: list[dict[str, Any]]) -> None:
    """Ask on a terminal; elsewhere the answer is to be given by --yes."""
    if not sys.stdin.isatty():
        raise Invalid("servers would be changed and nobody is there to ask", "repeat with --yes")
    if not click.confirm(f"Change {', '.join(item['name'] for item in wanted)}?", err=True):
        raise click.Abort


def _apply(
    wire: Wire, wanted: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], VirtuaryError | None]:
    """Change each, if nobody else did since it was looked at; the first error is raised at the end,
    the others are told.
    """
    changed, failure = [], None
    for item in wanted:
        headers = {"If-Match": f'"{item["revision"]}"'}
        try:
            changed.append(
                wire.call("PATCH", f"/v1/vms/{item['id']}", item["change"], headers=headers)
            )
        except VirtuaryError as error:
            if failure:
                say(f"error: {item['name']}: {error.sentence}")
            failure = failure or error
    return changed, failure


def _told(changed: list[dict[str, Any]]) -> None:
    if not changed:
        tell("nothing was changed")
    for vm in changed:
        name, status = vm["meta"]["name"], vm["status"]
        waits = status["runtime"] and vm["meta"]["generation"] != status["power"]["applied"]
        tell(
            f"{name} changed"
            + (
                "; what can't change while it runs takes effect at its next start (virtuary "
                f"restart {name})"
                if waits
                else ""
            )
        )
