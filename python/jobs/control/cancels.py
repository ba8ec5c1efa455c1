"""Ends jobs that somebody wants to end: one, or all of a selection in bounded pages."""

from __future__ import annotations

import asyncio
from typing import Final

from jobs import jobs, keys, records
from jobs.clock import wall_ms
from jobs.consensus import Consensus
from jobs.control.audit import job_entry
from jobs.control.queries import PAGE_SCAN_ROWS, TURN_ROWS, decode_cursor, encode_cursor, matches, may_see
from jobs.control.transitions import Transitions, view
from jobs.errors import Forbidden, InvalidRequest
from jobs.jobs import Refusal
from jobs.protocol.ids import JobId
from jobs.protocol.model import CancelMany, CancelOutcome, CancelPage
from jobs.records import JobRecord
from jobs.service import Caller, JobFilter
from jobs.store import Store, prefix_end

PAGE_JOBS: Final = 256
"""Jobs that one page ends."""


class Cancels:
    """Every cancellation is a transition of its job, with an entry in the audit trail."""

    def __init__(self, consensus: Consensus, store: Store, transitions: Transitions) -> None:
        self._consensus = consensus
        self._store = store
        self._transitions = transitions

    async def one(self, caller: Caller, job: JobId) -> CancelOutcome:
        """End a job that the caller may see."""
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

    async def many(self, caller: Caller, wanted: CancelMany) -> CancelPage:
        """End some of the jobs that match, in order of their ids: a job is met once, whatever becomes of it meanwhile.

        Raises InvalidRequest without a criterion, and Forbidden for another owner's jobs.
        """
        where = _filter(caller, wanted)
        await self._consensus.barrier()
        start = keys.STATE
        if wanted.cursor is not None:
            start = decode_cursor(wanted.cursor, keys.STATE, "$.cursor") + b"\x00"
        found: list[JobId] = []
        final = scanned = 0
        more = True
        while more and scanned < PAGE_SCAN_ROWS and len(found) < PAGE_JOBS:
            rows, more = self._store.range(start, prefix_end(keys.STATE), limit=TURN_ROWS)
            for key, value, *_ in rows:
                record = records.decode(JobRecord, value)
                start, scanned = key + b"\x00", scanned + 1
                if not (may_see(caller, record) and matches(where, record)):
                    continue
                if record.state.is_final:
                    final += 1
                    continue
                found.append(keys.job_of(key))
                if len(found) == PAGE_JOBS:
                    more = more or key != rows[-1][0]
                    break
            await asyncio.sleep(0)
        done = await asyncio.gather(*(self.one(caller, job) for job in found))
        outcomes = [outcome.outcome for outcome in done]
        return CancelPage(
            cancelled=outcomes.count("cancelled"),
            requested=outcomes.count("requested"),
            already_final=final + outcomes.count("already_final"),
            next_cursor=encode_cursor(start[:-1]) if more else None,
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
