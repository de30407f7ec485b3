"""How far a machine's real-time clock is behind the host's."""

from __future__ import annotations

import asyncio
import calendar
import time

from virtuary.base.answers import Answer, read
from virtuary.base.errors import GuestSilent
from virtuary.qemu.qmp import CommandFailed, Monitor

QUESTIONS = 12
APART = 0.085
"""Seconds: all of them together see the clock's second end, whenever that is."""


def _second(told: Answer) -> int:
    """What a clock shows, in seconds since 1970; raises Misbehaves for a time that no clock
    shows.
    """
    day = (
        1900 + told.number("tm_year", most=8000),
        1 + told.number("tm_mon", most=11),
        told.number("tm_mday", least=1, most=31),
    )
    return calendar.timegm(
        (
            *day,
            told.number("tm_hour", most=24),
            told.number("tm_min", most=60),
            told.number("tm_sec", most=61),
        )
    )


async def lag(monitor: Monitor) -> float | None:
    """Seconds, between 0 and 1, by which the machine's real-time clock is behind the host's; within
    0.05 where the monitor answers at once.

    QEMU begins it with the whole second of its own start, and the machine goes on with what was
    lost, as do all that resume its state. None when nobody knows: its guest has set it to another
    time, the platform has none, QEMU does not answer. Takes a second.
    """
    least, most = -1.0, 2.0
    for _ in range(QUESTIONS):
        before = time.time()
        try:
            second = _second(
                read(await monitor.run("qom-get", path="/machine", property="rtc-time"))
            )
        except (CommandFailed, GuestSilent):
            return None
        least, most = max(least, before - second - 1), min(most, time.time() - second)
        await asyncio.sleep(APART)
    middle = (least + most) / 2
    return min(max(middle, 0.0), 1.0) if least <= most and -0.1 < middle < 1.1 else None
