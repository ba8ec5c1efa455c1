"""Follows the changes of jobs and makes spans of them; passes the context of traces on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from msgspec.structs import replace

from jobs import jobs, keys, records
from jobs.clock import wall_ms
from jobs.control.transitions import Change, read_job
from jobs.protocol.ids import Attempt, JobId
from jobs.records import JobRecord, ParentsRecord, ResultRecord
from jobs.store import Store
from jobs.tracing import spans
from jobs.tracing.context import TraceContext
from jobs.tracing.spans import JobTrace, Span


class Sink(Protocol):
    """Where spans go."""

    def add(self, spans: Iterable[Span]) -> None: ...


class Tracing:
    """Without a sink nothing is recorded, and the contexts that jobs came with are passed on as they are."""

    def __init__(self, store: Store, sink: Sink | None, sample_ratio: float) -> None:
        self._store = store
        self._sink = sink
        self._ratio = sample_ratio

    def variables(self, job: JobId, record: JobRecord) -> dict[str, str]:
        """Return the variables that tell an attempt of its trace."""
        if self._sink is None:
            context = spans.given(record)
            return {} if context is None else context.variables()
        trace = spans.trace_of(job, record, self._ratio)
        return trace.span(spans.attempt_span_id(job, record.attempt)).variables()

    def inherit(self, fresh: dict[JobId, JobRecord], parents: Mapping[JobId, Sequence[JobId]]) -> None:
        """Have new jobs that came in no trace be part of that of the first job that they depend on and that has one.

        There are no circles among them.
        """
        done: set[JobId] = set()

        def settle(job: JobId) -> None:
            if job in done:
                return
            done.add(job)
            for parent in parents.get(job, ()):
                if parent in fresh:
                    settle(parent)
            if fresh[job].traceparent is None:
                for parent in parents.get(job, ()):
                    context = self._below(parent, fresh.get(parent))
                    if context is not None:
                        fresh[job] = with_context(fresh[job], context)
                        return

        for job in parents:
            settle(job)

    def on_change(self, change: Change) -> None:
        """Record what a committed change ends, other than an assignment."""
        if self._sink is None:
            return
        trace = spans.trace_of(change.job, change.new, self._ratio)
        if trace.is_sampled:
            self._sink.add(self._ended_by(change, trace, wall_ms()))

    def on_assigned(self, change: Change) -> None:
        """Record how long a job has waited that is given to a worker."""
        if self._sink is None:
            return
        trace = spans.trace_of(change.job, change.new, self._ratio)
        if trace.is_sampled and change.old is not None:
            self._sink.add(self._waited(change.job, change.old, trace, change.new.started_ms or wall_ms()))

    def _ended_by(self, change: Change, trace: JobTrace, now_ms: int) -> list[Span]:
        job, old, new = change.job, change.old, change.new
        made: list[Span] = []
        if old is None:
            if not new.is_task:
                made.append(spans.on_submitted(trace, job, new, now_ms))
        elif old.state is jobs.RUNNING and new.state is not jobs.RUNNING and not old.tasks:
            made += spans.on_attempt_ended(trace, job, old, self._result(job, old.attempt), now_ms)
        elif old.state is jobs.PENDING and new.state.is_final:
            made += self._waited(job, old, trace, now_ms)
        if new.state.is_final and (old is None or not old.state.is_final):
            made.append(spans.on_ended(trace, job, new, now_ms, self._links(job, new)))
        return made

    def _waited(self, job: JobId, record: JobRecord, trace: JobTrace, until_ms: int) -> list[Span]:
        since_ms = record.submitted_ms
        if record.attempt > 0:
            former = self._result(job, record.attempt)
            ended_ms = None if former is None else former.finished_ms
            if former is not None and former.execution is not None:
                ended_ms = former.execution.finished_ms
            since_ms = record.ready_ms if ended_ms is None else ended_ms
        return list(spans.on_waited(trace, job, record, min(since_ms, until_ms), until_ms))

    def _result(self, job: JobId, attempt: Attempt) -> ResultRecord | None:
        found = self._store.get(keys.result(job, attempt))
        return None if found is None else records.decode(ResultRecord, found[1])

    def _links(self, job: JobId, record: JobRecord) -> list[TraceContext]:
        """Return the spans of the jobs that this one depended on, or repeats."""
        found = self._store.get(keys.parents(job))
        others = [] if found is None else list(records.decode(ParentsRecord, found[1]).jobs)
        if record.redrive_of is not None:
            others.append(record.redrive_of)
        read = ((other, read_job(self._store, other)) for other in others)
        return [
            spans.trace_of(other, stored.record, self._ratio).span(spans.job_span_id(other))
            for other, stored in read
            if stored is not None
        ]

    def _below(self, parent: JobId, record: JobRecord | None) -> TraceContext | None:
        """Return the context of what is to stand below a job, which is new or there already."""
        if record is None:
            stored = read_job(self._store, parent)
            if stored is None:
                return None
            record = stored.record
        if self._sink is None:
            return spans.given(record)
        return spans.trace_of(parent, record, self._ratio).span(spans.job_span_id(parent))


def with_context(record: JobRecord, context: TraceContext | None) -> JobRecord:
    """Return the record of a job that is part of a trace, if it is."""
    if context is None:
        return record
    return replace(record, traceparent=context.parent, tracestate=context.state or None)
