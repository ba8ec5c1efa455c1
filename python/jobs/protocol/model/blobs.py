"""Blobs as a client sees them: content by its hash, the names that keep it, and what refers to it."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta, field

from jobs.protocol.ids import Revision
from jobs.protocol.model.base import Given, JobIdText, Model, Name

HASH_PATTERN = r"^[0-9a-f]{64}\Z"
BlobHash = Annotated[str, Meta(pattern=HASH_PATTERN, description="BLAKE3 of the content, 64 hexadecimal digits.")]
BlobKind: TypeAlias = Literal["raw", "collection"]
"""`collection`: a hash sequence, whose first blob holds the names of the others, as iroh-blobs has it."""
ReferenceKind: TypeAlias = Literal["tag", "job", "output", "log", "schedule", "collection"]
Replicas = Annotated[int, Meta(ge=1, le=16)]


class BlobReference(Model, frozen=True):
    """What keeps a blob."""

    kind: ReferenceKind
    """`job`: its submission names the blob; `output`: the job made it; `log`: it is what the job wrote."""
    name: str
    """The tag, the job's id, the schedule, or the collection's hash."""


class BlobView(Model, frozen=True):
    """A blob that the cluster has."""

    hash: BlobHash
    size_bytes: int
    kind: BlobKind
    created_ms: int
    touched_ms: int
    """When it was last added or referred to: the grace period counts from then."""
    replicas: int
    """Nodes that are to have it."""
    nodes: list[str]
    """Names of the members that have it."""
    owners: list[int]
    """Who may read it, as far as the caller may know: themselves, and all for admins."""
    references: list[BlobReference]
    """At most 100 of them; without any it goes when its grace period is over."""


class BlobPage(Model, frozen=True):
    blobs: list[BlobView]
    next_cursor: str | None
    revision: Revision


class BlobAdded(Model, frozen=True):
    """A blob that was added: as many nodes as were asked for have it on their disks, or all there are."""

    hash: BlobHash
    size_bytes: int
    kind: BlobKind
    created: bool
    """It is new to its owner."""
    nodes: list[str]
    tag: str | None


class BlobCollection(Given, frozen=True):
    """Files that are to be one blob, a collection; they are the caller's blobs already."""

    files: Annotated[dict[str, BlobHash], Meta(max_length=10_000)]
    """Name → hash. Names are relative paths, with / between their parts."""
    tag: Name | None = None
    """Keeps the collection, and with it its files."""
    replicas: Replicas | None = None


class BlobFile(Model, frozen=True):
    """A file of a collection."""

    name: str
    hash: BlobHash


class BlobFiles(Model, frozen=True):
    """What a collection consists of, in its order."""

    hash: BlobHash
    files: list[BlobFile]


class BlobTag(Model, frozen=True):
    """A name that keeps a blob."""

    name: str
    hash: BlobHash
    owner: int
    created_ms: int


class BlobTagPage(Model, frozen=True):
    tags: list[BlobTag]
    next_cursor: str | None
    revision: Revision


class BlobTagSet(Given, frozen=True):
    """What a tag is to name."""

    hash: BlobHash
    replace: bool = True
    """Give a tag that is there already this blob; otherwise that is refused with 409."""


class BlobCollect(Given, frozen=True):
    """One page of blobs to look at for what nothing refers to; admins only."""

    cursor: str | None = None
    limit: Annotated[int, Meta(ge=1, le=1_000)] = 500
    dry_run: bool = False
    grace_s: Annotated[float, Meta(ge=0, le=315_360_000)] | None = None
    """What is younger is kept; by default and at least the node's `blobs.grace_s`, unless `dry_run` is set."""


class BlobCollected(Model, frozen=True):
    """A blob that nothing refers to."""

    hash: BlobHash
    size_bytes: int
    outcome: Literal["condemned", "spared"]
    """`spared`: somebody referred to it, or added it, while it was looked at."""


class BlobCollectPage(Model, frozen=True):
    """What came of one page; the files go when each node sweeps."""

    examined: int
    kept: dict[str, int]
    """Number of blobs by what kept them: a kind of reference, or `young`."""
    collected: list[BlobCollected]
    next_cursor: str | None
    revision: Revision
    """At which the page was looked at."""


class BlobShare(Given, frozen=True):
    """How a ticket to a blob is to be."""

    ttl_s: Annotated[float, Meta(gt=0, le=31_536_000)] = 86_400.0


class BlobTicket(Model, frozen=True):
    """Whoever has it may fetch the blob, and owns it then as well."""

    ticket: str
    hash: BlobHash
    expires_ms: int


# --- jobs of type blob ------------------------------------------------------------------------------------------------


class AddFrom(Given, frozen=True):
    """Where the bytes come from: exactly one of these."""

    text: str | None = None
    base64: str | None = None
    file: str | None = None
    """A file or a directory on the worker's machine, below one of its `allow_files`."""
    job: str | None = None
    """The standard output of a job that has ended, or its standard error by `stream`."""
    stream: Literal["stdout", "stderr"] = "stdout"
    snapshot: bool = False
    """The whole store, as a snapshot; admins only."""


class BlobAdd(Given, frozen=True, tag_field="operation", tag="add"):
    """Add a blob, and name it where `tag` is given."""

    source: AddFrom
    tag: Name | None = None
    replicas: Replicas | None = None


class BlobFetch(Given, frozen=True, tag_field="operation", tag="fetch"):
    """Have a blob on the worker's node: by its hash, or by a ticket, which makes it the job's owner's too."""

    hash: BlobHash | None = None
    ticket: Annotated[str, Meta(max_length=4096)] | None = None
    providers: Annotated[list[Name], Meta(max_length=16)] = field(default_factory=list)
    """Names of the members to fetch from; by default all that have it."""
    tag: Name | None = None


class BlobReplicate(Given, frozen=True, tag_field="operation", tag="replicate"):
    """Have a blob, with its children, on so many nodes, or on these; the factor is kept from then on."""

    hash: BlobHash
    replicas: Replicas | None = None
    nodes: Annotated[list[Name], Meta(max_length=16)] = field(default_factory=list)


class BlobGc(Given, frozen=True, tag_field="operation", tag="gc"):
    """Delete what nothing refers to, in the whole cluster; admins only. `dry_run` lists what that would be."""

    dry_run: bool = False
    grace_s: Annotated[float, Meta(ge=0, le=315_360_000)] | None = None


class BlobVerify(Given, frozen=True, tag_field="operation", tag="verify"):
    """Hash a blob anew on every node that has it, or all of them (admins only), and mend what is damaged."""

    hash: BlobHash | None = None


class BlobExport(Given, frozen=True, tag_field="operation", tag="export"):
    """Write a blob to a file, or a collection to a directory, below one of the worker's `allow_files`."""

    hash: BlobHash
    file: Annotated[str, Meta(min_length=1, max_length=4096)]


class BlobStat(Given, frozen=True, tag_field="operation", tag="stat"):
    """Say what is known of a blob."""

    hash: BlobHash


class BlobList(Given, frozen=True, tag_field="operation", tag="list"):
    """List the owner's blobs, one object a line, on standard output."""

    tags: bool = False
    """The tags instead."""


BlobPayload: TypeAlias = BlobAdd | BlobFetch | BlobReplicate | BlobGc | BlobVerify | BlobExport | BlobStat | BlobList


class BlobPeer(Model, frozen=True):
    """What came of one node in an operation."""

    node: str
    bytes: int
    """Verified ones that came from it, or that it has given back."""
    outcome: str = ""
    """Why it was left behind, or what it has found; "" when there was nothing to say."""


class BlobResult(Model, frozen=True):
    """What a job of type blob came to."""

    operation: str
    hash: BlobHash | None
    bytes: int
    """Of the blob; of `gc` those that went, of `verify` those that were hashed."""
    blobs: int
    peers: list[BlobPeer]
    seconds: float
    damaged: int = 0
    mended: int = 0


# --- what a worker asks its node of them ------------------------------------------------------------------------------


class BlobPerform(Given, frozen=True):
    """An operation that a worker has the node carry out, for the owner that `Jobs-Act-For` names."""

    job: JobIdText
    payload: BlobFetch | BlobReplicate | BlobGc | BlobVerify | BlobAdd
    """Of `add`, a snapshot of the store. Whatever else there is the worker does by itself, by the other routes."""


class BlobDone(Model, frozen=True, tag_field="event", tag="done"):
    """It has succeeded. Nothing follows."""

    result: BlobResult
