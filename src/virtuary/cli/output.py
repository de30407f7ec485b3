"""How answers look: tables for people, JSON, YAML or names for programs. Data on stdout, everything
else on stderr.

Everything the command line prints passes here, and so the door of `base/text.py`: guests, images
and users choose many of these words. What a terminal is to be told, such as bold type, is added
behind that door.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from virtuary.base.errors import Invalid, VirtuaryError
from virtuary.base.text import shown, shown_lines, shown_value

_ODD = re.compile(r'\\[^"\\/nt]|\x7f')
"""What JSON escapes beside quotes, line ends and tabs: controls, and all that is not ASCII."""
FORMATS = ("table", "json", "yaml", "name")


def output_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default=lambda: os.environ.get("VIRTUARY_OUTPUT", "table"),
        help="How to print.",
    )(command)


def emit(
    value: Any,
    form: str,
    table: Callable[[], None] | None = None,
    name: Callable[[Any], str] | None = None,
) -> None:
    """Print `value` in the wanted form; `table` prints it for people."""
    if form == "json":
        print(as_json(value, sys.stdout.isatty()))
    elif form == "yaml":
        import yaml

        tell(yaml.safe_dump(shown_value(value), sort_keys=False, allow_unicode=True), end="")
    elif form == "name":
        items = value if isinstance(value, list) else [value]
        if not name and not all(isinstance(item, dict) and "meta" in item for item in items):
            raise Invalid("what this prints has no name", "-o json prints all of it")
        for item in items:
            tell(name(item) if name else item["meta"]["name"])
    elif table:
        table()


def as_json(value: Any, for_people: bool) -> str:
    """As JSON, on lines of its own for people. Where nothing has to be made harmless nothing is
    gone through: hundreds of documents take time.
    """
    text = json.dumps(value)
    if _ODD.search(text):
        value = shown_value(value)
    elif not for_people:
        return text
    return json.dumps(value, indent=2 if for_people else None, ensure_ascii=False)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """Columns as wide as they need; `empty` says what to do when there is nothing."""
    if not rows:
        say(empty)
        return
    for line in columns(head, rows):
        print(line)


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, the first one its head."""
    cells = [list(head), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return [bold(lines[0]), *lines[1:]]


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in fields), default=0)
    for name, value in fields:
        tell(f"{name.ljust(width)}  {shown(value)}")


def print_title(text: str) -> None:
    """The head of a part."""
    print(f"\n{bold(shown(text))}")


def colours(stream: Any = None) -> bool:
    if os.environ.get("CLICOLOR_FORCE", "0") != "0":
        return True
    if "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb":
        return False
    return bool((stream or sys.stdout).isatty())


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if colours() else text


def ago(moment: str | None) -> str:
    """How long ago an RFC 3339 time was, for people."""
    if not moment:
        return "-"
    from datetime import UTC, datetime

    from virtuary.base.units import format_duration

    seconds = (
        datetime.now(UTC) - datetime.fromisoformat(moment.replace("Z", "+00:00"))
    ).total_seconds()
    return format_duration(max(1, round(seconds)))


def tell(text: str = "", end: str = "\n", flush: bool = False) -> None:
    print(shown_lines(text), end=end, flush=flush)


def say(text: str = "") -> None:
    print(shown_lines(text), file=sys.stderr)


def say_error(error: VirtuaryError) -> None:
    """The sentence, then the hint."""
    red, off = ("\033[31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{red}error:{off} {shown_lines(error.sentence)}", file=sys.stderr)
    if error.hint:
        say(f"hint: {error.hint}")


def ask(question: str) -> None:
    """Ask on a terminal; elsewhere the answer is to be given by --yes."""
    if not sys.stdin.isatty():
        raise Invalid("this can't be undone and nobody is there to ask", "repeat with --yes")
    if not click.confirm(question, err=True):
        raise click.Abort
