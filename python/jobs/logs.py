"""Structured logging: JSON lines, lines for people or entries of the journal, with the fields of what they are about.

Fields come from `extra={…}` of a call and from `context(…)` around it. Nothing that a job was given (arguments,
environment, input, output) is ever logged.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TextIO

from jobs.journal import JournalHandler, is_journal, priority

if TYPE_CHECKING:
    from jobs.config import Logging

_context: ContextVar[dict[str, Any] | None] = ContextVar("log_context", default=None)
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_COLOURS: Final = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31m"}


@contextlib.contextmanager
def context(**fields: Any) -> Iterator[None]:
    """Add `fields` to every line that is logged inside, also by tasks that are started there."""
    token = _context.set({**(_context.get() or {}), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def setup(config: Logging, *, stream: TextIO | None = None) -> None:
    """Log to `stream` (default standard error) in the configured format and from the configured level on.

    Where the stream is the journal's and no format is asked for, each line is an entry with fields of its own.
    """
    stream = stream or sys.stderr
    terminal, journal = stream.isatty(), is_journal(stream)
    json_lines = config.format == "json" or (config.format == "auto" and not terminal)
    formatter = JsonFormatter() if json_lines else ConsoleFormatter(colour=terminal)
    native = journal and config.format == "auto"
    handler = JournalHandler(stream, fields_of) if native else logging.StreamHandler(stream)
    handler.setFormatter(JournalFormatter(formatter) if journal else formatter)
    logging.basicConfig(level=config.level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


MAX_SUBJECTS: Final = 256


class Seldom:
    """Lets one line about a subject through in so many seconds, for what others bring about as often as they like."""

    def __init__(self, period_s: float = 10.0) -> None:
        self._period_s = period_s
        self._told: dict[str, tuple[float, int]] = {}
        """When a line last passed, and how many did not since."""

    def left_out(self, subject: str) -> int | None:
        """Return how many lines about a subject were left out before this one; None when this is to be left out."""
        now_s = time.monotonic()
        told_s, count = self._told.get(subject, (float("-inf"), 0))
        if subject not in self._told and len(self._told) >= MAX_SUBJECTS:
            self._told.clear()
        if now_s - told_s < self._period_s:
            self._told[subject] = told_s, count + 1
            return None
        self._told[subject] = now_s, 0
        return count


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a line: those of its context, then its own."""
    own = {key: value for key, value in vars(record).items() if key not in _STANDARD and value is not None}
    return {**(_context.get() or {}), **own}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, the fields, and a traceback as `error`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for key, value in fields_of(record).items():
            line.setdefault(key, value)
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, separators=(",", ":"))


class ConsoleFormatter(logging.Formatter):
    """Lines for people: time of day, level, message, `key=value`. Control characters of what is logged are escaped."""

    def __init__(self, *, colour: bool = False) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        moment = f"{time.strftime('%H:%M:%S', time.localtime(record.created))}.{int(record.msecs):03}"
        colour = _COLOURS.get(record.levelname, "") if self._colour else ""
        level = f"{colour}{record.levelname.lower():7}{colour and chr(27) + '[0m'}"
        fields = "".join(f" {key}={_visible(str(value))}" for key, value in fields_of(record).items())
        line = f"{moment} {level} {_visible(record.getMessage())}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JournalFormatter(logging.Formatter):
    """Puts the priority in front of each line, as journald reads it (sd-daemon(3))."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        number = priority(record.levelno)
        return "\n".join(f"<{number}>{line}" for line in self._inner.format(record).splitlines())


def _rfc3339(seconds: float) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{int(seconds % 1 * 1000):03}Z"


def _visible(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()
