"""What stands in a measured table, cell by cell: amounts, moments, and the lines themselves. Pure;
refuses with the place.

Spellings that mean one thing are read, those that could mean two are not.
"""

from __future__ import annotations

import codecs
import io
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, BinaryIO

from virtuary.base.errors import Invalid
from virtuary.base.loads import LIMITS
from virtuary.base.units import format_size, parse_rate, parse_size

MAX_LINE = 65536
MAX_WHOLE = 256 * 1024 * 1024
"""Bytes of what is read at once: JSON, and text in UTF-16."""
EXPECTED = {
    "cpu": "the number of CPUs in use, for example 0.75",
    "memory": "bytes or a size, for example 2GiB",
    "disk": "bytes a second or a size, for example 12MiB",
    "iops": "operations a second, for example 250",
    "network": "bytes a second, a size or bits, for example 3MiB or 80Mbit",
}
HEADER_HINT = (
    "the first line names the columns: server,timestamp,cpu,memory and, where "
    "measured, disk,iops,network"
)
MILLISECONDS = 1e11
"""From here on a number is a time in milliseconds: in seconds it would be the year 5138."""
_PARSERS: dict[str, Callable[[str], float]] = {
    "memory": parse_size,
    "disk": parse_rate,
    "network": parse_rate,
}
_DAY_FIRST = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(.*)", re.DOTALL)
_GROUPED = re.compile(r"\d{1,3}(\.\d{3}){2,}|\d{1,3}(\.\d{3})+,\d+")


def readable(name: str, first: bytes, content: BinaryIO) -> tuple[bytes, BinaryIO]:
    """The first line and the rest as UTF-8 without a mark: UTF-16 tells by its mark that it is
    so.
    """
    if not first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return first.removeprefix(codecs.BOM_UTF8), content
    text = first + content.read(MAX_WHOLE)
    if len(text) > MAX_WHOLE:
        raise Invalid(
            f"{name} is larger than {format_size(MAX_WHOLE)}",
            "CSV in UTF-8 may be as long as it likes",
        )
    try:
        again = io.BytesIO(text.decode("utf-16").encode())
    except UnicodeError:
        raise Invalid(
            f"{name} begins like UTF-16 and is none", "save the file as CSV in UTF-8"
        ) from None
    return again.readline(MAX_LINE + 1), again


def lines_of(name: str, first: bytes, content: BinaryIO) -> Iterator[str]:
    """The lines as text, one at a time, so that a wrong byte is told with its line."""
    raw, number = first, 1
    while raw:
        if len(raw) > MAX_LINE:
            raise Invalid(f"{name}, line {number}: longer than {MAX_LINE} bytes", HEADER_HINT)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise Invalid(
                f"{name}, line {number}: not UTF-8 text", "save the file as CSV in UTF-8"
            ) from None
        if "\0" in text:
            raise Invalid(
                f"{name}, line {number}: holds a NUL byte", "save the file as CSV in UTF-8"
            )
        yield text
        raw, number = content.readline(MAX_LINE + 1), number + 1


def with_point(text: str) -> str:
    """A number as programs write it, from a table whose fields are not parted by commas: there a
    comma begins decimals.
    """
    if _GROUPED.fullmatch(text.strip()):
        text = text.replace(".", "")
    return text.replace(",", ".", 1)


def parse_amount(where: str, resource: str, given: Any) -> float:
    """One value; NaN for an empty cell. Sizes and rates may be text with a unit."""
    if isinstance(given, str) and not given.strip():
        return math.nan
    value = _number(resource, given)
    if value is None:
        raise Invalid(
            f"{where}: {resource} is {str(given)[:40]!r}, expected "
            f"{EXPECTED[resource].split(',')[0]}",
            _hint(resource, given),
        )
    if not 0 <= value <= LIMITS[resource]:
        raise Invalid(
            f"{where}: {resource} is {str(given)[:40]}, expected 0 to {LIMITS[resource]:.3g}",
            f"{resource} is {EXPECTED[resource]}",
        )
    return value


def _hint(resource: str, given: Any) -> str:
    text = given.strip().lower() if isinstance(given, str) else ""
    if "," in text:
        return "write a decimal point, or part the fields by semicolons"
    if text in ("nan", "null", "none", "n/a", "-"):
        return "leave a cell empty where nothing was measured"
    if resource == "cpu" and text.endswith("%"):
        return "a share of how many CPUs? Multiply it by them: 75% of 4 are 3"
    return f"{resource} is {EXPECTED[resource]}"


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


def parse_moment(where: str, text: str) -> float:
    """Seconds since 1970: from ISO 8601, a day that is parted by points, seconds or milliseconds.
    Without an offset it is UTC.
    """
    try:
        try:
            moment = float(text) if "_" not in text else math.nan
            moment = moment / 1000 if moment >= MILLISECONDS else moment
        except ValueError:
            found = datetime.fromisoformat(_iso(text.strip()))
            moment = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        if not 0 <= moment < 253402214400:  # the end of the year 9999, less a day for time zones
            raise ValueError
    except (ValueError, OverflowError):
        raise Invalid(
            f"{where}: timestamp is {text[:40]!r}, expected a date and time",
            "for example 2026-11-23T09:00:00Z (without an offset: UTC), or seconds since 1970",
        ) from None
    return moment


def _iso(text: str) -> str:
    if day := _DAY_FIRST.fullmatch(text):
        text = f"{day[3]}-{day[2]:0>2}-{day[1]:0>2}{day[4]}"
    return text.removesuffix(" UTC").removesuffix(" GMT")
