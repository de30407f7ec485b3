"""Commands that make servers: launch, and create without a start. What would be done is shown by
--dry-run.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from virtuary.base.errors import Failed, GuestSilent, Invalid, VirtuaryError
from virtuary.base.text import shown_lines
from virtuary.base.units import format_duration, format_size
from virtuary.cli.follow import follow
from virtuary.cli.lifecycle import after, keep_first, show_gaps
from virtuary.cli.look import cloud_init_words
from virtuary.cli.options import BIRTH, DETACH, SHAPE, Duration, birth_wish, idempotency
from virtuary.cli.output import emit, print_fields, say, tell
from virtuary.cli.resources import RESOURCES, resource_wish, together
from virtuary.client.start import connect
from virtuary.client.wire import Wire, path_part


@click.command()
@click.argument("image")
@click.argument("name", required=False)
@SHAPE
@RESOURCES
@BIRTH
@DETACH
@click.option("--timeout", type=Duration(), help="Stop waiting after so long; the server goes on.")
@click.option(
    "--wait-for",
    type=click.Choice(["cloud-init"]),
    help="Wait until the user data was carried out, and fail where that failed.",
)
@click.option(
    "--count",
    type=click.IntRange(1, 1000),
    default=1,
    help="So many servers at once, named NAME-1, NAME-2 and so on.",
)
def launch_command(image: str, name: str | None, count: int, **given: Any) -> None:
    """Create a server, start it, and wait until a shell is possible.

    The image is made first where it is missing. A name is made up when none is given. The first
    launch of an image boots; later ones resume a copy of a warm template.

    \b
    Examples:
      virtuary launch debian web1
      virtuary launch debian worker --count 10
      virtuary launch debian --cpus 2 --memory 4GiB --disk 20GiB --publish 8080:80
      virtuary launch debian batch --cpus 4 --cpu-limit 150% --cpu-weight 50 --bandwidth 50MiB
      virtuary launch tiny --dry-run
    """
    wish = together(birth_wish(image, name, given), resource_wish(given))
    if given["wait_for"] and not given["user_data"]:
        raise Invalid(
            "there is nothing that cloud-init is to do",
            "give --user-data FILE, or leave out --wait-for",
        )
    if given["wait_for"] and (given["detach"] or count > 1):
        raise Invalid(
            "--wait-for goes with one server that is waited for",
            "leave out --detach and --count; virtuary show tells of the user data",
        )
    wire = connect()
    if given["dry_run"]:
        return _show_plan(wire, wish, given)
    if count > 1:
        return _launch_many(wire, wish, count, given)
    answer = _ask_for(wire, wish, given)
    vm, operation = answer["vm"], answer["operation"]
    if given["detach"]:
        return emit(
            {"vm": vm, "operation": operation},
            given["output"],
            lambda: tell(operation["meta"]["id"]),
            lambda item: str(item["vm"]["meta"]["name"]),
        )
    vm_name = vm["meta"]["name"]
    say(f"launching {vm_name} from {vm['spec']['image']}")
    try:
        follow(wire, operation, quiet=given["output"] != "table", limit=given["timeout"])
    except VirtuaryError as error:
        if error.code in ("guest-silent", "misbehaves", "failed"):
            _show_console_tail(wire, vm_name)
        raise
    vm = (
        _carried_out(wire, vm_name, given)
        if given["wait_for"]
        else wire.call("GET", f"/v1/vms/{path_part(vm_name)}")
    )
    emit(vm, given["output"], lambda: _ready(vm))


def _carried_out(wire: Wire, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The server once its user data was carried out. Raises Failed with cloud-init's own words,
    GuestSilent at the timeout.
    """
    began, limit, told = time.monotonic(), given["timeout"], False
    while True:
        vm: dict[str, Any] = wire.call("GET", f"/v1/vms/{path_part(name)}")
        found = vm["status"]["cloud_init"] or {}
        if found.get("state") == "done":
            return vm
        if found.get("state") == "error":
            words = cloud_init_words(found)
            raise Failed(
                f"{name} runs, and its user data {words}",
                f"virtuary exec {name} -- cat /var/log/cloud-init-output.log",
            )
        if "agent" not in vm["status"]["stages"]:
            hint = f"virtuary shell {name} -- cloud-init status --wait --long"
            raise Failed(
                f"{name} runs, and has no guest agent that tells what became of its user data", hint
            )
        if not vm["status"]["runtime"]:
            raise Failed(
                f"{name} is {vm['status']['state']}, and its user data was not carried out to "
                "its end",
                f"virtuary logs {name}",
            )
        if limit is not None and time.monotonic() - began > limit:
            raise GuestSilent(
                f"the user data of {name} is not carried out after {format_duration(limit)}",
                "it goes on: virtuary show tells",
            )
        if not told and given["output"] == "table":
            say("waiting for cloud-init to carry out the user data")
        told = True
        time.sleep(0.5)


def _launch_many(wire: Wire, wish: dict[str, Any], count: int, given: dict[str, Any]) -> None:
    """Ask for all of them, then follow one after the other; the first error is raised at the end,
    the others are told.
    """
    if wish.get("publish"):
        raise Invalid(
            "a port of the host can be published by one server only",
            "leave out --publish or --count",
        )
    begun, found, failure = [], [], None
    for number in range(1, count + 1):
        named = numbered(wish, number)
        try:
            begun.append(_ask_for(wire, named, given))
        except VirtuaryError as error:
            failure = keep_first(failure, error, count)
    if given["detach"]:
        emit(
            begun,
            given["output"],
            lambda: tell("\n".join(answer["operation"]["meta"]["id"] for answer in begun)),
        )
    for answer in begun if not given["detach"] else ():
        try:
            follow(wire, answer["operation"], quiet=True, limit=given["timeout"])
            found.append(wire.call("GET", f"/v1/vms/{path_part(answer['vm']['meta']['name'])}"))
            if given["output"] == "table":
                _ready(found[-1])
        except VirtuaryError as error:
            failure = keep_first(failure, error, count)
    if given["output"] != "table" and not given["detach"]:
        emit(found, given["output"])
    if failure:
        raise failure


def _ready(vm: dict[str, Any]) -> None:
    took = vm["status"]["stages"].get("ssh")
    name = vm["meta"]["name"]
    tell(
        f"{name} is ready"
        + (f", {format_duration(took)} after its start" if took else "")
        + f": virtuary shell {name}"
    )
    show_gaps(vm)


def _show_console_tail(wire: Wire, name: str) -> None:
    try:
        text = wire.call("GET", f"/v1/vms/{path_part(name)}/logs", query={"size": 2000})["console"]
    except VirtuaryError:
        return
    lines = shown_lines(text).splitlines()[-12:]
    if lines:
        say("the end of its console:")
        for line in lines:
            say(f"  | {line}")


def _ask_for(
    wire: Wire, wish: dict[str, Any], given: dict[str, Any], **query: Any
) -> dict[str, Any]:
    """Ask for a server; what is wrong with its user data is told with the file that it is in."""
    try:
        found: dict[str, Any] = wire.call(
            "POST", "/v1/vms", wish, query or None, {} if query else idempotency()
        )
        return found
    except Invalid as error:
        path = given.get("user_data")
        if not path or "user data" not in error.sentence or path in error.sentence:
            raise
        raise Invalid(
            f"{'standard input' if path == '-' else path}: {error.sentence}",
            error.hint,
            **error.details,
        ) from error


def numbered(wish: dict[str, Any], number: int) -> dict[str, Any]:
    """The request for one of several servers: what has a name of its own has another one each."""
    named = {**wish, "name": f"{wish['name']}-{number}"} if "name" in wish else dict(wish)
    disks = wish.get("disks", ())
    if len(disks) > 1:
        others = [{**disk, "name": f"{disk['name']}-{number}"} for disk in disks[1:]]
        named["disks"] = [disks[0], *others]
    return named


def _show_plan(wire: Wire, wish: dict[str, Any], given: dict[str, Any]) -> None:
    answer, form = _ask_for(wire, wish, given, dry_run="true"), given["output"]

    def table() -> None:
        import shlex

        vm, plan = answer["vm"], answer["plan"]
        cpu, memory = vm["spec"]["cpu"], vm["spec"]["memory"]
        print_fields(
            [
                ("server", vm["meta"]["name"]),
                ("image", vm["spec"]["image"]),
                ("size", f"{cpu['count']} CPU, {format_size(memory['size'])} memory"),
                *[
                    ("disk", f"{disk['name']}, {format_size(disk['size'])}, plugged in besides")
                    for disk in wish.get("disks", ())[1:]
                ],
                ("accelerator", plan.get("why", "-")),
                (
                    "isolation",
                    plan.get("level", "-") + ("".join(f"; {gap}" for gap in plan.get("gaps", []))),
                ),
            ]
        )
        for number, step in enumerate(plan.get("steps", []), 1):
            tell(f"  {number}. {step}")
        if "command" in plan:
            tell(
                "command line:\n  "
                + " \\\n    ".join(_in_pairs([shlex.quote(word) for word in plan["command"]]))
            )
        elif "note" in plan:
            tell(plan["note"])
        for note in answer.get("notes", ()):
            say(f"note: {note}")
        for blocker in answer["blockers"]:
            say(
                f"blocker: {blocker['detail']}"
                + (f" ({blocker['hint']})" if blocker.get("hint") else "")
            )

    emit(answer, form, table)
    if answer["blockers"]:
        sys.exit(4)


def _in_pairs(words: list[str]) -> list[str]:
    lines: list[str] = []
    for word in words:
        if (
            lines
            and not word.startswith("-")
            and lines[-1].startswith("-")
            and " " not in lines[-1]
        ):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


@click.command()
@click.argument("image")
@click.argument("name", required=False)
@SHAPE
@RESOURCES
@BIRTH
@DETACH
def create_command(image: str, name: str | None, **given: Any) -> None:
    """Create a server without starting it.

    \b
    Example:
      virtuary create debian db1 --memory 4GiB --disk 40GiB
    """
    wire = connect()
    wish = together(birth_wish(image, name, given), resource_wish(given), {"power": "stopped"})
    if given["dry_run"]:
        return _show_plan(wire, wish, given)
    answer = _ask_for(wire, wish, given)
    after(wire, answer, given, "created")
