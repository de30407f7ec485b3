"""Commands that plan: which servers go onto which hosts, and measuring what they need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, BinaryIO, cast

import click

from virtuary.base.errors import Invalid, VirtuaryError
from virtuary.base.loads import LIMITS, TOO_LARGE, hour_name
from virtuary.base.units import format_rate, format_size, parse_rate, parse_size
from virtuary.cli.gather import gather_command
from virtuary.cli.output import (
    emit,
    output_option,
    print_fields,
    print_table,
    print_title,
    say,
    tell,
)
from virtuary.cli.place import place_command
from virtuary.client.start import connect

SHOWN = 12  # lines of what is missing, in a table
OF = {"cpu": "", "iops": "", "memory": " of memory", "disk": " of disk", "network": " of network"}
FAILURES = {"placed": "all placed", "headroom": "uses headroom", "stranded": "{} without place"}


@click.group()
def plan_command() -> None:
    """Plan which servers go onto which hosts.

    \b
    Examples:
      virtuary plan gather db1 web1 web2 > loads.csv
      virtuary plan consolidate loads.csv --host cpus=16,memory=64GiB
      virtuary plan place servers.csv --onto hosts.csv
    """


plan_command.add_command(gather_command, "gather")
plan_command.add_command(place_command, "place")


class Percent(click.ParamType[float]):
    name = "percent"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, float):
            return value
        try:
            number = float(value.removesuffix("%"))
        except ValueError:
            number = -1
        if not value.endswith("%") or not 0 <= number <= 1000:
            self.fail(f"{value!r} is not a percentage (write for example 10%)", param, ctx)
        return number / 100


class Host(click.ParamType[dict[str, float]]):
    name = "shape"

    def convert(self, value: Any, param: Any, ctx: Any) -> dict[str, float]:
        try:
            return parse_host(value) if isinstance(value, str) else value
        except VirtuaryError as error:
            self.fail(f"{error.sentence} ({error.hint})", param, ctx)


def parse_host(text: str) -> dict[str, float]:
    """`cpus=16,memory=64GiB,disk=500MiB,network=1Gbit` as the API wants it; raises Invalid."""
    hint = "for example --host cpus=16,memory=64GiB,disk=500MiB,iops=20000,network=1Gbit"
    parsers: dict[str, Callable[[str], float]] = {
        "cpu": float,
        "memory": parse_size,
        "disk": parse_rate,
        "iops": float,
        "network": parse_rate,
    }
    found: dict[str, float] = {}
    for word in text.split(","):
        key, _, given = word.partition("=")
        key = {"cpus": "cpu"}.get(key.strip(), key.strip())
        if key not in parsers or key in found:
            raise Invalid(
                f"{word[:40]!r} is not one of cpus, memory, disk, iops, network, each once", hint
            )
        try:
            found[key] = parsers[key](given)
        except (ValueError, Invalid):
            raise Invalid(f"{given[:40]!r} is no amount of {key}", hint) from None
        if not 0 < found[key] <= LIMITS[key]:
            raise Invalid(
                f"{key} of a host must be more than 0, and no more than any machine has", hint
            )
    if missing := [
        word for key, word in (("cpu", "cpus"), ("memory", "memory")) if key not in found
    ]:
        raise Invalid(f"{' and '.join(missing)} of a host is not given", hint)
    return found


@plan_command.command("consolidate")
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
)
@click.option(
    "--host",
    required=True,
    type=Host(),
    metavar="SHAPE",
    help="What each host has: cpus=16,memory=64GiB[,disk=500MiB][,iops=20000][,network=1Gbit].",
)
@click.option("--hosts", type=click.IntRange(1, 5000), help="There are this many hosts, no more.")
@click.option(
    "--percentile",
    type=click.FloatRange(0, 100, min_open=True),
    default=95,
    help="Which of an hour's measurements counts; 95 when not given, 100 is the highest.",
)
@click.option(
    "--headroom",
    type=Percent(),
    default=0.1,
    help="What stays free on every host at every hour; 10% when not given.",
)
@click.option(
    "--growth", type=Percent(), default=0.0, help="By how much all loads will have grown."
)
@click.option(
    "--spare",
    type=click.IntRange(0, 16),
    default=0,
    help="How many hosts may fail with a place left for every server.",
)
@click.option(
    "--apart",
    multiple=True,
    metavar="NAME,NAME...",
    help="Servers that must not share a host; may be repeated.",
)
@click.option(
    "--server-cpus",
    multiple=True,
    metavar="NAME=N",
    help="How many CPUs a server has whose file tells their share; may be repeated.",
)
@click.option(
    "--timezone",
    default="UTC",
    help="Whose hours of the week: a name such as Europe/Berlin; UTC when not given.",
)
@click.option(
    "--solver-seconds",
    type=click.FloatRange(0, 30),
    default=5.0,
    help="How long the exact solver may try, with 16 servers or fewer.",
)
@output_option
def consolidate_command(files: tuple[str, ...], **given: Any) -> None:
    """Say how many hosts measured servers need, which server goes onto which host, and what happens
    if a host fails.

    FILE holds measurements as CSV (columns server, timestamp, cpu, memory, and where wanted disk,
    iops, network) or JSON, or is what `sadf -d` or RVTools (vInfo) wrote; - is stdin. Each server's
    measurements become its needs in every hour of the week, so servers that work at different hours
    share a host. Ends with 4 when some server has no place.

    \b
    Examples:
      virtuary plan consolidate loads.csv --host cpus=16,memory=64GiB,network=1Gbit
      virtuary plan consolidate loads.csv --host cpus=16,memory=64GiB --headroom 20% --growth 30%
      --spare 1 --apart db1,db2
      virtuary plan consolidate loads.csv --host cpus=8,memory=32GiB --hosts 4 -o json
      virtuary plan consolidate sysstat.csv RVTools_tabvInfo.csv --host cpus=32,memory=256GiB
      --server-cpus db1=4
    """
    wish = make_wish(files, given)
    plan = connect().call("POST", "/v1/plans/consolidation", wish)
    emit(plan, given["output"], lambda: show(plan, wish, given["timezone"]), _names)
    if plan["unplaced"]:
        raise click.exceptions.Exit(4)


def make_wish(files: tuple[str, ...], given: dict[str, Any]) -> dict[str, Any]:
    """The request: files read, measurements reduced; what the host has no limit for is left out."""
    from virtuary.base.measurements import Measurements

    zone = find_zone(given["timezone"])
    measurements = Measurements(dict(map(_server_cpus, given["server_cpus"])))
    for file in files:
        with click.open_file(file, "rb") as handle:
            measurements.read("stdin" if file == "-" else file, cast(BinaryIO, handle))
    loads = measurements.loads(given["percentile"], zone)
    for note in measurements.notes:
        say(note)
    if assumed := sum(1 for load in loads if load.assumed):
        say(
            f"{assumed} of {len(loads)} servers were not measured in every hour of the week: "
            "such hours are taken as their highest"
        )
    wish = {key: given[key] for key in ("host", "headroom", "growth", "spare", "solver_seconds")}
    if given["hosts"]:
        wish["hosts"] = given["hosts"]
    if given["apart"]:
        wish["apart"] = [[name.strip() for name in group.split(",")] for group in given["apart"]]
    kept = ("name", *given["host"])
    wish["servers"] = [
        {key: value for key, value in load.body().items() if key in kept} for load in loads
    ]
    return wish


def _server_cpus(text: str) -> tuple[str, int]:
    name, _, number = text.rpartition("=")
    if (
        not name
        or not number.isascii()
        or not number.isdigit()
        or not 0 < int(number[:7]) <= LIMITS["cpu"]
    ):
        raise Invalid(
            f"{text[:40]!r} is no server and its number of CPUs", "for example --server-cpus db1=4"
        )
    return name, int(number)


def find_zone(name: str) -> Any:
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise Invalid(
            f"there is no time zone {name[:40]!r}", "for example --timezone Europe/Berlin"
        ) from None


def amount(resource: str, value: float) -> str:
    """An amount of a resource, for people."""
    if resource == "memory":
        return format_size(round(value))
    if resource in ("disk", "network"):
        return format_rate(value)
    return f"{value:.2f} CPUs" if resource == "cpu" else f"{value:.0f} operations/s"


def _names(plan: dict[str, Any]) -> str:
    return "\n".join(
        f"{server} {host['name']}" for host in plan["hosts"] for server in host["servers"]
    )


def show(plan: dict[str, Any], wish: dict[str, Any], zone: str) -> None:
    placed = sum(len(host["servers"]) for host in plan["hosts"])
    large = [item["server"] for item in plan["unplaced"] if item["reason"] == TOO_LARGE]
    more = (
        f"; {plan['hosts_for_all']} hosts would hold all that fit on one"
        if plan["hosts_for_all"] > plan["hosts_needed"]
        else ""
    )
    print_fields(
        [
            ("hosts needed", needed_words(plan, len(large) == len(wish["servers"]))),
            *([("fit on no host", some_of(large))] if large else []),
            ("servers placed", f"{placed} of {len(wish['servers'])}{more}"),
            ("at least", bound_words(plan)),
            ("if a host fails", failure_words(plan)),
            ("considered", f"{', '.join(plan['considered'])}; hours are {zone}"),
        ]
    )
    tell()
    head = [
        "HOST",
        *(f"{resource.upper()} PEAK" for resource in plan["considered"]),
        "IF IT FAILS",
        "SERVERS",
    ]
    print_table(head, [_row(host) for host in plan["hosts"]], "no server has a place")
    _show_lines(
        "without a place", [f"{item['server']}: {strand_words(item)}" for item in plan["unplaced"]]
    )
    stranded = [
        (host["name"], item) for host in plan["hosts"] for item in host["failure"]["stranded"]
    ]
    _show_lines(
        "without a place if a host fails",
        [f"{host} fails: {item['server']}: {strand_words(item)}" for host, item in stranded],
    )


def needed_words(plan: dict[str, Any], none_fits: bool) -> str:
    """How many hosts are needed, and by whom where not every server fits on one."""
    if none_fits:
        return "none: no server fits on such a host"
    spare = f", {plan['hosts_spare']} of them empty and spare" if plan["hosts_spare"] else ""
    some = any(item["reason"] == TOO_LARGE for item in plan["unplaced"])
    those = ", for those that fit on one" if some else ""
    return f"{plan['hosts_needed']}{spare}{those}"


def some_of(names: list[str]) -> str:
    """The first names, and how many others there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _row(host: dict[str, Any]) -> list[str]:
    peaks = [
        f"{1 - peak['headroom']:.0%} {hour_name(peak['hour'])}" for peak in host["peaks"].values()
    ]
    failure = host["failure"]
    return [
        host["name"],
        *peaks,
        FAILURES[failure["verdict"]].format(len(failure["stranded"])),
        " ".join(host["servers"]),
    ]


def _show_lines(title: str, lines: list[str]) -> None:
    if lines:
        print_title(title)
        for line in lines[:SHOWN]:
            tell(f"  {line}")
        if len(lines) > SHOWN:
            tell(f"  and {len(lines) - SHOWN} more: -o json tells all")


def bound_words(plan: dict[str, Any]) -> str:
    """How few hosts could do, why, and how far the plan is from it."""
    bound = plan["bound"]
    if not bound["hosts"]:
        return "-"
    where = f"{bound['resource']} at {hour_name(bound['hour'])}" if bound["resource"] else ""
    why = {
        "volume": f"all servers' {where}",
        "large": f"{where}, large servers that can't share a host",
        "apart": "servers to be kept apart",
        "search": "every smaller number was tried in full",
        "none": "one",
    }[bound["kind"]]
    if plan["optimal"]:
        return f"{bound['hosts']} ({why}): fewer are impossible"
    tried = "; the exact solver ran out of time" if plan["searched"] else ""
    return f"{bound['hosts']} ({why}); used are {plan['hosts_used']}, {plan['gap']:.1%} more{tried}"


def failure_words(plan: dict[str, Any]) -> str:
    count: dict[str, int] = {}
    for host in plan["hosts"]:
        count[host["failure"]["verdict"]] = count.get(host["failure"]["verdict"], 0) + 1
    if plan["survives_failure"]:
        return "any one may: its servers find a place, with the headroom kept"
    words = {
        "placed": "all servers placed",
        "headroom": "placed only by using headroom",
        "stranded": "servers without a place",
    }
    return "; ".join(
        f"{count[verdict]} of {len(plan['hosts'])}: {text}"
        for verdict, text in words.items()
        if verdict in count
    )


def strand_words(item: dict[str, Any]) -> str:
    lacks = [
        f"{amount(lack['resource'], lack['missing'])}{OF[lack['resource']]} missing at "
        f"{hour_name(lack['hour'])}"
        f" (needs {amount(lack['resource'], lack['needed'])}, free "
        f"{amount(lack['resource'], lack['free'])})"
        for lack in item["lacks"]
    ]
    reason: str = item["reason"]
    where = f" (nearest: {item['host']})" if item["host"] else ""
    return reason + where + ("; " + ", ".join(lacks) if lacks else "")
