"""Commands that only look."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import click

from virtuary.base.text import shown_value
from virtuary.base.units import format_bandwidth, format_duration, format_size
from virtuary.cli.options import NAME, NAMES
from virtuary.cli.output import ago, emit, output_option, print_fields, print_table, say, tell
from virtuary.client.start import connect
from virtuary.client.wire import Wire, path_part
from virtuary.model.patience import STOP_TIMEOUT

ORDINARY, MIDDLE = 100, 50
"""The weight and the priority of a server for which nobody chose others."""
LOGS_CAP = 4 * 1024 * 1024
"""Bytes of the console that are kept."""
COPIED = {"overlay": "on a disk below both", "full": "in full", "live": "as it ran"}


def every(wire: Wire, target: str, **query: Any) -> list[dict[str, Any]]:
    """All items of a list, over its pages."""
    items: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = wire.call("GET", target, query={**query, "limit": 1000, "cursor": cursor})
        items += page["items"]
        cursor = page["next"] or ""
        if not cursor:
            return items


def ports_of(vm: dict[str, Any]) -> str:
    """Published ports, ranges as such, each with the address it is published on, but those that are
    on all.
    """
    ranges: list[tuple[dict[str, Any], int]] = []
    for port in vm["spec"]["publish"]:
        first, count = ranges[-1] if ranges else (port, 0)
        if count and port == {
            **first,
            "host": first["host"] + count,
            "guest": first["guest"] + count,
        }:
            ranges[-1] = first, count + 1
        else:
            ranges.append((port, 1))
    return ", ".join(_shown(first, count) for first, count in ranges)


def state_words(status: dict[str, Any]) -> str:
    """The state, and of a server that runs, in short, what of it is not as it should be."""
    state: str = status["state"]
    short = re.split("[:,]", status["reason"] or "")[0]
    return f"{state}; {short}" if state == "running" and short else state


def _shown(first: dict[str, Any], count: int) -> str:
    address = f"[{first['address']}]" if ":" in first["address"] else first["address"]
    where = "" if address == "0.0.0.0" else f"{address}:"  # noqa: S104
    host, guest = (
        f"{port}-{port + count - 1}" if count > 1 else f"{port}"
        for port in (first["host"], first["guest"])
    )
    return f"{where}{host}→{guest}" + ("/udp" if first["protocol"] == "udp" else "")


@click.command()
@click.option("--trash", is_flag=True, help="Show deleted servers that can still come back.")
@click.option(
    "--label", "-l", default="", metavar="KEY=VALUE", help="Only servers with this label."
)
@output_option
def list_command(trash: bool, label: str, output: str) -> None:
    """List servers.

    \b
    Examples:
      virtuary list
      virtuary list -o json
    """
    items = every(connect(), "/v1/vms", trash=str(trash).lower(), label=label)
    items.sort(key=lambda vm: vm["meta"]["name"])

    def table() -> None:
        rows = [
            [
                vm["meta"]["name"],
                state_words(vm["status"]),
                vm["spec"]["image"],
                str(vm["spec"]["cpu"]["count"]),
                format_size(vm["spec"]["memory"]["size"]),
                ", ".join(vm["status"]["addresses"][:1]) or "-",
                ports_of(vm) or "-",
                ago(
                    (vm["meta"]["deleted"] if trash else vm["status"]["since"])
                    or vm["meta"]["created"]
                ),
            ]
            for vm in items
        ]
        empty = "the trash is empty" if trash else "no servers yet: virtuary launch debian"
        print_table(
            [
                "NAME",
                "STATE",
                "IMAGE",
                "CPUS",
                "MEMORY",
                "ADDRESS",
                "PORTS",
                "DELETED" if trash else "SINCE",
            ],
            rows,
            empty,
        )

    emit(items, output, table)


@click.command()
@NAMES
@output_option
def show_command(names: tuple[str, ...], output: str) -> None:
    """Show everything about servers.

    \b
    Example:
      virtuary show web1
    """
    wire = connect()
    found = [wire.call("GET", f"/v1/vms/{path_part(name)}") for name in names]

    def table() -> None:
        for number, vm in enumerate(found):
            if number:
                tell()
            print_fields([*facts_of(vm, _names(wire, vm)), *_used(wire, vm)])

    emit(found if len(found) > 1 else found[0], output, table)


def _used(wire: Wire, vm: dict[str, Any]) -> list[tuple[str, str]]:
    """What a server that runs uses."""
    from virtuary.cli.figures import facts

    return (
        facts(wire.call("GET", f"/v1/vms/{vm['meta']['id']}/usage"))
        if vm["status"]["runtime"]
        else []
    )


def facts_of(vm: dict[str, Any], names: dict[str, str] | None = None) -> list[tuple[str, str]]:
    """What `show` tells of a server's document, by name."""
    meta, spec, status = vm["meta"], vm["spec"], vm["status"]
    runtime = status["runtime"] or {}
    facts = [
        ("name", meta["name"]),
        ("id", meta["id"]),
        (
            "state",
            status["state"]
            + (f": {status['reason']}" if status["reason"] else "")
            + f" (for {ago(status['since'])})",
        ),
        ("image", spec["image"]),
        (
            "size",
            f"{spec['cpu']['count']} CPU, {format_size(spec['memory']['size'])} memory, "
            f"{format_size(status['disks']['0']['size'] or 0)} disk",
        ),
        *[("disk", _disk(disk, names or {})) for disk in spec["disks"][1:]],
        ("published", ports_of(vm) or "nothing"),
        ("addresses", ", ".join(status["addresses"]) or "none known"),
        ("machine", spec["machine"] or "-"),
    ]
    if given := _given(spec):
        facts.append(("given", given))
    if gaps := status["tuning"]["gaps"]:
        facts.append(("not given", "; ".join(gaps)))
    if groups := [
        f"{nic['network']}: {', '.join(nic['groups'])}" for nic in spec["nics"] if nic.get("groups")
    ]:
        facts.append(("firewall", "; ".join(groups)))
    if origin := spec["origin"]:
        facts.append(("copy of", f"{origin['name']}, {COPIED[origin['mode']]}"))
    if runtime:
        level = runtime["level"] + "".join(f"; {gap}" for gap in runtime["gaps"])
        accel = {
            "tcg": "emulated (TCG), not isolated by hardware",
            "kvm": "hardware virtualization (KVM)",
        }[runtime["accel"]]
        facts += [
            ("accelerator", accel),
            ("isolation", f"level {level}"),
            (
                "started",
                "as a copy of a warm template"
                if runtime["template"]
                else "as a live copy"
                if runtime["live"]
                else f"by a boot{': ' + cold if (cold := status['warm']['cold']) else ''}",
            ),
            ("network", "; ".join(_nic(nic, runtime) for nic in spec["nics"])),
            ("process", f"{runtime['pid']}, user {runtime['uid']}"),
            (
                "stages",
                ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in status["stages"].items())
                or "-",
            ),
        ]
        if meta["generation"] != status["power"]["applied"]:
            facts.append(("waiting", "changes take effect at the next start"))
    if told := cloud_init_words(status["cloud_init"]):
        facts.append(("user data", told))
    facts += [
        ("policy", ", ".join(_policy(spec["policy"]))),
        ("labels", ", ".join(f"{key}={value}" for key, value in meta["labels"].items()) or "-"),
    ]
    return [(name, value) for name, value in facts]


def _disk(disk: dict[str, Any], names: dict[str, str]) -> str:
    """A disk besides the root disk, and how its guest knows it."""
    name = names.get(disk["volume"], disk["volume"])
    only = ", read-only" if disk["read_only"] else ""
    return f"{name} as {disk['serial']} (number {disk['number']}{only})"


def _names(wire: Wire, vm: dict[str, Any]) -> dict[str, str]:
    """The names and sizes of disks, by their ids, where a server has any."""
    items = every(wire, "/v1/disks") if len(vm["spec"]["disks"]) > 1 else []
    return {
        item["meta"]["id"]: f"{item['meta']['name']}, {format_size(item['spec']['size'])},"
        for item in items
    }


def _policy(policy: dict[str, Any]) -> list[str]:
    flags = [name for name in ("autostart", "protect") if policy[name]]
    flags += [f"restart {policy['restart']}"]
    flags += [f"boot order {policy['boot_order']}"] if policy["boot_order"] else []
    flags += ["power off with the host"] if policy["on_host_shutdown"] == "off" else []
    flags += (
        [f"{format_duration(policy['shutdown_timeout'])} to shut down with the host"]
        if policy["shutdown_timeout"] != STOP_TIMEOUT
        else []
    )
    return flags


def cloud_init_words(told: dict[str, Any] | None) -> str:
    """What became of the user data, in words."""
    if told is None:
        return ""
    state = {
        "not begun": "cloud-init has not begun",
        "running": "cloud-init runs",
        "done": "carried out",
        "error": "failed",
    }[told["state"]]
    units = f" in {', '.join(told['units'])}" if told["units"] else ""
    return state + units + (f": {'; '.join(told['errors'])}" if told["errors"] else "")


def _given(spec: dict[str, Any]) -> str:
    """Limits, shares and floors of a server, as far as they are not the ordinary ones."""
    cpu, memory, disk = spec["cpu"], spec["memory"], spec["disks"][0]["io"]
    words = [f"CPU limit {cpu['limit']} %"] if cpu["limit"] is not None else []
    words += [f"CPU floor {cpu['reserve']} %"] if cpu["reserve"] else []
    words += [f"CPU weight {cpu['weight']}"] if cpu["weight"] != ORDINARY else []
    words += [f"on CPUs {', '.join(map(str, cpu['pin']))}"] if cpu["pin"] else []
    words += [f"in NUMA node {cpu['node']}"] if cpu["node"] is not None else []
    for name, word in (("min", "floor"), ("max", "at most")):
        words += [f"memory {word} {format_size(memory[name])}"] if memory[name] is not None else []
    words += ["memory in huge pages"] if memory["pages"] == "huge" else []
    words += ["equal pages merged"] if memory["merge"] else []
    for name in ("iops", "read_iops", "write_iops"):
        words += [f"{name.replace('_', ' ')} {disk[name]}"] if disk[name] is not None else []
    for name in ("bandwidth", "read_bandwidth", "write_bandwidth"):
        words += (
            [f"disk {name.replace('_', ' ')} {format_size(disk[name])}/s"]
            if disk[name] is not None
            else []
        )
    words += [f"disk weight {disk['weight']}"] if disk["weight"] != ORDINARY else []
    words += [f"priority {memory['priority']}"] if memory["priority"] != MIDDLE else []
    return ", ".join(words)


def _nic(nic: dict[str, Any], runtime: dict[str, Any]) -> str:
    """A NIC in words: where it leads, what it has there."""
    words = [nic["network"]]
    if nic["network"] == "user":
        words.append(f"({runtime['network']})")
    words += [nic[field] for field in ("ipv4", "ipv6") if nic[field]]
    words += [f"firewall {', '.join(nic['groups'])}"] if nic["groups"] else []
    for way, rate in nic["bandwidth"].items():
        words += [
            f"{way} {field} {format_bandwidth(rate[field])}"
            for field in ("limit", "floor")
            if rate[field]
        ]
    words += [f"external {', '.join(nic['external'])}"] if nic["external"] else []
    words += [f"unguarded: {', '.join(nic['unguarded'])}"] if nic["unguarded"] else []
    return " ".join(words)


@click.command()
@NAME
@click.option("--size", type=click.IntRange(1, LOGS_CAP), default=65536, help="Bytes from the end.")
@click.option(
    "--lines", "-n", type=click.IntRange(min=0), help="Lines from the end, instead of bytes."
)
@click.option("--follow", "-f", is_flag=True, help="Go on printing what the console prints.")
@output_option
def logs_command(name: str, size: int, lines: int | None, follow: bool, output: str) -> None:
    """Show what a server's serial console printed, and what QEMU wrote when it ended badly.

    What would change your terminal is left out, also where the output goes to a file; virtuary
    console shows it.

    \b
    Example:
      virtuary logs web1 -n 20
    """
    wire = connect()
    answer = wire.call(
        "GET",
        f"/v1/vms/{path_part(name)}/logs",
        query={"size": size if lines is None else LOGS_CAP},
    )
    if lines is not None:
        answer["console"] = "".join(
            answer["console"].splitlines(keepends=True)[-lines:] if lines else ()
        )

    def table() -> None:
        tell(answer["console"], end="")
        if answer["qemu"]:
            say(f"QEMU wrote: {answer['qemu']}")

    emit(answer, output, table, lambda _: name)
    if follow:
        from virtuary.cli.access import watch_console

        watch_console(wire, name)


@click.command()
@click.option("--since", type=int, help="Begin after this revision.")
@output_option
def events_command(since: int | None, output: str) -> None:
    """Follow what happens: states of servers and images, and operations. Ends with Ctrl-C.

    \b
    Example:
      virtuary events
    """
    states: dict[str, str] = {}
    for event in connect().events(since=since):
        if event is None:
            continue
        if output in ("json", "yaml"):
            tell(json.dumps(shown_value(event)), flush=True)
        elif line := _event_line(event, states):
            tell(line, flush=True)


def _event_line(event: dict[str, Any], states: dict[str, str]) -> str | None:
    """One line for a change that people care about; `states` remembers what was told before."""
    kind, what = event["event"].split(".")
    if what == "deleted":
        key = event["data"]["key"]
        return (
            None
            if kind == "operation"
            else f"{event['id']:>8}  {kind:9}  {states.pop(key + ' name', key)}  removed"
        )
    data = event["data"]
    key, name = f"{kind}/{data['meta']['id']}", data["meta"]["name"]
    if kind == "operation":
        status = data["status"]
        name, state = (
            f"{data['spec']['deed']['kind']} {data['spec']['target_name']}",
            f"{status['phase']}" + (f": {status['stage']}" if status["stage"] else ""),
        )
    elif kind == "firewall":
        states[key + " name"] = name
        return f"{event['id']:>8}  {kind:9}  {name}  {len(data['spec']['rules'])} rules"
    else:
        state = data["status"]["state"] + (
            f": {data['status']['reason']}" if data["status"].get("reason") else ""
        )
    states[key + " name"] = name
    if states.get(key) == state:
        return None
    states[key] = state
    return f"{event['id']:>8}  {kind:9}  {name}  {state}"


@click.command()
@click.argument("server", required=False)
@output_option
def doctor_command(server: str | None, output: str) -> None:
    """Check everything a launch depends on; or try the network of a server from inside its guest,
    and name what is in its way.

    Ends with 0 when all that is needed is there, with 4 when something is missing.

    \b
    Examples:
      virtuary doctor
      virtuary doctor web1
    """
    answer = connect().call(
        "GET", f"/v1/vms/{path_part(server)}/doctor" if server else "/v1/doctor"
    )

    def table() -> None:
        signs = {"ok": "ok  ", "note": "note", "missing": "MISS"}
        width = max(len(check["name"]) for check in answer["checks"])
        for check in answer["checks"]:
            tell(f"{signs[check['state']]}  {check['name'].ljust(width)}  {check['found']}")
            if check["remedy"] and check["state"] != "ok":
                tell(f"{'':{width + 8}}→ {check['remedy']}")
        good, bad = (
            ("its network works", "its network does not work")
            if server
            else ("a launch can work", "something a launch needs is missing")
        )
        tell(good if answer["healthy"] else bad)

    emit(answer, output, table, lambda item: "healthy" if item["healthy"] else "unhealthy")
    if not answer["healthy"]:
        sys.exit(4)


@click.command()
@output_option
def version_command(output: str) -> None:
    """Show the versions of the program and the daemon.

    \b
    Example:
      virtuary version
    """
    from virtuary import __version__

    daemon = connect().call("GET", "/")["version"]
    both = {"program": __version__, "daemon": daemon}
    emit(
        both,
        output,
        lambda: tell(f"virtuary {__version__} (daemon {daemon})"),
        lambda item: str(item["program"]),
    )
