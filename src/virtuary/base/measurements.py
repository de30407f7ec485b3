"""Reads files of measured loads: CSV or JSON text becomes `Load`s, or is refused with the line, what was expected and a hint.

Everything a file says is hostile until it went through here: encodings, sizes, numbers that are none, names, doubled rows.
Nothing is guessed: what is not understood is refused, what was not measured is told.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any, BinaryIO, NoReturn

from virtuary.base.errors import Invalid
from virtuary.base.loads import HOURS, LIMITS, RESOURCES, Load, Track, check_server
from virtuary.base.units import format_size, parse_rate, parse_size

MAX_ROWS = 10_000_000
MAX_LINE = 65536
MAX_JSON = 256 * 1024 * 1024
COLUMNS = ("server", "timestamp", *RESOURCES)
EXPECTED = {
    "cpu": "the number of CPUs in use, for example 0.75",
    "memory": "bytes or a size, for example 2GiB",
    "disk": "bytes a second or a size, for example 12MiB",
    "iops": "operations a second, for example 250",
    "network": "bytes a second, a size or bits, for example 3MiB or 80Mbit",
}
_PARSERS: dict[str, Callable[[str], float]] = {"memory": parse_size, "disk": parse_rate, "network": parse_rate}
_HEADER_HINT = "the first line names the columns: server,timestamp,cpu,memory and, where measured, disk,iops,network"
_LINE_BITS = 40


class Measurements:
    """Collects what files say; `loads` reduces it."""

    def __init__(self) -> None:
        self.rows = 0
        self._files: list[tuple[str, str]] = []
        self._tracks: dict[str, Track] = {}
        self._ready: dict[str, Load] = {}
        self._moments: dict[str, float] = {}

    def read(self, name: str, content: BinaryIO) -> None:
        """Read one file; raises Invalid with `name` and the line at the first thing that is not understood."""
        if len(self._files) >= 1 << 20:
            raise Invalid("too many files")
        first = content.readline(MAX_LINE + 1)
        if first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
            self._files.append((name, "entry"))
            self._read_json(name, first, content)
        else:
            self._files.append((name, "line"))
            self._read_csv(name, first, content)

    def loads(self, wanted: float = 95, zone: tzinfo = UTC) -> list[Load]:
        """Every server's load by name, at the percentile `wanted`. Raises Invalid for a moment that was measured twice."""
        for track in self._tracks.values():
            if found := track.twice():
                self._refuse_twice(track.name, *found)
        reduced = [track.reduce(wanted, zone) for track in self._tracks.values()]
        if not reduced and not self._ready:
            raise Invalid("no server was measured", _HEADER_HINT)
        return sorted([*reduced, *self._ready.values()])

    def _refuse_twice(self, server: str, place: int, before: int) -> NoReturn:
        raise Invalid(
            f"{self._place(place)}: {server} was measured at this time before ({self._place(before)})",
            "one row for each server and time; times of different zones need an offset, for example 2026-11-23T09:00:00+01:00",
        )

    def _place(self, place: int) -> str:
        name, word = self._files[place >> _LINE_BITS]
        return f"{name}, {word} {place & ((1 << _LINE_BITS) - 1)}"

    # ---- CSV

    def _read_csv(self, name: str, first: bytes, content: BinaryIO) -> None:
        lines = _decoded(name, first, content)
        head = next(lines, "")
        delimiter = max(",;\t", key=head.count)
        try:
            columns = _columns(name, next(csv.reader([head], delimiter=delimiter, strict=True), []))
            self._read_rows(name, csv.reader(lines, delimiter=delimiter, strict=True), columns)
        except csv.Error as error:
            raise Invalid(
                f"{name} is not CSV: {error}", "fields are parted by commas; a quote is closed on the same line"
            ) from error

    def _read_rows(self, name: str, reader: Any, columns: Sequence[str]) -> None:
        """The inner loop: half a million rows a second."""
        at_server, at_time, width = columns.index("server"), columns.index("timestamp"), len(columns)
        wanted = [(resource, columns.index(resource), LIMITS[resource]) for resource in RESOURCES if resource in columns]
        origin = (len(self._files) - 1) << _LINE_BITS
        known: dict[str, Track] = {}
        for row in reader:
            line = reader.line_num + 1
            if len(row) != width:
                if not row:
                    continue
                raise Invalid(f"{name}, line {line}: {len(row)} fields, expected {width}", f"the columns are {','.join(columns)}")
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
                    value = _amount(f"{name}, line {line}", resource, text)
                track.values[resource].append(value)
            if len(wanted) < len(RESOURCES):
                for resource in RESOURCES:
                    if resource not in columns:
                        track.values[resource].append(math.nan)

    def _count(self, name: str) -> None:
        self.rows += 1
        if self.rows > MAX_ROWS:
            raise Invalid(f"{name}: more than {MAX_ROWS} measurements", "measure less often, or plan fewer servers at once")

    def _track(self, where: str, text: str) -> Track:
        try:
            server = check_server(text)
        except ValueError as error:
            raise Invalid(f"{where}: {error}") from None
        if server in self._ready:
            raise Invalid(f"{where}: the load of {server} was given before", "either measurements of a server, or its load")
        return self._tracks.setdefault(server, Track(server, RESOURCES))

    def _moment(self, where: str, text: str) -> float:
        """Seconds since 1970; remembered, because servers are measured at the same times."""
        if len(self._moments) > 1_000_000:
            self._moments.clear()
        self._moments[text] = moment = _parse_moment(where, text)
        return moment

    # ---- JSON

    def _read_json(self, name: str, first: bytes, content: BinaryIO) -> None:
        text = first + content.read(MAX_JSON)
        if len(text) > MAX_JSON:
            raise Invalid(f"{name} is larger than {format_size(MAX_JSON)}", "CSV may be as long as it likes")
        body = _parse_json(name, text)
        if isinstance(body, dict) and set(body) == {"servers"}:
            self._each(name, body["servers"], self._read_load)
        elif isinstance(body, dict) and set(body) == {"measurements"}:
            self._each(name, body["measurements"], self._read_measurement)
        elif isinstance(body, list):
            self._each(name, body, self._read_measurement)
        else:
            raise Invalid(
                f"{name}: expected an object with either servers or measurements, or a list of measurements",
                'for example {"servers": [{"name": "web1", "cpu": 0.5, "memory": "2GiB"}]}',
            )

    def _each(self, name: str, items: Any, read: Callable[[str, int, dict[str, Any]], None]) -> None:
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
            track.values[resource].append(math.nan if value is None else _amount(where, resource, value))

    def _read_load(self, name: str, number: int, item: dict[str, Any]) -> None:
        where = f"{name}, entry {number}"
        _check_fields(where, item, ("name", *RESOURCES), ("name",))
        try:
            server = check_server(str(item["name"]))
        except ValueError as error:
            raise Invalid(f"{where}: {error}") from None
        if server in self._ready or server in self._tracks:
            raise Invalid(f"{where}: the load of {server} was given before", "each server stands there once")
        hours = {key: _hours(where, key, item[key]) for key in RESOURCES if item.get(key) is not None}
        self._ready[server] = Load(server, hours, 0)


def _decoded(name: str, first: bytes, content: BinaryIO) -> Iterator[str]:
    """The lines as text, one at a time, so that a wrong byte is told with its line."""
    raw, number = first.removeprefix(b"\xef\xbb\xbf"), 1
    while raw:
        if len(raw) > MAX_LINE:
            raise Invalid(f"{name}, line {number}: longer than {MAX_LINE} bytes", _HEADER_HINT)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise Invalid(f"{name}, line {number}: not UTF-8 text", "save the file as CSV in UTF-8") from None
        if "\0" in text:
            raise Invalid(f"{name}, line {number}: holds a NUL byte", "save the file as CSV in UTF-8")
        yield text
        raw, number = content.readline(MAX_LINE + 1), number + 1


def _columns(name: str, head: list[str]) -> list[str]:
    """The names of the columns; raises Invalid with all that is wrong with them."""
    columns = [word.strip().lower() for word in head]
    if unknown := [word[:40] for word in columns if word not in COLUMNS]:
        raise Invalid(f"{name}, line 1: unknown columns: {', '.join(map(repr, unknown[:10]))}", _HEADER_HINT)
    if missing := [word for word in ("server", "timestamp") if word not in columns]:
        raise Invalid(f"{name}, line 1: the column {' and '.join(missing)} is missing", _HEADER_HINT)
    if len(set(columns)) < len(columns) or len(columns) < 3:
        raise Invalid(f"{name}, line 1: each column is named once, and one resource at least is measured", _HEADER_HINT)
    return columns


def _amount(where: str, resource: str, given: Any) -> float:
    """One value; NaN for an empty cell. Sizes and rates may be text with a unit."""
    if isinstance(given, str) and not given.strip():
        return math.nan
    value = _number(resource, given)
    if value is None:
        hint = "write a decimal point" if isinstance(given, str) and "," in given else f"{resource} is {EXPECTED[resource]}"
        raise Invalid(f"{where}: {resource} is {str(given)[:40]!r}, expected {EXPECTED[resource].split(',')[0]}", hint)
    if not 0 <= value <= LIMITS[resource]:
        raise Invalid(
            f"{where}: {resource} is {str(given)[:40]}, expected 0 to {LIMITS[resource]:.3g}",
            f"{resource} is {EXPECTED[resource]}",
        )
    return value


def _number(resource: str, given: Any) -> float | None:
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return None
    try:
        value = float(given) if "_" not in str(given) else math.nan
    except (ValueError, OverflowError):
        try:
            value = float(_PARSERS[resource](str(given)))
        except (Invalid, KeyError):
            return None
    return None if math.isnan(value) else value


def _hours(where: str, resource: str, given: Any) -> list[float]:
    """168 values, or one that holds all week."""
    given = given if isinstance(given, list) else [given] * HOURS
    if len(given) != HOURS:
        raise Invalid(
            f"{where}: {resource} has {len(given)} values, expected {HOURS}",
            "one for each hour of the week from Monday 00:00, or a single one",
        )
    values = [_amount(where, resource, value) for value in given]
    if any(map(math.isnan, values)):
        raise Invalid(f"{where}: {resource} has an empty value", f"{resource} is {EXPECTED[resource]}")
    return values


def _parse_moment(where: str, text: str) -> float:
    """ISO 8601, or seconds since 1970. A time without an offset is UTC."""
    try:
        try:
            moment = float(text) if "_" not in text else math.nan
        except ValueError:
            found = datetime.fromisoformat(text.strip())
            moment = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        if not 0 <= moment < 253402214400:  # the end of the year 9999, less a day for time zones
            raise ValueError
    except (ValueError, OverflowError):
        raise Invalid(
            f"{where}: timestamp is {text[:40]!r}, expected a date and time",
            "for example 2026-11-23T09:00:00Z (without an offset: UTC), or seconds since 1970",
        ) from None
    return moment


def _parse_json(name: str, text: bytes) -> Any:
    def refuse(word: str) -> NoReturn:
        raise Invalid(f"{name}: {word} is not a number", "leave out what was not measured")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise Invalid(f"{name}: an object names a field twice ({', '.join(key[:40] for key, _ in pairs[:5])})")
        return found

    try:
        return json.loads(text.decode("utf-8-sig"), parse_constant=refuse, object_pairs_hook=once)
    except UnicodeDecodeError:
        raise Invalid(f"{name}: not UTF-8 text", "save the file in UTF-8") from None
    except json.JSONDecodeError as error:
        raise Invalid(f"{name}, line {error.lineno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        raise Invalid(f"{name}: not JSON that can be read: {str(error)[:80]}") from None


def _check_fields(where: str, item: dict[str, Any], allowed: Sequence[str], needed: Sequence[str]) -> None:
    if unknown := [key[:40] for key in item if key not in allowed]:
        raise Invalid(f"{where}: unknown fields: {', '.join(map(repr, unknown[:10]))}", f"the fields are {', '.join(allowed)}")
    if missing := [key for key in needed if key not in item]:
        raise Invalid(f"{where}: {' and '.join(missing)} is missing", f"the fields are {', '.join(allowed)}")
