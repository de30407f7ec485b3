"""When the change of a field takes effect while a server runs: said once, on the field itself.

What has no mark takes effect with the document: nobody but the host looks at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

from pydantic import BaseModel


class Applies(Enum):
    AT_ONCE = "at once, by the host"
    BY_GUEST = "while it runs, when its guest has taken or given it"
    AT_START = "at the next start"


def differing(old: BaseModel, new: BaseModel, when: Applies) -> list[str]:
    """Where two models of a kind differ in what takes effect then, also in their parts:
    `memory.size`, `disks.0.size`. Parts of a list are told apart by their `number`. Pure.
    """
    return [path for path, mark in _differing(old, new) if mark is when]


def _differing(old: Any, new: Any) -> Iterator[tuple[str, Applies]]:
    for name, field in type(new).model_fields.items():
        before, now = getattr(old, name), getattr(new, name)
        if before == now:
            continue
        mark = next((item for item in field.metadata if isinstance(item, Applies)), None)
        if mark:
            yield name, mark
        elif isinstance(now, BaseModel) and isinstance(before, BaseModel):
            yield from ((f"{name}.{rest}", part) for rest, part in _differing(before, now))
        elif isinstance(now, tuple):
            had = {getattr(item, "number", None): item for item in before}
            for item in now:
                number = getattr(item, "number", None)
                if number is not None and number in had:
                    parts = _differing(had[number], item)
                    yield from ((f"{name}.{number}.{rest}", part) for rest, part in parts)
