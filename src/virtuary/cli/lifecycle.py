"""Commands that make, change, start, stop and remove servers."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from virtuary.base.errors import Failed, GuestSilent, Invalid, VirtuaryError
from virtuary.base.text import shown_lines
from virtuary.base.units import format_duration, format_size
from virtuary.cli.firewalls import rules_naming
from virtuary.cli.follow import follow
from virtuary.cli.look import cloud_init_words
from virtuary.cli.options import BIRTH, DETACH, NAME, NAMES, SHAPE, Duration, birth_wish, idempotency, shape_wish
from virtuary.cli.output import ask, emit, output_option, print_fields, say, tell
from virtuary.cli.resources import RESOURCES, resource_wish
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
    "--wait-for", type=click.Choice(["cloud-init"]), help="Wait until the user data was carried out, and fail where that failed."
)
@click.option("--count", type=click.IntRange(1, 1000), default=1, help="So many servers at once, named NAME-1, NAME-2 and so on.")
def launch_command(image: str, name: str | None, count: int, **given: Any) -> None:
    """Create a server, start it, and wait until a shell is possible.

    The image is made first where it is missing. A name is made up when none is given. The first launch of an image boots; later
    ones resume a copy of a warm template.

    \b
    Examples:
      virtuary launch debian web1
      virtuary launch debian worker --count 10
      virtuary launch debian --cpus 2 --memory 4GiB --disk 20GiB --publish 8080:80
      virtuary launch debian batch --cpus 4 --cpu-limit 150% --cpu-weight 50 --bandwidth 50MiB
      virtuary launch tiny --dry-run
    """
    wish = birth_wish(image, name, given) | resource_wish(given)
    if given["wait_for"] and "user_data" not in wish:
        raise Invalid("there is nothing that cloud-init is to do", "give --user-data FILE, or leave out --wait-for")
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
    vm = _carried_out(wire, vm_name, given) if given["wait_for"] else wire.call("GET", f"/v1/vms/{path_part(vm_name)}")
    emit(vm, given["output"], lambda: _ready(vm))


def _carried_out(wire: Wire, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The server once its user data was carried out. Raises Failed with cloud-init's own words, GuestSilent at the timeout."""
    began, limit, told = time.monotonic(), given["timeout"], False
    while True:
        vm: dict[str, Any] = wire.call("GET", f"/v1/vms/{path_part(name)}")
        found = vm["status"]["cloud_init"] or {}
        if found.get("state") == "done":
            return vm
        if found.get("state") == "error":
            words = cloud_init_words(found)
            raise Failed(f"{name} runs, and its user data {words}", f"virtuary exec {name} -- cat /var/log/cloud-init-output.log")
        if "agent" not in vm["status"]["stages"]:
            hint = f"virtuary shell {name} -- cloud-init status --wait --long"
            raise Failed(f"{name} runs, and has no guest agent that tells what became of its user data", hint)
        if not vm["status"]["runtime"]:
            raise Failed(
                f"{name} is {vm['status']['state']}, and its user data was not carried out to its end", f"virtuary logs {name}"
            )
        if limit is not None and time.monotonic() - began > limit:
            raise GuestSilent(
                f"the user data of {name} is not carried out after {format_duration(limit)}", "it goes on: virtuary show tells"
            )
        if not told and given["output"] == "table":
            say("waiting for cloud-init to carry out the user data")
        told = True
        time.sleep(0.5)


def _launch_many(wire: Wire, wish: dict[str, Any], count: int, given: dict[str, Any]) -> None:
    """Ask for all of them, then follow one after the other; the first error is raised at the end, the others are told."""
    if wish.get("publish"):
        raise Invalid("a port of the host can be published by one server only", "leave out --publish or --count")
    begun, found, failure = [], [], None
    for number in range(1, count + 1):
        named = {**wish, "name": f"{wish['name']}-{number}"} if "name" in wish else wish
        try:
            begun.append(_ask_for(wire, named, given))
        except VirtuaryError as error:
            failure = _keep(failure, error, count)
    if given["detach"]:
        emit(begun, given["output"], lambda: tell("\n".join(answer["operation"]["meta"]["id"] for answer in begun)))
    for answer in begun if not given["detach"] else ():
        try:
            follow(wire, answer["operation"], quiet=True, limit=given["timeout"])
            found.append(wire.call("GET", f"/v1/vms/{path_part(answer['vm']['meta']['name'])}"))
            if given["output"] == "table":
                _ready(found[-1])
        except VirtuaryError as error:
            failure = _keep(failure, error, count)
    if given["output"] != "table" and not given["detach"]:
        emit(found, given["output"])
    if failure:
        raise failure


def _ready(vm: dict[str, Any]) -> None:
    took = vm["status"]["stages"].get("ssh")
    name = vm["meta"]["name"]
    tell(f"{name} is ready" + (f", {format_duration(took)} after its start" if took else "") + f": virtuary shell {name}")
    _show_gaps(vm)


def _show_gaps(vm: dict[str, Any]) -> None:
    """What of its limits and shares this host can't give it."""
    for gap in vm["status"]["gaps"]:
        say(f"not on this host: {gap}")


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


def _ask_for(wire: Wire, wish: dict[str, Any], given: dict[str, Any], **query: Any) -> dict[str, Any]:
    """Ask for a server; what is wrong with its user data is told with the file that it is in."""
    try:
        found: dict[str, Any] = wire.call("POST", "/v1/vms", wish, query or None, {} if query else idempotency())
        return found
    except Invalid as error:
        path = given.get("user_data")
        if not path or "user data" not in error.sentence or path in error.sentence:
            raise
        raise Invalid(f"{'standard input' if path == '-' else path}: {error.sentence}", error.hint, **error.details) from error


def _show_plan(wire: Wire, wish: dict[str, Any], given: dict[str, Any]) -> None:
    answer, form = _ask_for(wire, wish, given, dry_run="true"), given["output"]

    def table() -> None:
        import shlex

        vm, plan = answer["vm"], answer["plan"]
        print_fields(
            [
                ("server", vm["meta"]["name"]),
                ("image", vm["spec"]["image"]),
                ("size", f"{vm['spec']['cpus']} CPU, {format_size(vm['spec']['memory'])} memory"),
                ("accelerator", plan.get("why", "-")),
                ("isolation", plan.get("level", "-") + ("".join(f"; {gap}" for gap in plan.get("gaps", [])))),
            ]
        )
        for number, step in enumerate(plan.get("steps", []), 1):
            tell(f"  {number}. {step}")
        if "command" in plan:
            tell("command line:\n  " + " \\\n    ".join(_in_pairs([shlex.quote(word) for word in plan["command"]])))
        elif "note" in plan:
            tell(plan["note"])
        for blocker in answer["blockers"]:
            say(f"blocker: {blocker['detail']}" + (f" ({blocker['hint']})" if blocker.get("hint") else ""))

    emit(answer, form, table)
    if answer["blockers"]:
        sys.exit(4)


def _in_pairs(words: list[str]) -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and not word.startswith("-") and lines[-1].startswith("-") and " " not in lines[-1]:
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
    wish = {**birth_wish(image, name, given), **resource_wish(given), "power": "stopped"}
    if given["dry_run"]:
        return _show_plan(wire, wish, given)
    answer = _ask_for(wire, wish, given)
    _after(wire, answer, given, "created")


def _after(wire: Wire, answer: dict[str, Any], given: dict[str, Any], done: str) -> None:
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
        emit(wire.call("GET", f"/v1/vms/{path_part(operation['spec']['target'].removeprefix('vm/'))}"), form)


def _deed(names: tuple[str, ...], deed: str, done: str, body: dict[str, Any] | None, given: dict[str, Any]) -> None:
    """One deed on several servers: begun on all, then waited for; the first error is raised at the end."""
    wire = connect()
    begun, failure = [], None
    for name in names:
        try:
            begun.append(wire.call("POST", f"/v1/vms/{path_part(name)}/actions/{deed}", body or {}, headers=idempotency()))
        except VirtuaryError as error:
            failure = _keep(failure, error, len(names))
    for answer in begun:
        try:
            _after(wire, answer, given, done)
        except VirtuaryError as error:
            failure = _keep(failure, error, len(names))
    if failure:
        raise failure


def _keep(first: VirtuaryError | None, error: VirtuaryError, many: int) -> VirtuaryError:
    if first is not None and many > 1:
        say(f"error: {error.sentence}")
    return first or error


WAIT = click.option(
    "--wait", type=click.Choice(["running", "ready"]), default="ready", help="Until it runs, or until a shell is possible."
)
PATIENCE = click.option("--timeout", "patience", type=Duration(), help="Stop waiting after so long; the server goes on.")


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
@click.option("--timeout", type=Duration(), default="90s", help="How long the guest is given before the plug is pulled.")
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
@click.option("--stop-timeout", type=Duration(), default="90s", help="How long the guest is given before the plug is pulled.")
@click.option("--force", is_flag=True, help="Pull the plug at once.")
def restart_command(names: tuple[str, ...], wait: str, stop_timeout: float, force: bool, **given: Any) -> None:
    """Stop servers and start them again, and wait until a shell is possible; changes that waited for it take effect.

    \b
    Example:
      virtuary restart web1
    """
    _deed(names, "restart", "was restarted", {"timeout": stop_timeout, "force": force, "wait": wait}, given)


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

    Firewall rules that name the server follow, and are told.

    \b
    Example:
      virtuary rename web1 www
    """
    wire = connect()
    vm = wire.call("POST", f"/v1/vms/{path_part(name)}/actions/rename", {"name": new_name})
    tell(f"{name} is now {vm['meta']['name']}")
    for rule in rules_naming(wire, vm["meta"]["name"]):
        tell(f"  {rule}")
    until = time.monotonic() + TAKES_NAME
    while _takes_name(vm) and time.monotonic() < until:
        time.sleep(0.1)
        vm = wire.call("GET", f"/v1/vms/{path_part(vm['meta']['id'])}")
    if why := vm["status"]["identity_refused"]:
        raise Failed(
            f"its guest did not take the name, and goes on as {vm['status']['identity']}: {why}",
            f"mend that inside, then virtuary restart {vm['meta']['name']}",
        )


TAKES_NAME = 20.0
"""Seconds for which a guest is waited for that is to take its new name."""


def _takes_name(vm: dict[str, Any]) -> bool:
    """Whether a guest that runs is being told its name just now."""
    status = vm["status"]
    known = status["identity"] not in (None, vm["meta"]["name"]) and status["identity_refused"] is None
    return known and status["state"] == "running"


@click.command()
@NAME
@SHAPE
@RESOURCES
@click.option("--dry-run", is_flag=True, help="Show what would change, and what stands against it; change nothing.")
@output_option
def set_command(name: str, dry_run: bool, **given: Any) -> None:
    """Change a server, while it runs where it can follow: limits and shares at once, CPUs, memory and disk when its guest has taken or
    given them. What can't change while it runs takes effect at its next start, and this says so.

    --publish and --label replace what was set before; none takes a limit away.

    \b
    Examples:
      virtuary set web1 --memory 4GiB --cpus 2
      virtuary set web1 --cpu-limit 50% --cpu-weight 200
      virtuary set web1 --cpu-limit none --disk 40GiB
    """
    wish = shape_wish(given) | resource_wish(given)
    if not wish:
        raise Invalid("nothing to change was given", "virtuary set NAME --memory 4GiB, for example")
    wire, target = connect(), f"/v1/vms/{path_part(name)}"
    if dry_run:
        return _show_change(wire, target, wish, given["output"])
    answer = wire.call("PATCH", target, wish, headers=idempotency())
    if "operation" in answer:
        follow(wire, answer["operation"], quiet=given["output"] != "table")
    vm = wire.call("GET", target)

    def table() -> None:
        waits = vm["status"]["runtime"] and vm["meta"]["generation"] != vm["status"]["applied"]
        later = f"; takes effect at its next start (virtuary restart {name})" if waits else ""
        tell(f"{vm['meta']['name']} changed: {', '.join(sorted(wish))}{later}")
        _show_gaps(vm)

    emit(vm, given["output"], table)


def _show_change(wire: Wire, target: str, wish: dict[str, Any], form: str) -> None:
    answer = wire.call("PATCH", target, wish, query={"dry_run": "true"})

    def table() -> None:
        now = [field for field in sorted(wish) if field not in answer["waits_for_start"]]
        if now:
            tell(f"at once: {', '.join(now)}")
        if answer["waits_for_start"]:
            tell(f"at its next start: {', '.join(answer['waits_for_start'])}")
        for blocker in answer["blockers"]:
            say(f"blocker: {blocker['detail']}" + (f" ({blocker['hint']})" if blocker.get("hint") else ""))

    emit(answer, form, table)
    if answer["blockers"]:
        sys.exit(4)


@click.command()
@NAMES
@output_option
def trim_command(names: tuple[str, ...], output: str) -> None:
    """Have guests tell which blocks they do not use, so that the pool gets their space back. What they delete with `discard` comes back at once.

    \b
    Example:
      virtuary trim web1 db1
    """
    wire, found, failure = connect(), {}, None
    for name in names:
        try:
            found[name] = wire.call("POST", f"/v1/vms/{path_part(name)}/actions/trim", {})
        except VirtuaryError as error:
            failure = _keep(failure, error, len(names))

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
    """Move servers to the trash, from which they come back for 7 days; with --now remove them for good.

    \b
    Examples:
      virtuary delete web1
      virtuary delete web1 --now --force
    """
    wire = connect()
    if now and not yes:
        ask(f"Remove {', '.join(names)} for good?")
    failure, done = None, []
    for name in names:
        try:
            query = {"now": str(now).lower(), "force": str(force).lower()}
            answer = wire.call("DELETE", f"/v1/vms/{path_part(name)}", query=query, headers=idempotency())
            follow(wire, answer["operation"], quiet=output != "table")
            done.append(wire.call("GET", f"/v1/operations/{answer['operation']['meta']['id']}"))
            if output == "table":
                tell(f"{name} is gone" if now else f"{name} lies in the trash for 7 days: virtuary undelete {name}")
        except VirtuaryError as error:
            failure = _keep(failure, error, len(names))
    if done or not failure:
        emit(done[0] if len(names) == 1 else done, output, None, lambda item: str(item["spec"]["target_name"]))
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
    vm = connect().call("POST", f"/v1/vms/{path_part(name)}/actions/undelete", {"name": new_name})
    tell(f"{vm['meta']['name']} is back: virtuary start {vm['meta']['name']}")


@click.command()
@NAME
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def purge_command(name: str, yes: bool) -> None:
    """Remove a server in the trash for good.

    \b
    Example:
      virtuary purge web1 --yes
    """
    wire = connect()
    if not yes:
        ask(f"Remove {name} for good?")
    follow(wire, wire.call("POST", f"/v1/vms/{path_part(name)}/actions/purge", {})["operation"])
    tell(f"{name} is gone")
