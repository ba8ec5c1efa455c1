"""The life of a job: one table of allowed transitions, pure. Time and randomness come as arguments.

Every handler takes the record as stored and returns the record to store instead, or a `Refusal` with the reason why
the event does not apply. Which index key a record stands under follows from the record alone (`index_key`), so a
transition never has to say which one to add or remove.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from jobs import keys
from jobs.protocol.ids import Attempt, Incarnation, JobId, WorkerId
from jobs.protocol.model import JobState, JobSubmit, Reason, Retry
from jobs.protocol.wire import Outcome
from jobs.records import Demand, JobRecord

PENDING: Final = JobState.PENDING
RUNNING: Final = JobState.RUNNING
COMPLETED: Final = JobState.COMPLETED
FAILED: Final = JobState.FAILED

TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    PENDING: frozenset({PENDING, RUNNING, FAILED}),
    RUNNING: frozenset({RUNNING, PENDING, COMPLETED, FAILED}),
    COMPLETED: frozenset(),
    FAILED: frozenset(),
}
"""From each state, the states that may follow; a final state has none. pending → pending: its timer ran out;
running → running: cancellation was asked for; running → pending: the attempt failed and is tried again."""

MESSAGE_LIMIT: Final = 1024


class Refusal(Struct, frozen=True):
    """The event does not apply to the job as it is; `why` in words."""

    why: str


Step: TypeAlias = JobRecord | Refusal


def on_submit(job: JobSubmit, owner: int, now_ms: int) -> JobRecord:
    """Return the first record of a job."""
    return JobRecord(
        type=type(job).__struct_config__.tag,  # type: ignore[arg-type]
        queue=job.queue,
        priority=job.priority,
        owner=owner,
        state=PENDING,
        submitted_ms=now_ms,
        ready_ms=now_ms,
        timeout_s=job.timeout_s,
        retry=job.retry,
        requires=job.requires,
        labels=job.labels,
    )


def on_due(record: JobRecord) -> Step:
    """The time a pending job waited for has come."""
    if record.state is not PENDING or not record.delayed:
        return Refusal(f"the job is {record.state} and waits for no time")
    return _to(record, PENDING, delayed=False)


def on_assigned(record: JobRecord, worker: WorkerId, incarnation: Incarnation, now_ms: int) -> Step:
    """A worker is given the job."""
    if record.state is not PENDING or record.delayed:
        return Refusal(f"the job is {'delayed' if record.delayed else record.state}, not ready")
    return _to(
        record,
        RUNNING,
        attempt=Attempt(record.attempt + 1),
        worker=worker,
        incarnation=incarnation,
        started_ms=now_ms,
        reason=None,
        message=None,
        exit_code=None,
        signal=None,
    )


def on_cancel(record: JobRecord, now_ms: int) -> Step:
    """Somebody asks for the job to end."""
    if record.state is PENDING:
        return _to(
            record,
            FAILED,
            delayed=False,
            cancel_requested=True,
            reason=Reason.CANCELLED,
            message="cancelled before it ran" if record.attempt == 0 else "cancelled while it waited to be tried again",
            finished_ms=now_ms,
        )
    if record.state is RUNNING:
        return record if record.cancel_requested else _to(record, RUNNING, cancel_requested=True)
    return Refusal(f"the job is {record.state} already")


def on_finished(
    record: JobRecord, attempt: Attempt, incarnation: Incarnation, outcome: Outcome, now_ms: int, chance: float
) -> Step:
    """The worker reports the end of an attempt; `chance` in [0, 1) is for the jitter of a retry."""
    stale = _stale(record, attempt, incarnation)
    if stale is not None:
        return stale
    if outcome.reason is None:
        return _to(
            record,
            COMPLETED,
            reason=None,
            message=None,
            finished_ms=now_ms,
            exit_code=outcome.exit_code,
            signal=None,
        )
    ended = _failed_attempt(record, outcome.reason, outcome.message, now_ms, chance)
    return replace(ended, exit_code=outcome.exit_code, signal=outcome.signal)


def on_worker_lost(record: JobRecord, attempt: Attempt, incarnation: Incarnation, now_ms: int, chance: float) -> Step:
    """The worker that has the job is gone, and with it whatever it ran."""
    stale = _stale(record, attempt, incarnation)
    if stale is not None:
        return stale
    return _failed_attempt(record, Reason.WORKER_LOST, f"worker {record.worker} was lost", now_ms, chance)


def is_current(record: JobRecord, attempt: Attempt, incarnation: Incarnation) -> bool:
    """Tell whether a report of this attempt and worker life is about the job as it now runs."""
    return _stale(record, attempt, incarnation) is None


def retry_delay_ms(retry: Retry, failed_attempts: int, chance: float) -> int:
    """Return the wait before the next attempt, with `chance` in [0, 1) choosing the share of jitter."""
    delay_s = retry.delay_s
    if retry.backoff == "exponential":
        delay_s *= 2.0 ** min(failed_attempts - 1, 64)
    return int(min(delay_s, retry.cap_s) * (1 + retry.jitter * chance) * 1000)


def demand_of(record: JobRecord) -> Demand:
    """Return what the job asks of a worker."""
    return Demand(record.type, record.requires)


def index_key(job: JobId, record: JobRecord) -> bytes | None:
    """Return the index key that a job in this state stands under: its queue, its timer, its worker, or none."""
    if record.state is PENDING:
        if record.delayed:
            return keys.timer(record.ready_ms, job)
        lane = demand_of(record).lane()
        return keys.queue(record.queue, lane, record.priority, record.ready_ms, job)
    if record.state is RUNNING and record.worker is not None:
        return keys.running(record.worker, job)
    return None


def _stale(record: JobRecord, attempt: Attempt, incarnation: Incarnation) -> Refusal | None:
    if record.state is not RUNNING:
        return Refusal(f"the job is {record.state}, not running")
    if record.attempt != attempt:
        return Refusal(f"attempt {attempt} is over; the job is at attempt {record.attempt}")
    if record.incarnation != incarnation:
        return Refusal(f"attempt {attempt} belongs to another life of worker {record.worker}")
    return None


def _failed_attempt(record: JobRecord, reason: Reason, message: str | None, now_ms: int, chance: float) -> JobRecord:
    message = message[:MESSAGE_LIMIT] if message else None
    if record.cancel_requested or reason is Reason.CANCELLED:
        return _to(record, FAILED, reason=Reason.CANCELLED, message="cancelled while it ran", finished_ms=now_ms)
    if record.attempt >= record.retry.max_attempts:
        return _to(record, FAILED, reason=reason, message=message, finished_ms=now_ms)
    delay_ms = retry_delay_ms(record.retry, record.attempt, chance)
    return _to(
        record,
        PENDING,
        reason=reason,
        message=message,
        worker=None,
        incarnation=None,
        delayed=delay_ms > 0,
        ready_ms=now_ms + delay_ms,
    )


def _to(record: JobRecord, state: JobState, **changes: object) -> JobRecord:
    assert state in TRANSITIONS[record.state], f"{record.state} → {state} is not a transition"
    return replace(record, state=state, **changes)
