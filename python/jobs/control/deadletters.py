"""Jobs that failed for good, and what is done about them: looked at, repeated as new jobs, or put away.

The record of a job says whether its dead letter has been dealt with, and by which new job. Both change in the one
transaction that makes the new job, so however often and by whomever a job is redriven, one job repeats it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from jobs import jobs, keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.audit import job_entry
from jobs.control.dependencies import Dependencies, Linked, Wanted
from jobs.control.newjobs import JobMaker, in_trace
from jobs.control.queries import PAGE_SCAN_ROWS, TURN_ROWS, Queries, decode_cursor, encode_cursor
from jobs.control.repetition import repeat_tasks, uncompleted
from jobs.control.transitions import Change, Stored, Transitions, check, guard, view, write_ops
from jobs.errors import Forbidden, Gone, InternalError, InvalidRequest, JobsError, NotRedrivable, QueueFull
from jobs.jobs import Refusal
from jobs.protocol.ids import JobId, Revision
from jobs.protocol.model import (
    DeadLetter,
    DeadLetterPage,
    DeadLetterSelection,
    JobSubmit,
    PurgeOutcome,
    PurgePage,
    Redriven,
    RedrivePage,
    Submitted,
)
from jobs.records import DeadLetterRecord, JobRecord, UniqueRecord
from jobs.service import Caller
from jobs.store import Store, Txn, prefix_end
from jobs.tracing.spans import given

TRIES: Final = 16
PAGE_JOBS: Final = 64
"""Dead letters that one page deals with."""


class _Found(Struct, frozen=True):
    """Keys of dead letters that match, and the key from which on others are to be looked at; None at the end."""

    keys: list[bytes]
    after: bytes | None


class DeadLetters:
    """Implements `service.DeadLetterService`."""

    def __init__(
        self,
        consensus: Consensus,
        store: Store,
        transitions: Transitions,
        queries: Queries,
        maker: JobMaker,
        dependencies: Dependencies,
        check_space: Callable[[], None],
    ) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._queries = queries
        self._maker = maker
        self._dependencies = dependencies
        self._check_space = check_space
        self.redriven_total = 0

    async def page(
        self, caller: Caller, where: DeadLetterSelection, *, limit: int, cursor: str | None
    ) -> DeadLetterPage:
        await self._consensus.barrier()
        end = prefix_end(keys.DEAD_LETTERS) if cursor is None else decode_cursor(cursor, keys.DEAD_LETTERS)
        found: list[DeadLetter] = []
        scanned, more = 0, True
        while more and scanned < PAGE_SCAN_ROWS:
            rows, more = self._store.range(keys.DEAD_LETTERS, end, limit=TURN_ROWS, reverse=True)
            for key, value, *_ in rows:
                end, scanned = key, scanned + 1
                record = records.decode(DeadLetterRecord, value)
                if _matches(caller, where, record):
                    found.append(dead_letter(key, record))
                    if len(found) == limit:
                        return DeadLetterPage(dead_letters=found, next_cursor=encode_cursor(key))
            await asyncio.sleep(0)
        return DeadLetterPage(dead_letters=found, next_cursor=encode_cursor(end) if more else None)

    # --- redrive --------------------------------------------------------------------------------------------------

    async def redrive(self, caller: Caller, job: JobId) -> Submitted:
        self._check_space()
        await self._queries.read(caller, job)
        return await self._redrive(caller, job)

    async def redrive_many(self, caller: Caller, where: DeadLetterSelection) -> RedrivePage:
        self._check_space()
        _check_selection(caller, where)
        await self._consensus.barrier()
        start, until_ms = _first(where.cursor)
        found = await self._find(caller, where, start, until_ms)
        done: list[Redriven] = []
        for key in found.keys:
            job = keys.job_of(key)
            try:
                new = await self._redrive(caller, job)
                done.append(Redriven(id=job, job=new.job.id, refused=None))
            except QueueFull:
                if not done:
                    raise
                # The next page begins with what there was no room for.
                return RedrivePage(redriven=done, next_cursor=_next(key, until_ms))
            except JobsError as error:
                if error.status >= 500:
                    raise
                done.append(Redriven(id=job, job=None, refused=error.detail))
        return RedrivePage(redriven=done, next_cursor=_next(found.after, until_ms))

    async def _redrive(self, caller: Caller, job: JobId) -> Submitted:
        for _ in range(TRIES):
            stored = self._transitions.read_existing(job)
            if stored.record.redriven_as is not None:
                return self._known(job, stored.record.redriven_as)
            made = await self._repeat(caller, job, stored)
            if made is not None:
                return made
        raise InternalError(f"job {job}, or what it needs, changed {TRIES} times while it was redriven")

    def _known(self, job: JobId, successor: JobId) -> Submitted:
        stored = self._transitions.read(successor)
        if stored is None:
            raise Gone(f"job {job} was redriven as job {successor}, which is no longer kept")
        return Submitted(job=view(successor, stored.record, stored.revision), created=False)

    async def _repeat(self, caller: Caller, job: JobId, stored: Stored) -> Submitted | None:
        """Store the new job, and in the old one that there is one; None when something has changed meanwhile."""
        now_ms, old = wall_ms(), stored.record
        self._check_redrivable(job, old)
        linked = await self._prepare(caller, job, old, now_ms)
        (new,) = linked.news
        settled = jobs.on_redriven(old, new.id)
        assert isinstance(settled, JobRecord)
        with self._maker.admit(linked.news) as admitted:
            compares = (*admitted.compares, *linked.compares, guard(job, stored))
            entry = job_entry(caller, "job.redrive", job, old.owner, now_ms, made=new.id)
            ops = (*admitted.ops, *linked.ops, *write_ops(job, old, settled), *entry)
            done = await self._consensus.propose(Txn(compares, ops), new.size_bytes() + 1_024)
            check(done)
            if not done.succeeded:
                return None
            self.redriven_total += 1
            revision = Revision(done.revision)
            for change in (Change(job, old, settled, revision), *linked.changes(revision)):
                self._transitions.on_change(change)
        return Submitted(job=view(new.id, new.record, revision), created=True)

    def _check_redrivable(self, job: JobId, record: JobRecord) -> None:
        if record.state is not jobs.FAILED:
            raise NotRedrivable(f"job {job} is {record.state}", expected="a job that failed")
        if record.is_task:
            raise NotRedrivable(f"job {job} is a task of an array", expected="a retry of its array, with its index")
        if record.unique_key is not None and (found := self._store.get(record.unique_key)) is not None:
            holder = records.decode(UniqueRecord, found[1]).job
            raise NotRedrivable(f"job {holder} has the unique key of job {job}", expected="the end of that job")

    async def _prepare(self, caller: Caller, job: JobId, old: JobRecord, now_ms: int) -> Linked:
        """Return the new job, which depends on what the old one did: on the repetition of what was redriven."""
        spec = self._store.get(keys.spec(job))
        assert spec is not None, f"job {job} has a state but no spec"
        again = _again(records.decode_spec(spec[1]), now_ms)
        if old.tasks:
            chosen = await uncompleted(self._store, job)
            new = repeat_tasks(self._store, self._maker, job, again, chosen, now_ms)
        else:
            new = self._maker.make(again, old.owner, now_ms)
        record = replace(new.record, redrive_of=job, schedule=old.schedule, nominal_ms=old.nominal_ms)
        new = in_trace(replace(new, record=record), caller.trace or given(old))
        parents = [Wanted(parent, "depends_on") for parent in self._parents(job, old)]
        return self._dependencies.link(old.owner, [new], {new.id: parents} if parents else {}, now_ms)

    def _parents(self, job: JobId, old: JobRecord) -> list[JobId]:
        """Return what the new job depends on; those that are no longer kept are left out."""
        found: dict[JobId, None] = {}
        for name in self._dependencies.parents_of(job):
            parent, stored = name, self._transitions.read(name)
            while stored is not None and stored.record.redriven_as is not None:
                parent = stored.record.redriven_as
                stored = self._transitions.read(parent)
            if stored is None or self._transitions.is_leaving(parent):
                continue
            if stored.record.state is jobs.FAILED and old.on_failure == "fail":
                raise NotRedrivable(
                    f"job {parent}, which job {job} depends on, failed", expected=f"that job {parent} is redriven first"
                )
            found[parent] = None
        return list(found)

    # --- purge ----------------------------------------------------------------------------------------------------

    async def purge(self, caller: Caller, job: JobId) -> PurgeOutcome:
        await self._queries.read(caller, job)
        return await self._purge(caller, job)

    async def purge_many(self, caller: Caller, where: DeadLetterSelection) -> PurgePage:
        _check_selection(caller, where)
        await self._consensus.barrier()
        start, until_ms = _first(where.cursor)
        found = await self._find(caller, where, start, until_ms)
        deeds = (self._purge(caller, keys.job_of(key)) for key in found.keys)
        purged = 0
        for done in await asyncio.gather(*deeds, return_exceptions=True):
            if isinstance(done, Gone):
                continue  # deleted just now
            if isinstance(done, BaseException):
                raise done
            purged += done.outcome == "purged"
        return PurgePage(purged=purged, next_cursor=_next(found.after, until_ms))

    async def _purge(self, caller: Caller, job: JobId) -> PurgeOutcome:
        now_ms = wall_ms()
        done = await self._transitions.apply(
            job, jobs.on_purged, lambda record: job_entry(caller, "job.purge", job, record.owner, now_ms)
        )
        if isinstance(done, Refusal):
            stored = self._transitions.read_existing(job)
            return PurgeOutcome(outcome="no_dead_letter", job=view(job, stored.record, stored.revision))
        return PurgeOutcome(outcome="purged", job=view(job, done.new, done.revision))

    # --- selections -----------------------------------------------------------------------------------------------

    async def _find(self, caller: Caller, where: DeadLetterSelection, start: bytes, until_ms: int) -> _Found:
        """Return the next dead letters that match, oldest first, a bounded number with bounded work."""
        end = keys.dead_letters_before(until_ms)
        found: list[bytes] = []
        scanned, more = 0, start < end
        while more and scanned < PAGE_SCAN_ROWS:
            rows, more = self._store.range(start, end, limit=TURN_ROWS)
            for key, value, *_ in rows:
                start, scanned = key + b"\x00", scanned + 1
                if _matches(caller, where, records.decode(DeadLetterRecord, value)):
                    found.append(key)
                    if len(found) == PAGE_JOBS:
                        return _Found(found, start)
            await asyncio.sleep(0)
        return _Found(found, start if more else None)


def _again(spec: JobSubmit, now_ms: int) -> JobSubmit:
    """Return what is submitted anew: the idempotency key stays with the old job, and a deadline that is over goes."""
    over = spec.deadline_ms is not None and spec.deadline_ms <= now_ms
    return replace(spec, idempotency_key=None, deadline_ms=None if over else spec.deadline_ms)


def _matches(caller: Caller, where: DeadLetterSelection, record: DeadLetterRecord) -> bool:
    return (
        (caller.admin or record.owner == caller.uid)
        and (where.queue is None or record.queue == where.queue)
        and (where.reason is None or record.reason == where.reason)
        and (where.owner is None or record.owner == where.owner)
    )


def dead_letter(key: bytes, record: DeadLetterRecord) -> DeadLetter:
    """Return a dead letter as a client sees it."""
    return DeadLetter(
        id=keys.job_of(key),
        owner=record.owner,
        queue=record.queue,
        reason=record.reason,
        message=record.message,
        finished_ms=keys.time_of(keys.DEAD_LETTERS, key),
    )


def _check_selection(caller: Caller, where: DeadLetterSelection) -> None:
    if where.queue is None and where.reason is None and where.owner is None and not where.all:
        raise InvalidRequest(
            "nothing says which dead letters", field="$", expected="queue, reason or owner, or all: true for every one"
        )
    if where.owner is not None and where.owner != caller.uid and not caller.admin:
        raise Forbidden(
            f"uid {caller.uid} has no say in jobs of uid {where.owner}", field="$.owner", expected="your own uid"
        )


def _first(cursor: str | None) -> tuple[bytes, int]:
    """Return where a page begins, and before which end of jobs the whole ends: what fails anew is not met again."""
    if cursor is None:
        return keys.DEAD_LETTERS, wall_ms() + 1
    start, _, until_ms = decode_cursor(cursor, keys.DEAD_LETTERS, "$.cursor").rpartition(b"|")
    if not (start and until_ms.isdigit() and len(until_ms) <= 15):
        raise InvalidRequest("the cursor is not one of ours", field="$.cursor", expected="next_cursor of a former page")
    return start, int(until_ms)


def _next(after: bytes | None, until_ms: int) -> str | None:
    return None if after is None else encode_cursor(b"%s|%d" % (after, until_ms))
