"""Following an operation: its stages with their times, one live line on a terminal, a line per
change elsewhere.

Ctrl-C stops following, not the operation; it says how to follow it again and how to cancel it.
"""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

from virtuary.base.errors import GuestSilent, PeerAway, VirtuaryError, from_problem
from virtuary.base.text import shown
from virtuary.base.units import format_duration
from virtuary.cli.output import colours, say
from virtuary.client.start import start_again
from virtuary.client.wire import Wire
from virtuary.model.keys import key_of

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Interrupted(VirtuaryError):
    """Following was interrupted; the operation goes on."""

    exit_code = 130


class _Screen:
    """What is shown while following."""

    def __init__(self, quiet: bool) -> None:
        self.live = sys.stderr.isatty() and colours(sys.stderr) and not quiet
        self.quiet = quiet
        self.began = self.since = time.monotonic()
        self.stage = self.text = ""
        self.progress: float | None = None
        self.turn = self.told = 0

    def show(self, status: dict[str, Any]) -> None:
        """Bring the screen up to a state of the operation: every log line once, the last one
        alive. What the operation failed with is left to whoever tells of errors.
        """
        self.progress = status["progress"]
        texts = [line["text"] for line in status["log"]]
        if texts and texts[-1] == (status.get("error") or {}).get("detail"):
            texts.pop()
        lines = [shown(text) for text in texts]
        for text in lines[self.told :]:
            self._settle()
            self.text, self.since = text, time.monotonic()
            if not self.live and not self.quiet:
                say(f"{format_duration(self.since - self.began):>9}  {text}")
        self.told = max(self.told, len(lines))
        self.stage = status["stage"]
        self.tick()

    def _settle(self) -> None:
        """Turn the live line into a finished one, with the time it took; what took no time was a
        remark.
        """
        took = time.monotonic() - self.since
        if self.live and self.text:
            sign, end = (
                ("\033[32m✓\033[0m", f"  \033[2m{format_duration(took)}\033[0m")
                if took > 0.05
                else ("\033[2m·\033[0m", "")
            )
            self._line(f"{sign} {self.text}{end}\n")
        self.text = ""

    def tick(self) -> None:
        """Move the live line on; it never wraps."""
        if not self.live or not self.text:
            return
        self.turn += 1
        share = f" {self.progress * 100:.0f} %" if self.progress is not None else ""
        took = format_duration(time.monotonic() - self.since)
        room = shutil.get_terminal_size().columns - len(share) - len(took) - 6
        text = self.text if len(self.text) <= room else self.text[: room - 1] + "…"
        self._line(f"{SPINNER[self.turn % len(SPINNER)]} {text}{share}  \033[2m{took}\033[0m")

    def _line(self, text: str) -> None:
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()

    def close(self, good: bool) -> None:
        if good:
            self._settle()
        elif self.live:
            self._line("")


def follow(
    wire: Wire, operation: dict[str, Any], *, quiet: bool = False, limit: float | None = None
) -> dict[str, Any]:
    """Wait for the end of an operation and show its way; the ended operation. Raises what it failed
    with.
    """
    key, identity = key_of("operation", operation["meta"]["id"]), operation["meta"]["id"]
    screen = _Screen(quiet)
    try:
        while True:
            try:
                status = _until_end(wire, key, identity, screen, limit)
                break
            except VirtuaryError as error:
                if error.code not in ("peer-away", "compacted"):
                    raise
                _reach_again(wire, identity)
    except KeyboardInterrupt:
        screen.close(False)
        raise Interrupted(
            "stopped following; the operation goes on",
            f"virtuary operation wait {identity[:8]} follows it, virtuary operation cancel "
            f"{identity[:8]} ends it",
        ) from None
    screen.close(status["status"]["phase"] == "done")
    return _judge(status)


AWAY = 60.0
"""Seconds for which a daemon is waited for that went away while an operation was followed."""


def _reach_again(wire: Wire, identity: str) -> None:
    """Have the daemon answer that is being restarted, or was killed: what it did goes on as soon as
    there is one again. Raises PeerAway with how to follow the operation then.
    """
    until = time.monotonic() + AWAY
    try:
        while True:
            time.sleep(0.5)
            start_again(wire)
            try:
                wire.call("GET", f"/v1/operations/{identity}")
                return
            except PeerAway:
                if time.monotonic() > until:
                    raise
    except PeerAway as error:
        raise PeerAway(
            f"{error.sentence}; the operation goes on as soon as the daemon runs",
            f"virtuary operation wait {identity[:8]} follows it then",
        ) from error


def _until_end(
    wire: Wire, key: str, identity: str, screen: _Screen, limit: float | None
) -> dict[str, Any]:
    current: dict[str, Any] = wire.call("GET", f"/v1/operations/{identity}")
    screen.show(current["status"])
    if _ended(current):
        return current
    for event in wire.events(key, since=current["meta"]["revision"]):
        if event is None:
            screen.tick()
        elif event["event"] == "operation.changed":
            current = event["data"]
            screen.show(current["status"])
        if _ended(current):
            return current
        if limit is not None and time.monotonic() - screen.began > limit:
            screen.close(False)
            why = f"; {shown(current['status']['why'])}" if current["status"].get("why") else ""
            raise GuestSilent(
                f"{current['spec']['target_name']} is not ready after {format_duration(limit)}; "
                f"last stage: {screen.stage}{why}",
                f"it goes on: virtuary operation wait {identity[:8]} follows it, virtuary logs "
                f"{current['spec']['target_name']} shows its console",
                operation=identity,
            )
    return _until_end(wire, key, identity, screen, limit)


def _ended(operation: dict[str, Any]) -> bool:
    return operation["status"]["phase"] in ("done", "failed", "cancelled")


def _judge(operation: dict[str, Any]) -> dict[str, Any]:
    phase = operation["status"]["phase"]
    if phase == "failed":
        error = from_problem(operation["status"]["error"] or {})
        raise error
    if phase == "cancelled":
        from virtuary.base.errors import Failed

        raise Failed(f"the operation was cancelled ({operation['status']['stage']})")
    return operation
