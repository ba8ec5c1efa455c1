"""What becomes of a job as spans, pure. Ids follow from the job's id, so that whichever node leads makes the same.

```
job             from its submission to its end
├─ submit       until it was durable
├─ wait         until it was ready: for other jobs, a time, or the delay before another attempt
├─ queue        until a worker was free
└─ attempt      from its assignment until its end was durable
   ├─ start     until the worker had started it
   ├─ run       what the worker measured; of a query with `plan` and `execute`
   └─ record    until the end was durable
```
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Final, TypeAlias

from msgspec import Struct

from jobs.protocol.ids import Attempt, JobId, array_id, task_index
from jobs.protocol.model import JobState
from jobs.records import JobRecord, ResultRecord
from jobs.tracing.context import SAMPLED, TraceContext, parse

Value: TypeAlias = str | int | float | bool
NS_PER_MS: Final = 1_000_000
_RATIO_BITS: Final = 56


class Kind(IntEnum):
    """As OTLP counts them."""

    INTERNAL = 1
    SERVER = 2
    CONSUMER = 5


class Span(Struct, frozen=True, kw_only=True):
    """Something that took some time, as part of a trace."""

    context: TraceContext
    """Its trace and its own id."""
    parent_id: str
    """"" for the first span of a trace."""
    name: str
    kind: Kind
    start_ms: int
    end_ms: int
    attributes: Mapping[str, Value]
    error: str | None = None
    """Why it failed, if it did."""
    links: Sequence[TraceContext] = ()
    """Other spans that it has to do with."""


class JobTrace(Struct, frozen=True):
    """The trace of a job: the one it was submitted in, or its own."""

    trace_id: str
    parent_id: str
    """Of the span that the job's stands below, "" for none."""
    flags: int
    state: str

    @property
    def is_sampled(self) -> bool:
        return bool(self.flags & SAMPLED)

    def span(self, span_id: str) -> TraceContext:
        return TraceContext(self.trace_id, span_id, self.flags, self.state)


def job_span_id(job: JobId) -> str:
    return _digest(job)


def attempt_span_id(job: JobId, attempt: Attempt) -> str:
    return _digest(f"{job} {attempt}")


def given(record: JobRecord) -> TraceContext | None:
    """Return the context that the job was submitted with."""
    return parse(record.traceparent, record.tracestate)


def trace_of(job: JobId, record: JobRecord, ratio: float) -> JobTrace:
    """Return the trace of a job. One that was submitted in none has its own, named by its id, of which a share is
    sampled; tasks stand below their array."""
    top = array_id(job) if record.is_task else job
    found = given(record)
    if found is None:
        trace_id = top.replace("-", "")
        flags = SAMPLED if _chance(trace_id) < ratio else 0
        return JobTrace(trace_id, job_span_id(top) if record.is_task else "", flags, "")
    parent_id = job_span_id(top) if record.is_task else found.span_id
    return JobTrace(found.trace_id, parent_id, found.flags, found.state)


def on_submitted(trace: JobTrace, job: JobId, record: JobRecord, now_ms: int) -> Span:
    """The job is durable."""
    return _child(trace, job, f"{job} submit", "submit", record.submitted_ms, now_ms, Kind.SERVER, _about(job, record))


def on_waited(trace: JobTrace, job: JobId, record: JobRecord, since_ms: int, until_ms: int) -> Iterator[Span]:
    """A job that was pending since a moment is so no more: it was given to a worker, or ended."""
    attempt = record.attempt + 1
    about: dict[str, Value] = {"jobs.job.id": job, "jobs.attempt": attempt, "jobs.queue": record.queue}
    is_held = record.delayed or record.waits_for > 0
    ready_ms = until_ms if is_held else min(max(record.ready_ms, since_ms), until_ms)
    if ready_ms > since_ms:
        yield _child(trace, job, f"{job} wait {attempt}", "wait", since_ms, ready_ms, Kind.INTERNAL, about)
    if not is_held:
        yield _child(trace, job, f"{job} queue {attempt}", "queue", ready_ms, until_ms, Kind.INTERNAL, about)


def on_attempt_ended(
    trace: JobTrace, job: JobId, record: JobRecord, result: ResultRecord | None, now_ms: int
) -> Iterator[Span]:
    """An attempt has ended; `record` is the job's before that."""
    began_ms = min(record.started_ms or now_ms, now_ms)
    own = trace.span(attempt_span_id(job, record.attempt))
    about: dict[str, Value] = {"jobs.job.id": job, "jobs.job.type": record.type, "jobs.attempt": record.attempt}
    if record.worker is not None:
        about["jobs.worker"] = record.worker
    about |= _outcome(result)
    error = None if result is None or result.reason is None else result.message or result.reason.value
    yield Span(
        context=own,
        parent_id=job_span_id(job),
        name="attempt",
        kind=Kind.CONSUMER,
        start_ms=began_ms,
        end_ms=now_ms,
        attributes=about,
        error=error,
    )
    if result is not None and result.execution is not None:
        yield from _phases(own, job, result, began_ms, now_ms)


def on_ended(trace: JobTrace, job: JobId, record: JobRecord, now_ms: int, links: Sequence[TraceContext] = ()) -> Span:
    """The job has ended; `links` are the spans of those that it depended on."""
    about = _about(job, record) | {"jobs.state": record.state.value, "jobs.attempts": int(record.attempt)}
    if record.reason is not None:
        about["jobs.reason"] = record.reason.value
    failed = record.state is JobState.FAILED
    return Span(
        context=trace.span(job_span_id(job)),
        parent_id=trace.parent_id,
        name=f"job {record.type}",
        kind=Kind.INTERNAL,
        start_ms=record.submitted_ms,
        end_ms=max(record.submitted_ms, record.finished_ms or now_ms, now_ms),
        attributes=about,
        error=(record.message or (record.reason.value if record.reason else "failed")) if failed else None,
        links=links,
    )


def _phases(own: TraceContext, job: JobId, result: ResultRecord, began_ms: int, now_ms: int) -> Iterator[Span]:
    """The worker's clock may be another: what it says is put between what the leader knows."""
    execution = result.execution
    assert execution is not None
    started_ms = min(max(execution.started_ms, began_ms), now_ms)
    ended_ms = min(max(execution.finished_ms, started_ms), now_ms)
    attempt = execution.attempt

    def phase(name: str, below: str, start_ms: int, end_ms: int) -> Span:
        return Span(
            context=TraceContext(own.trace_id, _digest(f"{job} {attempt} {name}"), own.flags, own.state),
            parent_id=below,
            name=name,
            kind=Kind.INTERNAL,
            start_ms=start_ms,
            end_ms=end_ms,
            attributes={"jobs.job.id": job, "jobs.attempt": attempt},
        )

    run = phase("run", own.span_id, started_ms, ended_ms)
    yield from (phase("start", own.span_id, began_ms, started_ms), run, phase("record", own.span_id, ended_ms, now_ms))
    if result.query is not None:
        planned_ms = min(started_ms + round(result.query.planned_s * 1_000), ended_ms)
        done_ms = min(planned_ms + round(result.query.executed_s * 1_000), ended_ms)
        yield phase("plan", run.context.span_id, started_ms, planned_ms)
        yield phase("execute", run.context.span_id, planned_ms, done_ms)


def _outcome(result: ResultRecord | None) -> dict[str, Value]:
    if result is None:
        return {}
    found: dict[str, Value | None] = {"jobs.reason": None if result.reason is None else result.reason.value}
    if (execution := result.execution) is not None:
        found |= {
            "jobs.node": execution.node,
            "jobs.sandbox": execution.sandbox,
            "jobs.exit_code": execution.exit_code,
            "jobs.signal": execution.signal,
            "jobs.cpu_user_s": execution.cpu_user_s,
            "jobs.cpu_system_s": execution.cpu_system_s,
            "jobs.peak_memory_bytes": execution.peak_memory_bytes,
            "jobs.stdout_bytes": execution.stdout.bytes,
            "jobs.stderr_bytes": execution.stderr.bytes,
        }
    return {name: value for name, value in found.items() if value is not None}


def _about(job: JobId, record: JobRecord) -> dict[str, Value]:
    about: dict[str, Value] = {
        "jobs.job.id": job,
        "jobs.job.type": record.type,
        "jobs.queue": record.queue,
        "jobs.owner": record.owner,
        "jobs.priority": record.priority,
    }
    if record.schedule is not None:
        about["jobs.schedule"] = record.schedule
    if record.tasks:
        about["jobs.tasks"] = record.tasks
    if record.is_task:
        about |= {"jobs.array": array_id(job), "jobs.array.index": task_index(job)}
    return about


def _child(
    trace: JobTrace,
    job: JobId,
    named: str,
    name: str,
    start_ms: int,
    end_ms: int,
    kind: Kind,
    attributes: Mapping[str, Value],
) -> Span:
    return Span(
        context=trace.span(_digest(named)),
        parent_id=job_span_id(job),
        name=name,
        kind=kind,
        start_ms=start_ms,
        end_ms=max(start_ms, end_ms),
        attributes=attributes,
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _chance(trace_id: str) -> float:
    """Return a number in [0, 1) that is the same wherever the trace is looked at."""
    digest = hashlib.blake2b(trace_id.encode(), digest_size=_RATIO_BITS // 8).digest()
    return int.from_bytes(digest) / (1 << _RATIO_BITS)
