"""How many ended jobs there are, and about what they take: counted beside the work, exact once that is done."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from jobs import keys, records
from jobs._native import CompactedError
from jobs.control.transitions import Change
from jobs.records import EndedRecord, JobRecord
from jobs.retention import Totals
from jobs.store import Store, prefix_end

logger = logging.getLogger(__name__)

STEP_ROWS: Final = 512
"""Ended jobs that are read before others have their turn."""
MAX_STEP_ROWS: Final = 65_536


class EndedTotals:
    """The store as it was at one revision is added up step by step; what has changed since then is told by changes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._since = 0
        self._jobs = 0
        self._bytes = 0
        self._counted = False

    @property
    def known(self) -> Totals | None:
        """None until they have been counted."""
        return Totals(self._jobs, self._bytes) if self._counted else None

    async def count(self) -> None:
        """Add up what is there. Where history does not reach back for as long as that takes, it begins anew, in larger
        steps."""
        step = STEP_ROWS
        while True:
            self._since, self._jobs, self._bytes = self._store.revision, 0, 0
            try:
                await self._count(step)
            except CompactedError:
                step = min(4 * step, MAX_STEP_ROWS)
                continue
            self._counted = True
            logger.info("ended jobs counted", extra={"jobs": self._jobs, "bytes": self._bytes})
            return

    async def _count(self, step: int) -> None:
        start, more = keys.ENDED, True
        revision = self._since
        while more:
            rows, more = self._store.range(start, prefix_end(keys.ENDED), limit=step, revision=revision)
            for key, value, *_ in rows:
                self._add(1, records.decode(EndedRecord, value).stored_bytes)
                start = key + b"\x00"
            await asyncio.sleep(0)

    def on_change(self, change: Change) -> None:
        """Take note of a committed change of a job; tasks go with their array, which tells what they take."""
        if change.revision > self._since and not change.new.is_task:
            if change.old is not None and change.old.state.is_final:
                self._add(-1, -change.old.stored_bytes)
            if change.new.state.is_final:
                self._add(1, change.new.stored_bytes)

    def on_removed(self, record: JobRecord, revision: int) -> None:
        """A job's record has been deleted."""
        if revision > self._since and record.state.is_final:
            self._add(-1, -record.stored_bytes)

    def _add(self, jobs: int, size_bytes: int) -> None:
        self._jobs += jobs
        self._bytes += size_bytes
