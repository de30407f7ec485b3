"""What a peer said, read with suspicion: QEMU's monitor, the guest agent and whoever answers for
them may be an adversary's.

`parse` makes JSON of a line within 5 ms or refuses it: how deep it nests and of how many parts it
is made is counted before it is parsed, by scans that take a millisecond. QEMU and its agent write
all but ASCII as escapes, so a line is ASCII. `read` gives what is in it by its type. Whatever else
it is, Misbehaves is raised: nothing else comes out.
"""

from __future__ import annotations

import json
from typing import NoReturn, overload

from virtuary.base.errors import Misbehaves
from virtuary.base.text import shown

LINE_CAP = 1024 * 1024
"""Bytes of a line."""
DEPTH_CAP = 32
PARTS_CAP = 16_384
"""Commas, colons and opening brackets outside of strings: memory and time go by them."""
OUTSIDE_CAP = 8 * PARTS_CAP
"""Bytes outside of strings: a number of many digits takes long."""
MARKS_CAP = 4 * PARTS_CAP
"""Quotation marks and backslashes."""
LARGEST = 2**63 - 1
TEXT_CAP = 4096
"""Characters of a text: paths, names and states are shorter."""
_BUT_MARKS = bytes(set(range(256)) - set(b'"\\'))
_BUT_PARTS = bytes(set(range(256)) - set(b",:[]{}"))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_MISSING = object()


def parse(line: bytes, who: str = "QEMU") -> object:
    """The JSON value in a line; raises Misbehaves where it is none, or one that would take long."""
    if len(line) > LINE_CAP:
        raise Misbehaves(f"{who} answered more than {LINE_CAP} bytes in a line")
    _check(line, who)
    try:
        value: object = json.loads(line.decode("ascii"), parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Misbehaves(f"{who} answered something that is not JSON") from None
    return value


def _check(line: bytes, who: str) -> None:
    if len(line.translate(None, _BUT_MARKS)) > MARKS_CAP:
        raise Misbehaves(f"{who} answered too many words")
    outside = b"".join(line.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    parts = outside[: OUTSIDE_CAP + 1].translate(_ONE_KIND, _BUT_PARTS)
    if len(outside) > OUTSIDE_CAP or len(parts) - parts.count(b"]") > PARTS_CAP:
        raise Misbehaves(f"{who} answered too many values")
    brackets = parts.translate(None, b",:")
    for _ in range(DEPTH_CAP):
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise Misbehaves(f"{who} answered values nested more than {DEPTH_CAP} deep")


def _refuse(word: str) -> NoReturn:
    raise ValueError(word)


class Answer:
    """A value somebody said, or a part of it. With a name: what is under that name of it, or
    `default` where nothing is.
    """

    __slots__ = ("_value", "_what", "_who")

    def __init__(self, value: object, who: str, what: str = "") -> None:
        self._value, self._who, self._what = value, who, what

    def _is_not(self, wanted: str) -> Misbehaves:
        return Misbehaves(
            f"{self._who} answered something unexpected: {self._what or 'what it said'} is not "
            f"{wanted}"
        )

    def _part(self, name: str | None, default: object = _MISSING) -> object:
        if name is None:
            return self._value
        if not isinstance(self._value, dict):
            raise self._is_not("an object")
        value = self._value.get(name, default)
        if value is _MISSING:
            raise Misbehaves(f"{self._who} answered something unexpected: it says no {name}")
        return value

    def _at(self, name: str | None) -> Answer:
        return Answer(self._part(name), self._who, name or self._what)

    def value(self, name: str | None = None) -> object:
        """What it is, whatever that is."""
        return self._part(name)

    def __contains__(self, name: str) -> bool:
        return isinstance(self._value, dict) and name in self._value

    def inner(self, name: str | None = None) -> Answer:
        """An object; an empty one, where a name is not there."""
        found = Answer(self._part(name, {}), self._who, name or self._what)
        if not isinstance(found._value, dict):
            raise found._is_not("an object")
        return found

    def items(self, name: str | None = None) -> list[Answer]:
        """What a list holds; nothing, where a name is not there."""
        value = self._part(name, [])
        if not isinstance(value, list):
            raise self._at(name)._is_not("a list")
        return [
            Answer(item, self._who, f"a part of {name or self._what or 'it'}") for item in value
        ]

    def fields(self, name: str | None = None) -> dict[str, Answer]:
        """What an object holds, by its names."""
        value = self.inner(name)._value
        assert isinstance(value, dict)
        return {
            key: Answer(item, self._who, f"a part of {name or self._what or 'it'}")
            for key, item in value.items()
        }

    @overload
    def text(self, name: str | None = None, *, most: int = TEXT_CAP) -> str: ...
    @overload
    def text(self, name: str, default: str, *, most: int = TEXT_CAP) -> str: ...
    @overload
    def text(self, name: str, default: None, *, most: int = TEXT_CAP) -> str | None: ...
    def text(
        self, name: str | None = None, default: object = _MISSING, *, most: int = TEXT_CAP
    ) -> object:
        """A text of at most so many characters that can be written down; halves of surrogate pairs
        can't.
        """
        value = self._part(name, default)
        if value is default:
            return value
        if not isinstance(value, str) or len(value) > most or not _writable(value):
            raise self._at(name)._is_not(f"a text of at most {most} characters")
        return value

    @overload
    def number(self, name: str | None = None, *, least: int = 0, most: int = LARGEST) -> int: ...
    @overload
    def number(self, name: str, default: int, *, least: int = 0, most: int = LARGEST) -> int: ...
    def number(
        self,
        name: str | None = None,
        default: object = _MISSING,
        *,
        least: int = 0,
        most: int = LARGEST,
    ) -> object:
        """A whole number from `least` to `most`."""
        value = self._part(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise self._at(name)._is_not(f"a number from {least} to {most}")
        return value

    def sensible(self, name: str | None = None, limit: int = LARGEST) -> int | None:
        """A whole number below `limit`, or nothing: for one of many that a guest may have left out
        or made up.
        """
        value = self._part(name, None)
        return (
            value
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit
            else None
        )

    def flag(self, name: str | None = None, default: bool = False) -> bool:
        """Yes or no; `default` where a name is not there."""
        value = self._part(name, default)
        if not isinstance(value, bool):
            raise self._at(name)._is_not("true or false")
        return value

    def words(self, name: str, otherwise: str, most: int = 300) -> str:
        """A text for people, as it may be shown; `otherwise` where there is none that can be."""
        value = self._part(name, None)
        return (shown(value[: 4 * most])[:most] if isinstance(value, str) else "") or otherwise


def read(value: object, who: str = "QEMU") -> Answer:
    """What `who` said, to be read by its type."""
    return Answer(value, who)


def _writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
