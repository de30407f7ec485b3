"""The live table of what servers and their host use."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from virtuary.base.errors import PeerAway
from virtuary.base.text import shown as shown_text
from virtuary.base.units import parse_duration
from virtuary.cli.figures import HEAD, ORDERS, host_line, ordered, row
from virtuary.cli.options import Duration
from virtuary.cli.output import columns, emit, output_option, print_table, tell
from virtuary.client.start import connect
from virtuary.client.wire import Wire

KEYS = {"c": "cpu", "m": "memory", "d": "disk", "n": "network", "a": "name"}
FASTEST = parse_duration("200ms")
EMPTY = "no servers yet: virtuary launch debian"


@click.command()
@click.option("--every", type=Duration(), default="1s", help="Refresh after so long.")
@click.option(
    "--sort", type=click.Choice([*ORDERS, "name"]), default="cpu", help="What comes first."
)
@click.option("--once", is_flag=True, help="Print one table and end; so it is without a terminal.")
@output_option
def top_command(every: float, sort: str, once: bool, output: str) -> None:
    """Watch what servers and this host use. Ends with q or Ctrl-C; c, m, d, n and a sort by cpu,
    memory, disk, network and name.

    CPU is percent of one processor; STEAL is time a server was ready to run and waited for the
    host. MEMORY is the host's that it occupies, IN GUEST what its own system uses. The guest's
    figures are some seconds old.

    \b
    Examples:
      virtuary top
      virtuary top --once --sort memory
      virtuary top -o json
    """
    wire = connect()
    if output == "table" and not once and sys.stdout.isatty():
        return _live(wire, max(every, FASTEST), sort)
    found = wire.call("GET", "/v1/usage")
    found["vms"] = ordered(found["vms"], sort)

    def table() -> None:
        tell(f"host: {host_line(found['host'])}")
        print_table(HEAD, [row(vm) for vm in found["vms"]], EMPTY)

    emit(found if output != "name" else found["vms"], output, table, lambda vm: str(vm["name"]))


def _live(wire: Wire, every: float, sort: str) -> None:
    with _screen() as keys:
        while True:
            try:
                found, trouble = wire.call("GET", "/v1/usage"), ""
            except PeerAway as error:  # it is perhaps being restarted
                found, trouble = None, error.sentence
            _draw(found, sort, trouble)
            key = _key(every, keys)
            if key in ("q", "\x03", "\x04"):
                return
            sort = KEYS.get(key, sort)


def _draw(found: dict[str, Any] | None, sort: str, trouble: str) -> None:
    """One frame; nothing wraps, and what has no place is counted."""
    wide, high = shutil.get_terminal_size()
    lines = frame(found, sort, high) if found else [shown_text(trouble)]
    sys.stdout.write(
        "\033[H" + "".join(f"{line[:wide]}\033[K\r\n" for line in lines[: high - 1]) + "\033[J"
    )
    sys.stdout.flush()


def frame(found: dict[str, Any], sort: str, high: int) -> list[str]:
    """The lines of a screen so many lines high."""
    vms = ordered(found["vms"], sort)
    room = max(1, high - 5)
    shown = vms[:room]
    table = columns(HEAD, [row(vm) for vm in shown]) if shown else [EMPTY]
    more = [f"... and {len(vms) - room} more"] if len(vms) > room else []
    return [f"host: {host_line(found['host'])}", "", *table, *more]


@contextlib.contextmanager
def _screen() -> Iterator[bool]:
    """The terminal's other screen, without a cursor; says whether keys can be read. What was there
    before comes back.
    """
    import termios
    import tty

    keys = sys.stdin.isatty()
    before = termios.tcgetattr(sys.stdin) if keys else None
    sys.stdout.write("\033[?1049h\033[?25l")
    try:
        if keys:
            tty.setcbreak(sys.stdin)
        yield keys
    finally:
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        sys.stdout.write("\033[?25h\033[?1049l")
        sys.stdout.flush()


def _key(seconds: float, keys: bool) -> str:
    """The next key within so many seconds, or nothing."""
    import select

    if not keys:
        time.sleep(seconds)
        return ""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return ""
    return os.read(sys.stdin.fileno(), 1).decode(errors="replace") or "q"
