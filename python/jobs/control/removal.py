"""Deletes an ended job, or its output: in one transaction that fails if the job has changed, or in bounded ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from jobs import jobs, keys, records
from jobs.consensus import Consensus
from jobs.control.arrayremoval import TaskRemoval
from jobs.control.dependencies import keys_of
from jobs.control.jobreferences import JobReferences
from jobs.control.queries import TURN_ROWS
from jobs.control.transitions import Stored, Transitions, check, guard
from jobs.protocol.ids import JobId
from jobs.records import GoneRecord, IdempotencyRecord, JobRecord
from jobs.store import Delete, Op, Put, Store, Txn, TxnResult, prefix_end

CHUNKS: Final = 2_000
"""Chunks of output that one transaction deletes."""
EDGES: Final = 500
"""Dependencies and references to blobs that one transaction deletes."""
TXN_BYTES: Final = 2_048


class Removal:
    """Takes ended jobs out of the store."""

    def __init__(self, consensus: Consensus, store: Store, transitions: Transitions, references: JobReferences) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._references = references
        self._tasks = TaskRemoval(consensus, store, transitions, references)
        self.on_removed: Callable[[JobRecord, int], None] = lambda record, revision: None
        """Called with the record of every job that was deleted, and the revision at which it was."""
        self.jobs_total = 0
        self.outputs_total = 0
        self.bytes_total = 0
        """About what that has taken in the store."""

    def tally(self) -> tuple[int, int, int]:
        """Return how many jobs were deleted, how many only lost their output, and about how many bytes that was."""
        return self.jobs_total, self.outputs_total, self.bytes_total

    async def is_needed(self, job: JobId, record: JobRecord) -> bool:
        """Tell whether a job that has not ended depends on this one, or on a task of it: it is given its result."""
        prefix = keys.of_tasks(keys.CHILDREN, job) if record.tasks else keys.children_prefix(job)
        start, more = prefix, True
        while more:
            rows, more = self._store.range(start, prefix_end(prefix), limit=TURN_ROWS, keys_only=True)
            for row in rows:
                child = self._transitions.read(keys.job_of(row[0]))
                if child is not None and not child.record.state.is_final:
                    return True
                start = row[0] + b"\x00"
            if more:
                await asyncio.sleep(0)
        return False

    async def remove_output(self, job: JobId) -> None:
        """Delete what the job has written. Where that takes several transactions, the first says that it is gone."""
        prefix = _output_prefix(job)
        while True:
            stored = self._transitions.read(job)
            if stored is None or not stored.record.state.is_final:
                return
            rows, more = self._store.range(prefix, prefix_end(prefix), limit=CHUNKS, keys_only=True)
            if (more or stored.record.tasks) and not stored.record.logs_gone:
                await self._transitions.apply(job, lambda record: jobs.on_output_gone(record, False))
            elif stored.record.tasks and not await self._tasks.remove_output(job):
                continue
            elif more:
                await self._try(job, stored, (Delete(prefix, rows[-1][0] + b"\x00"),))
            else:
                await self._transitions.apply(
                    job,
                    lambda record: jobs.on_output_gone(record, True),
                    lambda _: (Delete(prefix, prefix_end(prefix)),),
                )
                self.outputs_total += 1
                self.bytes_total += stored.record.log_bytes
                return

    async def remove(self, job: JobId) -> None:
        """Delete the job with everything of it; a mark stays that it was here."""
        while True:
            stored = self._transitions.read(job)
            if stored is None or not stored.record.state.is_final:
                return
            if stored.record.tasks and not await self._remove_tasks(job, stored.record):
                continue
            output = _output_prefix(job)
            if self._store.count(output, prefix_end(output), limit=CHUNKS + 1) > CHUNKS:
                await self.remove_output(job)
                continue
            # The result says what the references are, so they go before it, and are found again after a failure.
            references = self._references.removal(job)
            if len(references) > EDGES:
                if not await self._remove_references(job, stored, references[EDGES:]):
                    continue
                references = references[:EDGES]
            edges, more = keys_of(self._store, job, EDGES - len(references))
            ops: list[Op] = [*references, *(Delete(key) for key in edges)]
            if not more:
                ops += self._last_ops(job, stored.record)
            done = await self._try(job, stored, tuple(ops))
            if done.succeeded and not more:
                self.jobs_total += 1
                self.bytes_total += stored.record.stored_bytes
                self.on_removed(stored.record, done.revision)
                return

    async def _remove_tasks(self, array: JobId, record: JobRecord) -> bool:
        """Delete the tasks of an array; False when that is to be gone on with. Nobody is shown half of their output."""
        if record.log_bytes and not record.logs_gone:
            await self._transitions.apply(array, lambda record: jobs.on_output_gone(record, False))
            return False
        return await self._tasks.remove(array)

    async def _remove_references(self, job: JobId, stored: Stored, references: Sequence[Op]) -> bool:
        """Remove more references than one transaction takes; False when the job changed meanwhile."""
        for start in range(0, len(references), EDGES):
            if not (await self._try(job, stored, tuple(references[start : start + EDGES]))).succeeded:
                return False
            await asyncio.sleep(0)
        return True

    def _last_ops(self, job: JobId, record: JobRecord) -> list[Op]:
        """Return what deletes the job once nothing is left of it but what one transaction can take."""
        output, results = _output_prefix(job), keys.results_prefix(job)
        found = [keys.state(job), keys.spec(job), keys.progress(job), *jobs.index_entries(job, record)]
        idempotency_key = self._idempotency_key(job, record)
        if idempotency_key is not None:
            found.append(idempotency_key)
        return [
            Delete(output, prefix_end(output)),
            Delete(results, prefix_end(results)),
            *(Delete(key) for key in found),
            Put(keys.gone(job), records.encode(GoneRecord(record.owner))),
        ]

    def _idempotency_key(self, job: JobId, record: JobRecord) -> bytes | None:
        """Return the key of the store by which the job's idempotency key is known, if it has one."""
        spec = self._store.get(keys.spec(job))
        text = None if spec is None else records.spec_idempotency_key(spec[1])
        if text is None:
            return None
        key = keys.idempotency(record.owner, text)
        known = self._store.get(key)
        return key if known is not None and records.decode(IdempotencyRecord, known[1]).job == job else None

    async def _try(self, job: JobId, stored: Stored, ops: tuple[Op, ...]) -> TxnResult:
        """Do this unless the job has changed."""
        done = await self._consensus.propose(Txn((guard(job, stored),), ops), TXN_BYTES)
        check(done)
        return done


def _output_prefix(job: JobId) -> bytes:
    return keys.LOG + job.encode() + b"/"
