"""An operation: a deed with a beginning and an end, that survives a crash and can be waited for or
cancelled.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import Field

from virtuary.model.deeds import AnyDeed, Copy
from virtuary.model.meta import Document, Model, utcnow

Phase = Literal["pending", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
LOG_LINES = 200
LINE = 1000
"""Characters of a line that are kept."""


class LogLine(Model):
    at: datetime = Field(default_factory=utcnow)
    text: str


class OperationSpec(Model):
    deed: AnyDeed
    target: str
    """Key of the document it is about, for example vm/<id>."""
    target_name: str
    actor: str = ""
    cancel: bool = False


class OperationStatus(Model):
    phase: Phase = "pending"
    stage: str = ""
    progress: float | None = None
    """Share of the current stage that is done, 0 to 1, where known."""
    log: tuple[LogLine, ...] = ()
    why: str = ""
    """What is known of why it takes longer than usual; empty once that is overcome."""
    error: dict[str, Any] | None = None
    """Problem body (RFC 9457) of a failed operation."""
    started: datetime | None = None
    ended: datetime | None = None


class Operation(Document):
    prefix: ClassVar[str] = "operation"
    spec: OperationSpec
    status: OperationStatus = Field(default_factory=OperationStatus)

    @property
    def copies(self) -> str | None:
        """The id of the server that a copy is being made of."""
        return self.spec.deed.source if isinstance(self.spec.deed, Copy) else None

    @property
    def ended(self) -> bool:
        return self.status.phase in ENDED
