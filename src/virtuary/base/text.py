"""The one door through which text of guests, images and users is shown: what could move a cursor,
change a terminal or turn the reading direction does not pass.

What passes is what is drawn, and spaces: no control character (C0, DEL, C1), no mark that is not
drawn (bidirectional overrides and isolates, zero-width characters), no half of a surrogate pair.
Line breaks and tabs stay only where lines are asked for.
"""

from __future__ import annotations

import codecs
import re
from typing import Any

_ODD = re.compile(r"[^ -~]")
LONGEST = 64
"""Characters of an escape sequence that is waited for."""
_BREAKS = re.compile(r"[\r\n\t]+")
_SEQUENCE = re.compile(
    "(?:\x1b\\[|\x9b)[0-?]*[ -/]*[@-~]"
    "|(?:\x1b[\\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\\\|\x9c)"
    "|\x1b[ -/]*[0-OQ-WYZ\\\\`-~]"
)
"""Of a terminal: CSI; strings (OSC, DCS, SOS, PM, APC) with their end; every other escape. A string
without an end loses its beginning alone.
"""


def shown(text: str | bytes, most: int | None = None, instead: str = "") -> str:
    """`text` as it may be shown within a line: each run of breaks is one space. At most so many
    characters, of its end.
    """
    whole = text.decode(errors="replace") if isinstance(text, bytes) else text
    line = _passed(_BREAKS.sub(" ", whole), "", instead).strip()
    return line if most is None else line[-most:]


def shown_lines(text: str) -> str:
    """What a terminal was told, as it may be shown: its line breaks and tabs kept, its escape
    sequences gone as a whole.
    """
    return _passed(_SEQUENCE.sub("", text), "\n\t")


def _passed(text: str, kept: str, instead: str = "") -> str:
    return _ODD.sub(
        lambda found: found[0] if found[0].isprintable() or found[0] in kept else instead, text
    )


def shown_value(value: Any) -> Any:
    """A JSON value with every text in it as it may be shown."""
    if isinstance(value, str):
        return shown_lines(value)
    if isinstance(value, dict):
        return {shown_value(name): shown_value(item) for name, item in value.items()}
    return [shown_value(item) for item in value] if isinstance(value, list | tuple) else value


class Stream:
    """Bytes that come piece by piece: a character may be cut by the end of a piece, an escape
    sequence too.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._kept = ""

    def text(self, piece: bytes) -> str:
        """What of it can be told now, for `shown_lines`: a sequence that is not whole yet waits for
        the next piece, unless it is long.
        """
        text = self._kept + self._decoder.decode(piece)
        begun = max(text.rfind("\x1b", -LONGEST), text.rfind("\x9b", -LONGEST))
        cut = len(text) if begun < 0 or _SEQUENCE.match(text, begun) else begun
        self._kept = text[cut:]
        return text[:cut]
