"""Tags that syncs bring: batches of them, decided on with the catalogue of blobs and written with it."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Final

from msgspec import Struct

from jobs import keys
from jobs.control.blobs import Blobs
from jobs.control.blobs.references import not_there
from jobs.control.blobs.stage import Stage
from jobs.control.replication.apply import Applier, revision_of
from jobs.control.replication.bounds import ReplicationConfig
from jobs.errors import ReplicationConflict
from jobs.protocol.ids import RequestId
from jobs.records import BlobTagRecord
from jobs.replication.judge import Judge
from jobs.replication.messages import Applied, TagBatch, TagChange
from jobs.store import EQ, Delete, ModRevisionIs, Op, Put, Store

TAGS_A_STEP: Final = 150
"""Tags that one transaction changes: five operations each."""
OWNER: Final = 0
"""Whose the tags are that come from elsewhere."""


class _Step(Struct, frozen=True):
    """What a transaction is to do: the changes that prevail, and the judge who has seen all of them."""

    judge: Judge
    wanted: list[TagChange]
    fit: int
    """So many changes were looked at: fewer than there are where there are too many conflicts."""


class TagApplier:
    def __init__(self, store: Store, blobs: Blobs, applier: Applier, config: ReplicationConfig) -> None:
        self._store = store
        self._blobs = blobs
        self._applier = applier
        self._config = config

    async def apply(self, batch: TagBatch, request: RequestId) -> Applied:
        """As `Side.apply_tags`, once for a request: asked again, it does not count again what it came to. Raises what
        `Applier.apply` raises."""
        await self._applier.ready()
        if (before := self._applier.done_before(batch, request)) is not None:
            return before
        self._applier.check(batch, writes=any(change.hash is not None for change in batch.changes))
        if len(batch.changes) > TAGS_A_STEP:
            return Applied(0, fit=TAGS_A_STEP)
        done = await self._blobs.change(partial(self._carry_out, batch), request)
        if isinstance(done, ReplicationConflict):
            # Only what is done to the tags is the request's outcome: a conflict is met, and told, again.
            await self._blobs.change(partial(self._record, batch), RequestId(secrets.token_bytes(len(request))))
            raise done
        if done.fit:
            return done
        revision = revision_of(self._store, request)
        assert revision is not None, "it has just been done"
        return Applied(revision, put=done.put, deleted=done.deleted, conflicts=done.conflicts)

    def _carry_out(self, batch: TagBatch, stage: Stage, now_ms: int) -> Applied | ReplicationConflict:
        """Stage all of a batch, or nothing."""
        step = self._judged(batch, stage, now_ms)
        if step.judge.refusal is not None:
            return step.judge.refusal
        if step.fit < len(batch.changes):
            return Applied(0, fit=step.fit)
        deleted = 0
        for change in step.wanted:
            former = stage.tag(change.name)
            if change.hash is not None:
                if stage.entry(change.hash) is None:
                    raise not_there(change.hash)
                stage.put_tag(change.name, BlobTagRecord(change.hash, OWNER, now_ms), former)
                stage.touch(change.hash, now_ms)
            elif former is not None:
                stage.delete_tag(change.name, former)
                deleted += 1
        _stage(stage, step.judge.progress())
        return Applied(0, put=len(step.wanted) - deleted, deleted=deleted, conflicts=len(step.judge.conflicts))

    def _record(self, batch: TagBatch, stage: Stage, now_ms: int) -> None:
        """Stage what kept a batch from being carried out, if it still would."""
        judge = self._judged(batch, stage, now_ms).judge
        if judge.refusal is not None:
            _stage(stage, judge.refused())

    def _judged(self, batch: TagBatch, stage: Stage, now_ms: int) -> _Step:
        times = self._applier.times
        prefix, most = keys.blob_tag(batch.cursor.target_prefix), self._config.max_conflicts
        judge = Judge(self._store, batch, prefix, now_ms, lambda at: times.of(at, now_ms), most)
        stage.guard(ModRevisionIs(judge.cursor_key, EQ, batch.expected))
        wanted: list[TagChange] = []
        for at, change in enumerate(batch.changes):
            now = stage.tag(change.name)
            if change.hash == (None if now is None else now.hash):
                continue
            row = self._store.get(keys.blob_tag(change.name))
            modified = 0 if row is None else row[4]
            winner = "source"
            if not self._is_own(judge, change, now, modified):
                key, name = keys.blob_tag(change.name), change.name.encode()
                settled = judge.settle(
                    key, name, modified, change.revision, change.at_ms, is_deletion=change.hash is None
                )
                if settled is None:
                    return _Step(judge, wanted, at)
                winner = settled
            if winner == "source":
                wanted.append(change)
        return _Step(judge, wanted, len(batch.changes))

    def _is_own(self, judge: Judge, change: TagChange, now: BlobTagRecord | None, modified: int) -> bool:
        if now is None:
            return not change.base
        return judge.is_own(modified) or now.hash == change.base


def _stage(stage: Stage, ops: list[Op]) -> None:
    for op in ops:
        if isinstance(op, Put):
            stage.put(op.key, op.value)
        else:
            assert isinstance(op, Delete)
            stage.delete_range(op.key, op.end)
