"""Jobs of type replication: keys and blobs kept in step with elsewhere, backups, and the links to other clusters."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, field

from jobs.protocol.ids import JobId, Revision
from jobs.protocol.model.base import Given, JobIdText, Model, Name, TimeMs

DataPrefix = Annotated[str, Meta(pattern=r"^/data/", max_length=1024, description="A prefix of the users' keys.")]
TagPrefix = Annotated[str, Meta(max_length=128)]
ConflictPolicy: TypeAlias = Literal["source", "newer", "fail"]
"""What becomes of a key that was changed at the target by others: the source's wins, the one that was changed last wins
(the source's where that is not known), or the job fails before anything is changed. Each is recorded."""
Recipient = Annotated[str, Meta(pattern=r"^age1[a-z0-9]{58}\Z")]
Place = Annotated[str, Meta(min_length=1, max_length=4096)]


class Throttle(Given, frozen=True):
    """The most that an operation takes; None is no limit."""

    bytes_per_s: Annotated[int, Meta(ge=1_024, le=1 << 40)] | None = None
    operations_per_s: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    """Keys, or blobs."""


class Ends(Given, frozen=True, kw_only=True):
    """What is read and what is written or compared; None for a cluster is this one."""

    source: Name | None = None
    """A linked cluster, by the link's name."""
    target: Name | None = None
    prefix: DataPrefix | None = None
    """Keys that begin with it, at the source. Exactly one of `prefix` and `tags` is given."""
    target_prefix: DataPrefix | None = None
    """What takes its place at the target; by default the same."""
    tags: TagPrefix | None = None
    """The tags that begin with it, with their blobs."""


class ReplicationSync(Ends, frozen=True, kw_only=True, tag_field="operation", tag="sync"):
    """Have at the target what the source has; admins only. It goes on where one of the same name stopped."""

    name: Name
    continuous: bool = False
    """Go on until it is cancelled."""
    conflicts: ConflictPolicy = "source"
    throttle: Throttle = field(default_factory=Throttle)
    restart: bool = False
    """Forget how far it was, and compare everything."""


class ReplicationVerify(Ends, frozen=True, kw_only=True, tag_field="operation", tag="verify"):
    """Compare two sides, and report in which ranges they differ; admins only."""


class ReplicationExport(Given, frozen=True, tag_field="operation", tag="export"):
    """Write keys as they are at one revision to files, with a manifest and checksums; admins only."""

    prefix: DataPrefix = "/data/"
    format: Literal["parquet", "arrow", "native"] = "parquet"
    revision: Annotated[int, Meta(ge=1)] | None = None
    """By default the newest."""
    directory: Place | None = None
    """Below one of the worker's `allow_files`. Exactly one of `directory` and `tag` is given."""
    tag: Name | None = None
    """Of the collection of blobs that it becomes."""
    throttle: Throttle = field(default_factory=Throttle)


class ReplicationImport(Given, frozen=True, tag_field="operation", tag="import"):
    """Put what was exported below a prefix; admins only. Everything is checked before anything is written."""

    directory: Place | None = None
    tag: Name | None = None
    prefix: DataPrefix | None = None
    """In place of the one that was exported."""
    existing: Literal["replace", "keep", "fail"] = "fail"
    """What becomes of keys that are there already with other values; `fail` is decided before anything is written."""
    throttle: Throttle = field(default_factory=Throttle)
    dry_run: bool = False


class ReplicationBackup(Given, frozen=True, tag_field="operation", tag="backup"):
    """Back the whole cluster up: its store and what it refers to; admins only."""

    directory: Place | None = None
    """Below one of the worker's `allow_files`; backups of one directory are one series. Exactly one of the two."""
    tag: Name | None = None
    """What the tags of the backups, which are collections of blobs, begin with; they are one series."""
    kind: Literal["auto", "full", "incremental"] = "auto"
    """`auto`: incremental to the last one of the series where that is possible, else full."""
    full_every: Annotated[int, Meta(ge=1, le=10_000)] = 24
    """With `auto`, a full one after so many."""
    recipients: Annotated[list[Recipient], Meta(max_length=32)] = field(default_factory=list)
    """Encrypt for these public keys of age."""
    blobs: bool = True
    """With the blobs that something refers to."""
    keep_full: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    """Delete older backups of the series when there are more full ones than so many."""
    prove: bool = True
    """Restore it aside, and compare it with the store. What is encrypted is proven before it is."""
    throttle: Throttle = field(default_factory=Throttle)


class ReplicationRestore(Given, frozen=True, tag_field="operation", tag="restore"):
    """Put the users' keys of a backup into the running cluster below a prefix; admins only.

    To make a new cluster of a backup: `jobs-node restore`.
    """

    target_prefix: DataPrefix
    directory: Place | None = None
    tag: Name | None = None
    prefix: DataPrefix = "/data/"
    """Those of the backup that begin with it."""
    revision: Annotated[int, Meta(ge=1)] | None = None
    """As of this revision, or of this moment; by default the newest that the backup has."""
    at_ms: TimeMs | None = None
    existing: Literal["replace", "keep", "fail"] = "fail"
    throttle: Throttle = field(default_factory=Throttle)
    dry_run: bool = False


class ReplicationProve(Given, frozen=True, tag_field="operation", tag="prove"):
    """Restore a series of backups aside and compare it with what its manifests say; admins only."""

    directory: Place | None = None
    tag: Name | None = None


ReplicationPayload: TypeAlias = (
    ReplicationSync
    | ReplicationVerify
    | ReplicationExport
    | ReplicationImport
    | ReplicationBackup
    | ReplicationRestore
    | ReplicationProve
)


class RangeDifference(Model, frozen=True):
    """A range of keys, or a tag, in which two sides differ."""

    first: str
    last: str
    source_rows: int
    target_rows: int


class ReplicationResult(Model, frozen=True):
    """What a job of type replication came to."""

    operation: str
    rows: int
    """Keys, or tags, that were read or written."""
    bytes: int
    """That went over the wire or to files."""
    deleted: int = 0
    conflicts: int = 0
    blobs: int = 0
    snapshots: int = 0
    """How often everything was compared, not only what had changed."""
    source_revision: Revision = Revision(0)
    target_revision: Revision = Revision(0)
    differences: list[RangeDifference] = field(default_factory=list)
    """At most 100."""
    place: str = ""
    """Directory or tag of what was made or read."""
    kind: str = ""
    """Of a backup: `full` or `incremental`."""
    seconds: float = 0.0


class ReplicationPerform(Given, frozen=True):
    """An operation that a worker has the node carry out, for the owner that `Jobs-Act-For` names."""

    job: JobIdText
    payload: ReplicationSync | ReplicationVerify


class ReplicationDone(Model, frozen=True, tag_field="event", tag="done"):
    """It has succeeded. Nothing follows."""

    result: ReplicationResult


class StoreState(Model, frozen=True):
    """What all keys of the store come to at a revision."""

    revision: Revision
    digest: str
    """The same wherever the keys, their values, revisions and leases are the same."""
    rows: int
    bytes: int


# --- links to other clusters, and how far what goes over them is ------------------------------------------------------

LinkPeers = Annotated[dict[str, Annotated[list[str], Meta(max_length=8)]], Meta(min_length=1, max_length=16)]


class LinkScopes(Given, frozen=True):
    """What the other cluster's nodes may have done here."""

    read: Annotated[list[DataPrefix], Meta(max_length=32)] = field(default_factory=list)
    write: Annotated[list[DataPrefix], Meta(max_length=32)] = field(default_factory=list)
    read_tags: Annotated[list[TagPrefix], Meta(max_length=32)] = field(default_factory=list)
    write_tags: Annotated[list[TagPrefix], Meta(max_length=32)] = field(default_factory=list)


class LinkSet(Given, frozen=True):
    """A link to another cluster: who its nodes are, and what they may do here. Both sides make one."""

    invitation: Annotated[str, Meta(max_length=8192)]
    """What the other cluster says of itself (`jobctl replication invite`): its id and its nodes' ids and addresses.
    It is no secret: only who has those nodes' keys can use it."""
    scopes: LinkScopes = field(default_factory=LinkScopes)


class LinkView(Model, frozen=True):
    name: str
    cluster: str
    """The other cluster's id."""
    peers: dict[str, list[str]]
    """Addresses by endpoint id."""
    scopes: LinkScopes
    created_ms: int
    reached: bool
    """Whether the other cluster answers now."""
    problem: str = ""
    """Why it does not."""


class LinkList(Model, frozen=True):
    links: list[LinkView]


class Invitation(Model, frozen=True):
    """What another cluster is given to make a link to this one."""

    invitation: str
    cluster: str
    peers: dict[str, list[str]]


class SyncView(Model, frozen=True):
    """How far a sync is."""

    name: str
    source: str
    """Name of the link; "" for this cluster."""
    target: str
    prefix: str
    target_prefix: str
    tags: bool
    job: JobId | None
    """Which one last worked on it."""
    phase: Literal["comparing", "following", "stopped", "failed"]
    position: Revision
    """Revision of the source up to which the target has everything."""
    source_revision: Revision
    """The source's newest, when it was last asked."""
    lag_revisions: int
    lag_s: float
    """For how long the target has not had all that the source had."""
    rows_per_s: float
    bytes_per_s: float
    rows: int
    deleted: int
    conflicts: int
    snapshots: int
    last_error: str
    updated_ms: int


class SyncList(Model, frozen=True):
    syncs: list[SyncView]


class Conflict(Model, frozen=True):
    """A key that others had changed at the target."""

    key: str
    """At the target."""
    at_ms: int
    source_revision: Revision
    target_revision: Revision
    """Of the change that the sync met there."""
    winner: Literal["source", "target", "none"]
    """`none`: the policy is `fail`."""
    deleted: Literal["", "source", "target"] = ""
    """Which side had deleted it."""


class ConflictPage(Model, frozen=True):
    conflicts: list[Conflict]
    next_cursor: str | None
