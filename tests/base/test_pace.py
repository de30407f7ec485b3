"""What all share is shared: at once a burst, for long a rate."""

from __future__ import annotations

import asyncio
import time

import pytest

from virtuary.base.pace import BURST, SHARE, Bucket, Share, offer


def test_a_burst_is_there_at_once_and_then_a_rate() -> None:
    now = [0.0]
    bucket = Bucket(10, 2, lambda: now[0])
    assert bucket.take(10) == 0 and bucket.left() == 0
    assert bucket.take(1) == 0.5 and bucket.take(1) == 1.0
    now[0] = 4.0
    assert bucket.left() == 6
    now[0] = 1000.0
    assert bucket.left() == 10


@pytest.mark.parametrize("rest", [0.0, 0.001])
async def test_who_takes_time_of_the_loop_waits_for_it(rest: float) -> None:
    share, taken, began = Share(), 0.0, time.monotonic()
    while time.monotonic() - began < 0.5:
        share.owe(0.01)
        taken += 0.01
        await asyncio.sleep(rest)
        await share.pay()
    assert taken <= BURST + SHARE * (time.monotonic() - began) + 0.02


async def test_in_a_queue_that_is_full_the_oldest_goes() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue(3)
    for number in range(10):
        offer(queue, number)
    assert [queue.get_nowait() for _ in range(3)] == [7, 8, 9]
