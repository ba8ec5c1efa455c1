"""A job as a client sees it: its state, its attempts and results, its output."""

from __future__ import annotations

from typing import Any, Final, Literal

from msgspec import field

from jobs.protocol.ids import Attempt, Incarnation, JobId, Revision, WorkerId
from jobs.protocol.model.base import JobState, Model, Reason, Stream
from jobs.protocol.model.blobs import BlobHash, BlobResult
from jobs.protocol.model.maintenance import MaintenanceResult
from jobs.protocol.model.replication import ReplicationResult
from jobs.protocol.model.submission import Content, JobSubmit, SqlFormat


class JobView(Model, frozen=True):
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
    trace_id: str | None = None
    """The trace that it was submitted in."""


class Progress(Model, frozen=True):
    """What a job last said of itself: how far it is in percent, and at what."""

    percent: float
    message: str | None
    at_ms: int


class JobDetail(Model, frozen=True):
    """A job and what was submitted."""

    job: JobView
    spec: JobSubmit
    progress: Progress | None = None
    """Of the present or last attempt."""
    parents: list[JobId] = field(default_factory=list)
    """The jobs that it depends on."""


class Submitted(Model, frozen=True):
    """Answer to one submission; `created` is false when the idempotency key was known already."""

    job: JobView
    created: bool


class BatchSubmitted(Model, frozen=True):
    jobs: list[Submitted]


class JobPage(Model, frozen=True):
    jobs: list[JobView]
    next_cursor: str | None
    revision: Revision


class StreamInfo(Model, frozen=True):
    """How much one stream carried, and how much of it was kept."""

    bytes: int
    """What the job wrote, also past the limit."""
    stored_bytes: int
    truncated: bool
    blob: str | None = None
    """Of a stream of more than 64 KiB, some time after the end of the attempt: the blob that holds what was kept."""


class Execution(Model, frozen=True):
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
    """Level that was in force: `strict`, `standard` or `none`; of a query `process`, one of its own; of an
    operation on blobs `worker`, as nothing of its owner's is run."""
    stdout: StreamInfo
    stderr: StreamInfo
    root: Literal["writable", "read_only"] | None = None
    """What it could do to its root image, if it had one: write in a layer of its own, or only read."""


class SqlColumn(Model, frozen=True):
    """A column of a query's result."""

    name: str
    type: str
    """Of Arrow, such as `int64` or `timestamp[ns]`."""


class SqlWritten(Model, frozen=True):
    """What a statement has changed, in the transaction that ended its job."""

    action: Literal["create", "insert", "drop", "none"]
    """`none`: there was nothing to do, as its IF EXISTS or IF NOT EXISTS says."""
    table: str
    rows: int


class SqlResult(Model, frozen=True):
    """What a query came to; all of its rows are the job's standard output."""

    format: SqlFormat
    columns: list[SqlColumn]
    """The first 1,000; a name or type of more than 128 characters is cut."""
    rows: int
    first_rows: list[list[Any]]
    """The first of them, as JSON has values: at most 20, of 16 KiB in all."""
    bytes: int
    """Size of the whole result in its format."""
    revision: Revision
    """Of the store that was read."""
    scanned_rows: int
    scanned_bytes: int
    """Read from the store."""
    planned_s: float
    """Until the first row could be computed."""
    executed_s: float
    written: SqlWritten | None = None
    """By a statement that writes."""


class Artefact(Model, frozen=True):
    """A file that a job has left: a blob of its owner's."""

    path: str
    """Relative to the job's directory."""
    hash: BlobHash
    size_bytes: int


class OutputSkipped(Model, frozen=True):
    """Something that a pattern of `outputs` matches and that is not taken."""

    path: str
    why: str


class JobResult(Model, frozen=True):
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
    query: SqlResult | None = None
    """Of a job of type `sql` that completed."""
    blob: BlobResult | None = None
    """Of a job of type `blob` that completed."""
    maintenance: MaintenanceResult | None = None
    """Of a job of type `maintenance` that completed."""
    replication: ReplicationResult | None = None
    """Of a job of type `replication` that completed."""
    artefacts: list[Artefact] = field(default_factory=list)
    """What its `outputs` name, in the order of the paths."""
    skipped: list[OutputSkipped] = field(default_factory=list)
    """What they match besides, the first 20 of it: only regular files with one name are taken."""


class ParentResult(Model, frozen=True):
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


class AttemptView(Model, frozen=True):
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


class AttemptList(Model, frozen=True):
    attempts: list[AttemptView]
    logs_gone: bool
    """Their output is no longer kept."""


MAX_TAIL_BYTES: Final = 16 << 20
"""The last part of a job's output is not longer than this, however long its lines are."""


class LogEvent(Model, frozen=True):
    """A piece of output, in the order in which the worker read it."""

    attempt: Attempt
    seq: int
    """Cursor: a follower goes on after it."""
    stream: Stream
    data: Content


class JobEvent(Model, frozen=True):
    """A change of one job."""

    revision: Revision
    job: JobView
