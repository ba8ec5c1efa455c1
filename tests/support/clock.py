"""The wall clock as the code under test reads it: real time, as far ahead or behind as a test says."""

from __future__ import annotations

import time
from datetime import datetime

import pytest

from jobs.control import alarm


class Clock:
    """A clock that can be set. Steps are noticed sooner than in production, so that tests do not wait for them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._ahead_ns = 0
        patch.setattr("jobs.clock.time_ns", lambda: time.time_ns() + self._ahead_ns)
        patch.setattr(alarm, "CLOCK_CHECK_S", 0.02)

    def now_ms(self) -> int:
        return (time.time_ns() + self._ahead_ns) // 1_000_000

    def set(self, moment: str) -> None:
        """Set it to a moment in ISO 8601, with its zone."""
        self._ahead_ns = int(datetime.fromisoformat(moment).timestamp() * 1e9) - time.time_ns()

    def jump(self, by_s: float) -> None:
        self._ahead_ns += int(by_s * 1e9)
