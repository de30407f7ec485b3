"""Advice on the size of a server: what was found, why, and the change that mends it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from virtuary.model.meta import Model

Verdict = Literal["too-big", "too-small", "right", "unknown"]
Confidence = Literal["low", "medium", "high"]


class Finding(Model):
    """What was found about one resource of a server."""

    resource: Literal["cpus", "memory"]
    verdict: Verdict
    evidence: tuple[str, ...] = ()
    """What it was concluded from, in words."""
    confidence: Confidence = "low"
    now: int
    wanted: int | None = None
    """What it should have instead; None when no change of this server would help."""


class Advice(Model):
    id: str
    name: str
    revision: int
    """Of the document that was looked at; a change can insist on it."""
    state: str
    watched: int
    """Seconds of history it is drawn from."""
    findings: tuple[Finding, ...] = ()
    change: dict[str, dict[str, int]] = Field(default_factory=dict)
    """What to change, as PATCH takes it: `{"memory": {"size": 1073741824}}`."""
    command: str | None = None
    """The same as a command."""
    saves: dict[str, int] = Field(default_factory=dict)
    """What the change gives back to the host; negative where it takes."""
