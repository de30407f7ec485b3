"""Tables that other programs write: `sadf -d` of sysstat, and the sheet vInfo of RVTools.

`sadf -d` is blocks of lines, each with a header of its own; one moment's figures stand in several.
CPUs are told as shares, and how many there are by lines of single CPUs (`-P ALL`) or of a restart,
or not at all: that is never guessed. vInfo tells what was assigned, not what was used. Sources:
sadf(1), sa1(8); RVTools' documentation.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from virtuary.base.cells import parse_moment, with_point
from virtuary.base.errors import Invalid
from virtuary.base.units import KIB, MIB

SADF = "# hostname;interval;timestamp"
SECTOR = 512
MOST = 1e15
"""More than any of these figures is."""
STACKED = ("dm-", "md", "loop", "ram", "zram", "dev253-", "dev9-", "dev7-")
VIRTUAL = ("lo", "veth", "tap", "vnet", "br", "virbr", "docker", "bond", "team", "tun", "wg")
"""Devices through which passes what others count already."""
_RESTART = re.compile(r"LINUX-RESTART\s*\((\d{1,6}) CPU\)")
_GROUPED = re.compile(r"\d{1,3}([,. '’]\d{3})+|\d+")


class Sample(NamedTuple):
    """One server at one moment; what is missing was not measured."""

    server: str
    moment: float
    where: str
    place: int
    values: Mapping[str, float]


class Sadf:
    """Collects the lines of files; `samples` when all were read. CPUs, memory and the rest of a
    server may stand in files of their own.
    """

    def __init__(self, cpus: Mapping[str, int]) -> None:
        self._cpus = dict(cpus)
        """Servers and how many CPUs they have, as far as it was said or read; those that are said
        win.
        """
        self._said = frozenset(cpus)
        self._head: list[str] = []
        self._places: dict[tuple[str, str], tuple[str, int]] = {}
        self._shares: dict[tuple[str, str], float] = {}
        self._single: dict[tuple[str, str], dict[str, float]] = {}
        self._values: dict[tuple[str, str], dict[str, float]] = {}
        self._disks: dict[tuple[str, str], dict[str, float]] = {}
        self._seen: set[tuple[str, ...]] = set()

    def read(self, name: str, origin: int, lines: Iterable[str]) -> Iterator[None]:
        """A step for each line that was read, so that the reader can count them; a line's place is
        `origin` and its number.
        """
        self._head = []
        for number, line in enumerate(lines, 1):
            where = f"{name}, line {number}"
            fields = line.rstrip("\r\n").split(";")
            if line.startswith("#"):
                self._head = [field.strip() for field in fields]
            elif len(fields) > 3 and (restart := _RESTART.match(fields[3])):
                if fields[0] not in self._said:
                    self._cpus[fields[0]] = int(restart[1])
            elif len(fields) > 3 and fields[1] != "-1" and self._head:
                if len(fields) != len(self._head):
                    raise Invalid(
                        f"{where}: {len(fields)} fields, expected {len(self._head)}",
                        "is a part of the file missing?",
                    )
                self._figures(where, origin + number, dict(zip(self._head, fields, strict=True)))
                yield

    def _figures(self, where: str, place: int, row: dict[str, str]) -> None:
        key = (row["# hostname"], row["timestamp"])
        item = next((f"{name} {row[name]}" for name in ("CPU", "DEV", "IFACE") if name in row), "")
        again = (*key, item, *self._head[3:6])
        if again in self._seen:
            raise Invalid(
                f"{where}: {key[0]} was measured at this time before", "give each file once"
            )
        self._seen.add(again)
        self._places.setdefault(key, (where, place))

        def figure(name: str) -> float:
            return _figure(f"{where}: {name}", with_point(row[name]))

        add = self._values.setdefault(key, {})
        if "%idle" in row and "CPU" in row:
            used = (
                max(100 - figure("%idle") - (figure("%iowait") if "%iowait" in row else 0), 0) / 100
            )
            if row["CPU"] in ("-1", "all"):
                self._shares[key] = used
            else:
                self._single.setdefault(key, {})[row["CPU"]] = used
        elif "kbmemused" in row:
            cached = (
                0.0
                if "kbavail" in row
                else sum(figure(name) for name in ("kbbuffers", "kbcached") if name in row)
            )
            add["memory"] = max(figure("kbmemused") - cached, 0) * KIB
        elif {"tps", "bread/s", "bwrtn/s"} <= row.keys():
            add["iops"], add["disk"] = (
                figure("tps"),
                (figure("bread/s") + figure("bwrtn/s")) * SECTOR,
            )
        elif {"DEV", "tps", "rkB/s", "wkB/s"} <= row.keys() and not row["DEV"].startswith(STACKED):
            apart = self._disks.setdefault(key, {"iops": 0, "disk": 0})
            apart["iops"] += figure("tps")
            apart["disk"] += (figure("rkB/s") + figure("wkB/s")) * KIB
        elif {"IFACE", "rxkB/s", "txkB/s"} <= row.keys() and not row["IFACE"].startswith(VIRTUAL):
            add["network"] = add.get("network", 0) + (figure("rxkB/s") + figure("txkB/s")) * KIB

    def samples(self) -> Iterator[Sample]:
        """What was read, moment by moment. Raises Invalid where shares of CPUs can't become
        CPUs.
        """
        for key, (where, place) in self._places.items():
            host, moment = key
            values = {**self._disks.get(key, {}), **self._values[key]}
            if key in self._single:
                values["cpu"] = sum(self._single[key].values())
            elif key in self._shares:
                if host not in self._cpus:
                    raise Invalid(
                        f"{where}: the share of its CPUs that {host[:40]} used is told, and not "
                        "how many it has",
                        f"say it: --server-cpus {host[:40]}=4; or write the file by `sadf -d -- "
                        "-P ALL -r -b -n DEV`",
                    )
                values["cpu"] = self._shares[key] * self._cpus[host]
            if values:
                yield Sample(host, parse_moment(where, moment), where, place, values)


class Assigned(NamedTuple):
    """A machine of vInfo that is switched on: CPUs, and bytes."""

    server: str
    line: int
    cpu: float
    memory: float


def is_sadf(line: str) -> bool:
    """Whether a file that begins so was written by `sadf -d`."""
    return line.startswith(SADF) or ";LINUX-RESTART" in line


def is_vinfo(head: Iterable[str]) -> bool:
    """Whether a table's first line is that of RVTools' sheet vInfo."""
    return {"vm", "powerstate"} <= {word.strip().lower() for word in head}


def read_vinfo(
    name: str, head: list[str], lines: Iterator[str], delimiter: str
) -> Iterator[Assigned | str]:
    """Each machine that is on; the name of one that is off, or a template."""
    columns = {word.strip().lower(): place for place, word in enumerate(head)}
    if missing := [word for word in ("cpus", "memory") if word not in columns]:
        raise Invalid(
            f"{name}, line 1: the column {' and '.join(missing)} is missing",
            "export RVTools' sheet vInfo whole",
        )
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    for row in reader:
        line = reader.line_num + 1
        if not "".join(row).strip():
            continue
        if len(row) != len(head):
            raise Invalid(
                f"{name}, line {line}: {len(row)} fields, expected {len(head)}",
                "export RVTools' sheet vInfo whole",
            )

        def cell(column: str, row: list[str] = row) -> str:
            return row[columns[column]].strip() if column in columns else ""

        if cell("powerstate").lower() not in ("poweredon", "on", "running") or cell(
            "template"
        ).lower() in ("true", "1", "yes"):
            yield cell("vm")
            continue
        where = f"{name}, line {line}"
        memory = _whole(where, "Memory", cell("memory")) * MIB
        yield Assigned(cell("vm"), line, _whole(where, "CPUs", cell("cpus")), memory)


def _whole(where: str, column: str, text: str) -> float:
    """A whole number, with or without marks between its thousands."""
    if not _GROUPED.fullmatch(text.replace("\xa0", " ")):
        raise Invalid(
            f"{where}: {column} is {text[:40]!r}, expected a whole number",
            "memory is in MiB, as RVTools writes it",
        )
    return float(re.sub(r"\D", "", text))


def _figure(where: str, text: str) -> float:
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not 0 <= value <= MOST:
        raise Invalid(f"{where} is {text[:40]!r}, expected a number", "write the file by `sadf -d`")
    return value
