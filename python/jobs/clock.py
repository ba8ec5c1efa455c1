"""The wall clock, read in one place; pure parts are handed its value."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from time import time_ns
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def wall_ms() -> int:
    """Return milliseconds since 1970."""
    return time_ns() // 1_000_000


def rfc3339(unix_ms: int, zone: tzinfo = UTC) -> str:
    """Return a moment as text; parts of a second only where there are any."""
    moment = (EPOCH + timedelta(milliseconds=unix_ms)).astimezone(zone)
    text = moment.isoformat(timespec="milliseconds" if unix_ms % 1000 else "seconds")
    return text.replace("+00:00", "Z") if zone is UTC else text
