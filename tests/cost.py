"""What code costs, as far as that can be told on a machine that has other things to do."""

from __future__ import annotations

import time
from collections.abc import Callable

LOOKS = 200


def cost(work: Callable[[], object], bound: float) -> float:
    """Seconds of the processor that `work` takes, the least of some looks: of as few as show that
    it is less than `bound`, and of 200 before it is said to be more. Whatever else runs on the
    processor, its caches and its memory makes the same code twice as slow for a while.
    """
    least = float("inf")
    for _ in range(LOOKS):
        began = time.thread_time()
        work()
        least = min(least, time.thread_time() - began)
        if least < bound:
            break
    return least
