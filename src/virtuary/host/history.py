"""The past of one server, or of the host: a file of fixed size with a ring of seconds, one of
minutes and one of hours.

Seconds are written as they come; a minute is made of its seconds once it is over, an hour of its
minutes. Nothing is kept in memory, so a daemon that is killed loses nothing: the next one makes the
minutes that are missing. Every record carries its time and a checksum: one that was torn, or was
left by a clock that jumped, is not taken for what it is not. A file of another layout is put aside.
One writer a file; readers open it afresh. It is written by calls and not through a memory map: a
disk that is full is then an error of one point, and not the end of the daemon.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from virtuary.base.log import say
from virtuary.model.usage import Point

logger = logging.getLogger("virtuary.history")
MAGIC, VERSION = b"VTHIST", 1
HEADER = 64
RECORD = struct.Struct("<IQHxx")
"""Checksum of the rest, time, covered seconds; the values follow."""


class Ring(NamedTuple):
    name: str
    step: int
    slots: int
    peaks: bool
    """Whether a record holds, after the means, the highest values too."""


RINGS = (
    Ring("second", 1, 600, False),
    Ring("minute", 60, 1440, True),
    Ring("hour", 3600, 2160, True),
)


class Record(NamedTuple):
    at: int
    covered: int
    values: tuple[float, ...]


class Layout:
    """Where what lies in the file, for these series. Pure."""

    def __init__(self, series: Sequence[str], rings: Sequence[Ring] = RINGS) -> None:
        self.series, self.rings = tuple(series), tuple(rings)
        self._bodies = [
            struct.Struct(f"<{len(self.series) * (2 if ring.peaks else 1)}f") for ring in self.rings
        ]
        self.sizes = [RECORD.size + body.size for body in self._bodies]
        self.offsets, end = [], HEADER
        for ring, size in zip(self.rings, self.sizes, strict=True):
            self.offsets.append(end)
            end += ring.slots * size
        self.size = end
        words = repr((self.series, self.rings)).encode()
        self.header = struct.pack("<6sHI", MAGIC, VERSION, zlib.crc32(words)).ljust(HEADER, b"\0")

    def place(self, number: int, at: int) -> int:
        ring = self.rings[number]
        return self.offsets[number] + at // ring.step % ring.slots * self.sizes[number]

    def pack(self, number: int, record: Record) -> bytes:
        rest = RECORD.pack(0, record.at, min(record.covered, 65535))[4:] + self._bodies[
            number
        ].pack(*record.values)
        return struct.pack("<I", zlib.crc32(rest)) + rest

    def unpack(self, number: int, raw: bytes) -> Record | None:
        """The record, unless it is none or a torn one."""
        if len(raw) < self.sizes[number]:
            return None
        checksum, at, covered = RECORD.unpack_from(raw)
        if not at or zlib.crc32(raw[4:]) != checksum:
            return None
        return Record(at, covered, self._bodies[number].unpack_from(raw, RECORD.size))

    def records(self, number: int, handle: int, begin: int, end: int) -> Iterator[Record]:
        """What is there of the times from `begin` to before `end`, oldest first; what another time
        left in a slot is passed over.
        """
        ring, size = self.rings[number], self.sizes[number]
        first, last = -(-max(begin, 1) // ring.step), -(-end // ring.step)
        first = max(first, last - ring.slots)
        for run in _runs(first, last, ring.slots):
            raw = os.pread(
                handle, len(run) * size, self.offsets[number] + run.start % ring.slots * size
            )
            for index, moment in enumerate(run):
                record = self.unpack(number, raw[index * size : (index + 1) * size])
                if record and record.at == moment * ring.step:
                    yield record

    def point(self, number: int, record: Record) -> Point:
        count = len(self.series)
        return Point(
            record.at,
            record.covered,
            self._named(record.values[:count]),
            self._named(record.values[count:]),
        )

    def _named(self, values: Iterable[float]) -> dict[str, float]:
        return {
            name: value
            for name, value in zip(self.series, values, strict=False)
            if not math.isnan(value)
        }

    def join(self, number: int, at: int, handle: int) -> Record | None:
        """The record of ring `number` that begins at `at`, made of the finer ring's; None when
        there are none.
        """
        step, finer = self.rings[number].step, self.rings[number - 1]
        found = list(self.records(number - 1, handle, at, at + step))
        if not found:
            return None
        count = len(self.series)
        weights = [max(record.covered, 1) for record in found]
        columns = list(zip(*(record.values for record in found), strict=True))
        means = [_mean(column, weights) for column in columns[:count]]
        peaks = [_peak(column) for column in columns[count if finer.peaks else 0 :]]
        return Record(at, min(sum(record.covered for record in found), step), (*means, *peaks))


def _runs(first: int, last: int, slots: int) -> Iterator[range]:
    """The moments from `first` to before `last`, in runs that lie in one piece in a ring of so many
    slots.
    """
    while first < last:
        end = min(last, first - first % slots + slots)
        yield range(first, end)
        first = end


def _mean(values: Sequence[float], weights: Sequence[int]) -> float:
    total = weight = 0.0
    for value, share in zip(values, weights, strict=True):
        if value == value:  # not NaN: somebody could tell
            total += value * share
            weight += share
    return total / weight if weight else math.nan


def _peak(values: Sequence[float]) -> float:
    return max((value for value in values if value == value), default=math.nan)


class History:
    """The writing side of one file; made by `open_history`."""

    def __init__(self, handle: int, layout: Layout) -> None:
        self._handle, self._layout = handle, layout
        self._current: list[int | None] = [None] * len(layout.rings)

    def append(self, at: int, covered: int, values: Sequence[float]) -> None:
        """Note what was seen at second `at`; NaN for what nobody could tell. Raises OSError when
        the disk is full.
        """
        try:
            raw = self._layout.pack(0, Record(at, covered, tuple(values)))
        except OverflowError:
            raw = self._layout.pack(0, Record(at, covered, tuple(map(_narrow, values))))
        os.pwrite(self._handle, raw, self._layout.place(0, at))
        for number in range(1, len(self._layout.rings)):
            self._close_buckets(number, at)

    def _close_buckets(self, number: int, now: int) -> None:
        """Write the records of ring `number` that are over and not made yet."""
        step = self._layout.rings[number].step
        current, self._current[number] = self._current[number], now // step
        if current == now // step:
            return
        reach = self._layout.rings[number - 1]
        oldest = max(0, now // step - reach.step * reach.slots // step + 1)
        due = (
            range(oldest, now // step)
            if current is None
            else [current, *range(max(current + 1, oldest), now // step)]
        )
        for bucket in due:
            if current is None and self._has(number, bucket * step):
                continue  # made before this daemon's life
            if record := self._layout.join(number, bucket * step, self._handle):
                os.pwrite(
                    self._handle,
                    self._layout.pack(number, record),
                    self._layout.place(number, bucket * step),
                )

    def _has(self, number: int, at: int) -> bool:
        return any(self._layout.records(number, self._handle, at, at + 1))

    def close(self) -> None:
        os.close(self._handle)


def _narrow(value: float) -> float:
    """What fits a single-precision number; what a guest says may be anything."""
    return value if abs(value) < 3e38 else math.nan


def open_history(path: Path, series: Sequence[str], rings: Sequence[Ring] = RINGS) -> History:
    """Open the file for writing, or make it; one of another layout is put aside as `.old`. Raises
    OSError.
    """
    layout = Layout(series, rings)
    _put_aside(path, layout)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.pwrite(handle, layout.header, 0)
        if os.fstat(handle).st_size != layout.size:
            os.truncate(handle, layout.size)
    except BaseException:
        os.close(handle)
        raise
    return History(handle, layout)


def _put_aside(path: Path, layout: Layout) -> None:
    try:
        with open(
            path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)
        ) as file:
            found = file.read(HEADER)
    except FileNotFoundError:
        return
    if found and found != layout.header:
        os.replace(path, path.with_name(f"{path.name}.old"))
        say(logger, "history of another layout put aside", logging.WARNING, file=path)


def read_history(
    path: Path,
    series: Sequence[str],
    resolution: str,
    since: int,
    now: int,
    rings: Sequence[Ring] = RINGS,
) -> list[Point]:
    """The points of a resolution from `since` to `now`, oldest first, the one that is not over yet
    included. Nothing when there is no file.
    """
    layout = Layout(series, rings)
    number = next(index for index, ring in enumerate(layout.rings) if ring.name == resolution)
    step = layout.rings[number].step
    with contextlib.ExitStack() as stack:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return []
        stack.callback(os.close, handle)
        if os.pread(handle, HEADER, 0) != layout.header:
            return []
        running = now // step * step
        found = list(
            layout.records(
                number, handle, since // step * step, now + 1 if number == 0 else running
            )
        )
        if number and running + step > since and (last := layout.join(number, running, handle)):
            found.append(last)
    return [layout.point(number, record) for record in found]
