"""Lists that grow with every request and are kept to a length: the audit trail, and the marks of jobs that are gone."""

from __future__ import annotations

import asyncio
from typing import Final

from jobs import keys, records
from jobs.consensus import Consensus
from jobs.control.audit import SUBMIT
from jobs.control.transitions import check
from jobs.protocol.ids import JobId, is_job_id
from jobs.records import AuditRecord
from jobs.store import Delete, Op, Store, Txn, prefix_end

BATCH: Final = 256
"""Entries that one transaction deletes."""
COUNT_LIMIT: Final = 1 << 62


class Trimmer:
    """Keeps a list to a number of entries. Its length is counted when it can have become too much, not before.

    Every entry is written by a transaction of its own kind, so the list has grown by no more than the revision has.
    """

    def __init__(self, consensus: Consensus, store: Store, prefix: bytes, max_entries: int) -> None:
        self._consensus = consensus
        self._store = store
        self._prefix = prefix
        self._max_entries = max_entries
        self._excess = 0
        self._room_until = 0
        """Revision up to which the list cannot be too long."""
        self.removed_total = 0

    async def step(self, now_ms: int) -> bool:
        """Delete a bounded number of entries that are no longer kept; tell whether there may be more."""
        await self._measure()
        if not self._excess:
            moment_ms = self.next_moment_ms()
            if moment_ms is None or moment_ms > now_ms:
                return False
        rows, _ = self._store.range(self._prefix, prefix_end(self._prefix), limit=BATCH)
        over = [row for index, row in enumerate(rows) if index < self._excess or self.is_over(row[0], now_ms)]
        if not over:
            return False
        ops = [
            Delete(over[0][0], over[-1][0] + b"\x00"),
            *(op for row in over for op in self.other_ops(row[0], row[1])),
        ]
        check(await self._consensus.propose(Txn(then=tuple(ops)), 64 * len(ops)))
        self.removed_total += len(over)
        self._excess = max(0, self._excess - len(over))
        return len(over) == BATCH

    async def survey(self, now_ms: int) -> int:
        """Return how many entries steps would delete now."""
        await self._measure()
        first = self.first_kept(now_ms)
        old = 0 if first is None else await asyncio.to_thread(self._count, first)
        return max(old, self._excess)

    def _count(self, end: bytes) -> int:
        return self._store.count(self._prefix, end, limit=COUNT_LIMIT)

    async def _measure(self) -> None:
        """Count the entries when they may have become too many. A part more than that goes, so that this is rare."""
        if self._excess or self._store.revision < self._room_until:
            return
        at = self._store.revision
        count = await asyncio.to_thread(self._count, prefix_end(self._prefix))
        if count > self._max_entries:
            self._excess = count - self._max_entries * 19 // 20
        else:
            self._room_until = at + self._max_entries - count + 1

    def next_moment_ms(self) -> int | None:
        """Return when the first entry is too old; None when that does not depend on time."""
        return None

    def is_over(self, key: bytes, now_ms: int) -> bool:
        """Tell whether an entry is too old."""
        return False

    def first_kept(self, now_ms: int) -> bytes | None:
        """Return the first key that is not too old; None when that does not depend on time."""
        return None

    def other_ops(self, key: bytes, value: bytes) -> list[Op]:
        """Return what goes with an entry."""
        return []


class AuditTrimmer(Trimmer):
    def __init__(self, consensus: Consensus, store: Store, *, max_entries: int, keep_ms: int) -> None:
        super().__init__(consensus, store, keys.AUDIT, max_entries)
        self._keep_ms = keep_ms

    def next_moment_ms(self) -> int | None:
        rows, _ = self._store.range(self._prefix, prefix_end(self._prefix), limit=1, keys_only=True)
        return keys.time_of(keys.AUDIT, rows[0][0]) + self._keep_ms if rows else None

    def is_over(self, key: bytes, now_ms: int) -> bool:
        return keys.time_of(keys.AUDIT, key) + self._keep_ms <= now_ms

    def first_kept(self, now_ms: int) -> bytes | None:
        return keys.audit(max(0, now_ms - self._keep_ms + 1), 0)

    def other_ops(self, key: bytes, value: bytes) -> list[Op]:
        record = records.decode(AuditRecord, value)
        if record.action == SUBMIT:
            return []
        about = [name for name in (record.subject, record.made) if name is not None and is_job_id(name)]
        return [Delete(keys.audited(JobId(name), key)) for name in about]
