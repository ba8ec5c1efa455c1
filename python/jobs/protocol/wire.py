"""Frames between a worker and its node: u32 big-endian length, then one MessagePack map tagged by `t`.

A worker opens the connection and sends `Register`; the node answers `Registered` or `Refused`. After that each side
sends what it has. Everything a worker reports names job, attempt and (by the connection) its incarnation, so that a
late report can be told from a current one. A report stays with the worker until the node has acknowledged it as
durable, and is sent again after a reconnect.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from jobs.protocol.ids import Attempt, Incarnation, JobId, WorkerId
from jobs.protocol.model import (
    MAX_OUTPUTS,
    Artefact,
    BlobResult,
    MaintenanceResult,
    OutputSkipped,
    PressureKind,
    Reason,
    ReplicationResult,
    SecretValue,
    SqlResult,
    StreamInfo,
)

PROTOCOL_VERSION: Final = 6
MAX_FRAME_BYTES: Final = 16 << 20
OUTPUT_CHUNK_BYTES: Final = 256 << 10
"""Largest sum of segment bytes in one `Output` frame."""
OUTPUT_WINDOW_BYTES: Final = 1 << 20
"""Output a worker may have sent for one attempt and not yet seen acknowledged."""
MAX_WRITE_VALUES: Final = 900
MAX_WRITE_BYTES: Final = 4 << 20
"""Of one statement: one transaction applies it."""
MAX_PROGRESS_MESSAGE: Final = 256
"""Characters."""


class _Frame(Struct, frozen=True, kw_only=True, tag_field="t", forbid_unknown_fields=True):
    pass


class JobRef(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    job: JobId
    attempt: Attempt


# worker → node


class Register(_Frame, frozen=True, tag="register"):
    protocol: int
    worker: WorkerId
    type: str
    incarnation: Incarnation
    slots: int
    labels: dict[str, str]
    cpu_milli: int
    memory_bytes: int
    sandbox: str
    pid: int
    running: list[JobRef]
    """Attempts of this incarnation that still run or whose end is not yet acknowledged."""
    resources: Annotated[dict[str, Annotated[int, Meta(ge=1, le=1_000_000)]], Meta(max_length=16)] = {}
    """Counts that jobs can require, such as `{"gpu": 1}`."""


class Heartbeat(_Frame, frozen=True, tag="heartbeat"):
    """Keeps the worker's lease; sent every `Registered.heartbeat_s`, and acknowledged."""

    pressure: dict[PressureKind, Annotated[float, Meta(ge=0, le=100)]] = {}
    """Percent of the last ten seconds in which something on the machine waited; what is not known is left out."""
    pressed: bool = False
    """It is more than the operator's limits: no more jobs are wanted for now."""


class Output(_Frame, frozen=True, tag="output"):
    """Output in the order it was read; `seq` counts the frames of the attempt from 0 without gaps."""

    job: JobId
    attempt: Attempt
    seq: int
    segments: list[tuple[int, bytes]]
    """(1 stdout | 2 stderr, data)."""


class Outcome(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an attempt ended; `reason` is None exactly when it succeeded."""

    reason: Reason | None
    message: str | None
    exit_code: int | None
    signal: int | None
    started_ms: int
    finished_ms: int
    wall_s: float
    cpu_user_s: float
    cpu_system_s: float
    peak_memory_bytes: int
    sandbox: str
    stdout: StreamInfo
    stderr: StreamInfo
    query: SqlResult | None = None
    """What a query came to."""
    blob: BlobResult | None = None
    """What an operation on blobs came to."""
    maintenance: MaintenanceResult | None = None
    replication: ReplicationResult | None = None
    root: Literal["writable", "read_only"] | None = None
    """What a job could do to its root image, if it had one."""


class TableWrite(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a statement changes: applied in the transaction that ends its job, or not at all."""

    table: str
    action: Literal["create", "insert", "drop"]
    revision: int
    """Of the table's definition when this was decided; 0 where there was none."""
    definition: str = ""
    """Of a table that is created."""
    is_managed: bool = False
    values: list[bytes] = []
    """Put below the table's prefix, in this order."""


class Finished(_Frame, frozen=True, tag="finished"):
    """The end of an attempt with its last output (`seq` and `segments` as in `Output`; segments may be empty)."""

    job: JobId
    attempt: Attempt
    outcome: Outcome
    seq: int
    segments: list[tuple[int, bytes]]
    write: TableWrite | None = None
    artefacts: Annotated[list[Artefact], Meta(max_length=MAX_OUTPUTS)] = []
    """Files that it has left, which are blobs of the owner's: the transaction that ends the attempt refers to them."""
    skipped: Annotated[list[OutputSkipped], Meta(max_length=20)] = []


class Progress(_Frame, frozen=True, tag="progress"):
    """How far an attempt says that it is; only the newest counts, so it is neither kept nor acknowledged."""

    job: JobId
    attempt: Attempt
    percent: Annotated[float, Meta(ge=0, le=100)]
    message: Annotated[str, Meta(max_length=MAX_PROGRESS_MESSAGE)] | None


class Draining(_Frame, frozen=True, tag="draining"):
    """The worker is about to stop: it takes no more jobs, and goes when those it has are done.

    An operator who drains a worker does not make it stop: the node gives it nothing more, and that can be undone.
    """


WorkerFrame: TypeAlias = Register | Heartbeat | Output | Progress | Finished | Draining

# node → worker


class Registered(_Frame, frozen=True, tag="registered"):
    node: str
    heartbeat_s: float
    lease_ttl_s: float
    """When nothing that it sent longer ago than this was acknowledged as contact, the worker ends its jobs: they have
    been given to others."""
    fenced: list[JobRef]
    """Of `Register.running`: no longer this worker's; to be killed and forgotten."""


class Refused(_Frame, frozen=True, tag="refused"):
    code: str
    detail: str


class LeaseEnds(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When leases run out unless they are kept, as the leader, who lets their time pass, knew it at a moment."""

    at_ms: int
    ends_ms: dict[int, int]
    """Of every lease that there was."""


class Lacking(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why a job cannot be given what it names."""

    reason: Reason
    message: str


class Assignment(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    job: JobId
    attempt: Attempt
    payload: bytes
    """The job's payload as JSON."""
    timeout_s: float | None
    owner: int
    heartbeat_s: float | None = None
    """Longest time that the attempt may say nothing of itself; then it ends as `timeout`."""
    env: dict[str, str] = {}
    """Variables that the node adds to those of the payload, and that win over them."""
    files: dict[str, bytes] = {}
    """Files that the node adds, by their path below `.jobs` in the job's directory."""
    revision: int = 0
    """The store's, of a query: whatever was acknowledged before the job was submitted is in it."""
    admin: bool = False
    """The owner of a query, or of an operation that is asked of the node, sees everything."""
    lease_ends: LeaseEnds | None = None
    """Of a query that may ask for them."""
    secrets: dict[str, SecretValue] = {}
    """Values of the owner's secrets that the job names, by the names of their files."""
    lacking: Lacking | None = None
    """It cannot be started."""
    cpu_milli: int = 0
    """What the job requires of a processor, and so its share of it."""


class Assign(_Frame, frozen=True, tag="assign"):
    jobs: list[Assignment]


class Cancel(_Frame, frozen=True, tag="cancel"):
    """End the attempt: SIGTERM, grace, SIGKILL; reported as `Finished` with reason `cancelled`."""

    job: JobId
    attempt: Attempt


class Fence(_Frame, frozen=True, tag="fence"):
    """The attempt is no longer this worker's: kill it at once, report nothing."""

    job: JobId
    attempt: Attempt


class OutputAck(_Frame, frozen=True, tag="output_ack"):
    """Every output frame of the attempt up to and with `seq` is durable."""

    job: JobId
    attempt: Attempt
    seq: int


class FinishedAck(_Frame, frozen=True, tag="finished_ack"):
    """The report is durable (`accepted`), or was refused as late; either way the worker forgets the attempt."""

    job: JobId
    attempt: Attempt
    accepted: bool


class HeartbeatAck(_Frame, frozen=True, tag="heartbeat_ack"):
    """The lease was kept by the oldest heartbeat that has not been acknowledged: it runs from after that was sent."""


class DrainConfirmed(_Frame, frozen=True, tag="drain_confirmed"):
    """The answer to `Draining`: whatever the worker will be given has been sent."""


NodeFrame: TypeAlias = (
    Registered | Refused | Assign | Cancel | Fence | OutputAck | FinishedAck | HeartbeatAck | DrainConfirmed
)

_encoder = msgspec.msgpack.Encoder()
decode_worker_frame = msgspec.msgpack.Decoder(WorkerFrame).decode
decode_node_frame = msgspec.msgpack.Decoder(NodeFrame).decode


def encode_frame(frame: WorkerFrame | NodeFrame) -> bytes:
    """Return `frame` with its length in front.

    Raises ValueError for a frame over MAX_FRAME_BYTES.
    """
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"frame {type(frame).__name__}: {len(body)} bytes, limit {MAX_FRAME_BYTES}")
    return len(body).to_bytes(4, "big") + body
