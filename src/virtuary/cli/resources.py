"""Options about what a server is given of its host, and the requests they stand for."""

from __future__ import annotations

from typing import Any

import click

from virtuary.base.errors import Invalid
from virtuary.base.units import MIB, parse_bandwidth, parse_size
from virtuary.cli.options import Size, options

NONE = "none"


class Limit(click.ParamType[Any]):
    """A number, or a size, or the word `none`, which takes a limit away."""

    name = "limit"

    def __init__(self, unit: str = "", least: int = 1) -> None:
        self.unit, self.least = unit, least

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        text = str(value).strip().lower()
        if text == NONE:
            return NONE
        try:
            if self.unit == "size":
                number = parse_size(text.removesuffix("/s"))
            elif self.unit == "%" and text.endswith(("cpu", "cpus")):
                number = round(float(text.rstrip("s").removesuffix("cpu")) * 100)
            else:
                number = int(text.removesuffix("%"))
        except Invalid as error:
            self.fail(f"{error.sentence} ({error.hint}, or none)", param, ctx)
        except (ValueError, OverflowError):
            self.fail(
                f"{value!r} is not a number "
                f"({'for example 50% or 1.5cpus' if self.unit == '%' else 'for example 500'}, or "
                "none)",
                param,
                ctx,
            )
        if number < self.least:
            self.fail(f"{value!r} is too small: at least {self.least}", param, ctx)
        return number


class Cpus(click.ParamType[Any]):
    """CPUs of the host: numbers and ranges, or the word `none`."""

    name = "cpus"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if str(value).strip().lower() == NONE:
            return ()
        found: list[int] = []
        try:
            for part in str(value).split(","):
                first, dash, last = part.strip().partition("-")
                found += range(int(first), int(last if dash else first) + 1)
        except ValueError:
            self.fail(f"{value!r} is no list of CPUs (for example 0-3,6, or none)", param, ctx)
        return tuple(dict.fromkeys(found[:1024]))


PERCENT, COUNT, RATE, BYTES = Limit("%"), Limit(), Limit("size", 1024), Limit("size")
RESOURCES = options(
    click.option("--cpu-limit", type=PERCENT, metavar="PERCENT",
    help="At most so much processor time: 150% or 1.5cpus is one CPU and a half; none for no "
         "limit."),
    click.option("--cpu-weight", type=int,
    help="Its share beside others when CPUs are short; 100 is ordinary."),
    click.option("--cpu-reserve", type=click.IntRange(0), metavar="PERCENT",
    help="Processor time it gets whenever it wants it."),
    click.option("--pin", type=Cpus(), metavar="CPUS",
    help="CPUs of the host it may run on, for example 0-3; none for all."),
    click.option("--numa", type=Limit(least=0), metavar="NODE",
    help="NUMA node whose CPUs and memory it uses; none for any."),
    click.option("--sockets", type=int, help="Sockets its CPUs are arranged in."),
    click.option("--threads", type=int, help="Threads of each core, as the guest sees it."),
    click.option("--memory-max", type=BYTES, metavar="SIZE",
    help="The most its memory can be grown to while it runs."),
    click.option("--memory-min", type=BYTES, metavar="SIZE",
    help="Memory that is never taken from it, however short the host is."),
    click.option("--huge-pages/--no-huge-pages", default=None,
    help="Have its memory in huge pages of the host."),
    click.option("--merge-pages/--no-merge-pages", default=None,
    help="Keep pages that equal other servers' once (KSM)."),
    click.option("--priority", type=click.IntRange(0, 100),
    help="The lowest is paused first when the host's memory ends; 50 is ordinary."),
    click.option("--iops", type=COUNT,
    help="At most so many disk operations a second; none for no limit."),
    click.option("--read-iops", type=COUNT, help="The same for reads only."),
    click.option("--write-iops", type=COUNT, help="The same for writes only."),
    click.option("--bandwidth", type=RATE, metavar="SIZE",
    help="At most so many bytes a second to and from the disk, for example 50MiB."),
    click.option("--read-bandwidth", type=RATE, metavar="SIZE", help="The same for reads only."),
    click.option("--write-bandwidth", type=RATE, metavar="SIZE", help="The same for writes only."),
    click.option("--burst", type=click.FloatRange(1, 100), metavar="TIMES",
    help="How many times its disk limits it may use for a while."),
    click.option("--burst-seconds", type=int, help="For how long."),
    click.option("--disk-weight", type=int,
    help="Its share of the disk beside others; 100 is ordinary."),
)  # fmt: skip
_CPU = {
    "cpu_limit": "limit", "cpu_weight": "weight", "cpu_reserve": "reserve", "pin": "pin",
    "numa": "node", "sockets": "sockets", "threads": "threads",
}  # fmt: skip
_DISK = {
    **{name: name for name in ("iops", "read_iops", "write_iops", "bandwidth", "read_bandwidth",
    "write_bandwidth", "burst", "burst_seconds")},
    "disk_weight": "weight",
}  # fmt: skip
_MEMORY = {
    "memory_max": "max", "memory_min": "min", "merge_pages": "merge", "priority": "priority",
}  # fmt: skip
_SIZES = ("memory_max", "memory_min")


def resource_wish(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request that these options stand for; what was not given is left out."""
    cpu, memory, io = (_chosen(given, names) for names in (_CPU, _MEMORY, _DISK))
    if given.get("huge_pages") is not None:
        memory["pages"] = "huge" if given["huge_pages"] else "normal"
    parts = {"cpu": cpu, "memory": memory, "disks": [{"io": io}] if io else []}
    return {name: part for name, part in parts.items() if part}


def _chosen(given: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {
        field: _value(name, given[name])
        for name, field in names.items()
        if given.get(name) is not None
    }


def together(*wishes: dict[str, Any]) -> dict[str, Any]:
    """Requests as one: the parts of a noun that several name are put together."""
    whole: dict[str, Any] = {}
    for wish in wishes:
        for name, part in wish.items():
            had = whole.get(name)
            if isinstance(part, dict) and isinstance(had, dict):
                part = {**had, **part}
            elif name == "disks" and had:
                part = [{**had[0], **part[0]}, *had[1:]]
            whole[name] = part
    return whole


def _value(name: str, value: Any) -> Any:
    if value == NONE:
        return None
    return -(-value // MIB) * MIB if name in _SIZES else value


SHAPE = ("cpus", "memory", "disk", "cpu-reserve", "bandwidth", "network", "count")


def parse_shape(text: str) -> dict[str, Any]:
    """`cpus=4,memory=8GiB,disk=20GiB,count=10` as numbers; raises Invalid."""
    found: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, equal, value = part.strip().partition("=")
        if not equal or key not in SHAPE:
            raise Invalid(
                f"{part!r} is not one of {', '.join(f'{key}=' for key in SHAPE)}",
                "for example cpus=4,memory=8GiB,count=10",
            )
        if key in ("memory", "disk"):
            found[key] = -(-parse_size(value) // MIB) * MIB
        elif key == "bandwidth":
            found[key] = parse_bandwidth(value)
        elif key == "network":
            found[key] = value
        elif value.isdigit():
            found[key.replace("-", "_")] = int(value)
        else:
            raise Invalid(f"{value!r} is not a number", f"for example {key}=4")
    return found


__all__ = ["RESOURCES", "Size", "parse_shape", "resource_wish", "together"]
