"""The wall clock as the code under test reads it: real time, as far ahead or behind as a test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

import pytest

from jobs.control import alarm
from tests.support.plane import Plane


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


Scenario = Callable[[Plane, Clock], Awaitable[None]]


def play(tmp_path: Path, clock: Clock, scenario: Scenario, **settings: object) -> None:
    """Play a scenario on a control plane by this clock."""

    async def inner() -> None:
        async with asyncio.timeout(60), Plane(tmp_path, **settings) as plane:
            await scenario(plane, clock)

    asyncio.run(inner())
