"""What servers need: a value for each resource in every hour of the week, made from measurements by
a percentile.

Pure. An hour of the week is counted from Monday 00:00, so 168 values tell that one server works at
night and another one by day. The percentile is the nearest rank: always a value that was measured,
never one in between.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

HOURS = 168
RESOURCES = ("cpu", "memory", "disk", "iops", "network")
LIMITS = {"cpu": 1e5, "memory": 2.0**60, "disk": 2.0**50, "iops": 1e12, "network": 2.0**50}
"""More than any machine has; a value above is a mistake. CPUs used, bytes, bytes a second,
operations a second, bytes a second.
"""
TOO_LARGE = "larger than what an empty host offers"
"""Why a server has no place, however many hosts there are."""
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MAX_NAME = 100
_QUARTER = 900  # time zones differ from UTC by whole quarters of an hour


def hour_name(hour: int) -> str:
    """Hour 0 is "Mon 00:00", hour 167 "Sun 23:00"."""
    return f"{DAYS[hour // 24]} {hour % 24:02}:00"


def hour_of(moment: float, zone: tzinfo = UTC) -> int:
    """The hour of the week of a time in seconds since 1970, on the clocks of `zone`."""
    local = datetime.fromtimestamp(moment, zone)
    return local.weekday() * 24 + local.hour


def check_server(text: str) -> str:
    """The name of a measured server: 1 to 100 printable characters without a comma. Raises
    ValueError.
    """
    name = text.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable() or "," in name:
        raise ValueError(
            f"{text[:40]!r} is not a server's name: use 1 to {MAX_NAME} printable characters "
            "without a comma"
        )
    return name


def percentile(ordered: Sequence[float], wanted: float) -> float:
    """The value that `wanted` percent of the ascending values do not exceed, by nearest rank."""
    return ordered[max(0, math.ceil(len(ordered) * wanted / 100 - 1e-9) - 1)]


class Load(NamedTuple):
    """What one server needs: 168 values for each resource that was measured."""

    name: str
    hours: dict[str, list[float]]
    assumed: int
    """Hours of the week that were not measured and are taken as the server's highest measured hour.
    """

    def body(self) -> dict[str, object]:
        """As the API wants it: six digits are enough, and one number stands for 168 equal ones."""
        return {
            "name": self.name,
            **{resource: _short(values) for resource, values in self.hours.items()},
        }


def _short(values: list[float]) -> object:
    rounded = [_round(value) for value in values]
    return rounded[0] if min(rounded) == max(rounded) else rounded


def _round(value: float) -> float:
    """Rounded up: whole numbers from a thousand on, else to a millionth."""
    return math.ceil(value) if value >= 1000 else math.ceil(value * 1e6 - 1e-3) / 1e6


class Track:
    """Measurements of one server as they come; a value that was not measured is NaN."""

    __slots__ = ("moments", "name", "places", "values")

    def __init__(self, name: str, resources: Sequence[str]) -> None:
        self.name = name
        self.moments = array("d")
        self.places = array("Q")
        """Where each was read: the reader's own counting."""
        self.values = {resource: array("d") for resource in resources}

    def twice(self) -> tuple[int, int] | None:
        """Where the first moment that was measured twice stands, and where it stood before."""
        if len(set(self.moments)) == len(self.moments):
            return None
        seen: dict[float, int] = {}
        for moment, place in zip(self.moments, self.places, strict=True):
            if moment in seen:
                return place, seen[moment]
            seen[moment] = place
        return None

    def reduce(self, wanted: float, zone: tzinfo = UTC) -> Load:
        """The load at the percentile `wanted`. A resource that was never measured is left out."""
        hours = self._hours(zone)
        found: dict[str, list[float]] = {}
        assumed = 0
        for resource, values in self.values.items():
            buckets: list[list[float]] = [[] for _ in range(HOURS)]
            for hour, value in zip(hours, values, strict=True):
                if value == value:
                    buckets[hour].append(value)
            known = [percentile(sorted(bucket), wanted) if bucket else -1.0 for bucket in buckets]
            if (highest := max(known)) >= 0:
                assumed = max(assumed, known.count(-1.0))
                found[resource] = [highest if value < 0 else value for value in known]
        return Load(self.name, found, assumed)

    def _hours(self, zone: tzinfo) -> list[int]:
        quarters = [int(moment) // _QUARTER for moment in self.moments]
        names = {quarter: hour_of(quarter * _QUARTER, zone) for quarter in set(quarters)}
        return [names[quarter] for quarter in quarters]
