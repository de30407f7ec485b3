"""How much JSON a text holds, told before it is parsed: how deep it nests and of how many parts it
is made.

A MiB of brackets takes a parser seconds and hundreds of MiB; this takes milliseconds at most, since
each step is one pass in C. It does not say whether the text is JSON.
"""

from __future__ import annotations

DEPTH_CAP = 32
PARTS_CAP = 16_384
"""Commas, colons and opening brackets outside of strings: memory and time go by them."""
QUOTES_CAP = 4 * PARTS_CAP
"""Quotation marks that begin or end a string."""
_BUT_PARTS = bytes(set(range(256)) - set(b",:[]{}"))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")


def find_excess(text: bytes) -> str | None:
    """What there is too much of in a text of at most a few MiB, in words; None where it may be
    parsed.
    """
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > QUOTES_CAP:
        return f"more than {QUOTES_CAP // 2} texts"
    parts = b"".join(plain.split(b'"')[::2]).translate(_ONE_KIND, _BUT_PARTS)
    if len(parts) - parts.count(b"]") > PARTS_CAP:
        return f"more than {PARTS_CAP} values"
    brackets = parts.translate(None, b",:")
    for _ in range(DEPTH_CAP):
        brackets = brackets.replace(b"[]", b"")
    if b"[" not in brackets:
        return None
    is_open = brackets.count(b"[") > brackets.count(b"]") and len(brackets) <= DEPTH_CAP
    return (
        "brackets that are not closed" if is_open else f"values nested more than {DEPTH_CAP} deep"
    )
