"""Commands that start, stop, change and remove servers; what makes them is in cli/launching.py."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from virtuary.base.errors import Failed, Invalid, VirtuaryError
from virtuary.base.units import format_size
from virtuary.cli.firewalls import rules_naming
from virtuary.cli.follow import follow
from virtuary.cli.look import every
from virtuary.cli.options import (
    DETACH,
    NAME,
    NAMES,
    ROOT_DISK,
    SHAPE,
    Duration,
    idempotency,
    shape_wish,
)
from virtuary.cli.output import ask, emit, output_option, say, tell
from virtuary.cli.pointers import option_of
from virtuary.cli.resources import RESOURCES, resource_wish, together
from virtuary.client.start import connect
from virtuary.client.wire import Wire, path_part
from virtuary.model.keys import id_of
from virtuary.model.patience import STOP_TIMEOUT


def after(wire: Wire, answer: dict[str, Any], given: dict[str, Any], done: str) -> None:
    operation = answer["operation"]
    if given.get("detach"):
        tell(operation["meta"]["id"])
        return
    form = given.get("output") or "table"
    follow(wire, operation, quiet=form != "table", limit=given.get("patience"))
    name = operation["spec"]["target_name"]
    if form == "table":
        tell(f"{name} {done}")
    else:
        emit(
            wire.call("GET", f"/v1/vms/{path_part(id_of(operation['spec']['target']))}"),
            form,
        )


def _deed(
    names: tuple[str, ...], deed: str, done: str, body: dict[str, Any] | None, given: dict[str, Any]
) -> None:
    """One deed on several servers: begun on all, then waited for; the first error is raised at the
    end.
    """
    wire = connect()
    begun, failure = [], None
    for name in names:
        try:
            begun.append(
                wire.call(
                    "POST",
                    f"/v1/vms/{path_part(name)}/actions/{deed}",
                    body or {},
                    headers=idempotency(),
                )
            )
        except VirtuaryError as error:
            failure = keep_first(failure, error, len(names))
    for answer in begun:
        try:
            after(wire, answer, given, done)
        except VirtuaryError as error:
            failure = keep_first(failure, error, len(names))
    if failure:
        raise failure


def show_gaps(vm: dict[str, Any]) -> None:
    """What of its limits and shares this host can't give it."""
    for gap in vm["status"]["tuning"]["gaps"]:
        say(f"not on this host: {gap}")


def keep_first(first: VirtuaryError | None, error: VirtuaryError, many: int) -> VirtuaryError:
    if first is not None and many > 1:
        say(f"error: {error.sentence}")
    return first or error


WAIT = click.option(
    "--wait",
    type=click.Choice(["running", "ready"]),
    default="ready",
    help="Until it runs, or until a shell is possible.",
)
PATIENCE = click.option(
    "--timeout", "patience", type=Duration(), help="Stop waiting after so long; the server goes on."
)


@click.command()
@NAMES
@DETACH
@output_option
@WAIT
@PATIENCE
def start_command(names: tuple[str, ...], wait: str, **given: Any) -> None:
    """Start servers, and wait until a shell is possible.

    \b
    Example:
      virtuary start web1 db1
    """
    _deed(names, "start", "is running", {"wait": wait}, given)


@click.command()
@NAMES
@DETACH
@output_option
@click.option(
    "--timeout",
    type=Duration(),
    default=f"{STOP_TIMEOUT:g}s",
    help="How long the guest is given before the plug is pulled.",
)
@click.option("--force", is_flag=True, help="Pull the plug at once.")
def stop_command(names: tuple[str, ...], timeout: float, force: bool, **given: Any) -> None:
    """Shut servers down: ask the guest, and after --timeout pull the plug.

    \b
    Example:
      virtuary stop web1 --timeout 2m
    """
    _deed(names, "stop", "is stopped", {"timeout": timeout, "force": force}, given)


@click.command()
@NAMES
@DETACH
@output_option
@WAIT
@PATIENCE
@click.option(
    "--stop-timeout",
    type=Duration(),
    default=f"{STOP_TIMEOUT:g}s",
    help="How long the guest is given before the plug is pulled.",
)
@click.option("--force", is_flag=True, help="Pull the plug at once.")
def restart_command(
    names: tuple[str, ...], wait: str, stop_timeout: float, force: bool, **given: Any
) -> None:
    """Stop servers and start them again, and wait until a shell is possible; changes that waited
    for it take effect.

    \b
    Example:
      virtuary restart web1
    """
    _deed(
        names,
        "restart",
        "was restarted",
        {"timeout": stop_timeout, "force": force, "wait": wait},
        given,
    )


@click.command()
@NAMES
@DETACH
@output_option
def pause_command(names: tuple[str, ...], **given: Any) -> None:
    """Freeze servers where they are; their memory stays.

    \b
    Example:
      virtuary pause web1
    """
    _deed(names, "pause", "is paused", None, given)


@click.command()
@NAMES
@DETACH
@output_option
def resume_command(names: tuple[str, ...], **given: Any) -> None:
    """Let paused servers go on.

    \b
    Example:
      virtuary resume web1
    """
    _deed(names, "resume", "is running", None, given)


@click.command()
@NAME
@click.argument("new_name")
def rename_command(name: str, new_name: str) -> None:
    """Give a server another name; a guest with an agent takes it as its hostname.

    Firewall rules that name the server mean it still, and are told.

    \b
    Example:
      virtuary rename web1 www
    """
    wire = connect()
    vm = wire.call("POST", f"/v1/vms/{path_part(name)}/actions/rename", {"name": new_name})
    tell(f"{name} is now {vm['meta']['name']}")
    _tell_rules(wire, vm["meta"]["id"], vm["meta"]["name"], "follows")
    until = time.monotonic() + TAKES_NAME
    while _takes_name(vm) and time.monotonic() < until:
        time.sleep(0.1)
        vm = wire.call("GET", f"/v1/vms/{path_part(vm['meta']['id'])}")
    identity = vm["status"]["identity"]
    if _refuses_name(vm):
        raise Failed(
            f"its guest did not take the name, and goes on as {identity['given']}: "
            f"{identity['refused']['why']}",
            f"mend that inside, then virtuary restart {vm['meta']['name']}",
        )


NOBODY = "names nobody in its place, whoever has its name next"
NOBODY_YET = "names nobody in its place until it is back"


def _target(answer: dict[str, Any]) -> str:
    """The id of the server that an operation is about."""
    return id_of(str(answer["operation"]["spec"]["target"]))


def _tell_rules(wire: Wire, vm_id: str, name: str, so: str) -> None:
    """Of each firewall rule that names a server, what becomes of it."""
    for rule in rules_naming(wire, vm_id, name, so):
        tell(f"  {rule}")


def _disks_of(wire: Wire, name: str) -> list[str]:
    """The names of the disks that a server has besides its root disk; of one that is not there
    whoever deletes it tells.
    """
    try:
        vm = wire.call("GET", f"/v1/vms/{path_part(name)}")
    except VirtuaryError:
        return []
    if len(vm["spec"]["disks"]) == 1:
        return []
    mine = {disk["volume"] for disk in vm["spec"]["disks"]}
    return [item["meta"]["name"] for item in every(wire, "/v1/disks") if item["meta"]["id"] in mine]


TAKES_NAME = 20.0
"""Seconds for which a guest is waited for that is to take its new name."""


def _takes_name(vm: dict[str, Any]) -> bool:
    """Whether a guest that runs is being told its name just now."""
    known = vm["status"]["identity"]["given"] not in (None, vm["meta"]["name"])
    return known and not _refuses_name(vm) and vm["status"]["state"] == "running"


def _refuses_name(vm: dict[str, Any]) -> bool:
    """Whether its guest would not take the name it has now."""
    refused = vm["status"]["identity"]["refused"]
    return refused is not None and refused["name"] == vm["meta"]["name"]


@click.command()
@NAME
@SHAPE
@ROOT_DISK
@RESOURCES
@click.option(
    "--dry-run",
    is_flag=True,
    help="Show what would change, and what stands against it; change nothing.",
)
@output_option
def set_command(name: str, dry_run: bool, **given: Any) -> None:
    """Change a server, while it runs where it can follow: limits and shares at once, CPUs, memory
    and disk when its guest has taken or given them. What can't change while it runs takes effect at
    its next start, and this says so.

    --publish and --label replace what was set before; none takes them, or a limit, away.

    \b
    Examples:
      virtuary set web1 --memory 4GiB --cpus 2
      virtuary set web1 --cpu-limit 50% --cpu-weight 200
      virtuary set web1 --cpu-limit none --disk 40GiB
    """
    wish = together(shape_wish(given), resource_wish(given))
    if not wish:
        raise Invalid("nothing to change was given", "virtuary set NAME --memory 4GiB, for example")
    wire, target = connect(), f"/v1/vms/{path_part(name)}"
    if dry_run:
        return _show_change(wire, target, wish, given["output"])
    before = wire.call("GET", target)["meta"]["generation"]
    answer = wire.call("PATCH", target, wish, headers=idempotency())
    if "operation" in answer:
        follow(wire, answer["operation"], quiet=given["output"] != "table")
    vm = wire.call("GET", target)

    def table() -> None:
        waits = vm["status"]["runtime"] and vm["meta"]["generation"] != before
        later = f"; takes effect at its next start (virtuary restart {name})" if waits else ""
        tell(f"{vm['meta']['name']} changed: {', '.join(_words(wish))}{later}")
        show_gaps(vm)

    emit(vm, given["output"], table)


def _words(wish: Any) -> list[str]:
    """What a change is about, as its options are called."""
    return sorted({_word(place) for place in _places(wish)})


def _word(place: str) -> str:
    known = {name for option in set_command.params for name in option.opts}
    return option_of(place.replace(".", "/"), known).removeprefix("--").replace("-", " ")


def _places(wish: Any, at: str = "") -> list[str]:
    """The place of each field in a request that is no noun itself."""
    parts: list[tuple[Any, Any]] = []
    if isinstance(wish, dict) and at != "labels/":
        parts = list(wish.items())
    elif at == "disks/":
        parts = list(enumerate(wish))
    found = [place for name, part in parts for place in _places(part, f"{at}{name}/")]
    return found or [at.rstrip("/")]


def _show_change(wire: Wire, target: str, wish: dict[str, Any], form: str) -> None:
    answer = wire.call("PATCH", target, wish, query={"dry_run": "true"})

    def table() -> None:
        waiting = sorted(_word(place) for place in answer["waits_for_start"])
        if now := [word for word in _words(wish) if word not in waiting]:
            tell(f"at once: {', '.join(now)}")
        if waiting:
            tell(f"at its next start: {', '.join(waiting)}")
        for blocker in answer["blockers"]:
            say(
                f"blocker: {blocker['detail']}"
                + (f" ({blocker['hint']})" if blocker.get("hint") else "")
            )

    emit(answer, form, table)
    if answer["blockers"]:
        sys.exit(4)


@click.command()
@NAMES
@output_option
def trim_command(names: tuple[str, ...], output: str) -> None:
    """Have guests tell which blocks they do not use, so that the pool gets their space back. What
    they delete with `discard` comes back at once.

    \b
    Example:
      virtuary trim web1 db1
    """
    wire, found, failure = connect(), {}, None
    for name in names:
        try:
            found[name] = wire.call("POST", f"/v1/vms/{path_part(name)}/actions/trim", {})
        except VirtuaryError as error:
            failure = keep_first(failure, error, len(names))

    def table() -> None:
        for name, answer in found.items():
            tell(f"{name}: {format_size(answer['freed'])} came back")

    emit(found, output, table)
    if failure:
        raise failure


@click.command()
@NAMES
@click.option("--now", is_flag=True, help="Remove for good instead of moving to the trash.")
@click.option("--force", is_flag=True, help="Also one that runs.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before removing for good.")
@output_option
def delete_command(names: tuple[str, ...], now: bool, force: bool, yes: bool, output: str) -> None:
    """Move servers to the trash, from which they come back for 7 days; with --now remove them for
    good. Firewall rules that name them are told.

    \b
    Examples:
      virtuary delete web1
      virtuary delete web1 --now --force
    """
    wire = connect()
    if now and not yes:
        for name in names:
            query = {"force": str(force).lower(), "dry_run": "true"}
            wire.call("DELETE", f"/v1/vms/{path_part(name)}", query=query)
        ask(f"Remove {', '.join(names)} for good?")
    failure, done = None, []
    for name in names:
        try:
            query = {"now": str(now).lower(), "force": str(force).lower()}
            kept = _disks_of(wire, name) if output == "table" else []
            answer = wire.call(
                "DELETE", f"/v1/vms/{path_part(name)}", query=query, headers=idempotency()
            )
            follow(wire, answer["operation"], quiet=output != "table")
            done.append(wire.call("GET", f"/v1/operations/{answer['operation']['meta']['id']}"))
            if output == "table":
                tell(
                    f"{name} is gone"
                    if now
                    else f"{name} lies in the trash for 7 days: virtuary undelete {name}"
                )
                _tell_rules(wire, _target(answer), name, NOBODY if now else NOBODY_YET)
                for disk in kept:
                    tell(f"  its disk {disk} stays{'' if now else ', attached to it'}")
        except VirtuaryError as error:
            failure = keep_first(failure, error, len(names))
    if done or not failure:
        emit(
            done[0] if len(names) == 1 else done,
            output,
            None,
            lambda item: str(item["spec"]["target_name"]),
        )
    if failure:
        raise failure


@click.command()
@NAME
@click.option("--as", "new_name", help="Under another name.")
def undelete_command(name: str, new_name: str | None) -> None:
    """Take a server back from the trash, stopped.

    \b
    Example:
      virtuary undelete web1
    """
    wire = connect()
    vm = wire.call("POST", f"/v1/vms/{path_part(name)}/actions/undelete", {"name": new_name})
    tell(f"{vm['meta']['name']} is back: virtuary start {vm['meta']['name']}")
    _tell_rules(wire, vm["meta"]["id"], vm["meta"]["name"], "means it again")


@click.command()
@NAME
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def purge_command(name: str, yes: bool) -> None:
    """Remove a server in the trash for good. Firewall rules that name it are told.

    \b
    Example:
      virtuary purge web1 --yes
    """
    wire = connect()
    target = f"/v1/vms/{path_part(name)}/actions/purge"
    if not yes:
        wire.call("POST", target, {}, query={"dry_run": "true"})
        ask(f"Remove {name} for good?")
    answer = wire.call("POST", target, {})
    follow(wire, answer["operation"])
    tell(f"{name} is gone")
    _tell_rules(wire, _target(answer), name, NOBODY)
