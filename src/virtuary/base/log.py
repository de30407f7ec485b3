"""Structured log: one line an event, `key=value`, control characters escaped, fields capped;
journald priorities on request.

Where stderr is the daemon's own log file it is begun anew once it is large, whoever opened it
there; the part before stays beside it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from virtuary.base.text import shown

_PRIORITY = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}
FIELD_CAP = 500
LOG_CAP = 8 * 1024 * 1024
"""Bytes of the daemon's log file, and of the one before it."""


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


class _Stderr(logging.StreamHandler[Any]):
    def __init__(self, own: Path | None) -> None:
        super().__init__(sys.stderr)
        self._own = own

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if self._own:
            with contextlib.suppress(OSError):
                begin_anew(self._own)


def begin_anew(log: Path) -> None:
    """Begin the file `log` anew, if stderr leads to it and it is too large; what else leads to it
    follows.
    """
    found = os.fstat(2)
    if found.st_size <= LOG_CAP or not os.path.samestat(found, os.stat(log)):
        return
    os.replace(log, log.with_suffix(".old"))
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for number in (1, 2):
        if os.path.samestat(os.fstat(number), found):
            os.dup2(handle, number)
    os.close(handle)


def set_up(level: str = "info", own: Path | None = None) -> None:
    """Log to stderr; with priorities when journald reads it. `own`: the file that is kept small
    where stderr leads to it.
    """
    handler = _Stderr(own)
    handler.setFormatter(_Line(journal="JOURNAL_STREAM" in os.environ))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("asyncio", "httpx2", "httpcore2", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
