"""Brings back the jobs that wait for a time. The store's timer keys are the only list; memory holds the next moment."""

from __future__ import annotations

import asyncio
from typing import Final

from jobs import jobs, keys
from jobs.clock import wall_ms
from jobs.control.alarm import Alarm
from jobs.control.tasks import Spawn
from jobs.control.transitions import Transitions
from jobs.store import Store, prefix_end

BATCH: Final = 256
RETRY_MS: Final = 1_000
"""After a failure, such as a full disk, the same is tried again."""


class Timers:
    def __init__(self, store: Store, transitions: Transitions, spawn: Spawn) -> None:
        self._store = store
        self._transitions = transitions
        self._spawn = spawn
        self._alarm = Alarm(self._on_alarm)
        self._firing = False
        self._stopped = False

    def start(self) -> None:
        self._arm()

    def stop(self) -> None:
        self._stopped = True
        self._alarm.stop()

    def expect(self, due_ms: int) -> None:
        """A timer key for this moment was written."""
        if not self._firing and not self._stopped and (self._alarm.due_ms is None or due_ms < self._alarm.due_ms):
            self._alarm.set(due_ms)

    def _arm(self) -> None:
        """Sleep until the first timer in the store."""
        rows, _ = self._store.range(keys.TIMERS, prefix_end(keys.TIMERS), limit=1, keys_only=True)
        if not self._stopped:
            self._alarm.set(keys.time_of(keys.TIMERS, rows[0][0]) if rows else None)

    def _on_alarm(self) -> None:
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
        except Exception:
            if not self._stopped:
                self._alarm.set(wall_ms() + RETRY_MS)
            raise
        else:
            self._arm()
        finally:
            self._firing = False
