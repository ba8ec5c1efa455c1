"""Carries a transition into the store: read, decide (pure), compare-and-set; tell the dispatcher."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final, TypeAlias

from msgspec import Struct

from jobs import jobs, keys, records
from jobs.consensus import Consensus
from jobs.errors import Gone, InternalError, NotFound
from jobs.jobs import Refusal, Step
from jobs.protocol.ids import JobId, Revision, array_id, task_index
from jobs.protocol.model import JobView
from jobs.records import GoneRecord, JobRecord
from jobs.store import EQ, Compare, Delete, ModRevisionIs, Op, Put, Store, Txn, TxnResult, prefix_end
from jobs.tracing.context import trace_id_of

ATTEMPTS: Final = 32
"""A transition is tried again when another one came between; this often is a fault, not contention."""

SCAN_ROWS: Final = 1_024
COUNT_INLINE: Final = 16_384
"""Counting so many keys holds nobody up."""
COUNT_LIMIT: Final = 1 << 62
EMPTY: Final = records.VERSION_ONLY


Barrier: TypeAlias = Callable[[], Awaitable[None]]
"""Returns once the local store may be read; raises Unavailable when that cannot be known."""


class Stored(Struct, frozen=True):
    """A job's record as read, and the revision that guards it."""

    record: JobRecord
    revision: Revision


class Change(Struct, frozen=True):
    """A transition that is committed; `old` is None for a new job."""

    job: JobId
    old: JobRecord | None
    new: JobRecord
    revision: Revision


def write_ops(job: JobId, old: JobRecord | None, new: JobRecord) -> tuple[Op, ...]:
    """Return what stores `new` in place of `old`, its index keys included."""
    before = {} if old is None else jobs.index_entries(job, old)
    after = jobs.index_entries(job, new)
    ops: list[Op] = [Put(keys.state(job), records.encode(new))]
    ops += [Delete(key) for key in before if key not in after]
    ops += [
        Put(key, EMPTY if kept is None else records.encode(kept)) for key, kept in after.items() if key not in before
    ]
    return tuple(ops)


def guard(job: JobId, stored: Stored) -> Compare:
    """Return the compare that holds while the record is as it was read."""
    return ModRevisionIs(keys.state(job), EQ, stored.revision)


class Transitions:
    """The one way in which a job changes after its submission."""

    def __init__(self, consensus: Consensus, store: Store) -> None:
        self._consensus = consensus
        self._store = store
        self.on_change: Callable[[Change], None] = lambda change: None
        """Called for every committed change, in order of commit for one job."""
        self.leaving: set[JobId] = set()
        """Jobs that are about to be deleted: nothing may come to depend on them any more."""

    def read(self, job: JobId) -> Stored | None:
        return read_job(self._store, job)

    def read_existing(self, job: JobId) -> Stored:
        """Raises NotFound, and Gone for a job that was here."""
        stored = self.read(job)
        if stored is not None:
            return stored
        raise missing(self._store, job)

    def is_leaving(self, job: JobId) -> bool:
        """Tell whether a job, or the array of which it is a task, is about to be deleted."""
        return bool(self.leaving) and (job in self.leaving or array_id(job) in self.leaving)

    async def apply(
        self,
        job: JobId,
        decide: Callable[[JobRecord], Step],
        extra: Callable[[JobRecord], tuple[Op, ...]] = lambda record: (),
        size_bytes: int = 512,
        compares: Callable[[], tuple[Compare, ...]] = tuple,
    ) -> Change | Refusal:
        """Change the job as `decide` says, with the operations of `extra` in the same transaction.

        `compares` is what else it was decided on; where that does not hold, it is decided anew.

        Returns the change once it is durable, or why it does not apply. An unchanged record writes nothing.
        """
        for _ in range(ATTEMPTS):
            stored = self.read_existing(job)
            new = decide(stored.record)
            if isinstance(new, Refusal):
                return new
            if new is stored.record:
                return Change(job, stored.record, new, stored.revision)
            ops = write_ops(job, stored.record, new) + extra(new)
            done = await self._consensus.propose(Txn((guard(job, stored), *compares()), ops), size_bytes)
            check(done)
            if done.succeeded:
                change = Change(job, stored.record, new, Revision(done.revision))
                self.on_change(change)
                return change
        raise InternalError(f"job {job} changed {ATTEMPTS} times while one transition was tried")

    async def append(
        self, job: JobId, holds: Callable[[JobRecord], bool], ops: tuple[Op, ...], size_bytes: int
    ) -> bool:
        """Write beside the job without changing it, while its record `holds`; return False when it does not."""
        for _ in range(ATTEMPTS):
            stored = self.read(job)
            if stored is None or not holds(stored.record):
                return False
            done = await self._consensus.propose(Txn((guard(job, stored),), ops), size_bytes)
            check(done)
            if done.succeeded:
                return True
        raise InternalError(f"job {job} changed {ATTEMPTS} times while one write was tried")


def read_job(store: Store, job: JobId) -> Stored | None:
    found = store.get(keys.state(job))
    return None if found is None else Stored(records.decode(JobRecord, found[1]), Revision(found[4]))


def read_gone(store: Store, job: JobId) -> GoneRecord | None:
    """Return what is left of a job, or of the array of which it was a task, for as long as that is kept."""
    for name in (job, array_id(job)):
        found = store.get(keys.gone(name))
        if found is not None:
            return records.decode(GoneRecord, found[1])
    return None


def missing(store: Store, job: JobId) -> Gone | NotFound:
    """Return what is to be raised for a job that is not there."""
    if read_gone(store, job) is not None:
        return Gone(f"job {job} is no longer kept")
    return NotFound(f"there is no job {job}")


def scan(store: Store, prefix: bytes) -> Iterator[tuple[bytes, bytes, int, int, int, int]]:
    """Yield every key-value under a prefix, page by page."""
    start, more = prefix, True
    while more:
        page, more = store.range(start, prefix_end(prefix), limit=SCAN_ROWS)
        yield from page
        if page:
            start = page[-1][0] + b"\x00"


async def scan_in_turns(store: Store, prefix: bytes) -> AsyncIterator[list[tuple[bytes, bytes, int, int, int, int]]]:
    """Yield every key-value under a prefix in pages, and let others have their turn after each."""
    start, more = prefix, True
    while more:
        page, more = store.range(start, prefix_end(prefix), limit=SCAN_ROWS)
        if page:
            yield page
            start = page[-1][0] + b"\x00"
        await asyncio.sleep(0)


async def count_in_turns(store: Store, prefix: bytes) -> int:
    """Return how many keys there are under a prefix; where they are many, they are counted beside the event loop."""
    count = store.count(prefix, prefix_end(prefix), limit=COUNT_INLINE)
    if count < COUNT_INLINE:
        return count
    return await asyncio.to_thread(store.count, prefix, prefix_end(prefix), limit=COUNT_LIMIT)


def check(result: TxnResult) -> None:
    """Raise InternalError when the store refused a transaction of our own making."""
    if result.error:
        raise InternalError(f"the store refused a transaction: {result.error}")


def view(job: JobId, record: JobRecord, revision: int) -> JobView:
    """Return the job as a client sees it."""
    return JobView(
        id=job,
        type=record.type,
        state=record.state,
        reason=record.reason,
        message=record.message,
        queue=record.queue,
        priority=record.priority,
        owner=record.owner,
        attempt=record.attempt,
        max_attempts=record.retry.max_attempts,
        worker=record.worker,
        cancel_requested=record.cancel_requested,
        exit_code=record.exit_code,
        signal=record.signal,
        submitted_ms=record.submitted_ms,
        started_ms=record.started_ms,
        finished_ms=record.finished_ms,
        labels=record.labels,
        ready_ms=record.ready_ms,
        deadline_ms=record.deadline_ms,
        waits_for=record.waits_for,
        concurrency_key=record.concurrency_key,
        redrive_of=record.redrive_of,
        redriven_as=record.redriven_as,
        ref=record.ref,
        schedule=record.schedule,
        nominal_ms=record.nominal_ms,
        revision=Revision(revision),
        tasks=record.tasks,
        array=array_id(job) if record.is_task else None,
        index=task_index(job) if record.is_task else None,
        trace_id=None if record.traceparent is None else trace_id_of(record.traceparent),
    )
