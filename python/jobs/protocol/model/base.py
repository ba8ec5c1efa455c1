"""What all public types are made of: names, times, the states and reasons of a job, content."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, Struct

from jobs.protocol.ids import JobId

NAME_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.:/@-]{0,127}\Z"
Name = Annotated[str, Meta(pattern=NAME_PATTERN, description="A short name.")]
Ref = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:@-]{0,127}\Z", description="A name without slashes.")]
LabelValue = Annotated[str, Meta(max_length=256)]
MAX_LABELS: Final = 64
Labels = Annotated[dict[Name, LabelValue], Meta(max_length=MAX_LABELS)]
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
    MAINTENANCE_ERROR = "maintenance_error"
    REPLICATION_ERROR = "replication_error"
    DISK_LIMIT = "disk_limit"
    CPU_LIMIT = "cpu_limit"


class Stream(StrEnum):
    STDOUT = "stdout"
    STDERR = "stderr"


class Model(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """Base of every public type: immutable, keyword-only, closed."""


def tag_of(tagged: Struct) -> str:
    """Return what tells it from the others of its union, such as the type of a job."""
    return str(tagged.__struct_config__.tag)


class Given(Model, frozen=True, omit_defaults=True):
    """Base of what clients give: carried, stored and shown without what they left as it is by default."""
