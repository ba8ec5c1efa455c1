"""Which revision the store had when: the leader notes it now and then, and ages of revisions follow from that.

A moment says that everything up to its revision was written by then, and everything after it not before. Nothing is
noted while nothing changes, so between two moments a revision's time is known to no more than their distance; it is
then taken for the later of the two, which is no more than a period after the change (`replication.times`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from msgspec import Struct

from jobs import keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus, ConsensusError
from jobs.control.transitions import check
from jobs.control.trimming import Trimmer
from jobs.errors import StorageFull, Unavailable
from jobs.records import MomentRecord
from jobs.store import Delete, Op, Put, Store, Txn, prefix_end

logger = logging.getLogger(__name__)

DELETED_A_STEP: Final = 1_000
_END: Final = prefix_end(keys.MOMENTS)


class MomentsConfig(Struct, frozen=True, kw_only=True):
    """How finely, and for how long, it is known when the store had which revision."""

    period_s: float = 10.0
    max_kept: int = 100_000
    """More than eleven days of changes without a pause."""


class Moments:
    """Notes moments for as long as this node leads."""

    def __init__(self, consensus: Consensus, store: Store, config: MomentsConfig) -> None:
        self._consensus = consensus
        self._store = store
        self._period_s = config.period_s
        self._trimmer = Trimmer(consensus, store, keys.MOMENTS, config.max_kept)
        self._noted = 0
        """Revision of the store with which the last moment was written, and nothing besides."""
        self._stopped = False

    def stop(self) -> None:
        """Note nothing any more."""
        self._stopped = True

    async def run(self) -> None:
        self._noted = self._last_noted()
        while not self._stopped:
            await asyncio.sleep(self._period_s)
            try:
                await self.note(wall_ms())
                await self._trimmer.step(wall_ms())
            except (Unavailable, StorageFull, ConsensusError) as error:
                if not self._stopped:
                    logger.warning("the store's revision of now cannot be noted: %s", error)

    async def note(self, now_ms: int) -> None:
        """Note the revision of now, if anything but a moment has been written since the last one.

        A moment that is yet to come is of a clock that was wrong: what was written by then was written by now.
        """
        revision = self._store.revision
        if revision == self._noted:
            return
        key = keys.moment(now_ms)
        start = key + b"\x00"
        ops: list[Op] = [Put(key, records.encode(MomentRecord(revision=revision)))]
        while rows := self._store.range(start, _END, limit=DELETED_A_STEP, keys_only=True)[0]:
            future = Delete(rows[0][0], rows[-1][0] + b"\x00")
            if len(rows) < DELETED_A_STEP:
                ops.append(future)
                break
            check(await self._consensus.propose(Txn(then=(future,))))
        done = await self._consensus.propose(Txn(then=tuple(ops)))
        check(done)
        self._noted = done.revision if done.revision == revision + 1 else revision

    def _last_noted(self) -> int:
        rows, _ = self._store.range(keys.MOMENTS, _END, limit=1, reverse=True)
        if not rows:
            return 0
        revision, written = _revision(rows[0][1]), rows[0][4]
        return written if written == revision + 1 else revision


def revision_at(store: Store, at_ms: int) -> int:
    """Return the newest revision of which it is known that it was written by then; 0 for none."""
    if at_ms < 0:
        return 0
    rows, _ = store.range(keys.MOMENTS, keys.moment(at_ms) + b"\x00", limit=1, reverse=True)
    return _revision(rows[0][1]) if rows else 0


def _revision(value: bytes) -> int:
    return records.decode(MomentRecord, value).revision
