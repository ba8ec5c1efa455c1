"""What is kept in the key-value store: one version byte, then MessagePack (a job's spec: JSON, as it came)."""

from __future__ import annotations

import hashlib
from typing import Final, Literal, TypeVar

import msgspec
from msgspec import Struct

from jobs.errors import InternalError
from jobs.protocol.ids import Attempt, Incarnation, JobId, WorkerId
from jobs.protocol.model import (
    Artefact,
    BlobKind,
    BlobResult,
    CatchUp,
    Execution,
    JobState,
    JobSubmit,
    LinkScopes,
    MaintenanceResult,
    OutputSkipped,
    Overlap,
    Reason,
    ReplicationResult,
    Requires,
    Retention,
    Retry,
    SqlResult,
)

RECORD_VERSION: Final = 1
_PREFIX: Final = bytes((RECORD_VERSION,))
VERSION_ONLY: Final = _PREFIX
"""What stands at a key that says everything itself."""

T = TypeVar("T")


class JobRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """Hot state of a job: everything that scheduling and listing need, nothing of the payload."""

    type: str
    queue: str
    priority: int
    owner: int
    state: JobState
    submitted_ms: int
    ready_ms: int
    """When it became or becomes ready to run; its place in the queue, or its timer while `delayed`."""
    delayed: bool = False
    """Pending, but not before `ready_ms`."""
    reason: Reason | None = None
    message: str | None = None
    attempt: Attempt = Attempt(0)
    worker: WorkerId | None = None
    incarnation: Incarnation | None = None
    cancel_requested: bool = False
    started_ms: int | None = None
    finished_ms: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    timeout_s: float | None = None
    retry: Retry = Retry()
    requires: Requires = Requires()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    deadline_ms: int | None = None
    heartbeat_s: float | None = None
    waits_for: int = 0
    """Jobs that have to end before this one is ready."""
    on_failure: Literal["fail", "run"] = "fail"
    has_children: bool = False
    """Other jobs wait for this one's end."""
    concurrency_key: str | None = None
    concurrency_limit: int = 1
    unique_key: bytes | None = None
    """Key of the store that is this job's until it ends."""
    retention: Retention = Retention()
    redrive_of: JobId | None = None
    schedule: str | None = None
    """The schedule that made it."""
    nominal_ms: int | None = None
    """The moment of the schedule that it was made for."""
    stored_bytes: int = 0
    """About what it takes in the store: its submission, results and output."""
    log_bytes: int = 0
    """The output among them."""
    settled: bool = False
    """Its dead letter has been dealt with: redriven or purged."""
    redriven_as: JobId | None = None
    """The job that repeats it."""
    held_until_ms: int | None = None
    """Its time is over, but another job needs it: it is looked at again then."""
    logs_gone: bool = False
    """Its output is no longer kept; where there still is some (`log_bytes`), that is about to go."""
    ref: str | None = None
    """Its name among the jobs of its request."""
    tasks: int = 0
    """Tasks of an array; 0 for any other job."""
    is_task: bool = False
    """One of an array's tasks: its id tells which."""
    moved: Attempt = Attempt(0)
    """Attempts up to this one have their output where it stays: in blobs, or in the store for what is small."""
    traceparent: str | None = None
    """The span that it was submitted in, as W3C trace context has it."""
    tracestate: str | None = None


class Demand(Struct, frozen=True, array_like=True):
    """What a job asks of a worker and of the cluster. It stands at the queue key: scheduling reads nothing else."""

    type: str
    requires: Requires
    concurrency_key: str | None = None
    concurrency_limit: int = 1

    def lane(self) -> bytes:
        """Return the name that equal demands share."""
        data = _lane_encoder.encode(self)
        return hashlib.blake2b(data, digest_size=8).hexdigest().encode()


class RunningRecord(Struct, frozen=True, array_like=True):
    """Which attempt a worker has, and what it holds of the worker's resources."""

    attempt: Attempt
    incarnation: Incarnation
    requires: Requires
    queue: str
    owner: int
    concurrency_key: str | None = None
    started_ms: int = 0


class MovedOutput(Struct, frozen=True, array_like=True):
    """The output of an attempt, moved into blobs; the beginnings of both streams are kept in the store as well."""

    order: str
    """The order of its pieces, as jobs.logorder has it."""
    pieces: int
    streams: tuple[str | None, str | None]
    """What was written to stdout and to stderr; None for nothing."""

    @property
    def blobs(self) -> tuple[str, ...]:
        return (self.order, *(blob for blob in self.streams if blob is not None))


class ResultRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """End of one attempt."""

    state: JobState
    reason: Reason | None
    message: str | None
    execution: Execution | None
    worker: WorkerId | None = None
    started_ms: int | None = None
    finished_ms: int | None = None
    """Of an attempt that no worker told the end of; of others `execution` has them."""
    query: SqlResult | None = None
    blob: BlobResult | None = None
    moved: MovedOutput | None = None
    artefacts: list[Artefact] = []
    skipped: list[OutputSkipped] = []
    maintenance: MaintenanceResult | None = None
    replication: ReplicationResult | None = None


class LogChunk(Struct, frozen=True, kw_only=True, array_like=True):
    """Output in the order it was read: (1 stdout | 2 stderr, data)."""

    segments: list[tuple[int, bytes]]


class ProgressRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """How far an attempt has said that it is."""

    attempt: Attempt
    percent: float
    message: str | None
    at_ms: int


class IdempotencyRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """Which job a caller's key made, and the SHA-256 of the body it came with."""

    job: JobId
    body_sha256: bytes


class QueueRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """What the operator has said of a queue; None is no limit."""

    paused: bool = False
    """Nothing of it is started."""
    draining: bool = False
    """Nothing more is taken in; what waits is still run."""
    weight: float = 1.0
    max_pending: int | None = None
    max_pending_per_owner: int | None = None
    max_running: int | None = None
    max_running_per_owner: int | None = None
    rate_count: int | None = None
    """At most so many starts, and as many at once, in each `rate_period_s`."""
    rate_period_s: float = 1.0
    managed_by: str | None = None
    """Name of the declaration that the settings belong to."""


class OwnerRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """What the operator has said of an owner; None is no limit."""

    weight: float = 1.0
    max_pending: int | None = None
    max_running: int | None = None
    max_blob_bytes: int | None = None
    """None: as the leader is configured."""


class RateRecord(Struct, frozen=True, array_like=True):
    """How far the starts of a rate-limited queue have got: the theoretical arrival time of `scheduler.rate`."""

    arrival_us: int


class ArrayRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """What makes the tasks of an array, and how many of them have been split off as jobs of their own."""

    source: Literal["range", "lines", "items"]
    size: int
    """Indices are below this."""
    start: int = 0
    step: int = 1
    """Of a range."""
    is_subset: bool = False
    """Only the indices that are stored as its members are tasks."""
    max_running: int | None = None
    next: int = 0
    """No index below this is still to be split off."""
    split: int = 0
    """Tasks that were split off."""
    withdrawn: int = 0
    """Tasks that were cancelled before they were split off."""
    failed: int = 0
    cancelled: int = 0
    """At its end: what became of the tasks that were split off; the others of them completed."""
    rest: Reason | None = None
    """At its end: why the others never were, apart from those withdrawn."""
    stored_bytes: int = 0
    """About what its tasks took in the store when it was last written."""
    log_bytes: int = 0
    """Their output among them."""


class UniqueRecord(Struct, frozen=True, array_like=True):
    """Which job holds a unique key."""

    job: JobId


class ParentsRecord(Struct, frozen=True, array_like=True):
    """The jobs that a job depends on, in the order in which they were named."""

    jobs: list[JobId]


class ChildRecord(Struct, frozen=True, array_like=True):
    """Whether a job that depends on another has been told of its end, or does not have to be."""

    told: bool


class EndedRecord(Struct, frozen=True, array_like=True):
    """What retention needs of an ended job, besides its place."""

    stored_bytes: int
    held: bool = False


class GoneRecord(Struct, frozen=True, array_like=True):
    """A job that was here and is no longer kept."""

    owner: int


class DeadLetterRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """A job that failed for good and waits for somebody to look at it."""

    owner: int
    queue: str
    reason: Reason
    message: str | None


class AuditRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """Who did what to what."""

    at_ms: int
    uid: int
    action: str
    subject: str
    detail: str | None = None
    owner: int | None = None
    """Whose the subject is, where it is somebody's: they may see the entry."""
    last: JobId | None = None
    """Last of several jobs in a row, of which `subject` is the first."""
    made: JobId | None = None
    """Another job that this has made."""


class TimetableRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """When a schedule fires: exactly one of `cron`, `every_ms` and `at_ms` is given."""

    cron: str | None
    every_ms: int | None
    at_ms: int | None
    timezone: str
    start_ms: int | None
    end_ms: int | None
    anchor_ms: int
    """What `every_ms` counts from."""


class LapseRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """A time of a schedule for which no job was made, and why."""

    nominal_ms: int
    at_ms: int
    outcome: Literal["skipped", "missed"]
    detail: str


class ScheduleRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """Settings of a schedule, and how far it is; nothing of its job."""

    owner: int
    timetable: TimetableRecord
    catch_up: CatchUp
    max_catch_up: int
    catch_up_window_ms: int
    overlap: Overlap
    max_queued: int
    max_per_minute: int
    since_ms: int
    """When the timetable was set: its times count from then on."""
    passed_ms: int
    """Times up to here are dealt with."""
    paused: bool = False
    last_nominal_ms: int | None = None
    """The last time that a job was made for."""
    last_job: JobId | None = None
    queued: tuple[int, ...] = ()
    """Times whose jobs wait for the end of a former one, oldest first."""
    fired_ms: tuple[int, ...] = ()
    """When the fires of the last minute were, as far as they count for the cap."""
    fired: int = 0
    skipped: int = 0
    missed: int = 0
    last_lapse: LapseRecord | None = None
    managed_by: str | None = None
    """Name of the declaration that it belongs to."""


class TableRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """A table that a user has made of what stands below a prefix."""

    owner: int
    definition: str
    """JSON, as rust/sql reads it."""
    prefix: str
    is_managed: bool
    """What is below the prefix goes with the table."""
    created_ms: int


class BlobRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """A blob that the cluster has."""

    size_bytes: int
    kind: BlobKind
    replicas: int | None
    """Nodes that are to have it; None: as the leader is configured."""
    holders: tuple[str, ...]
    """Ids of the members that have it."""
    created_ms: int
    owners: tuple[int, ...]


class BlobTouchRecord(Struct, frozen=True, array_like=True):
    """When a blob was last added or referred to. Whoever refers to it writes this in the same transaction."""

    at_ms: int


class BlobDraftRecord(Struct, frozen=True, array_like=True):
    """A collection whose entry has not come yet."""

    at_ms: int
    """When the last of its children came."""
    token: str
    """Tells it from one that was begun later."""


class BlobsCountedRecord(Struct, frozen=True, array_like=True):
    """By which numbers blobs lack nodes."""

    replicas: int
    """Of a blob for which no number was asked for."""
    members: int


class OwnedBlobRecord(Struct, frozen=True, array_like=True):
    """A blob of an owner."""

    size_bytes: int
    added_ms: int


class BlobUsageRecord(Struct, frozen=True, array_like=True):
    """What an owner's blobs come to, whoever else has them as well."""

    size_bytes: int
    blobs: int


class BlobTagRecord(Struct, frozen=True, array_like=True):
    """A name that keeps a blob."""

    hash: str
    owner: int
    created_ms: int


class BlobShareRecord(Struct, frozen=True, array_like=True):
    """A ticket to a blob."""

    hash: str
    secret_sha256: bytes
    expires_ms: int
    owner: int


class WorkerRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """A registered worker; the key lives as long as its lease."""

    type: str
    incarnation: Incarnation
    node: str
    slots: int
    labels: dict[str, str]
    cpu_milli: int
    memory_bytes: int
    sandbox: str
    registered_ms: int
    stopping: bool = False
    """It has said that it takes no more jobs, and goes when those it has are done."""
    resources: dict[str, int] = msgspec.field(default_factory=dict)
    process: str = ""
    """Which process of the node it is; "" for one that was registered before this was kept."""


class _PayloadOnly(Struct):
    payload: msgspec.Raw


class _KeyOnly(Struct):
    idempotency_key: str | None = None


_encoder = msgspec.msgpack.Encoder()
_lane_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoders: dict[type, msgspec.msgpack.Decoder[object]] = {}
_spec_encoder = msgspec.json.Encoder()
_spec_decoder: msgspec.json.Decoder[JobSubmit] = msgspec.json.Decoder(JobSubmit)
_key_decoder = msgspec.json.Decoder(_KeyOnly)
_payload_decoder = msgspec.json.Decoder(_PayloadOnly)


def encode(record: Struct) -> bytes:
    return _PREFIX + _encoder.encode(record)


def decode(kind: type[T], data: bytes) -> T:
    """Return the record; raises InternalError for a version or a form that this build does not know."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    try:
        return decoder.decode(_body(kind.__name__, data))  # type: ignore[return-value]
    except msgspec.MsgspecError as error:
        raise InternalError(f"stored {kind.__name__} cannot be read: {error}") from error


def encode_spec(job: JobSubmit) -> bytes:
    return _PREFIX + _spec_encoder.encode(job)


def decode_spec(data: bytes) -> JobSubmit:
    return _spec_decoder.decode(_body("job spec", data))


def spec_payload(data: bytes) -> bytes:
    """Return the payload of a stored spec as JSON, without decoding it."""
    return bytes(_payload_decoder.decode(_body("job spec", data)).payload)


def spec_idempotency_key(data: bytes) -> str | None:
    """Return the idempotency key in a stored spec, without decoding the rest."""
    return _key_decoder.decode(_body("job spec", data)).idempotency_key


def _body(what: str, data: bytes) -> memoryview:
    if data[:1] != _PREFIX:
        raise InternalError(f"stored {what} has version {data[:1].hex() or 'none'}; this build knows {RECORD_VERSION}")
    return memoryview(data)[1:]


class MaintenanceRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """An operation of maintenance that is under way, or how far the last one was that did not come to its end."""

    job: JobId
    began_ms: int
    cursor: bytes = b""
    """Where to go on; what it means is the operation's business. b"" is the beginning."""
    done: dict[str, int] = {}
    """What went so far, by its kind."""


class BuiltInRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """Names of the schedules that the system has made once."""

    names: tuple[str, ...]


class LinkRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """Another cluster that this one speaks with, and what it may have done here."""

    cluster: str
    peers: dict[str, tuple[str, ...]]
    """Addresses by endpoint id."""
    scopes: LinkScopes
    created_ms: int


class SyncRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """How far a sync is, for people."""

    source: str
    target: str
    prefix: str
    target_prefix: str
    is_tags: bool
    job: JobId | None
    phase: Literal["comparing", "following", "stopped", "failed"]
    position: int = 0
    source_revision: int = 0
    behind_since_ms: int | None = None
    """Since when the target has not had all that the source had."""
    rows_per_s: float = 0.0
    bytes_per_s: float = 0.0
    rows: int = 0
    deleted: int = 0
    conflicts: int = 0
    snapshots: int = 0
    last_error: str = ""
    updated_ms: int = 0


class CursorRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """How far a sync is, at its target: written in the same transaction as what it changes there."""

    source: str
    """Id of the source's cluster."""
    prefix: str
    target_prefix: str
    is_tags: bool
    upstream: tuple[str, ...] = ()
    """Origins (see `replication.origins`) of what comes here, the source itself included."""
    position: int = 0
    """Revision of the source up to which everything is here; 0 before the first comparison has ended."""
    comparing: int = 0
    """Revision of the source with which this is compared; 0 when it is not."""
    after: bytes = b""
    """Of the comparison: everything before this key, which is relative to the prefix, is here as of `comparing`. b"" is
    the beginning."""
    conflicts: int = 0
    """How many were recorded, ever."""
    snapshots: int = 0
    holder: str = ""
    """Which attempt of which job works on it: each one that begins takes it from the one before."""
    began: int = 0
    """The target's revision when the comparison began, unless a row of the target has prevailed since."""
    agreed: int = 0
    """`began` of the last comparison that came to its end: a row that is older is what the source had at the position,
    though history may not go back to who wrote it."""
    alone_since: int = 0
    """Since this revision of the target nobody else has changed anything in its range, up to `looked_up_to`."""
    looked_up_to: int = 0


class ConflictRecord(Struct, frozen=True, kw_only=True, array_like=True):
    key: bytes
    at_ms: int
    source_revision: int
    target_revision: int
    winner: Literal["source", "target", "none"]
    deleted: Literal["", "source", "target"] = ""


class MomentRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """The store's revision at a time."""

    revision: int


class SecretRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """A secret, of which nothing can be read without its key."""

    key: str
    """Fingerprint of the key."""
    sealed: bytes
    size_bytes: int
    """Of the value."""
    created_ms: int
    updated_ms: int


class SecretKeyRecord(Struct, frozen=True, kw_only=True, array_like=True):
    """With which key secrets are encrypted: its public half."""

    fingerprint: str
    recipient: str
    created_ms: int
    former: tuple[str, ...] = ()
    """Keys with which some still are, as they have not all been encrypted anew."""
    retired: tuple[str, ...] = ()
    """The last keys with which none is any more, newest first: members forget them."""
