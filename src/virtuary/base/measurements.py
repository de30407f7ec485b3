"""Reads files of measured loads: CSV, JSON and what other programs export become `Load`s, or are
refused with the line, what was expected and a hint.

Everything a file says is hostile until it went through here: encodings, sizes, numbers that are
none, names, doubled rows. Nothing is guessed: what is not understood is refused, what was not
measured is told.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, tzinfo
from typing import Any, BinaryIO, NoReturn

from virtuary.base.cells import (
    EXPECTED,
    HEADER_HINT,
    MAX_LINE,
    MAX_WHOLE,
    lines_of,
    parse_amount,
    parse_moment,
    readable,
    with_point,
)
from virtuary.base.errors import Invalid
from virtuary.base.exports import Sadf, is_sadf, is_vinfo, read_vinfo
from virtuary.base.loads import HOURS, LIMITS, RESOURCES, Load, Track, check_server
from virtuary.base.units import format_size

MAX_ROWS = 10_000_000
COLUMNS = ("server", "timestamp", *RESOURCES)
_LINE_BITS = 40


class Measurements:
    """Collects what files say; `loads` reduces it. `cpus`: how many CPUs servers have of which
    files tell shares only.
    """

    def __init__(self, cpus: Mapping[str, int] | None = None) -> None:
        self._sysstat = Sadf(cpus or {})
        self.notes: list[str] = []
        """What whoever plans should know of the files."""
        self.rows = 0
        self._files: list[tuple[str, str]] = []
        self._tracks: dict[str, Track] = {}
        self._ready: dict[str, Load] = {}
        self._moments: dict[str, float] = {}

    def read(self, name: str, content: BinaryIO) -> None:
        """Read one file; raises Invalid with `name` and the line at the first thing that is not
        understood.
        """
        if len(self._files) >= 1 << 20:
            raise Invalid("too many files")
        first, content = readable(name, content.readline(MAX_LINE + 1), content)
        if not first:
            raise Invalid(f"{name} is empty", HEADER_HINT)
        if first.lstrip()[:1] in (b"{", b"["):
            self._files.append((name, "entry"))
            self._read_json(name, first, content)
        else:
            self._files.append((name, "line"))
            self._read_csv(name, first, content)

    def loads(self, wanted: float = 95, zone: tzinfo = UTC) -> list[Load]:
        """Every server's load by name, at the percentile `wanted`. Raises Invalid for a moment that
        was measured twice.
        """
        self._take_sysstat()
        for track in self._tracks.values():
            if found := track.twice():
                self._refuse_twice(track.name, *found)
        reduced = [track.reduce(wanted, zone) for track in self._tracks.values()]
        if not reduced and not self._ready:
            raise Invalid("no server was measured", HEADER_HINT)
        return sorted([*reduced, *self._ready.values()])

    def _refuse_twice(self, server: str, place: int, before: int) -> NoReturn:
        raise Invalid(
            f"{self._place(place)}: {server} was measured at this time before "
            f"({self._place(before)})",
            "one row for each server and time; times of different zones need an offset, for "
            "example 2026-11-23T09:00:00+01:00",
        )

    def _place(self, place: int) -> str:
        name, word = self._files[place >> _LINE_BITS]
        return f"{name}, {word} {place & ((1 << _LINE_BITS) - 1)}"

    # ---- CSV

    def _read_csv(self, name: str, first: bytes, content: BinaryIO) -> None:
        lines = lines_of(name, first, content)
        head = next(lines, "")
        if is_sadf(head):
            for _ in self._sysstat.read(
                name, (len(self._files) - 1) << _LINE_BITS, itertools.chain([head], lines)
            ):
                self._count(name)
            return
        skipped = 1
        if separator := re.fullmatch(r"sep=(.)\r?\n?", head):  # what spreadsheets are told by
            head, skipped = next(lines, ""), 2
        delimiter = separator[1] if separator else max(",;\t", key=head.count)
        try:
            words = next(csv.reader([head], delimiter=delimiter, strict=True), [])
            if is_vinfo(words):
                self._read_vinfo(name, words, lines, delimiter)
                return
            columns = _columns(name, words)
            self._read_rows(
                name,
                csv.reader(lines, delimiter=delimiter, strict=True),
                columns,
                skipped,
                delimiter != ",",
            )
        except csv.Error as error:
            raise Invalid(
                f"{name} is not CSV: {error}",
                "fields are parted by commas; a quote is closed on the same line",
            ) from error

    def _take_sysstat(self) -> None:
        found, self._sysstat = self._sysstat, Sadf({})
        for sample in found.samples():
            track = self._track(sample.where, sample.server)
            track.moments.append(sample.moment)
            track.places.append(sample.place)
            for resource in RESOURCES:
                track.values[resource].append(sample.values.get(resource, math.nan))

    def _read_vinfo(self, name: str, head: list[str], lines: Iterator[str], delimiter: str) -> None:
        off = 0
        for found in read_vinfo(name, head, lines, delimiter):
            if isinstance(found, str):
                off += 1
                continue
            where = f"{name}, line {found.line}"
            self._count(name)
            hours = {
                key: [parse_amount(where, key, amount)] * HOURS
                for key, amount in (("cpu", found.cpu), ("memory", found.memory))
            }
            self._give(where, found.server, hours)
        self.notes.append(f"{name} tells what machines were assigned, not what they used")
        if off:
            self.notes.append(f"{name}: {off} machines that are off, or templates, are left out")

    def _read_rows(
        self, name: str, reader: Any, columns: Sequence[str], skipped: int, commas: bool
    ) -> None:
        """The inner loop: half a million rows a second. `commas`: whether a comma may begin
        decimals.
        """
        at_server, at_time, width = (
            columns.index("server"),
            columns.index("timestamp"),
            len(columns),
        )
        wanted = [
            (resource, columns.index(resource), LIMITS[resource])
            for resource in RESOURCES
            if resource in columns
        ]
        origin = (len(self._files) - 1) << _LINE_BITS
        known: dict[str, Track] = {}
        for row in reader:
            line = reader.line_num + skipped
            if len(row) != width:
                if not "".join(row).strip() or row[0].startswith("#"):
                    continue
                raise Invalid(
                    f"{name}, line {line}: {len(row)} fields, expected {width}",
                    f"the columns are {','.join(columns)}",
                )
            try:
                track = known[row[at_server]]
            except KeyError:
                track = known[row[at_server]] = self._track(f"{name}, line {line}", row[at_server])
            text = row[at_time]
            moment = self._moments.get(text)
            if moment is None:
                moment = self._moment(f"{name}, line {line}", text)
            self._count(name)
            track.moments.append(moment)
            track.places.append(origin + line)
            for resource, column, limit in wanted:
                text = row[column]
                try:
                    value = float(text)
                except ValueError:
                    value = -1.0
                if not 0 <= value <= limit or "_" in text:
                    value = parse_amount(
                        f"{name}, line {line}", resource, with_point(text) if commas else text
                    )
                track.values[resource].append(value)
            if len(wanted) < len(RESOURCES):
                for resource in RESOURCES:
                    if resource not in columns:
                        track.values[resource].append(math.nan)

    def _count(self, name: str) -> None:
        self.rows += 1
        if self.rows > MAX_ROWS:
            raise Invalid(
                f"{name}: more than {MAX_ROWS} measurements",
                "measure less often, or plan fewer servers at once",
            )

    def _track(self, where: str, text: str) -> Track:
        try:
            server = check_server(text)
        except ValueError as error:
            raise Invalid(f"{where}: {error}") from None
        if server in self._ready:
            raise Invalid(
                f"{where}: the load of {server} was given before",
                "either measurements of a server, or its load",
            )
        return self._tracks.setdefault(server, Track(server, RESOURCES))

    def _moment(self, where: str, text: str) -> float:
        """Seconds since 1970; remembered, because servers are measured at the same times."""
        if len(self._moments) > 1_000_000:
            self._moments.clear()
        self._moments[text] = moment = parse_moment(where, text)
        return moment

    # ---- JSON

    def _read_json(self, name: str, first: bytes, content: BinaryIO) -> None:
        text = first + content.read(MAX_WHOLE)
        if len(text) > MAX_WHOLE:
            raise Invalid(
                f"{name} is larger than {format_size(MAX_WHOLE)}", "CSV may be as long as it likes"
            )
        body = _parse_json(name, text)
        if isinstance(body, dict) and set(body) == {"servers"}:
            self._each(name, body["servers"], self._read_load)
        elif isinstance(body, dict) and set(body) == {"measurements"}:
            self._each(name, body["measurements"], self._read_measurement)
        elif isinstance(body, list):
            self._each(name, body, self._read_measurement)
        else:
            raise Invalid(
                f"{name}: expected an object with either servers or measurements, or a list of "
                "measurements",
                'for example {"servers": [{"name": "web1", "cpu": 0.5, "memory": "2GiB"}]}',
            )

    def _each(
        self, name: str, items: Any, read: Callable[[str, int, dict[str, Any]], None]
    ) -> None:
        if not isinstance(items, list):
            raise Invalid(f"{name}: expected a list")
        for number, item in enumerate(items, 1):
            if not isinstance(item, dict):
                raise Invalid(f"{name}, entry {number}: expected an object")
            read(name, number, item)

    def _read_measurement(self, name: str, number: int, item: dict[str, Any]) -> None:
        where = f"{name}, entry {number}"
        _check_fields(where, item, COLUMNS, ("server", "timestamp"))
        self._count(name)
        track = self._track(where, str(item["server"]))
        track.moments.append(self._moment(where, str(item["timestamp"])))
        track.places.append(((len(self._files) - 1) << _LINE_BITS) + number)
        for resource in RESOURCES:
            value = item.get(resource)
            track.values[resource].append(
                math.nan if value is None else parse_amount(where, resource, value)
            )

    def _read_load(self, name: str, number: int, item: dict[str, Any]) -> None:
        where = f"{name}, entry {number}"
        _check_fields(where, item, ("name", *RESOURCES), ("name",))
        self._give(
            where,
            str(item["name"]),
            {key: _hours(where, key, item[key]) for key in RESOURCES if item.get(key) is not None},
        )

    def _give(self, where: str, text: str, hours: dict[str, list[float]]) -> None:
        """A server's load as it is."""
        try:
            server = check_server(text)
        except ValueError as error:
            raise Invalid(f"{where}: {error}") from None
        if server in self._ready or server in self._tracks:
            raise Invalid(
                f"{where}: the load of {server} was given before", "each server stands there once"
            )
        self._ready[server] = Load(server, hours, 0)


def _columns(name: str, head: list[str]) -> list[str]:
    """The names of the columns; raises Invalid with all that is wrong with them."""
    columns = [word.strip().lower() for word in head]
    if unknown := [word[:40] for word in columns if word not in COLUMNS]:
        raise Invalid(
            f"{name}, line 1: unknown columns: {', '.join(map(repr, unknown[:10]))}", HEADER_HINT
        )
    if missing := [word for word in ("server", "timestamp") if word not in columns]:
        raise Invalid(f"{name}, line 1: the column {' and '.join(missing)} is missing", HEADER_HINT)
    if len(set(columns)) < len(columns) or len(columns) < 3:
        raise Invalid(
            f"{name}, line 1: each column is named once, and one resource at least is measured",
            HEADER_HINT,
        )
    return columns


def _hours(where: str, resource: str, given: Any) -> list[float]:
    """168 values, or one that holds all week."""
    given = given if isinstance(given, list) else [given] * HOURS
    if len(given) != HOURS:
        raise Invalid(
            f"{where}: {resource} has {len(given)} values, expected {HOURS}",
            "one for each hour of the week from Monday 00:00, or a single one",
        )
    values = [parse_amount(where, resource, value) for value in given]
    if any(map(math.isnan, values)):
        raise Invalid(
            f"{where}: {resource} has an empty value", f"{resource} is {EXPECTED[resource]}"
        )
    return values


def _parse_json(name: str, text: bytes) -> Any:
    def refuse(word: str) -> NoReturn:
        raise Invalid(f"{name}: {word} is not a number", "leave out what was not measured")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise Invalid(
                f"{name}: an object names a field twice "
                f"({', '.join(key[:40] for key, _ in pairs[:5])})"
            )
        return found

    try:
        return json.loads(text.decode("utf-8-sig"), parse_constant=refuse, object_pairs_hook=once)
    except UnicodeDecodeError:
        raise Invalid(f"{name}: not UTF-8 text", "save the file in UTF-8") from None
    except json.JSONDecodeError as error:
        raise Invalid(f"{name}, line {error.lineno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise Invalid(f"{name}: not JSON that can be read: {str(error)[:80]}") from None


def _check_fields(
    where: str, item: dict[str, Any], allowed: Sequence[str], needed: Sequence[str]
) -> None:
    if unknown := [key[:40] for key in item if key not in allowed]:
        raise Invalid(
            f"{where}: unknown fields: {', '.join(map(repr, unknown[:10]))}",
            f"the fields are {', '.join(allowed)}",
        )
    if missing := [key for key in needed if key not in item]:
        raise Invalid(
            f"{where}: {' and '.join(missing)} is missing", f"the fields are {', '.join(allowed)}"
        )
