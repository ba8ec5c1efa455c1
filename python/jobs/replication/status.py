"""How far a sync is, for people: kept in the store by whoever works on it, at most every two seconds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, Literal

from msgspec import structs

from jobs.errors import JobsError
from jobs.records import SyncRecord
from jobs.replication.run import Clock, Progress

logger = logging.getLogger(__name__)

PERIOD_S: Final = 2.0
SMOOTHED_S: Final = 10.0
"""Rates are those of about so long."""
LAST_S: Final = 5.0
"""For so long it is tried to write how it ended."""


class Status:
    """Of one run. `write` may fail: then the next one says more."""

    def __init__(self, former: SyncRecord, write: Callable[[SyncRecord], Awaitable[None]], clock: Clock) -> None:
        self.record = former
        self._first = former
        self._write = write
        self._clock = clock
        self._before = Progress()
        """What was done by runs of this job that have ended."""
        self._now = Progress()
        self._changed = asyncio.Event()
        self._at_s = clock.now_s()
        self._counted = 0, 0

    async def begin(self) -> None:
        """Raises what keeps it from being written."""
        await self._write(self._stamped())

    @property
    def total(self) -> Progress:
        """What was done by all runs of this job."""
        before, now = self._before, self._now
        return structs.replace(
            now,
            rows=before.rows + now.rows,
            deleted=before.deleted + now.deleted,
            conflicts=before.conflicts + now.conflicts,
            bytes=before.bytes + now.bytes,
            snapshots=before.snapshots + now.snapshots,
            blobs=before.blobs + now.blobs,
        )

    def again(self) -> None:
        """Another run begins."""
        self._before = self.total
        self._now = Progress()

    def update(self, progress: Progress) -> None:
        self._now = progress
        total, first = self.total, self._first
        behind_since_ms = progress.behind_since_ms
        if behind_since_ms is not None and self.record.behind_since_ms is not None:
            behind_since_ms = min(behind_since_ms, self.record.behind_since_ms)
        self.record = structs.replace(
            self.record,
            phase=progress.phase,
            position=progress.position,
            source_revision=progress.source_revision,
            behind_since_ms=behind_since_ms,
            rows=first.rows + total.rows,
            deleted=first.deleted + total.deleted,
            conflicts=progress.cursor_conflicts or first.conflicts,
            snapshots=progress.cursor_snapshots or first.snapshots,
            last_error="",
        )
        self._rate(total)
        self._changed.set()

    def _rate(self, total: Progress) -> None:
        now_s = self._clock.now_s()
        passed_s = now_s - self._at_s
        if passed_s < PERIOD_S / 2:
            return
        rows, size = total.rows + total.deleted, total.bytes
        share = min(1.0, passed_s / SMOOTHED_S)
        self.record = structs.replace(
            self.record,
            rows_per_s=_towards(self.record.rows_per_s, (rows - self._counted[0]) / passed_s, share),
            bytes_per_s=_towards(self.record.bytes_per_s, (size - self._counted[1]) / passed_s, share),
        )
        self._counted, self._at_s = (rows, size), now_s

    def failed(self, error: str) -> None:
        """It is tried again."""
        self.record = structs.replace(self.record, last_error=error, behind_since_ms=self._behind_since_ms())
        self._changed.set()

    def _behind_since_ms(self) -> int:
        """Return since when it has not been seen that the target has everything, of one that does not go on."""
        return self.record.behind_since_ms or self._now.in_step_ms or self._clock.now_ms()

    async def run(self) -> None:
        """Write what is new, until this is cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._rate(self.total)
            try:
                await self._write(self._stamped())
            except JobsError as error:
                logger.info("how far a sync is cannot be written now: %s", error)
                self._changed.set()
            await asyncio.sleep(PERIOD_S)

    async def end(self, phase: Literal["stopped", "failed"], error: str) -> None:
        since_ms = self._behind_since_ms() if error else self.record.behind_since_ms
        self.record = structs.replace(
            self.record, phase=phase, last_error=error, behind_since_ms=since_ms, rows_per_s=0.0, bytes_per_s=0.0
        )
        try:
            async with asyncio.timeout(LAST_S):
                await self._write(self._stamped())
        except (JobsError, TimeoutError) as failed:
            logger.info("how a sync ended cannot be written: %s", failed)

    def _stamped(self) -> SyncRecord:
        return structs.replace(self.record, updated_ms=self._clock.now_ms())


def _towards(former: float, now: float, share: float) -> float:
    return round(former + (now - former) * share, 1)
