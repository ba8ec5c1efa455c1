"""Why a job is where it is, put together and in words: pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from jobs import jobs
from jobs.clock import rfc3339
from jobs.protocol.ids import JobId
from jobs.protocol.model import AttemptView, Explanation, JobState, JobView, Obstacle, Reason
from jobs.records import JobRecord
from jobs.scheduler.explain import Finding

MAX_JOBS: Final = 20
LASTING: Final = frozenset({"paused", "unsuitable"})
"""What is worth knowing of a job that is not ready yet: limits and room will be others when it is."""

_REASONS: Final[dict[Reason, str]] = {
    Reason.EXIT_CODE: "its command ended with exit code {job.exit_code}",
    Reason.SIGNAL: "its command was ended by signal {job.signal}",
    Reason.OOM: "it ran out of memory",
    Reason.PIDS_LIMIT: "it reached its limit of processes",
    Reason.TIMEOUT: "it took too long",
    Reason.DEADLINE: "it was not started by its deadline",
    Reason.CANCELLED: "somebody asked for its end",
    Reason.WORKER_LOST: "its worker was lost while it ran",
    Reason.SANDBOX_UNAVAILABLE: "the worker could not isolate it as it must be",
    Reason.SPAWN_FAILED: "its command could not be started",
    Reason.INVALID_PAYLOAD: "its payload cannot be run",
    Reason.DEPENDENCY_FAILED: "a job that it depends on failed",
    Reason.OUTPUT_LIMIT: "it wrote more than it may",
    Reason.QUERY_ERROR: "its query failed",
    Reason.BLOB_ERROR: "its blob could not be had",
    Reason.MAINTENANCE_ERROR: "its operation of maintenance could not be carried out",
    Reason.DISK_LIMIT: "it wrote more to its files than it may",
    Reason.CPU_LIMIT: "it used more processor time than it may",
    Reason.REPLICATION_ERROR: "what it was to copy could not be copied",
}


class Parent(Struct, frozen=True):
    """A job that this one depends on; no state when it is no longer kept."""

    job: JobId
    state: JobState | None


class Circumstances(Struct, frozen=True, kw_only=True):
    """What is known around a job."""

    finding: Finding | None = None
    """What is against a start now; of a pending job."""
    being_started: bool = False
    """It is being given to a worker at this moment."""
    ahead: int | None = None
    parents: Sequence[Parent] = ()
    attempts: Sequence[AttemptView] = ()
    """The last of those that have ended, newest first."""
    worker_away: str | None = None
    """Why the worker that has it is not to be heard of, if it is not."""
    tasks: str | None = None
    """Of an array: how its tasks stand, in words."""


def explain(job: JobView, record: JobRecord, around: Circumstances) -> Explanation:
    """Return the explanation."""
    obstacles = [] if around.being_started else _obstacles(record, around)
    finding = around.finding
    ended = record.attempt - 1 if record.state is jobs.RUNNING else record.attempt
    return Explanation(
        job=job,
        text=_text(job, record, around, obstacles),
        obstacles=obstacles,
        ahead=around.ahead,
        reserved=None if finding is None else finding.reserved,
        workers=[] if finding is None else finding.workers,
        more_workers=0 if finding is None else finding.more_workers,
        attempts=list(around.attempts),
        more_attempts=max(0, ended - len(around.attempts)),
    )


def explain_unsplit(task: JobView, array: JobRecord, around: Circumstances) -> Explanation:
    """Return the explanation of a task that is no job of its own yet: whatever its array waits for."""
    obstacles = _obstacles(array, around)
    why = f": {obstacles[0].text}" if obstacles else f"; {around.tasks}"
    return replace(
        explain(task, array, around),
        text=f"its array has yet to begin it{why}",
        obstacles=obstacles,
    )


def _obstacles(record: JobRecord, around: Circumstances) -> list[Obstacle]:
    found = [*_times(record), *_parents(record, around.parents)]
    if around.finding is not None:
        ready = jobs.is_ready(record) or jobs.may_split(record)
        found += [obstacle for obstacle in around.finding.obstacles if ready or obstacle.kind in LASTING]
    # What does not pass by waiting comes first.
    return sorted(found, key=lambda obstacle: obstacle.kind != "unsuitable")


def _times(record: JobRecord) -> list[Obstacle]:
    if not record.delayed:
        return []
    at = rfc3339(record.ready_ms)
    if record.attempt == 0:
        return [Obstacle(kind="time", text=f"it is not to run before {at}", until_ms=record.ready_ms)]
    text = f"attempt {record.attempt} failed ({record.reason}); it is tried again at {at}"
    return [Obstacle(kind="retry", text=text, until_ms=record.ready_ms)]


def _parents(record: JobRecord, parents: Sequence[Parent]) -> list[Obstacle]:
    if record.waits_for == 0:
        return []
    waited_for = [parent for parent in parents if parent.state is None or not parent.state.is_final]
    shown = waited_for[:MAX_JOBS]
    states = ", ".join(f"{parent.job} ({parent.state or 'no longer kept'})" for parent in shown)
    what = f"the end of {len(waited_for)} {'job' if len(waited_for) == 1 else 'jobs'}"
    return [
        Obstacle(
            kind="parents",
            text=f"it waits for {what}: {states}" if shown else "what it waited for has ended; it is about to be told",
            jobs=[parent.job for parent in shown],
            more_jobs=len(waited_for) - len(shown),
        )
    ]


# --- words ------------------------------------------------------------------------------------------------------------


def _text(job: JobView, record: JobRecord, around: Circumstances, obstacles: Sequence[Obstacle]) -> str:
    if record.state is jobs.PENDING:
        return _pending(record, around, obstacles)
    if record.state is jobs.RUNNING:
        return _running_array(record, around, obstacles) if record.tasks else _running(job, around)
    return _final(job)


def _pending(record: JobRecord, around: Circumstances, obstacles: Sequence[Obstacle]) -> str:
    if around.being_started:
        return "it is being given to a worker"
    deadline = ""
    if record.deadline_ms is not None and record.attempt == 0:
        deadline = f"; it fails unless it is started by {rfc3339(record.deadline_ms)}"
    return f"{_first(obstacles) or 'nothing is against it: it is started when its turn comes'}{deadline}"


def _first(obstacles: Sequence[Obstacle]) -> str:
    """Return the first of the obstacles, and how many more there are; "" for none."""
    if not obstacles:
        return ""
    if obstacles[0].kind == "unsuitable":
        return f"{obstacles[0].text}; it stays pending until one comes that can"
    return obstacles[0].text + (f", and {len(obstacles) - 1} more" if len(obstacles) > 1 else "")


def _running_array(record: JobRecord, around: Circumstances, obstacles: Sequence[Obstacle]) -> str:
    if record.cancel_requested:
        return f"{around.tasks}; it is being ended, as was asked for"
    if record.reason is Reason.DEADLINE:
        return f"{around.tasks}; no more tasks begin, as it is past its deadline"
    return f"{around.tasks}{f'; those that wait: {obstacles[0].text}' if obstacles else ''}"


def _running(job: JobView, around: Circumstances) -> str:
    assert job.started_ms is not None
    text = f"attempt {job.attempt} of {job.max_attempts} runs on worker {job.worker} since {rfc3339(job.started_ms)}"
    if job.cancel_requested:
        text += "; it is being ended, as was asked for"
    if around.worker_away is not None:
        text += f"; the worker is {around.worker_away}: unless it returns within its lease, the attempt is lost"
    return text


def _final(job: JobView) -> str:
    at = rfc3339(job.finished_ms) if job.finished_ms is not None else "some time"
    if job.state is JobState.COMPLETED or job.reason is None:
        return f"it completed at {at}" + ("" if job.tasks else f" with attempt {job.attempt}")
    if job.tasks:
        return f"it failed at {at}: {job.message or _REASONS[job.reason].format(job=job)}"
    text = f"it failed at {at}: {_REASONS[job.reason].format(job=job)}"
    if job.message and job.reason is not Reason.EXIT_CODE:
        text += f" ({job.message})"
    if job.attempt == 0:
        return f"{text}; it never ran"
    if job.attempt < job.max_attempts and job.reason is not Reason.CANCELLED:
        return f"{text}; attempt {job.attempt} of {job.max_attempts}: an end like this is not tried again"
    return f"{text}; attempt {job.attempt} of {job.max_attempts}"
