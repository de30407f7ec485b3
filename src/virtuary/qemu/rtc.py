"""How far a machine's real-time clock is behind the host's."""

from __future__ import annotations

import asyncio
import calendar
import time

from virtuary.base.errors import GuestSilent
from virtuary.qemu.qmp import CommandFailed, Monitor

QUESTIONS = 12
APART = 0.085
"""Seconds: all of them together see the clock's second end, whenever that is."""


async def lag(monitor: Monitor) -> float | None:
    """Seconds, between 0 and 1, by which the machine's real-time clock is behind the host's; within 0.05 where the monitor answers at once.

    QEMU begins it with the whole second of its own start, and the machine goes on with what was lost, as do all that resume its state.
    None when nobody knows: its guest has set it to another time, the platform has none, QEMU does not answer. Takes a second.
    """
    least, most = -1.0, 2.0
    for _ in range(QUESTIONS):
        before = time.time()
        try:
            told = await monitor.run("qom-get", path="/machine", property="rtc-time")
        except (CommandFailed, GuestSilent):
            return None
        day = (told["tm_year"] + 1900, told["tm_mon"] + 1, told["tm_mday"])
        second = calendar.timegm((*day, told["tm_hour"], told["tm_min"], told["tm_sec"]))
        least, most = max(least, before - second - 1), min(most, time.time() - second)
        await asyncio.sleep(APART)
    middle = (least + most) / 2
    return min(max(middle, 0.0), 1.0) if least <= most and -0.1 < middle < 1.1 else None
