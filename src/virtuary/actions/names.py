"""Names for servers whose owner gave none."""

from __future__ import annotations

import secrets
from collections.abc import Container

_FIRST = (
    "amber",
    "brave",
    "calm",
    "clear",
    "eager",
    "early",
    "fair",
    "fleet",
    "gentle",
    "glad",
    "keen",
    "kind",
    "light",
    "lively",
    "mild",
    "neat",
    "noble",
    "quick",
    "quiet",
    "ready",
    "sunny",
    "swift",
)
_SECOND = (
    "alder",
    "aspen",
    "badger",
    "beech",
    "birch",
    "brook",
    "cedar",
    "crane",
    "falcon",
    "finch",
    "hazel",
    "heron",
    "larch",
    "linden",
    "lynx",
    "maple",
    "marten",
    "otter",
    "pine",
    "rowan",
    "willow",
    "wren",
)


def made_up(taken: Container[str]) -> str:
    """A readable name that is not in `taken`."""
    for _ in range(50):
        name = f"{secrets.choice(_FIRST)}-{secrets.choice(_SECOND)}"
        if name not in taken:
            return name
    return f"{secrets.choice(_FIRST)}-{secrets.choice(_SECOND)}-{secrets.token_hex(3)}"
