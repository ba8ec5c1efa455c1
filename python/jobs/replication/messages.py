"""What is said of a side of a sync, whoever carries it: the engine, the way to a leader, the way to another cluster.

A key here is relative: what comes after the prefix that a question names, so that two sides with different prefixes
speak of the same keys. A range is from `start` on and before `end`, None for the end of the prefix. Sizes are bounded
by the constants; a side answers fewer than it was asked for whenever that is what its bounds allow, and says where to
go on.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

from jobs._native import Blake3
from jobs.protocol.model import BlobKind, ConflictPolicy
from jobs.protocol.model.blobs import HASH_PATTERN
from jobs.records import CursorRecord

VERSION: Final = 1
"""Of everything here; what another version says is refused."""
MAX_CHANGES: Final = 900
"""Of a batch."""
MAX_BATCH_BYTES: Final = 4 << 20
"""Keys and values of a batch, unless it is one change."""
MAX_CONFLICTS: Final = 90
"""That one batch may record: they go into the same transaction."""
MAX_RANGES: Final = 1_024
"""Of one question."""
MAX_PIECES: Final = 4_096
"""Of one answer."""
MAX_ROWS: Final = 10_000
MAX_EVENTS: Final = 10_000
"""Of one answer, unless one revision has more."""
MAX_ANSWER_BYTES: Final = 4 << 20
"""Keys and values of an answer, unless it is one row, or one revision's changes."""
MAX_TAGS: Final = 500
MAX_WAIT_S: Final = 60.0
DIGEST_BYTES: Final = 16

UNKNOWN: Final = b""
"""Base of a change: whether the source had the key at the target's position is not known."""
ABSENT: Final = b"-"
"""It had not."""
PRESENT: Final = b"+"
"""It had, with a value that is not known any more. Any other base is the digest of the value (`digest_of`)."""

Key: TypeAlias = Annotated[bytes, Meta(max_length=1_024)]
Prefix: TypeAlias = Annotated[bytes, Meta(max_length=1_024)]
Hash: TypeAlias = Annotated[str, Meta(pattern=HASH_PATTERN)]
_Name: TypeAlias = Annotated[str, Meta(max_length=128)]
_Cluster: TypeAlias = Annotated[str, Meta(max_length=128)]
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
_Value: TypeAlias = Annotated[bytes, Meta(max_length=1 << 20)]
_Digest: TypeAlias = Annotated[bytes, Meta(max_length=32)]
Range: TypeAlias = tuple[Key, Key | None]


class Message(Struct, frozen=True, array_like=True):
    pass


def digest_of(value: bytes) -> bytes:
    """Return the base that says that the source had this value."""
    digest = Blake3()
    digest.update(value)
    return digest.digest()[:DIGEST_BYTES]


# --- what a side has --------------------------------------------------------------------------------------------------


class About(Message, frozen=True):
    """A cluster, as it is now."""

    cluster: _Cluster
    """Its id."""
    name: _Name
    revision: _Count
    compact_revision: _Count
    """The oldest that can be read."""
    now_ms: _Count
    version: int = VERSION


class Piece(Message, frozen=True):
    """Neighbouring rows: up to `last`, and after the piece before."""

    last: Key
    digest: _Digest
    """The first DIGEST_BYTES of a hash over keys and values."""
    rows: _Count
    size_bytes: _Count


class Digests(Message, frozen=True):
    """Pieces of the ranges that were asked for, range by range, in their order."""

    ranges: tuple[tuple[Piece, ...], ...]
    """May be fewer than were asked for, and at least one."""
    next: Key | None = None
    """Where to go on in the last of them; None: it is whole."""


class Row(Message, frozen=True):
    key: Key
    value: _Value
    create_revision: _Count
    mod_revision: _Count
    at_ms: _Count = 0
    """When it was last changed, to about ten seconds; 0 where it is not known."""


class Rows(Message, frozen=True):
    rows: tuple[Row, ...]
    next: Key | None = None
    """Where to go on; None: these are all."""


class Change(Message, frozen=True):
    """What a key is to be."""

    key: Key
    value: _Value | None
    """None: it is to be gone."""
    revision: _Count
    """Of the change at the source; 0 where that is not known: it is gone, and history does not go back so far."""
    at_ms: _Count = 0
    """When that was, to about ten seconds; 0 where it is not known."""
    base: _Digest = UNKNOWN
    """What the source had before."""


class Changes(Message, frozen=True):
    """Changes in the order of revisions, and of keys within one; whole revisions."""

    changes: tuple[Change, ...]
    up_to: _Count
    """Revision up to which everything is here."""
    newest: _Count
    """The side's revision: there is more where it is greater than `up_to`."""
    up_to_ms: _Count = 0
    """When the side was at `up_to`; 0 where that is not known."""
    now_ms: _Count = 0


class Positioned(Message, frozen=True):
    """A cursor that is there."""

    record: CursorRecord
    mod_revision: _Count


# --- what is to be at a target ----------------------------------------------------------------------------------------


class Batch(Message, frozen=True):
    """Changes that are made together, all or none, with the cursor; none where the cursor was moved meanwhile."""

    origin: _Cluster
    name: _Name
    expected: _Count
    """Revision at which the cursor was last changed; 0: there is none."""
    cursor: CursorRecord
    """As it is to be; its prefix at the target is where the changes go. Conflicts are counted by the target."""
    changes: Annotated[tuple[Change, ...], Meta(max_length=MAX_CHANGES)] = ()
    """No key twice."""
    policy: ConflictPolicy = "source"


class Applied(Message, frozen=True):
    """What came of a batch."""

    mod_revision: _Count
    """Of the cursor; 0: nothing was done, as there are too many conflicts (see `fit`)."""
    put: _Count = 0
    deleted: _Count = 0
    """What was the same already is counted nowhere."""
    conflicts: _Count = 0
    fit: _Count = 0
    """So many changes from the first on fit into a batch with what has to be recorded of them."""


# --- tags and blobs ---------------------------------------------------------------------------------------------------


class Tag(Message, frozen=True):
    name: _Name
    hash: Hash
    revision: _Count
    """Of its last change."""
    at_ms: _Count = 0
    """When that was, to about ten seconds."""


class Tags(Message, frozen=True):
    tags: tuple[Tag, ...]
    """In the order of names."""
    revision: _Count
    next: _Name | None = None
    """Name after which to go on; None: these are all."""


class TagChange(Message, frozen=True):
    """What a tag is to name; the blob is at the target."""

    name: _Name
    hash: Hash | None
    """None: it is to be gone."""
    revision: _Count
    at_ms: _Count = 0
    base: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] | None = None
    """What the source had it name at the position; "" for nothing, None where that is not known."""


class TagBatch(Message, frozen=True):
    """As `Batch`. The tags are those of uid 0 at the target."""

    origin: _Cluster
    name: _Name
    expected: _Count
    cursor: CursorRecord
    changes: Annotated[tuple[TagChange, ...], Meta(max_length=MAX_TAGS)] = ()
    policy: ConflictPolicy = "source"


class Blob(Message, frozen=True):
    """A blob as a side has it."""

    hash: Hash
    size_bytes: _Count
    kind: BlobKind = "raw"
    children: tuple[Hash, ...] = ()
    """Of a collection: every blob of its sequence."""
