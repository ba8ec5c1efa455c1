"""The wall clock, read in one place; pure parts are handed its value."""

from __future__ import annotations

import time


def wall_ms() -> int:
    """Return milliseconds since 1970."""
    return time.time_ns() // 1_000_000
