"""The life of a job: one table of allowed transitions, pure. Time and randomness come as arguments.

Every handler takes the record as stored and returns the record to store instead, or a `Refusal` with the reason why
the event does not apply. Which index keys a record stands under follows from the record alone (`index_entries`), so a
transition never has to say which ones to add or remove.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from jobs import keys, retention
from jobs.protocol.ids import Attempt, Incarnation, JobId, WorkerId, array_id, task_index
from jobs.protocol.model import JobState, JobSubmit, MaintenanceJob, Reason, Requires, Retry, ShellJob, tag_of
from jobs.protocol.model.maintenance import SOLE_KEY
from jobs.protocol.wire import Outcome
from jobs.records import DeadLetterRecord, Demand, EndedRecord, JobRecord, RunningRecord, UniqueRecord
from jobs.rootlabels import root_labels

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
"""From each state, the states that may follow; a final state has none. pending → pending: its time came,
or another job that it waited for ended; running → running: cancellation was asked for, or another job began to wait for
it; running → pending: the attempt failed and is tried again. An array runs from its first task split off to the end of
its last one, and is never pending again."""

MESSAGE_LIMIT: Final = 1024
NOT_STARTED: Final = "not started by its deadline"

JOB_BYTES: Final = 2_048
"""About what an ended job takes in the store, without its submission, results and output."""
INLINE_BYTES: Final = 64 << 10
"""Output of one stream that a result carries; more becomes a blob once the attempt has ended."""
ATTEMPT_BYTES: Final = 1_024
"""About what an attempt takes, without its output."""

NOT_RETRIED: Final = frozenset({Reason.CANCELLED, Reason.DEADLINE, Reason.DEPENDENCY_FAILED, Reason.INVALID_PAYLOAD})
"""Reasons that a repetition does not mend; one that a job names in its `retry.reasons` is tried again all the same."""
NOT_DEAD: Final = frozenset({Reason.CANCELLED})
"""Failures that somebody asked for: they do not become dead letters."""


class Refusal(Struct, frozen=True):
    """The event does not apply to the job as it is; `why` in words."""

    why: str


Step: TypeAlias = JobRecord | Refusal


def on_submit(job: JobSubmit, owner: int, now_ms: int, tasks: int = 0) -> JobRecord:
    """Return the first record of a job, or an array of `tasks`, before anything is said of what it depends on."""
    ready_ms = max(now_ms, job.not_before_ms or 0)
    concurrency_key, concurrency_limit = job.concurrency_key, job.concurrency_limit
    if isinstance(job, MaintenanceJob):
        # One of a kind at a time, whoever wants it and whatever else it says.
        concurrency_key, concurrency_limit = SOLE_KEY + tag_of(job.payload), 1
    return JobRecord(
        type=tag_of(job),
        queue=job.queue,
        priority=job.priority,
        owner=owner,
        state=PENDING,
        submitted_ms=now_ms,
        ready_ms=ready_ms,
        delayed=ready_ms > now_ms,
        timeout_s=job.timeout_s,
        retry=job.retry,
        requires=_required(job),
        labels=job.labels,
        deadline_ms=job.deadline_ms,
        heartbeat_s=job.heartbeat_s,
        on_failure=job.on_failure,
        concurrency_key=concurrency_key,
        concurrency_limit=concurrency_limit,
        unique_key=None if job.unique_key is None else keys.unique(owner, job.unique_key),
        retention=job.retention,
        ref=job.ref,
        tasks=tasks,
    )


def _required(job: JobSubmit) -> Requires:
    """Return what a worker must have: what the job says, and the root image that it names."""
    root = job.payload.root if isinstance(job, ShellJob) else None
    if not isinstance(root, str):
        return job.requires
    return replace(job.requires, labels=job.requires.labels | root_labels([root]))


def on_due(record: JobRecord, now_ms: int) -> Step:
    """A time that a pending job waits for has come: its deadline, or the one before which it must not run.

    An array that runs at its deadline begins no more tasks.
    """
    if record.state is RUNNING and _ends_at_deadline(record, now_ms):
        return _to(record, RUNNING, reason=Reason.DEADLINE, message=NOT_STARTED)
    if record.state is not PENDING:
        return Refusal(f"the job is {record.state} and waits for no time")
    if record.deadline_ms is not None and record.attempt == 0 and record.deadline_ms <= now_ms:
        return _to(
            record,
            FAILED,
            delayed=False,
            waits_for=0,
            reason=Reason.DEADLINE,
            message=NOT_STARTED,
            finished_ms=now_ms,
        )
    if not record.delayed or record.ready_ms > now_ms:
        return Refusal("the job waits for no time that has come")
    return _to(record, PENDING, delayed=False)


def on_depends(record: JobRecord, parents: int) -> Step:
    """The job is to wait for the end of `parents` more jobs."""
    if record.state is not PENDING or record.attempt > 0:
        return Refusal(f"the job is {record.state} and has begun; it can wait for nothing more")
    return _to(record, PENDING, waits_for=record.waits_for + parents)


def on_child(record: JobRecord) -> Step:
    """Another job is to wait for the end of this one."""
    if record.state.is_final:
        return Refusal(f"the job is {record.state} already")
    return record if record.has_children else _to(record, record.state, has_children=True)


def on_parent_ended(record: JobRecord, parent: JobId, parent_state: JobState, now_ms: int) -> Step:
    """A job that this one waits for has ended."""
    if record.state is not PENDING or record.waits_for == 0:
        return Refusal(f"the job is {record.state} and waits for no other")
    if parent_state is FAILED and record.on_failure == "fail":
        return _to(
            record,
            FAILED,
            delayed=False,
            waits_for=0,
            reason=Reason.DEPENDENCY_FAILED,
            message=f"job {parent}, which it depends on, failed",
            finished_ms=now_ms,
        )
    waits_for = record.waits_for - 1
    if waits_for > 0:
        return _to(record, PENDING, waits_for=waits_for)
    ready_ms = max(record.ready_ms, now_ms)
    return _to(record, PENDING, waits_for=0, ready_ms=ready_ms, delayed=ready_ms > now_ms)


def on_assigned(record: JobRecord, worker: WorkerId, incarnation: Incarnation, now_ms: int) -> Step:
    """A worker is given the job."""
    if not is_ready(record):
        return Refusal(
            f"the job is {record.state}, not ready" if record.state is not PENDING else "the job still waits"
        )
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


def on_split(record: JobRecord, now_ms: int) -> Step:
    """Tasks of the array become jobs of their own; the first ones begin it."""
    if record.state is PENDING and may_split(record):
        return _to(record, RUNNING, started_ms=now_ms)
    return record if may_split(record) else Refusal(f"the array is {record.state} and begins no tasks now")


def on_tasks_ended(
    record: JobRecord, reason: Reason | None, message: str | None, stored_bytes: int, log_bytes: int, now_ms: int
) -> Step:
    """Every task of the array has ended; `reason` is why it failed as a whole, if it did.

    They take `stored_bytes` in the store, `log_bytes` of it their output.
    """
    if record.state.is_final:
        return Refusal(f"the array is {record.state} already")
    return _to(
        record,
        COMPLETED if reason is None else FAILED,
        delayed=False,
        waits_for=0,
        reason=reason,
        message=message,
        finished_ms=now_ms,
        stored_bytes=record.stored_bytes + stored_bytes,
        log_bytes=log_bytes,
    )


def on_cancel(record: JobRecord, now_ms: int) -> Step:
    """Somebody asks for the job to end."""
    if record.state is PENDING:
        return _to(
            record,
            FAILED,
            delayed=False,
            waits_for=0,
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
    log_bytes = outcome.stdout.stored_bytes + outcome.stderr.stored_bytes
    record = _with_attempt(record, log_bytes)
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
    ended = _failed_attempt(record, outcome.reason, outcome.message, now_ms, chance, outcome.exit_code)
    return replace(ended, exit_code=outcome.exit_code, signal=outcome.signal)


def on_worker_lost(
    record: JobRecord, attempt: Attempt, incarnation: Incarnation, now_ms: int, chance: float, log_bytes: int = 0
) -> Step:
    """The worker that has the job is gone, and with it whatever it ran; about `log_bytes` of output are stored."""
    stale = _stale(record, attempt, incarnation)
    if stale is not None:
        return stale
    record = _with_attempt(record, log_bytes)
    return _failed_attempt(record, Reason.WORKER_LOST, f"worker {record.worker} was lost", now_ms, chance)


def on_redriven(record: JobRecord, successor: JobId) -> Step:
    """Another job repeats this one, which failed: it stays as it is, and is a dead letter no more."""
    if record.state is not FAILED:
        return Refusal(f"the job is {record.state}; only what failed is redriven")
    if record.redriven_as is not None:
        return Refusal(f"it was redriven as job {record.redriven_as} already")
    return replace(record, settled=True, redriven_as=successor)


def on_purged(record: JobRecord) -> Step:
    """Somebody has looked at the dead letter and wants to see it no more; the job stays as it is."""
    return replace(record, settled=True) if is_dead_letter(record) else Refusal("the job is no dead letter")


def on_held(record: JobRecord, until_ms: int | None) -> Step:
    """The time of an ended job is over, but it is kept as it is needed still; or (None) that is over too."""
    return replace(record, held_until_ms=until_ms) if record.state.is_final else Refusal("the job has not ended")


def on_output_gone(record: JobRecord, all_gone: bool) -> Step:
    """The output of an ended job is no longer kept; it goes in steps, and this is the last of them or not."""
    if not record.state.is_final:
        return Refusal("the job has not ended")
    if not all_gone:
        return replace(record, logs_gone=True)
    return replace(record, logs_gone=True, log_bytes=0, stored_bytes=record.stored_bytes - record.log_bytes)


def on_output_moved(record: JobRecord, attempt: Attempt) -> Step:
    """The output of an attempt that has ended is where it stays."""
    if attempt > _ended_attempts(record) or attempt <= record.moved:
        return Refusal(f"the output of attempt {attempt} is not to be moved")
    return replace(record, moved=attempt)


def has_output_to_move(record: JobRecord) -> bool:
    """Tell whether an attempt has ended whose output may be more than the store is to hold for good."""
    is_large = record.log_bytes > INLINE_BYTES and not record.logs_gone and not record.tasks
    return is_large and record.moved < _ended_attempts(record)


def is_current(record: JobRecord, attempt: Attempt, incarnation: Incarnation) -> bool:
    """Tell whether a report of this attempt and worker life is about the job as it now runs."""
    return _stale(record, attempt, incarnation) is None


def retries(retry: Retry, attempt: Attempt, reason: Reason, exit_code: int | None) -> bool:
    """Tell whether an attempt that failed so is followed by another."""
    if attempt >= retry.max_attempts or reason is Reason.CANCELLED:
        return False
    if retry.reasons is not None and reason not in retry.reasons:
        return False
    if retry.reasons is None and reason in NOT_RETRIED:
        return False
    if reason is not Reason.EXIT_CODE:
        return True
    return (retry.exit_codes is None or exit_code in retry.exit_codes) and exit_code not in retry.except_exit_codes


def retry_delay_ms(retry: Retry, failed_attempts: int, chance: float) -> int:
    """Return the wait before the next attempt, with `chance` in [0, 1) choosing the share of jitter."""
    if retry.backoff == "none":
        return 0
    delay_s = retry.delay_s
    if retry.backoff == "exponential":
        delay_s *= 2.0 ** min(failed_attempts - 1, 64)
    return int(min(delay_s, retry.cap_s) * (1 + retry.jitter * chance) * 1000)


def is_ready(record: JobRecord) -> bool:
    """Tell whether nothing but a worker is missing; an array never goes to one."""
    return record.state is PENDING and not record.delayed and record.waits_for == 0 and not record.tasks


def may_split(record: JobRecord) -> bool:
    """Tell whether more tasks of an array may become jobs of their own."""
    if not record.tasks or record.state.is_final or rest_of(record) is not None:
        return False
    return record.state is RUNNING or (not record.delayed and record.waits_for == 0)


def rest_of(record: JobRecord) -> Reason | None:
    """Return why the tasks of an array that are no jobs of their own yet will never be; None while they may.

    Of an array that ended while it ran its record of tasks tells.
    """
    if record.state is FAILED or record.reason is Reason.DEADLINE:
        return record.reason
    return Reason.CANCELLED if record.cancel_requested else None


def is_dead_letter(record: JobRecord) -> bool:
    """Tell whether the job failed for good and nobody has dealt with that yet."""
    return record.state is FAILED and record.reason not in NOT_DEAD and not record.settled and not record.is_task


def demand_of(record: JobRecord) -> Demand:
    """Return what the job asks of a worker and of the cluster."""
    return Demand(record.type, record.requires, record.concurrency_key, record.concurrency_limit)


def next_moment_ms(record: JobRecord) -> int | None:
    """Return when time by itself next changes the job."""
    if record.state is RUNNING and record.tasks and rest_of(record) is None:
        return record.deadline_ms
    if record.state is not PENDING:
        return None
    moments = [record.ready_ms] if record.delayed and record.waits_for == 0 else []
    if record.deadline_ms is not None and record.attempt == 0:
        moments.append(record.deadline_ms)
    return min(moments, default=None)


def ready_key(job: JobId, record: JobRecord) -> bytes:
    """Return the queue key of a job that is ready."""
    lane = demand_of(record).lane()
    return keys.queue(record.queue, record.owner, lane, record.priority, record.ready_ms, job)


def ended_key(job: JobId, record: JobRecord) -> bytes:
    """Return where retention finds a job that has ended."""
    assert record.finished_ms is not None
    own_ms = retention.own_moment_ms(record)
    if own_ms is not None:
        return keys.ended(keys.ENDED_OWN, own_ms, job)
    return keys.ended(keys.ENDED_FULL if record.log_bytes else keys.ENDED_BARE, record.finished_ms, job)


def index_entries(job: JobId, record: JobRecord) -> dict[bytes, Struct | None]:
    """Return the index keys that a job stands under as it is, and what stands there (None: nothing needs to)."""
    entries = _end_entries(job, record) if record.state.is_final else _turn_entries(job, record)
    moment_ms = next_moment_ms(record)
    if moment_ms is not None:
        entries[keys.timer(moment_ms, job)] = None
    if record.is_task and record.state is not COMPLETED:
        entries[keys.numbered(_task_kind(record), array_id(job), task_index(job))] = None
    if record.has_children and record.state.is_final:
        entries[keys.parent_ended(job)] = None
    if record.unique_key is not None and not record.state.is_final:
        entries[record.unique_key] = UniqueRecord(job)
    if record.schedule is not None and not record.is_task and not record.state.is_final:
        entries[keys.unfinished(record.schedule, job)] = None
    if has_output_to_move(record):
        entries[keys.output_to_move(job)] = None
    return entries


def _turn_entries(job: JobId, record: JobRecord) -> dict[bytes, Struct | None]:
    """Return where a job stands by what comes next for it."""
    entries: dict[bytes, Struct | None] = {keys.array_open(job): None} if record.tasks else {}
    if is_ready(record):
        entries[ready_key(job, record)] = demand_of(record)
    elif record.state is PENDING:
        entries[keys.waiting(record.queue, record.owner, job)] = None
    elif not record.tasks:
        assert record.worker is not None
        assert record.incarnation is not None
        entries[keys.running(record.worker, job)] = RunningRecord(
            record.attempt,
            record.incarnation,
            record.requires,
            record.queue,
            record.owner,
            record.concurrency_key,
            record.started_ms or 0,
        )
    return entries


def _ended_attempts(record: JobRecord) -> Attempt:
    return Attempt(record.attempt - 1) if record.state is RUNNING else record.attempt


def _end_entries(job: JobId, record: JobRecord) -> dict[bytes, Struct | None]:
    """Return where an ended job stands; a task nowhere, for what its array stands under says it."""
    if record.is_task:
        return {}
    assert record.finished_ms is not None
    entries: dict[bytes, Struct | None] = {
        ended_key(job, record): EndedRecord(record.stored_bytes, record.held_until_ms is not None)
    }
    if is_dead_letter(record):
        assert record.reason is not None
        entries[keys.dead_letter(record.finished_ms, job)] = DeadLetterRecord(
            owner=record.owner, queue=record.queue, reason=record.reason, message=record.message
        )
    return entries


def _task_kind(record: JobRecord) -> bytes:
    if not record.state.is_final:
        return keys.TASKS_ACTIVE
    return keys.TASKS_CANCELLED if record.reason is Reason.CANCELLED else keys.TASKS_FAILED


def _ends_at_deadline(record: JobRecord, now_ms: int) -> bool:
    moment_ms = next_moment_ms(record)
    return moment_ms is not None and moment_ms <= now_ms


def _stale(record: JobRecord, attempt: Attempt, incarnation: Incarnation) -> Refusal | None:
    if record.state is not RUNNING:
        return Refusal(f"the job is {record.state}, not running")
    if record.attempt != attempt:
        return Refusal(f"attempt {attempt} is over; the job is at attempt {record.attempt}")
    if record.incarnation != incarnation:
        return Refusal(f"attempt {attempt} belongs to another life of worker {record.worker}")
    return None


def _failed_attempt(
    record: JobRecord, reason: Reason, message: str | None, now_ms: int, chance: float, exit_code: int | None = None
) -> JobRecord:
    message = message[:MESSAGE_LIMIT] if message else None
    if record.cancel_requested or reason is Reason.CANCELLED:
        return _to(record, FAILED, reason=Reason.CANCELLED, message="cancelled while it ran", finished_ms=now_ms)
    if not retries(record.retry, record.attempt, reason, exit_code):
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


def _with_attempt(record: JobRecord, log_bytes: int) -> JobRecord:
    """Return the record with what another attempt has stored."""
    return replace(
        record,
        stored_bytes=record.stored_bytes + ATTEMPT_BYTES + log_bytes,
        log_bytes=record.log_bytes + log_bytes,
    )


def _to(record: JobRecord, state: JobState, **changes: object) -> JobRecord:
    assert state in TRANSITIONS[record.state], f"{record.state} → {state} is not a transition"
    return replace(record, state=state, **changes)
