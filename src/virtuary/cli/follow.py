"""Following an operation: its stages with their times, one live line on a terminal, a line per change elsewhere.

Ctrl-C stops following, not the operation; it says how to follow it again and how to cancel it.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from virtuary.base.errors import GuestSilent, VirtuaryError, from_problem
from virtuary.base.units import format_duration
from virtuary.cli.output import colours, say
from virtuary.client.wire import Wire

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
        self.turn = 0

    def show(self, status: dict[str, Any]) -> None:
        log = status["log"]
        stage, text = status["stage"], log[-1]["text"] if log else status["phase"]
        if stage == self.stage and text == self.text:
            self.progress = status["progress"]
            return
        self._settle(stage != self.stage)
        if not self.live and not self.quiet and text and text != self.text:
            say(f"{format_duration(time.monotonic() - self.began):>9}  {text}")
        self.stage, self.text, self.progress = stage, text, status["progress"]
        self.tick()

    def _settle(self, new_stage: bool) -> None:
        now = time.monotonic()
        if self.live and self.text and new_stage:
            took = format_duration(now - self.since)
            self._line(f"\033[32m✓\033[0m {self.text}  \033[2m{took}\033[0m\n")
        if new_stage:
            self.since = now

    def tick(self) -> None:
        if not self.live or not self.text:
            return
        self.turn += 1
        share = f" {self.progress * 100:.0f} %" if self.progress is not None else ""
        took = format_duration(time.monotonic() - self.since)
        self._line(f"{SPINNER[self.turn % len(SPINNER)]} {self.text}{share}  \033[2m{took}\033[0m")

    def _line(self, text: str) -> None:
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()

    def close(self, good: bool) -> None:
        if self.live and self.text:
            if good:
                self._settle(True)
            else:
                self._line("")


def follow(wire: Wire, operation: dict[str, Any], *, quiet: bool = False, limit: float | None = None) -> dict[str, Any]:
    """Wait for the end of an operation and show its way; the ended operation. Raises what it failed with."""
    key, identity = f"operation/{operation['meta']['id']}", operation["meta"]["id"]
    screen = _Screen(quiet)
    try:
        while True:
            try:
                status = _until_end(wire, key, identity, screen, limit)
                break
            except VirtuaryError as error:
                if error.code not in ("peer-away", "compacted"):
                    raise
                time.sleep(0.5)  # the daemon is being restarted: what it does goes on afterwards
                wire.call("GET", f"/v1/operations/{identity}")
    except KeyboardInterrupt:
        screen.close(False)
        raise Interrupted(
            "stopped following; the operation goes on",
            f"virtuary operation wait {identity[:8]} follows it, virtuary operation cancel {identity[:8]} ends it",
        ) from None
    screen.close(status["status"]["phase"] == "done")
    return _judge(status)


def _until_end(wire: Wire, key: str, identity: str, screen: _Screen, limit: float | None) -> dict[str, Any]:
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
            raise GuestSilent(
                f"{current['spec']['target_name']} is not ready after {format_duration(limit)}; last stage: {screen.stage}",
                f"it goes on: virtuary operation wait {identity[:8]} follows it, virtuary logs {current['spec']['target_name']} shows its console",
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
