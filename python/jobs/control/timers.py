"""Brings back the jobs that wait for a time. The store's timer keys are the only list; memory holds the next moment."""

from __future__ import annotations

import asyncio
from typing import Final

from jobs import jobs, keys
from jobs.clock import wall_ms
from jobs.control.tasks import Spawn
from jobs.control.transitions import Transitions
from jobs.store import Store, prefix_end

BATCH: Final = 256
CLOCK_CHECK_S: Final = 1.0
"""Longest sleep towards a known moment: a step of the wall clock is noticed this soon."""


class Timers:
    def __init__(self, store: Store, transitions: Transitions, spawn: Spawn) -> None:
        self._store = store
        self._transitions = transitions
        self._spawn = spawn
        self._next_ms: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._firing = False
        self._stopped = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arm()

    def stop(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()

    def expect(self, due_ms: int) -> None:
        """A timer key for this moment was written."""
        if self._next_ms is None or due_ms < self._next_ms:
            self._sleep_until(due_ms)

    def _arm(self) -> None:
        """Sleep until the first timer in the store."""
        rows, _ = self._store.range(keys.TIMERS, prefix_end(keys.TIMERS), limit=1, keys_only=True)
        self._next_ms = None
        if rows:
            self._sleep_until(keys.time_of(keys.TIMERS, rows[0][0]))

    def _sleep_until(self, due_ms: int) -> None:
        self._next_ms = due_ms
        if self._timer is not None:
            self._timer.cancel()
        delay_s = min(CLOCK_CHECK_S, max(0.0, (due_ms - wall_ms()) / 1000))
        self._timer = self._loop.call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        if self._firing or self._stopped or self._next_ms is None:
            return
        if self._next_ms > wall_ms():
            self._sleep_until(self._next_ms)
            return
        self._firing = True
        self._spawn(self._fire())

    async def _fire(self) -> None:
        try:
            now_ms = wall_ms()
            until = keys.TIMERS + b"%015d0" % now_ms  # "0" sorts just after the "/" that follows the time
            rows, _ = self._store.range(keys.TIMERS, until, limit=BATCH, keys_only=True)
            await asyncio.gather(
                *(
                    self._transitions.apply(keys.job_of(row[0]), lambda record: jobs.on_due(record, now_ms))
                    for row in rows
                )
            )
        finally:
            self._firing = False
        self._arm()
