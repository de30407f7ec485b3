"""Measures other machines by ssh, without an agent on them: the history sysstat kept there, or
samples of /proc.

One ssh session a machine, opened from here with the caller's own keys and configuration. What runs
there is one fixed script on the standard input of `sh`; no word of the user's gets into a shell. It
reads, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO, Any

import click

from virtuary.base.errors import Invalid, VirtuaryError
from virtuary.base.proc import find_program, last_line
from virtuary.base.text import shown
from virtuary.cli.options import Duration
from virtuary.cli.output import output_option, say, tell
from virtuary.cli.sampling import COLUMNS, Reader, Row, script

MOST = 256
MAX_LINE = 1 << 20
_HOST = re.compile(r"[A-Za-z0-9_.:%\[\]][A-Za-z0-9_.:%\[\]@-]{0,254}")
Event = tuple[str, list[Row] | str | None]
"""A host, and rows of it; the sentence it failed with; or None once it has told everything."""


def check_host(text: str) -> str:
    """What ssh takes as a destination: HOST or USER@HOST, never an option. Raises Invalid."""
    if not _HOST.fullmatch(text):
        raise Invalid(
            f"{text[:80]!r} is not a host that ssh can be told",
            "write HOST, USER@HOST or a name from ~/.ssh/config",
        )
    return text


def ssh_words(host: str, config: str | None) -> list[str]:
    """The ssh command; never asks, gives up on a host that is silent."""
    options = (
        "BatchMode=yes",
        "ConnectTimeout=15",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=4",
        "ClearAllForwardings=yes",
    )
    words = [find_program("ssh"), "-T", *(["-F", config] if config else [])]
    for option in options:
        words += ["-o", option]
    return [*words, "--", check_host(host), "sh", "-s"]


@click.command()
@click.argument("hosts", nargs=-1, required=True, metavar="[USER@]HOST...")
@click.option(
    "--for",
    "seconds",
    type=Duration(),
    default="1h",
    help="How long to measure where there is no history; 1h when not given.",
)
@click.option(
    "--every",
    type=Duration(),
    default="10s",
    help="How often to measure, in whole seconds; 10s when not given.",
)
@click.option("--sample", is_flag=True, help="Measure now, also where sysstat kept a history.")
@click.option(
    "--ssh-config",
    type=click.Path(exists=True, dir_okay=False),
    help="Configuration for ssh instead of ~/.ssh/config.",
)
@output_option
def gather_command(
    hosts: tuple[str, ...],
    seconds: float,
    every: float,
    sample: bool,
    ssh_config: str | None,
    output: str,
) -> None:
    """Measure machines by ssh, and print what `plan consolidate` reads. Nothing is installed on
    them.

    Where sysstat kept a history (sar), it is taken whole: weeks, at once. Elsewhere /proc is
    sampled for a while; an hour tells about that hour only, so let it run for a week, or gather at
    different hours into one file. Ends with 4 when a machine could not be measured; the others are
    printed.

    \b
    Examples:
      virtuary plan gather db1 web1 admin@web2 > loads.csv
      virtuary plan gather db1 --sample --for 7d --every 5m > loads.csv
    """
    if every < 1 or seconds < every:
        raise Invalid(
            "--every must be a second at least, and no longer than --for",
            "for example --for 1h --every 10s",
        )
    if len(hosts) > MOST or len(set(hosts)) < len(hosts):
        raise Invalid(
            f"at most {MOST} machines at once, each named once",
            "gather the others with another call, into another file",
        )
    commands = {host: ssh_words(host, ssh_config) for host in hosts}
    printer = _Printer(output)
    failed = 0
    for host, what in listen(commands, script(not sample, seconds, every)):
        if isinstance(what, str):
            failed += 1
            say(f"{host}: {what}")
        elif what is not None:
            printer.rows(host.rpartition("@")[2], what)
    printer.end()
    if failed:
        raise click.exceptions.Exit(4)


class _Printer:
    """CSV as it comes; JSON at the end; nothing else is a table of measurements."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.items: list[dict[str, Any]] = []
        self.writer = csv.writer(sys.stdout, lineterminator="\n")
        if form == "table":
            self.writer.writerow(COLUMNS)
            sys.stdout.flush()

    def rows(self, server: str, rows: list[Row]) -> None:
        for row in rows:
            cells = row.cells(server)
            if self.form == "table":
                self.writer.writerow([shown(cell) for cell in cells])
            else:
                self.items.append(
                    {
                        key: cell if number < 2 else float(cell)
                        for number, (key, cell) in enumerate(zip(COLUMNS, cells, strict=True))
                    }
                )
        sys.stdout.flush()

    def end(self) -> None:
        if self.form == "json":
            tell(json.dumps(self.items, indent=2))
        elif self.form == "yaml":
            import yaml

            tell(yaml.safe_dump(self.items, sort_keys=False), end="")
        elif self.form == "name":
            tell("\n".join(dict.fromkeys(item["server"] for item in self.items)))


def listen(commands: dict[str, list[str]], text: str) -> Iterator[Event]:
    """Run every host's command with `text` on its stdin and tell what each says, as it comes. Ends
    what it started.
    """
    events: queue.Queue[Event] = queue.Queue()
    with ExitStack() as stack:
        for host, words in commands.items():
            errors = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
            thread = threading.Thread(
                target=_follow, args=(host, process, text, errors, events.put), daemon=True
            )
            stack.callback(thread.join, 5)
            stack.callback(_end, process)
            thread.start()
        left = len(commands)
        while left:
            host, what = events.get()
            left -= what is None or isinstance(what, str)
            yield host, what


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process with all that it started: what holds its output open would be waited for."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _follow(
    host: str,
    process: subprocess.Popen[bytes],
    text: str,
    errors: IO[bytes],
    tell: Callable[[Event], None],
) -> None:
    """One host, to its end; the last thing told is None or the sentence it failed with."""
    try:
        count = _feed(host, process, text, tell)
        status = process.wait()
    except (ValueError, VirtuaryError) as error:
        _end(process)
        tell((host, f"it said something that can't be understood: {str(error)[:200]}"))
        return
    except OSError as error:
        tell((host, f"it went away: {error.strerror}"))
        return
    if status == 0 and count:
        tell((host, None))
        return
    errors.seek(0)
    words = last_line(errors.read(65536))
    tell((host, words or ("it said nothing" if status == 0 else f"ssh ended with status {status}")))


def _feed(
    host: str, process: subprocess.Popen[bytes], text: str, tell: Callable[[Event], None]
) -> int:
    """Hand the script over and take what comes back; how many rows there were."""
    assert process.stdin and process.stdout
    try:
        process.stdin.write(text.encode())
        process.stdin.close()
    except BrokenPipeError:
        return 0
    reader, count = Reader(), 0
    while raw := process.stdout.readline(MAX_LINE + 1):
        if len(raw) > MAX_LINE:
            raise ValueError("an answer without an end")
        if rows := reader.take(raw.decode(errors="replace").rstrip("\n")):
            count += len(rows)
            tell((host, rows))
    return count
