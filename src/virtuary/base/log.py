"""Structured log: one line an event, `key=value`, control characters escaped, fields capped; journald priorities on request."""

from __future__ import annotations

import logging
import os
import sys
import time

from virtuary.base.text import shown

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
FIELD_CAP = 500


class _Line(logging.Formatter):
    def __init__(self, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = clean(record.getMessage(), 4000)
        if record.exc_info:
            text += " traceback=" + clean(self.formatException(record.exc_info), 8000)
        if self._journal:
            return f"<{_PRIORITY.get(record.levelno, 6)}>{text}"
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return f"{moment} {record.levelname.lower():7} {text}"


def clean(text: str, cap: int = FIELD_CAP) -> str:
    """`text` in one line without control characters, at most `cap` characters."""
    return shown(text[:cap].replace("\n", "\\n"), instead="?")


def say(logger: logging.Logger, what: str, level: int = logging.INFO, **fields: object) -> None:
    """Log `what` with `fields`; values with spaces are quoted."""
    words = [what]
    for key, value in fields.items():
        text = clean(str(value))
        words.append(f'{key}="{text}"' if " " in text or not text else f"{key}={text}")
    logger.log(level, "%s", " ".join(words))


def set_up(level: str = "info") -> None:
    """Log to stderr; with priorities when journald reads it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(journal="JOURNAL_STREAM" in os.environ))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("asyncio", "httpx2", "httpcore2", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
