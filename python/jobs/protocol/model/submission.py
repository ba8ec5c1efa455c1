"""A job as a client submits it, one or several."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta, field

from jobs.protocol.ids import MAX_TASKS
from jobs.protocol.model.base import (
    DurationS,
    ExitCode,
    Given,
    IdempotencyKey,
    Labels,
    Model,
    Name,
    Reason,
    Ref,
    TimeMs,
)
from jobs.protocol.model.blobs import BlobHash, BlobPayload
from jobs.protocol.model.maintenance import MaintenancePayload
from jobs.protocol.model.replication import ReplicationPayload


class Content(Given, frozen=True):
    """Bytes in JSON: exactly one of `text` (UTF-8) and `base64`."""

    text: str | None = None
    base64: str | None = None

    def __bytes__(self) -> bytes:
        from jobs.content import content_bytes

        return content_bytes(self, "content")


class InputFile(Content, frozen=True):
    """A file that a job is given: exactly one of `text`, `base64` and `blob`."""

    blob: BlobHash | None = None
    """A blob of the owner's, which the job sees read-only; a collection is a directory."""


MAX_OUTPUTS: Final = 256
"""Files that one job can leave as blobs."""
MAX_OUTPUT_PATH_BYTES: Final = 1_024
OutputPattern = Annotated[str, Meta(min_length=1, max_length=MAX_OUTPUT_PATH_BYTES)]


class Limits(Given, frozen=True):
    """Bounds of one execution; what is not given comes from the worker's configuration."""

    memory_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 50)] | None = None
    pids: Annotated[int, Meta(ge=1, le=4_194_304)] | None = None
    open_files: Annotated[int, Meta(ge=16, le=1 << 20)] | None = None
    file_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] | None = None
    tmp_bytes: Annotated[int, Meta(ge=1 << 16, le=1 << 50)] | None = None
    output_bytes: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None
    cpu_s: Annotated[int, Meta(ge=1, le=31_536_000)] | None = None
    """Processor time of each process."""
    cpu_milli: Annotated[int, Meta(ge=10, le=10_000_000)] | None = None
    """Thousandths of a core that all its processes together are slowed down to."""
    cpu_weight: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    """Share of the processor where jobs compete for it; 100 is ordinary. Otherwise a tenth of `requires.cpu_milli`."""
    io_weight: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    """Share of disks where jobs compete for them; 100 is ordinary."""


Destination = Annotated[
    str, Meta(max_length=64, description="An address and a port, such as `192.0.2.7:443` or `[2001:db8::1]:443`.")
]


SECRET_NAME_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z"  # noqa: S105 - of names
SecretName = Annotated[str, Meta(pattern=SECRET_NAME_PATTERN, description="Name of a secret.")]
SecretFile = Annotated[str, Meta(pattern=SECRET_NAME_PATTERN, description="Name of a file.")]
CREDENTIAL: Final = "credential:"
SecretRef = Annotated[str, Meta(pattern=r"^(credential:)?[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")]


RootName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z")]


class RootImage(Given, frozen=True):
    """A blob with the files that a job has in place of the host's programs."""

    blob: BlobHash
    """A squashfs file, or a tar file of an OCI image layout."""


class ShellPayload(Given, frozen=True):
    """A command (`argv`) or a script for `/bin/sh` (`script`): exactly one of them."""

    argv: Annotated[list[str], Meta(min_length=1, max_length=4096)] | None = None
    script: Annotated[str, Meta(max_length=1 << 20)] | None = None
    env: Annotated[dict[str, str], Meta(max_length=1024)] = field(default_factory=dict)
    cwd: str | None = None
    """Directory inside the sandbox; relative to the job's own directory `/work`, which is the default."""
    stdin: Content | None = None
    files: Annotated[dict[str, InputFile], Meta(max_length=256)] = field(default_factory=dict)
    """Relative path → content, placed in the job's directory before it starts."""
    limits: Limits = field(default_factory=Limits)
    network: Literal["none", "loopback", "host"] = "none"
    """`none`: no interface is up; `loopback`: its own, and nothing else; `host`: that of the machine, only on a worker
    whose operator allows it."""
    connect: Annotated[list[Destination], Meta(max_length=32)] = field(default_factory=list)
    """Addresses and ports that it may reach by TCP, besides its loopback: those that the worker's operator allows."""
    grace_s: Annotated[float, Meta(ge=0, le=3600)] | None = None
    """Seconds between SIGTERM and SIGKILL when the job is ended; default of the worker otherwise."""
    outputs: Annotated[list[OutputPattern], Meta(max_length=64)] = field(default_factory=list)
    """Files of the job's directory that become blobs of its owner's when it completes: paths, or patterns with `*`, `?`
    and `[…]` within a name and `**` for any directories. A path without them has to be there."""
    outputs_on_failure: bool = False
    """Also when it fails by itself or by a limit."""
    root: RootName | RootImage | None = None
    """An image in place of the host's programs: the name of one that operators of workers have
    (`workers.shell.roots`), or a blob. Its variables and its directory are the defaults of `env` and `cwd`. A name
    requires a worker with the label `root:NAME=yes`."""
    secrets: Annotated[dict[SecretFile, SecretRef], Meta(max_length=32)] = field(default_factory=dict)
    """Name of a file below `/run/secrets` → the owner's secret that is in it, or `credential:NAME` for what the
    worker's operator has for the owner. Only the job can read it, and its value is hidden in what the job writes."""
    on_output_limit: Literal["truncate", "fail"] = "truncate"
    """More output than `limits.output_bytes` is counted and dropped, or ends the job as `output_limit`."""


MAX_SQL_BYTES: Final = 1 << 20
SqlFormat: TypeAlias = Literal["arrow", "parquet", "json", "csv"]
"""`arrow`: an IPC stream; `json`: one object a line; `csv`: with the names of the columns first."""
TableName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,62}\Z", description="Name of a table.")]
SqlValue: TypeAlias = bool | int | float | str | None


class SqlLimits(Given, frozen=True):
    """Bounds of one query; what is not given comes from the worker's configuration, which also caps them."""

    max_rows: Annotated[int, Meta(ge=0, le=1 << 40)] | None = None
    """Rows of the result; one more fails the query."""
    max_bytes: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None
    """Bytes of the result in its format; more fails the query."""
    memory_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 50)] | None = None
    """What its operators may hold; beyond that they spill, or the query fails."""
    spill_bytes: Annotated[int, Meta(ge=0, le=1 << 50)] | None = None
    """What they may write to disk; 0 is nothing."""


class SqlFile(Given, frozen=True):
    """A file that the query finds as a table."""

    format: SqlFormat
    content: InputFile
    """A blob is read where it is, as the query needs it; a collection is one table of all its files."""


class SqlPayload(Given, frozen=True):
    """A statement, and what it is run with."""

    sql: Annotated[str, Meta(min_length=1, max_length=MAX_SQL_BYTES)]
    """One statement of DataFusion's SQL; at most 1 MiB."""
    parameters: (
        Annotated[list[SqlValue], Meta(max_length=1_000)] | Annotated[dict[TableName, SqlValue], Meta(max_length=1_000)]
    ) = field(default_factory=list)
    """Values for `$1`, `$2`, or by name for `$name`: bound as values, never put into the text."""
    consistency: Literal["linearizable", "stale"] = "linearizable"
    """`linearizable` sees what was acknowledged before the job was submitted, `stale` what the worker's node has."""
    revision: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    """The store as it was at this revision."""
    format: SqlFormat = "arrow"
    """Of the result, which is the job's standard output."""
    limits: SqlLimits = field(default_factory=SqlLimits)
    files: Annotated[dict[TableName, SqlFile], Meta(max_length=64)] = field(default_factory=dict)
    """Name of a table → its content."""


MAX_ATTEMPTS: Final = 1_000
"""Of one job."""


class Retry(Given, frozen=True):
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


class Requires(Given, frozen=True):
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


class Retention(Given, frozen=True):
    """How long an ended job is kept; what is not given comes from the node's configuration."""

    keep_s: Annotated[float, Meta(ge=0, le=315_360_000)] | None = None
    """The job with everything of it."""
    logs_s: Annotated[float, Meta(ge=0, le=315_360_000)] | None = None
    """Its output, which may go earlier; not given beside `keep_s`, it goes with the job."""


Number = Annotated[int, Meta(ge=-(1 << 53), le=1 << 53)]


class ArrayRange(Model, frozen=True, kw_only=True):
    """Numbers as of Python's `range`: from `start` on, by `step`, below `stop`."""

    start: Number = 0
    stop: Number
    step: Annotated[int, Meta(ge=1, le=1 << 53)] = 1


MAX_ITEM_BYTES: Final = 64 << 10
"""Of one line, or of one value as JSON."""


class ArraySpec(Model, frozen=True):
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


class JobBase(Given, frozen=True, kw_only=True, tag_field="type"):
    """What can be said of a job of every type."""

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


class ShellJob(JobBase, frozen=True, kw_only=True, tag="shell"):
    """A job of type `shell` as a client submits it."""

    payload: ShellPayload


class SqlJob(JobBase, frozen=True, kw_only=True, tag="sql"):
    """A job of type `sql` as a client submits it."""

    payload: SqlPayload


class BlobJob(JobBase, frozen=True, kw_only=True, tag="blob"):
    """A job of type `blob` as a client submits it."""

    payload: BlobPayload


class MaintenanceJob(JobBase, frozen=True, kw_only=True, tag="maintenance"):
    """A job of type `maintenance` as a client submits it; admins only."""

    payload: MaintenancePayload


class ReplicationJob(JobBase, frozen=True, kw_only=True, tag="replication"):
    """A job of type `replication` as a client submits it; admins only."""

    payload: ReplicationPayload


JobSubmit: TypeAlias = ShellJob | SqlJob | BlobJob | MaintenanceJob | ReplicationJob
"""Every kind of job that can be submitted: a union tagged by `type`."""
BATCH_JOBS: Final = 160
"""Jobs of one request: one transaction of at most 1,000 operations stores them, and a job takes up to six (spec, state,
place in the queue, timer, idempotency key, unique key)."""
BATCH_OPERATIONS: Final = 999
"""Of a request: what is left of the 1,000 beside the entry in the audit trail; see `validate.operations_of`."""


class Batch(Model, frozen=True):
    """Several jobs, accepted all or none."""

    jobs: Annotated[list[JobSubmit], Meta(min_length=1, max_length=BATCH_JOBS)]
