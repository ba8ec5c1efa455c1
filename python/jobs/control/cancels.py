"""Ends jobs that somebody wants to end: one, or all of a selection in bounded pages."""

from __future__ import annotations

import asyncio
from typing import Final

from jobs import jobs, keys
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.arrays import Arrays
from jobs.control.audit import job_entry
from jobs.control.listing import jobs_in_order
from jobs.control.queries import PAGE_SCAN_ROWS, TURN_ROWS, decode_cursor, encode_cursor, matches, may_see
from jobs.control.transitions import Transitions, view
from jobs.errors import Forbidden, Gone, InvalidRequest
from jobs.jobs import Refusal
from jobs.protocol.ids import JobId
from jobs.protocol.model import CancelMany, CancelOutcome, CancelPage
from jobs.records import JobRecord
from jobs.service import Caller, JobFilter
from jobs.store import Store

PAGE_JOBS: Final = 256
"""Jobs that one page ends."""


class Cancels:
    """Every cancellation is a transition of its job, with an entry in the audit trail."""

    def __init__(self, consensus: Consensus, store: Store, transitions: Transitions, arrays: Arrays) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions
        self._arrays = arrays

    async def one(self, caller: Caller, job: JobId, record: JobRecord) -> CancelOutcome:
        """End a job that the caller may see, and that stands so."""
        if record.tasks:
            return await self._arrays.cancel(caller, job)
        if record.is_task and self._transitions.read(job) is None:
            return await self._arrays.cancel_unsplit(caller, job)
        now_ms = wall_ms()
        done = await self._transitions.apply(
            job,
            lambda record: jobs.on_cancel(record, now_ms),
            lambda record: job_entry(caller, "job.cancel", job, record.owner, now_ms),
        )
        if isinstance(done, Refusal):
            stored = self._transitions.read_existing(job)
            return CancelOutcome(outcome="already_final", job=view(job, stored.record, stored.revision))
        return CancelOutcome(
            outcome="cancelled" if done.new.state.is_final else "requested",
            job=view(job, done.new, done.revision),
        )

    async def _outcome(self, caller: Caller, job: JobId, record: JobRecord) -> str:
        try:
            return (await self.one(caller, job, record)).outcome
        except Gone:
            return "already_final"  # it ended and was deleted just now

    async def many(self, caller: Caller, wanted: CancelMany) -> CancelPage:
        """End some of the jobs that match, in order of their ids: a job is met once, whatever becomes of it meanwhile.

        Raises InvalidRequest without a criterion, and Forbidden for another owner's jobs.
        """
        where = _filter(caller, wanted)
        await self._consensus.barrier()
        after = None if wanted.cursor is None else decode_cursor(wanted.cursor, keys.STATE, "$.cursor")
        found: dict[JobId, JobRecord] = {}
        last: bytes | None = None
        final = 0
        more = False
        for looked, (key, record, _) in enumerate(jobs_in_order(self._store, where, after, False, TURN_ROWS)):
            if len(found) == PAGE_JOBS or looked == PAGE_SCAN_ROWS:
                more = True
                break
            if looked % TURN_ROWS == TURN_ROWS - 1:
                await asyncio.sleep(0)
            last = key
            if may_see(caller, record) and matches(where, record):
                if record.state.is_final:
                    final += 1
                else:
                    found[keys.job_of(key)] = record
        outcomes = await asyncio.gather(*(self._outcome(caller, job, record) for job, record in found.items()))
        return CancelPage(
            cancelled=outcomes.count("cancelled"),
            requested=outcomes.count("requested"),
            already_final=final + outcomes.count("already_final"),
            next_cursor=encode_cursor(last) if more and last is not None else None,
        )


def _filter(caller: Caller, wanted: CancelMany) -> JobFilter:
    where = JobFilter(
        states=tuple(wanted.states),
        type=wanted.type,
        queue=wanted.queue,
        owner=wanted.owner,
        worker=wanted.worker,
        schedule=wanted.schedule,
        labels=tuple(wanted.labels.items()),
    )
    if where == JobFilter() and not wanted.all:
        raise InvalidRequest(
            "nothing says which jobs", field="$", expected="at least one criterion, or all: true for every job"
        )
    if where.owner is not None and where.owner != caller.uid and not caller.admin:
        raise Forbidden(f"uid {caller.uid} ends no jobs of uid {where.owner}", field="$.owner", expected="your own uid")
    return where
