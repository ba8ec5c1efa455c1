"""The public job model: what a client sends and receives, and what OpenAPI is generated from.

Unknown fields are refused everywhere. Times are milliseconds since 1970 (`_ms`), durations seconds (`_s`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from jobs.protocol.ids import MAX_TASKS, Attempt, Incarnation, JobId, Revision, WorkerId

NAME_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.:/@-]{0,127}\Z"
Name = Annotated[str, Meta(pattern=NAME_PATTERN, description="A short name.")]
Ref = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}\Z", description="A name without slashes.")]
LabelValue = Annotated[str, Meta(max_length=256)]
Labels = Annotated[dict[Name, LabelValue], Meta(max_length=64)]
DurationS = Annotated[float, Meta(gt=0, le=31_536_000)]
TimeMs = Annotated[int, Meta(ge=0, le=253_402_300_799_999)]
"""Milliseconds since 1970, until the end of the year 9999."""
ExitCode = Annotated[int, Meta(ge=1, le=255)]
JobIdText = Annotated[JobId, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\Z")]
IdempotencyKey = Annotated[str, Meta(min_length=1, max_length=255)]


class JobState(StrEnum):
    """The four states; `completed` and `failed` are final."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        return self is JobState.COMPLETED or self is JobState.FAILED


class Reason(StrEnum):
    """Why a job failed, or why its last attempt did."""

    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    OOM = "oom"
    PIDS_LIMIT = "pids_limit"
    TIMEOUT = "timeout"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    WORKER_LOST = "worker_lost"
    SANDBOX_UNAVAILABLE = "sandbox_unavailable"
    SPAWN_FAILED = "spawn_failed"
    INVALID_PAYLOAD = "invalid_payload"
    DEPENDENCY_FAILED = "dependency_failed"
    OUTPUT_LIMIT = "output_limit"
    QUERY_ERROR = "query_error"
    BLOB_ERROR = "blob_error"


class Stream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"


class _Model(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """Base of every public type: immutable, keyword-only, closed."""


class _Given(_Model, frozen=True, omit_defaults=True):
    """Base of what clients give: carried, stored and shown without what they left as it is by default."""


class Content(_Given, frozen=True):
    """Bytes in JSON: exactly one of `text` (UTF-8) and `base64`."""

    text: str | None = None
    base64: str | None = None

    def __bytes__(self) -> bytes:
        from jobs.content import content_bytes

        return content_bytes(self, "content")


class Limits(_Given, frozen=True):
    """Bounds of one execution; what is not given comes from the worker's configuration."""

    memory_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 50)] | None = None
    pids: Annotated[int, Meta(ge=1, le=4_194_304)] | None = None
    open_files: Annotated[int, Meta(ge=16, le=1 << 20)] | None = None
    file_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] | None = None
    tmp_bytes: Annotated[int, Meta(ge=1 << 16, le=1 << 50)] | None = None
    output_bytes: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None
    cpu_s: Annotated[int, Meta(ge=1, le=31_536_000)] | None = None


class ShellPayload(_Given, frozen=True):
    """A command (`argv`) or a script for `/bin/sh` (`script`): exactly one of them."""

    argv: Annotated[list[str], Meta(min_length=1, max_length=4096)] | None = None
    script: Annotated[str, Meta(max_length=1 << 20)] | None = None
    env: Annotated[dict[str, str], Meta(max_length=1024)] = field(default_factory=dict)
    cwd: str | None = None
    """Directory inside the sandbox; relative to the job's own directory `/work`, which is the default."""
    stdin: Content | None = None
    files: Annotated[dict[str, Content], Meta(max_length=256)] = field(default_factory=dict)
    """Relative path → content, placed in the job's directory before it starts."""
    limits: Limits = field(default_factory=Limits)
    network: Literal["none", "host"] = "none"
    """`host` runs only on a worker whose operator allows it."""
    grace_s: Annotated[float, Meta(ge=0, le=3600)] | None = None
    """Seconds between SIGTERM and SIGKILL when the job is ended; default of the worker otherwise."""


MAX_ATTEMPTS: Final = 1_000
"""Of one job."""


class Retry(_Given, frozen=True):
    """How often, when and for what a failed attempt is tried again."""

    max_attempts: Annotated[int, Meta(ge=1, le=MAX_ATTEMPTS)] = 1
    backoff: Literal["none", "fixed", "exponential"] = "exponential"
    """`none` tries again at once."""
    delay_s: Annotated[float, Meta(ge=0, le=86_400)] = 1.0
    cap_s: Annotated[float, Meta(ge=0, le=86_400)] = 300.0
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Largest share of the delay that is added at random."""
    reasons: Annotated[list[Reason], Meta(min_length=1, max_length=32)] | None = None
    """Only an attempt that failed for one of these is tried again; otherwise for any but `cancelled`."""
    exit_codes: Annotated[list[ExitCode], Meta(min_length=1, max_length=256)] | None = None
    """Of attempts that failed by their exit code, only these are tried again."""
    except_exit_codes: Annotated[list[ExitCode], Meta(max_length=256)] = field(default_factory=list)
    """Attempts with these exit codes are not tried again."""


class Requires(_Given, frozen=True):
    """What a worker must have to be given the job."""

    labels: Labels = field(default_factory=dict)
    cpu_milli: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 0
    memory_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] = 0
    resources: Annotated[dict[Name, Annotated[int, Meta(ge=1, le=1_000_000)]], Meta(max_length=16)] = field(
        default_factory=dict
    )
    """Counts of what the operator has named, such as `{"gpu": 1}`; held while the job runs."""
    prefer: Labels = field(default_factory=dict)
    """Labels that decide among the workers that can take the job: the one with most of them is chosen."""


class Retention(_Given, frozen=True):
    """How long an ended job is kept; what is not given comes from the node's configuration."""

    keep_s: Annotated[float, Meta(ge=0, le=315_360_000)] | None = None
    """The job with everything of it."""
    logs_s: Annotated[float, Meta(ge=0, le=315_360_000)] | None = None
    """Its output, which may go earlier; not given beside `keep_s`, it goes with the job."""


Number = Annotated[int, Meta(ge=-(1 << 53), le=1 << 53)]


class ArrayRange(_Model, frozen=True, kw_only=True):
    """Numbers as of Python's `range`: from `start` on, by `step`, below `stop`."""

    start: Number = 0
    stop: Number
    step: Annotated[int, Meta(ge=1, le=1 << 53)] = 1


MAX_ITEM_BYTES: Final = 64 << 10
"""Of one line, or of one value as JSON."""


class ArraySpec(_Model, frozen=True):
    """What the tasks of an array are made from, one each: exactly one of `range`, `lines` and `items`."""

    range: ArrayRange | None = None
    lines: Annotated[list[str], Meta(min_length=1, max_length=MAX_TASKS)] | None = None
    """Each without an end of line, and at most 64 KiB; what is stored of the job does not repeat them."""
    items: Annotated[list[Any], Meta(min_length=1, max_length=MAX_TASKS)] | None = None
    """Any JSON values, each at most 64 KiB; what is stored of the job does not repeat them."""
    max_running: Annotated[int, Meta(ge=1, le=MAX_TASKS)] | None = None
    """Tasks that run at a time."""


MAX_PARENTS: Final = 100
"""Jobs that one job may depend on."""


class ShellJob(_Given, frozen=True, tag_field="type", tag="shell"):
    """A job of type `shell` as a client submits it."""

    payload: ShellPayload
    queue: Name = "default"
    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    requires: Requires = field(default_factory=Requires)
    timeout_s: DurationS | None = None
    retry: Retry = field(default_factory=Retry)
    labels: Labels = field(default_factory=dict)
    idempotency_key: IdempotencyKey | None = None
    unique_key: IdempotencyKey | None = None
    """While a job of the owner with this key has not ended, another one is not made: the first is the answer."""
    not_before_ms: TimeMs | None = None
    deadline_ms: TimeMs | None = None
    """Not started by then, the job fails with reason `deadline`."""
    heartbeat_s: DurationS | None = None
    """An attempt that is silent on its own channel for longer is ended with reason `timeout`."""
    depends_on: Annotated[list[Annotated[str, Meta(min_length=1, max_length=128)]], Meta(max_length=MAX_PARENTS)] = (
        field(default_factory=list)
    )
    """Jobs that have to end first: ids, or `ref`s of jobs in the same request."""
    on_failure: Literal["fail", "run"] = "fail"
    """When one that it depends on fails, the job fails as `dependency_failed`, or runs all the same."""
    ref: Ref | None = None
    """Name by which jobs of the same request can depend on this one."""
    concurrency_key: Name | None = None
    """At most `concurrency_limit` jobs with this key run at a time, whoever owns them and wherever they wait."""
    concurrency_limit: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    retention: Retention = field(default_factory=Retention)
    array: ArraySpec | None = None
    """Not one execution but many tasks, which differ by what their variables `JOBS_ARRAY_…` hold."""


JobSubmit = ShellJob
"""Every kind of job that can be submitted: a union tagged by `type` once there are more."""


BATCH_JOBS: Final = 160
"""Jobs of one request: one transaction of at most 1,000 operations stores them, and a job takes up to six (spec, state,
place in the queue, timer, idempotency key, unique key)."""
BATCH_OPERATIONS: Final = 999
"""Of a request: what is left of the 1,000 beside the entry in the audit trail; see `validate.operations_of`."""


class Batch(_Model, frozen=True):
    """Several jobs, accepted all or none."""

    jobs: Annotated[list[JobSubmit], Meta(min_length=1, max_length=BATCH_JOBS)]


class JobView(_Model, frozen=True):
    """A job as a client sees it."""

    id: JobId
    type: str
    state: JobState
    reason: Reason | None
    message: str | None
    """The reason in words."""
    queue: str
    priority: int
    owner: int
    """uid of the submitter."""
    attempt: Attempt
    max_attempts: int
    worker: WorkerId | None
    cancel_requested: bool
    exit_code: int | None
    signal: int | None
    submitted_ms: int
    started_ms: int | None
    finished_ms: int | None
    labels: dict[str, str]
    ready_ms: int
    """When it became or becomes ready to run, as far as that depends on time."""
    deadline_ms: int | None
    waits_for: int
    """Jobs that have to end before this one may run."""
    concurrency_key: str | None
    redrive_of: JobId | None
    """The failed job that this one repeats."""
    redriven_as: JobId | None
    """The job that repeats this one."""
    ref: str | None
    """Its name among the jobs that were submitted with it."""
    schedule: str | None
    """The schedule that made it."""
    nominal_ms: int | None
    """The moment of the schedule that it was made for."""
    revision: Revision
    """Revision of the store at which this was so; a watch can go on from it."""
    tasks: int = 0
    """Tasks of an array; 0 for any other job."""
    array: JobId | None = None
    """The array that this is a task of."""
    index: int | None = None
    """Which of its tasks, from 0 on."""


class Progress(_Model, frozen=True):
    """What a job last said of itself: how far it is in percent, and at what."""

    percent: float
    message: str | None
    at_ms: int


class JobDetail(_Model, frozen=True):
    """A job and what was submitted."""

    job: JobView
    spec: JobSubmit
    progress: Progress | None = None
    """Of the present or last attempt."""
    parents: list[JobId] = field(default_factory=list)
    """The jobs that it depends on."""


class Depend(_Model, frozen=True):
    """What a job that has not started is to wait for, on top of what it waits for already."""

    depends_on: Annotated[list[JobIdText], Meta(min_length=1, max_length=MAX_PARENTS)]
    """Jobs of the same owner."""


class GraphNode(_Model, frozen=True):
    """A job in a graph."""

    id: JobId
    ref: str | None
    state: JobState | None
    """None for a job that is no longer kept."""
    reason: Reason | None


class GraphEdge(_Model, frozen=True):
    """`child` depends on `parent`."""

    parent: JobId
    child: JobId


class JobGraph(_Model, frozen=True):
    """A job, what it depends on and what depends on it, directly or not, and all dependencies between these jobs."""

    job: JobId
    nodes: list[GraphNode]
    edges: list[GraphEdge]
    truncated: bool
    """There are more; those nearest to the job are shown."""


class Submitted(_Model, frozen=True):
    """Answer to one submission; `created` is false when the idempotency key was known already."""

    job: JobView
    created: bool


class BatchSubmitted(_Model, frozen=True):
    jobs: list[Submitted]


class JobPage(_Model, frozen=True):
    jobs: list[JobView]
    next_cursor: str | None
    revision: Revision


class StreamInfo(_Model, frozen=True):
    """How much one stream carried, and how much of it was kept."""

    bytes: int
    """What the job wrote, also past the limit."""
    stored_bytes: int
    truncated: bool


class Execution(_Model, frozen=True):
    """Metadata of one attempt."""

    attempt: Attempt
    worker: WorkerId
    incarnation: Incarnation
    node: str
    queued_ms: int
    started_ms: int
    finished_ms: int
    wall_s: float
    cpu_user_s: float
    cpu_system_s: float
    peak_memory_bytes: int
    exit_code: int | None
    signal: int | None
    sandbox: str
    """Level that was in force: `strict`, `standard` or `none`."""
    stdout: StreamInfo
    stderr: StreamInfo


class JobResult(_Model, frozen=True):
    """What came of one attempt. `stdout` and `stderr` carry up to 64 KiB each; the logs carry all that was kept."""

    id: JobId
    state: JobState
    reason: Reason | None
    message: str | None
    stdout: Content
    stderr: Content
    execution: Execution | None
    """None when the job ended without ever running, or its worker was lost."""
    logs_gone: bool = False
    """The output is no longer kept: that is why `stdout` and `stderr` are empty."""


class ParentResult(_Model, frozen=True):
    """What came of a job that another depends on, as the other finds it in its directory."""

    id: JobId
    ref: str | None
    state: JobState | None
    """None for a job that is no longer kept; then nothing else is known of it."""
    reason: Reason | None = None
    message: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    stdout: Content = Content(text="")
    stderr: Content = Content(text="")
    stdout_truncated: bool = False
    """`stdout` holds only the beginning of what the job wrote."""
    stderr_truncated: bool = False
    file_truncated: bool = False
    """The file `stdout` beside this one holds only the beginning, too."""
    execution: Execution | None = None


class AttemptView(_Model, frozen=True):
    """One attempt: how it ended, or that it runs."""

    attempt: Attempt
    state: JobState
    reason: Reason | None
    message: str | None
    worker: WorkerId | None
    started_ms: int | None
    finished_ms: int | None
    execution: Execution | None
    """None while it runs, and when its worker was lost."""


class AttemptList(_Model, frozen=True):
    attempts: list[AttemptView]
    logs_gone: bool
    """Their output is no longer kept."""


class CancelCounts(_Model, frozen=True):
    """What a cancellation of many jobs did: ended at once, asked of the worker, or nothing."""

    cancelled: int
    requested: int
    already_final: int


class CancelOutcome(_Model, frozen=True):
    """What a cancellation did: `cancelled` at once, `requested` of the worker, or nothing (`already_final`)."""

    outcome: Literal["cancelled", "requested", "already_final"]
    job: JobView
    tasks: CancelCounts | None = None
    """Of an array, what it did to those of its tasks that it was about."""


class CancelMany(_Model, frozen=True):
    """Which jobs to end: all that is given must match, and something has to be given. Others' jobs only for admins."""

    labels: Labels = field(default_factory=dict)
    queue: Name | None = None
    states: Annotated[list[JobState], Meta(max_length=4)] = field(default_factory=list)
    """One of these."""
    type: str | None = None
    owner: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    worker: str | None = None
    schedule: Name | None = None
    """Those that this schedule made."""
    all: bool = False
    """Without anything else: every job that the caller may end."""
    cursor: str | None = None
    """`next_cursor` of the answer before."""


class CancelPage(CancelCounts, frozen=True):
    """What one page of a cancellation did."""

    next_cursor: str | None
    """To go on with; null when every job was looked at."""


MAX_TAIL_BYTES: Final = 16 << 20
"""The last part of a job's output is not longer than this, however long its lines are."""
ObstacleKind = Literal[
    "time",
    "retry",
    "parents",
    "paused",
    "queue_limit",
    "share_limit",
    "owner_limit",
    "rate",
    "concurrency_key",
    "unsuitable",
    "room",
]
"""What can keep a pending job from being started; docs/scheduling.md has each of them."""


class Obstacle(_Model, frozen=True):
    """One thing that keeps a pending job from being started."""

    kind: ObstacleKind
    text: str
    """The same in words."""
    until_ms: int | None = None
    """When it passes by itself, where that is known."""
    count: int | None = None
    """Of a limit: how many jobs run under it."""
    limit: int | None = None
    jobs: list[JobId] = field(default_factory=list)
    """The jobs whose end is waited for, some of them if they are many."""
    more_jobs: int = 0


class WorkerFit(_Model, frozen=True):
    """How a pending job and a worker go together."""

    worker: WorkerId
    suits: bool
    """The worker could run it, if it had nothing else to do."""
    takes: bool
    """The worker could be given it now."""
    lacks: list[str]
    """What is in the way, in words."""


class Explanation(_Model, frozen=True):
    """Why a job is where it is."""

    job: JobView
    text: str
    """The gist of it, in words."""
    obstacles: list[Obstacle]
    """What keeps it, or those tasks of an array that wait, from being started; nothing when its turn will come."""
    ahead: int | None
    """Jobs of its owner and queue that ask the same and come first, counted up to 10,000; None unless it is ready."""
    reserved: WorkerId | None
    """A worker that takes nothing else until a job that asks the same has been started."""
    workers: list[WorkerFit]
    """Of what waits: the workers, nearest first; at most 100."""
    more_workers: int
    attempts: list[AttemptView]
    """Those that have ended, newest first; at most 20."""
    more_attempts: int


class LogEvent(_Model, frozen=True):
    """A piece of output, in the order in which the worker read it."""

    attempt: Attempt
    seq: int
    """Cursor: a follower goes on after it."""
    stream: Stream
    data: Content


class JobEvent(_Model, frozen=True):
    """A change of one job."""

    revision: Revision
    job: JobView


# --- arrays --------------------------------------------------------------------------------------------------------

IndexText = Annotated[str, Meta(min_length=1, max_length=1 << 20, pattern=r"^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*\Z")]
"""Indices of tasks, such as `5,10-20`."""


class ArrayView(_Model, frozen=True):
    """How far an array is: each of its tasks is counted in exactly one of the five states."""

    id: JobId
    state: JobState
    """Of the array as a whole."""
    source: Literal["range", "lines", "items"]
    tasks: int
    size: int
    """Its indices are below this; more than there are tasks when it repeats some of another array."""
    pending: int
    running: int
    completed: int
    failed: int
    cancelled: int
    percent: float
    """Share of the tasks that have ended."""
    failed_indices: str
    """Such as `5,10-20`; of more than 100 runs the first, then `…`."""
    redrive_of: JobId | None


class TasksCancel(_Model, frozen=True):
    """Which tasks of an array to end."""

    indices: IndexText


class ArrayRetry(_Model, frozen=True):
    """Which tasks of an ended array to repeat as a new one: all that did not complete, unless told otherwise."""

    indices: IndexText | None = None
    """Only these; each must have failed or been cancelled."""
    only: Literal["failed", "cancelled"] | None = None
    """Only those that ended so."""
    idempotency_key: IdempotencyKey | None = None
    """The same key makes the same array only once."""


PressureKind = Literal["cpu", "memory", "io"]
"""What the kernel accounts pressure for."""


class WorkerView(_Model, frozen=True):
    id: WorkerId
    type: str
    incarnation: Incarnation
    node: str
    state: Literal["ready", "draining", "stopping", "lost"]
    """`draining`: an administrator has said that it is given no more jobs; `stopping`: it has said so itself, and goes
    when those it has are done; `lost`: it is not connected, and has until its lease ends."""
    slots: int
    running: int
    labels: dict[str, str]
    cpu_milli: int
    memory_bytes: int
    sandbox: str
    registered_ms: int
    resources: dict[str, int] = field(default_factory=dict)
    """Counts of what the operator has named, such as `{"gpu": 1}`."""
    pressure: dict[PressureKind, float] = field(default_factory=dict)
    """Percent of the last ten seconds in which something on its machine waited for cpu, memory or io (`some avg10`)."""
    pressed: bool = False
    """That is more than its operator allows: it is given nothing more for now."""
    drained: bool = False
    """An administrator has said that it is given no more jobs; also its next lives, until that is undone."""


class WorkerList(_Model, frozen=True):
    workers: list[WorkerView]


# --- dead letters ---------------------------------------------------------------------------------------------------


class DeadLetter(_Model, frozen=True):
    """A job that failed for good, and that nobody has dealt with yet."""

    id: JobId
    owner: int
    queue: str
    reason: Reason
    message: str | None
    finished_ms: int


class DeadLetterPage(_Model, frozen=True):
    dead_letters: list[DeadLetter]
    next_cursor: str | None


class DeadLetterSelection(_Model, frozen=True):
    """Which dead letters: all that is given must match, and something has to be given. Others' only for admins."""

    queue: Name | None = None
    reason: Reason | None = None
    owner: Annotated[int, Meta(ge=0, lt=1 << 32)] | None = None
    all: bool = False
    """Without anything else: every one that the caller may deal with."""
    cursor: str | None = None
    """`next_cursor` of the answer before."""


class Redriven(_Model, frozen=True):
    """What became of one dead letter: the job that repeats it, or why there is none."""

    id: JobId
    job: JobId | None
    refused: str | None


class RedrivePage(_Model, frozen=True):
    redriven: list[Redriven]
    next_cursor: str | None
    """To go on with; null when every dead letter was looked at that was there at the beginning."""


class PurgeOutcome(_Model, frozen=True):
    """What a purge did: `purged`, or nothing as the job is `no_dead_letter`. The job is kept as any other is."""

    outcome: Literal["purged", "no_dead_letter"]
    job: JobView


class PurgePage(_Model, frozen=True):
    purged: int
    next_cursor: str | None


# --- queues and owners -------------------------------------------------------------------------------------------

Weight = Annotated[float, Meta(ge=0.001, le=1_000_000)]
Limit = Annotated[int, Meta(ge=0, le=1_000_000_000)]
RateCount = Annotated[int, Meta(ge=1, le=1_000_000)]
RatePeriodS = Annotated[float, Meta(ge=0.001, le=31_536_000)]


class QueueSettings(_Model, frozen=True):
    """What an administrator can set of a queue; null is no limit."""

    weight: Weight = 1.0
    """Share of the workers among the queues that have jobs waiting."""
    max_pending: Limit | None = None
    max_pending_per_owner: Limit | None = None
    max_running: Limit | None = None
    max_running_per_owner: Limit | None = None
    rate_count: RateCount | None = None
    """So many starts, and as many at once, in each `rate_period_s`."""
    rate_period_s: RatePeriodS = 1.0


class QueueChange(_Model, frozen=True):
    """What is to be other than before of a queue's settings; what is left out stays as it is."""

    weight: Weight | UnsetType = UNSET
    max_pending: Limit | UnsetType | None = UNSET
    max_pending_per_owner: Limit | UnsetType | None = UNSET
    max_running: Limit | UnsetType | None = UNSET
    max_running_per_owner: Limit | UnsetType | None = UNSET
    rate_count: RateCount | UnsetType | None = UNSET
    rate_period_s: RatePeriodS | UnsetType = UNSET


class QueueView(QueueSettings, frozen=True, kw_only=True):
    """A queue as it is."""

    name: str
    paused: bool
    """Nothing of it is started."""
    draining: bool
    """It takes no more jobs; what waits is still run."""
    pending: int
    waiting: int
    """Of the pending: those that wait for a time or for other jobs."""
    running: int


class QueuePage(_Model, frozen=True):
    queues: list[QueueView]
    next_cursor: str | None


class OwnerSettings(_Model, frozen=True):
    """What an administrator can set of an owner of jobs; null is no limit."""

    weight: Weight = 1.0
    """Share of the workers among the owners that have jobs waiting in the same queue."""
    max_pending: Limit | None = None
    max_running: Limit | None = None


class OwnerChange(_Model, frozen=True):
    """What is to be other than before of an owner's settings; what is left out stays as it is."""

    weight: Weight | UnsetType = UNSET
    max_pending: Limit | UnsetType | None = UNSET
    max_running: Limit | UnsetType | None = UNSET


class OwnerView(OwnerSettings, frozen=True, kw_only=True):
    """An owner of jobs as they are."""

    uid: int
    pending: int
    running: int


# --- audit trail --------------------------------------------------------------------------------------------------


class AuditEntry(_Model, frozen=True):
    """Who did what to what."""

    at_ms: int
    uid: int
    """Who."""
    action: str
    """Did what, such as `job.cancel`."""
    subject: str
    """To what: the id of a job, the name of a worker."""
    last: str | None
    """The last of several jobs, of which `subject` is the first."""
    made: JobId | None
    """A job that this has made."""
    owner: int | None
    """uid of the subject's owner."""
    detail: str | None


class AuditPage(_Model, frozen=True):
    entries: list[AuditEntry]
    next_cursor: str | None


# --- schedules -----------------------------------------------------------------------------------------------------

CatchUp = Literal["none", "one", "all"]
Overlap = Literal["allow", "skip", "queue", "replace"]
MomentMs = Annotated[int, Meta(ge=0, le=7_258_118_400_000)]
"""Milliseconds since 1970, until the year 2200."""
PREVIEW_TIMES: Final = 100
"""Times of a schedule that one request tells."""
TimesCount = Annotated[int, Meta(ge=1, le=PREVIEW_TIMES)]


class Timetable(_Model, frozen=True):
    """When: exactly one of `cron`, `every_s` and `at_ms`."""

    cron: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    """Minute, hour, day of month, month and day of week, such as `30 2 * * 1-5`, or such as `@daily`."""
    every_s: Annotated[float, Meta(ge=1, le=31_536_000)] | None = None
    """Counted from `start_ms`, or from when the schedule was set; whole milliseconds."""
    at_ms: MomentMs | None = None
    """Once."""
    timezone: Annotated[str, Meta(min_length=1, max_length=64)] = "UTC"
    """Name of the tz database in whose local time `cron` is meant."""
    start_ms: MomentMs | None = None
    """No time earlier than this."""
    end_ms: MomentMs | None = None
    """No time later than this."""


class ScheduleSettings(Timetable, frozen=True, kw_only=True):
    """When a schedule fires, and what it does when it could not, or when its last job has not ended."""

    catch_up: CatchUp = "one"
    """Of times that were missed: nothing, the newest, or all up to `max_catch_up` within `catch_up_window_s`."""
    max_catch_up: Annotated[int, Meta(ge=1, le=1_000)] = 100
    catch_up_window_s: DurationS = 86_400.0
    """A time longer past than this is not made up."""
    overlap: Overlap = "skip"
    """While a job of the schedule has not ended: start another, skip the time, start after it, or cancel it first."""
    max_queued: Annotated[int, Meta(ge=1, le=100)] = 10
    """Times that wait with `overlap` `queue`; one more is skipped."""
    max_per_minute: Annotated[int, Meta(ge=1, le=600)] = 120
    """Most jobs that it makes in any minute."""


class Schedule(ScheduleSettings, frozen=True, kw_only=True):
    """A job to be made again and again."""

    job: JobSubmit
    """As for a submission, but without what makes sense once only: keys, `not_before_ms`, `deadline_ms`, `depends_on`
    and `ref`."""


class ScheduleLapse(_Model, frozen=True):
    """A time for which no job was made, and why."""

    nominal_ms: int
    at_ms: int
    """When that was decided."""
    outcome: Literal["skipped", "missed"]
    detail: str


class ScheduleView(ScheduleSettings, frozen=True, kw_only=True):
    """A schedule as it is."""

    name: str
    owner: int
    """uid of whoever set it first; its jobs are theirs."""
    paused: bool
    next_ms: int | None
    """Its next time, if there is one and it is not paused."""
    last_nominal_ms: int | None
    """The last time that a job was made for."""
    last_job: JobId | None
    unfinished: int
    """Jobs of it that have not ended; more than 1,000 are not counted."""
    queued: list[int]
    """Times that wait for the end of a former job, oldest first."""
    fired: int
    """Times that a job was made for."""
    skipped: int
    """Times without a job because of `overlap`."""
    missed: int
    """Times without a job because the node came to them too late, or its queue took none; of one gap up to 1,000."""
    last_error: ScheduleLapse | None
    """The last time that was skipped or missed."""
    revision: Revision
    """Revision of the store at which it was last set."""


class ScheduleDetail(_Model, frozen=True):
    """A schedule, and the job that it makes."""

    schedule: ScheduleView
    job: JobSubmit


class SchedulePage(_Model, frozen=True):
    schedules: list[ScheduleView]
    next_cursor: str | None


class TimetablePreview(Timetable, frozen=True, kw_only=True):
    """A timetable whose times are asked for, without a schedule."""

    after_ms: MomentMs | None = None
    """By default from now on."""
    count: TimesCount = 10


class ScheduleTime(_Model, frozen=True):
    at_ms: int
    local: str
    """In the timetable's zone, as of RFC 3339."""


class ScheduleTimes(_Model, frozen=True):
    """Fewer than were asked for when there are no more."""

    times: list[ScheduleTime]


# --- overview -----------------------------------------------------------------------------------------------------


class Rates(_Model, frozen=True):
    """How many a second, on average over about the last ten seconds."""

    submitted: float
    """Jobs accepted."""
    started: float
    """Attempts given to workers."""
    ended: float
    """Jobs that completed or failed for good."""


class RunningJob(_Model, frozen=True):
    """A job that a worker has."""

    job: JobView
    progress: Progress | None


class Overview(_Model, frozen=True):
    """How the node is and what goes on, in bounded parts; jobs are those that the caller may see."""

    node: str
    version: str
    leader: bool
    uptime_s: float
    now_ms: int
    """The node's clock, by which all times here are."""
    pending: int
    waiting: int
    """Of the pending: those that wait for a time or for other jobs."""
    running: int
    slots: int
    """Of all workers."""
    rates: Rates
    own: OwnerView
    """The caller's own jobs and limits."""
    all_owners: bool
    """Jobs are told of all owners, not of the caller only."""
    queues: list[QueueView]
    """Those with most jobs first, of up to 10,000 that are looked at."""
    more_queues: int
    workers: list[WorkerView]
    """The busiest, by name."""
    more_workers: int
    jobs: list[RunningJob]
    """Those that run for longest."""
    more_jobs: int
    failed: list[DeadLetter]
    """Dead letters, newest first, of up to 1,000 that are looked at."""


# --- key-value operations ------------------------------------------------------------------------------------------

Key = Annotated[str, Meta(min_length=1, max_length=1024)]


class KeyValue(_Model, frozen=True):
    key: str
    value: Content
    version: int
    create_revision: Revision
    mod_revision: Revision
    lease: int


class KvPut(_Model, frozen=True):
    key: Key
    value: Content
    lease: int = 0


class KvDelete(_Model, frozen=True):
    """Delete one key, or with `prefix` every key that begins with it."""

    key: Key
    prefix: bool = False


class KvCompare(_Model, frozen=True):
    """One condition of a transaction on a key; a key that is absent has version 0 and revisions 0."""

    key: Key
    target: Literal["version", "create_revision", "mod_revision", "lease", "value"]
    op: Literal["==", "!=", "<", ">"] = "=="
    number: int | None = None
    value: Content | None = None


class KvOp(_Model, frozen=True):
    """Exactly one of the three."""

    put: KvPut | None = None
    delete: KvDelete | None = None
    get: Key | None = None


class KvTxn(_Model, frozen=True):
    """`then` is applied when every compare holds, `otherwise` when one does not; atomically."""

    compare: Annotated[list[KvCompare], Meta(max_length=1000)] = field(default_factory=list)
    then: Annotated[list[KvOp], Meta(max_length=1000)] = field(default_factory=list)
    otherwise: Annotated[list[KvOp], Meta(max_length=1000)] = field(default_factory=list)


class KvOpResult(_Model, frozen=True):
    """What one operation did: `deleted` keys of a delete, `kv` found by a get."""

    deleted: int | None = None
    kv: KeyValue | None = None


class KvTxnResult(_Model, frozen=True):
    succeeded: bool
    revision: Revision
    results: list[KvOpResult]


class KvPage(_Model, frozen=True):
    kvs: list[KeyValue]
    next_cursor: str | None
    revision: Revision


class KvEvent(_Model, frozen=True):
    revision: Revision
    type: Literal["put", "delete"]
    key: str
    kv: KeyValue | None


class LeaseGrant(_Model, frozen=True):
    ttl_s: Annotated[float, Meta(ge=1, le=86_400)]


class Lease(_Model, frozen=True):
    id: int
    ttl_s: float
    remaining_s: float


# --- node ----------------------------------------------------------------------------------------------------------


class Health(_Model, frozen=True):
    status: Literal["ok", "starting", "stopping", "failing"]
    node: str
    version: str
    leader: bool
    revision: Revision
    applied_index: int
    uptime_s: float
    checks: dict[str, str]


class Problem(_Model, frozen=True):
    """RFC 9457 problem document."""

    type: str
    title: str
    status: int
    code: str
    """Stable name of the error; see docs/errors.md."""
    detail: str
    field: str | None = None
    """Where in the request, as a JSON path."""
    expected: str | None = None
    """What would have been right."""
