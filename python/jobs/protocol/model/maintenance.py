"""Jobs of type maintenance: what gives space back, looks after the nodes, and tells how they are."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, field

from jobs.protocol.model.base import Given, JobIdText, Model, Name, TimeMs

NodeNames = Annotated[list[Name], Meta(max_length=16)]
CompactPart: TypeAlias = Literal["log", "history", "file"]
CleanupPart: TypeAlias = Literal["jobs", "audit", "leases", "arrays", "blobs", "files"]
VerifyPart: TypeAlias = Literal["log", "store", "snapshots", "blobs", "replicas"]
FindingStatus: TypeAlias = Literal["ok", "warning", "failing"]
COMPACT_PARTS: tuple[CompactPart, ...] = ("log", "history", "file")
CLEANUP_PARTS: tuple[CleanupPart, ...] = ("jobs", "audit", "leases", "arrays", "blobs", "files")
SOLE_KEY: Final = "jobs:maintenance:"
"""Concurrency keys that begin so are those of jobs of maintenance, of whose kinds there is one each at a time."""
VERIFY_PARTS: tuple[VerifyPart, ...] = ("log", "store", "snapshots", "blobs", "replicas")


class MaintenanceCompact(Given, frozen=True, tag_field="operation", tag="compact"):
    """Give back what is no longer needed: the log before a safe entry, old revisions, room within the store's file."""

    parts: Annotated[list[CompactPart], Meta(min_length=1, max_length=3)] = field(
        default_factory=lambda: list(COMPACT_PARTS)
    )
    """`log`: entries that a snapshot holds; `history`: revisions that are old, as far as no watcher or reader needs
    them; `file`: pages of the store's file that hold nothing."""
    history_age_s: Annotated[float, Meta(ge=0, le=315_360_000)] | None = None
    """Changes of keys of the last so long stay; by default the node's `maintenance.history_age_s`."""
    history_events: Annotated[int, Meta(ge=0, le=1_000_000_000)] | None = None
    """And so many of them in any case; by default the node's `maintenance.history_min_events`."""
    nodes: NodeNames = field(default_factory=list)
    """For `log` and `file`: names of the members; by default all."""
    dry_run: bool = False
    """Say what would be given back, and change nothing."""


class MaintenanceCleanup(Given, frozen=True, tag_field="operation", tag="cleanup"):
    """Delete now what is no longer kept, instead of when its turn comes."""

    parts: Annotated[list[CleanupPart], Meta(min_length=1, max_length=6)] = field(
        default_factory=lambda: list(CLEANUP_PARTS)
    )
    """`jobs`: ended jobs whose time is over, with results, output and idempotency keys; `audit`: old entries of the
    trail and marks of jobs gone; `leases`: expired ones; `arrays`: what ended arrays left; `blobs`: what nothing refers
    to; `files`: cgroups and directories that no running job has, on the worker's machine."""
    dry_run: bool = False


class MaintenanceHealth(Given, frozen=True, tag_field="operation", tag="health"):
    """Look at each member: disk, fsync, clock, pressure, lag, keys; with what to do about what is found."""

    nodes: NodeNames = field(default_factory=list)


class MaintenanceVerify(Given, frozen=True, tag_field="operation", tag="verify"):
    """Read everything anew and compare it with its checksums, and the members' states with each other."""

    parts: Annotated[list[VerifyPart], Meta(min_length=1, max_length=5)] = field(
        default_factory=lambda: list(VERIFY_PARTS)
    )
    """`replicas`: whether all members have the same at one revision; the first difference is named."""
    nodes: NodeNames = field(default_factory=list)


class MaintenanceMetrics(Given, frozen=True, tag_field="operation", tag="metrics"):
    """What ended jobs took, by owner, type and time; one object a line on standard output."""

    period: Literal["hour", "day", "month"] = "day"
    """In UTC."""
    from_ms: TimeMs | None = None
    to_ms: TimeMs | None = None
    """Jobs that ended from the first moment on and before the second."""


MaintenancePayload: TypeAlias = (
    MaintenanceCompact | MaintenanceCleanup | MaintenanceHealth | MaintenanceVerify | MaintenanceMetrics
)


class Finding(Model, frozen=True):
    """What was found out about a node, and what a person can do about it."""

    node: str
    check: str
    """Such as `disk`, `fsync`, `clock`, `lag`."""
    status: FindingStatus
    value: str
    """What was measured, with its unit."""
    advice: str = ""
    """What to do; "" when there is nothing."""


class MaintenanceNode(Model, frozen=True):
    """What came of one member."""

    node: str
    freed_bytes: int
    examined: int
    """Entries, rows or blobs that were looked at."""
    outcome: str = ""
    """What was left undone and why; "" when there was nothing."""


class MaintenanceResult(Model, frozen=True):
    """What a job of type maintenance came to."""

    operation: str
    dry_run: bool
    status: FindingStatus
    """The worst of the findings."""
    nodes: list[MaintenanceNode]
    counts: dict[str, int]
    """What went, or would go, by its kind."""
    freed_bytes: int
    findings: list[Finding]
    """At most 200, the worst first."""
    seconds: float


class UsageLine(Model, frozen=True):
    """A line of what `metrics` writes."""

    period_ms: TimeMs
    """When it begins."""
    owner: int
    type: str
    jobs: int
    failed: int
    attempts: int
    wall_s: float
    cpu_s: float
    output_bytes: int
    stored_bytes: int


class MaintenancePerform(Given, frozen=True):
    """An operation that a worker has the node carry out, for the owner that `Jobs-Act-For` names."""

    job: JobIdText
    payload: MaintenancePayload


class MaintenanceDone(Model, frozen=True, tag_field="event", tag="done"):
    """It has succeeded. Nothing follows."""

    result: MaintenanceResult
