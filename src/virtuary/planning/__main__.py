"""`python -m virtuary.planning KIND`: a wish as JSON on stdin, a plan (status 0) or a problem
(status 3) as JSON on stdout.

A process of its own, so that hours of arithmetic are never the daemon's: niced, with bounds on time
and memory that it gives itself before it reads a byte.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from virtuary.base.errors import Invalid, NoRoom, VirtuaryError
from virtuary.base.proc import OUTPUT_CAP
from virtuary.model.consolidation import ConsolidationWish
from virtuary.model.meta import Model, invalid
from virtuary.model.placement import PlacementWish
from virtuary.planning import PROBLEM
from virtuary.planning.arrange import arrange
from virtuary.planning.consolidate import consolidate

CPU_SECONDS = 120
MEMORY = 2 << 30


PLANS: dict[str, tuple[type[Model], Callable[[Any], Model]]] = {
    "consolidation": (ConsolidationWish, consolidate),
    "placement": (PlacementWish, arrange),
}


def answer(kind: str, text: bytes) -> bytes:
    """The plan of this kind as JSON; raises the kinds of errors."""
    model, make = PLANS[kind]
    try:
        wish = model.model_validate_json(text)
    except ValidationError as error:
        raise _few(invalid(error)) from None
    except RecursionError:
        raise Invalid("the request is nested too deeply") from None
    plan = make(wish).model_dump_json().encode()
    if len(plan) > OUTPUT_CAP:
        raise NoRoom(
            "the plan is longer than can be answered", "fewer servers at once, or shorter names"
        )
    return plan


def _few(error: Invalid) -> Invalid:
    """With as many findings as a person reads: each of a million values may be wrong."""
    return Invalid(error.sentence, error.hint, errors=error.details["errors"][:20])


def main() -> int:
    os.nice(10)
    # it would look through millions of numbers again and again, and the process ends soon
    gc.disable()
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        output, status = answer(sys.argv[1], sys.stdin.buffer.read()), 0
    except VirtuaryError as error:
        output, status = json.dumps(error.problem()).encode(), PROBLEM
    sys.stdout.buffer.write(output)
    return status


if __name__ == "__main__":
    sys.exit(main())
