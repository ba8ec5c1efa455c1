"""Batches of syncs that have their target here: planned on what is stored, and planned anew where that has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from jobs import keys
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.once import MAX_TRIES, try_id
from jobs.control.replication.bounds import ReplicationConfig
from jobs.control.replication.syncs import too_many_syncs
from jobs.control.transitions import check
from jobs.errors import Unavailable
from jobs.protocol.ids import NO_REQUEST, RequestId
from jobs.replication.applying import Plan, plan, read_cursor
from jobs.replication.messages import Applied, Batch, TagBatch
from jobs.replication.origins import check_no_loop, place_of
from jobs.replication.times import KnownTimes
from jobs.store import Store, decode_results, prefix_end

WHOLE_TRIES: Final = 4
"""So often rows may change between plan and transaction before a batch is to be a smaller one."""
TXN_BYTES: Final = 512


class Applier:
    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        config: ReplicationConfig,
        check_space: Callable[[], None],
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._config = config
        self._check_space = check_space
        self.times = KnownTimes(store)

    async def apply(self, batch: Batch, request: RequestId) -> Applied:
        """As `Side.apply`, once for a request: asked again, it does not count again what it came to. Raises
        ReplicationLoop and TooManyRequests as well."""
        await self.ready()
        if (done := self.done_before(batch, request)) is not None:
            return done
        self.check(batch, writes=any(change.value is not None for change in batch.changes))
        for number in range(MAX_TRIES):
            planned = self._plan(batch)
            if planned.txn is None:
                return _answer(planned, 0)
            # Only what is done to the keys is a request's outcome: a conflict is met, and told, again.
            remembered = NO_REQUEST if planned.conflict is not None else try_id(request, number)
            txn = replace(planned.txn, request_id=remembered)
            result = await self._consensus.propose(txn, TXN_BYTES + planned.size_bytes)
            check(result)
            if result.succeeded:
                return _answer(planned, result.revision)
            if number + 1 >= WHOLE_TRIES and len(batch.changes) > 1:
                return Applied(0, fit=len(batch.changes) // 2)
        raise Unavailable(f"others change what sync {batch.name!r} writes at every moment", retry_after_s=1)

    async def ready(self) -> None:
        """Return once what was written before is seen."""
        await self._consensus.barrier()

    def done_before(self, batch: Batch | TagBatch, request: RequestId) -> Applied | None:
        """Return the answer to a request that was carried out before. What it did is counted no more, but conflicts
        are, which whoever asks adds to those of the cursor; unless that has moved on since."""
        revision = revision_of(self._store, request)
        if revision is None:
            return None
        cursor, changed = read_cursor(self._store, batch.origin, batch.name)
        if cursor is None or changed != revision:
            return Applied(revision)
        return Applied(revision, conflicts=max(0, cursor.conflicts - batch.cursor.conflicts))

    def check(self, batch: Batch | TagBatch, *, writes: bool) -> None:
        """Raise for a sync that may not be, or for which there is no room."""
        if writes:
            self._check_space()
        own, cursor = self._config.cluster, batch.cursor
        check_no_loop(cursor.upstream, own, place_of(cursor.target_prefix, is_tags=cursor.is_tags))
        if batch.expected == 0:
            count = self._store.count(keys.SYNC_CURSORS, prefix_end(keys.SYNC_CURSORS), limit=self._config.max_syncs)
            if count >= self._config.max_syncs:
                raise too_many_syncs(count)

    def _plan(self, batch: Batch) -> Plan:
        now_ms = wall_ms()
        return plan(self._store, batch, now_ms, lambda at: self.times.of(at, now_ms), self._config.max_conflicts)


def revision_of(store: Store, request: RequestId) -> int | None:
    """Return the revision at which a request was carried out before; None unless it was."""
    for number in range(MAX_TRIES) if request else ():
        found = store.recall(try_id(request, number))
        if found is None:
            return None
        result = decode_results(found)[0]
        if result.succeeded:
            return result.revision
    return None


def _answer(planned: Plan, revision: int) -> Applied:
    if planned.conflict is not None:
        raise planned.conflict
    return replace(planned.applied, mod_revision=revision)
