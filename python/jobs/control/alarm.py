"""Waking at a moment of the wall clock, whatever is done to the clock meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from jobs.clock import wall_ms

CLOCK_CHECK_S: Final = 1.0
"""Longest sleep towards a moment: a step of the wall clock is noticed this soon."""
SET_BACK_MS: Final = 1_000
"""A clock that has gone back by more than this was set."""


class Alarm:
    """Rings once when its moment has come, or early when the clock was set back: then moments are to be found anew.

    `on_set_back` is called before such an early ring.
    """

    def __init__(self, ring: Callable[[], None], on_set_back: Callable[[], None] = lambda: None) -> None:
        self._ring = ring
        self._on_set_back = on_set_back
        self._due_ms: int | None = None
        self._seen_ms = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def due_ms(self) -> int | None:
        """The moment at which it rings."""
        return self._due_ms

    def set(self, due_ms: int | None) -> None:
        """Ring at this moment instead, or not at all."""
        self.stop()
        if due_ms is not None:
            self._due_ms = due_ms
            self._sleep(due_ms, wall_ms())

    def stop(self) -> None:
        self._due_ms = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sleep(self, due_ms: int, now_ms: int) -> None:
        self._seen_ms = now_ms
        delay_s = min(CLOCK_CHECK_S, max(0.0, (due_ms - now_ms) / 1000))
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        assert self._due_ms is not None, "a stopped alarm has no timer"
        now_ms = wall_ms()
        set_back = now_ms < self._seen_ms - SET_BACK_MS
        if now_ms < self._due_ms and not set_back:
            self._sleep(self._due_ms, now_ms)
            return
        self.stop()
        if set_back:
            self._on_set_back()
        self._ring()
