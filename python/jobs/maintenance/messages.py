"""What nodes say to each other for maintenance: questions to the leader, and orders to members. Pure.

`forward.questions` and `forward.orders` say how they go from one to the other.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

from jobs.forward.speech import Text
from jobs.protocol.ids import JobId
from jobs.protocol.model import CleanupPart

MAX_CURSOR_BYTES: Final = 512 << 10
MAX_PIECES: Final = 1_024
MAX_PROBLEMS: Final = 100
"""Of one answer."""

_Count: TypeAlias = Annotated[int, Meta(ge=0)]
_Name: TypeAlias = Annotated[str, Meta(max_length=128)]
_Cursor: TypeAlias = Annotated[bytes, Meta(max_length=MAX_CURSOR_BYTES)]
_Key: TypeAlias = Annotated[bytes, Meta(max_length=1 << 11)]
_Problems: TypeAlias = Annotated[tuple[Text, ...], Meta(max_length=MAX_PROBLEMS)]


class _Message(Struct, frozen=True, array_like=True):
    pass


# --- questions to the leader, by the methods of `control.maintenance.Maintenance` -------------------------------------


class Token(_Message, frozen=True):
    """That an operation is somebody's: whoever takes it over, or says how far it is, makes all others void."""

    operation: _Name
    revision: _Count


class Claim(_Message, frozen=True, tag=1):
    operation: _Name
    job: Annotated[JobId, Meta(max_length=64)]


class Keep(_Message, frozen=True, tag=2):
    """Remember how far it is; the answer is the new token's revision."""

    token: Token
    cursor: _Cursor
    done: dict[str, int]


class Check(_Message, frozen=True, tag=3):
    token: Token


class Release(_Message, frozen=True, tag=4):
    token: Token


class Reached(_Message, frozen=True, tag=5):
    """Which revision the store has, as the leader knows it."""


class Clean(_Message, frozen=True, tag=6):
    """Delete some of what is no longer kept, or count it."""

    token: Token
    part: CleanupPart
    dry_run: bool
    cursor: _Cursor = b""


class Compact(_Message, frozen=True, tag=7):
    """Make the history up to a revision unreadable."""

    token: Token
    revision: _Count


class Forget(_Message, frozen=True, tag=8):
    """Give some of the history back that is unreadable."""

    token: Token


class Describe(_Message, frozen=True, tag=9):
    """Say how the cluster is, as its leader sees it."""


Question: TypeAlias = Claim | Keep | Check | Release | Reached | Clean | Compact | Forget | Describe


class Claimed(_Message, frozen=True):
    revision: int
    began_ms: int
    cursor: bytes
    done: dict[str, int]


class Cleaned(_Message, frozen=True):
    """What went, or would go. `cursor`: where to go on; None at the end."""

    counts: dict[str, int]
    size_bytes: int
    cursor: bytes | None


class History(_Message, frozen=True):
    compact_revision: int
    events: int
    more: bool
    """There may be more to give back."""


class Standing(_Message, frozen=True):
    """How the leader sees a member."""

    member: str
    lag_entries: int
    answered_ago_s: float | None
    is_voter: bool


class Situation(_Message, frozen=True):
    leader: str
    at_ms: int
    members: tuple[Standing, ...]
    pending: int
    workers: dict[str, int]
    """Registered ones, by type."""
    behind_ms: int
    """How far the clock is behind by which jobs age."""


# --- orders to a member -----------------------------------------------------------------------------------------------


class CutLog(_Message, frozen=True, tag=1):
    """Take a snapshot and cut the log behind it."""

    dry_run: bool


class CompactFile(_Message, frozen=True, tag=2):
    """Write the store's file anew without what holds nothing in it."""

    dry_run: bool


class Examine(_Message, frozen=True, tag=3):
    """Measure how the machine and the node's files are."""


class CheckLog(_Message, frozen=True, tag=4):
    """Read some of the log anew."""

    cursor: _Cursor


class CheckStore(_Message, frozen=True, tag=5):
    """Look anew at rows of the store's file."""

    cursor: _Cursor


class CheckSnapshot(_Message, frozen=True, tag=6):
    """Read the newest snapshot anew."""


class Digest(_Message, frozen=True, tag=7):
    """Digest the keys of a range at a revision, in pieces of about so many rows."""

    start: _Key
    end: _Key
    cursor: _Cursor
    revision: _Count
    rows: Annotated[int, Meta(ge=1, le=1 << 20)]
    limit: Annotated[int, Meta(ge=1, le=MAX_PIECES)]


class Show(_Message, frozen=True, tag=8):
    """Say what stands at a key at a revision."""

    key: _Key
    revision: _Count


class Needed(_Message, frozen=True, tag=9):
    """Say from where on readers here need history."""


Order: TypeAlias = CutLog | CompactFile | Examine | CheckLog | CheckStore | CheckSnapshot | Digest | Show | Needed


class Advance(_Message, frozen=True, tag=1):
    """How far an order is: of `total`, 0 where that is not known."""

    done: _Count = 0
    total: _Count = 0


class Freed(_Message, frozen=True, tag=2):
    """`before` and `after` in bytes; of a dry run, what it is and what it would be."""

    before_bytes: int
    after_bytes: int
    examined: int
    outcome: Text = ""
    """Why it was left."""


class DiskSpace(_Message, frozen=True):
    """A file system of the node, and what of it is kept there."""

    holds: Text
    path: Text
    total_bytes: int
    free_bytes: int


class KeyFile(_Message, frozen=True):
    path: Text
    problem: Text = ""


class Examined(_Message, frozen=True, tag=3):
    at_ms: int
    release: Text
    disks: tuple[DiskSpace, ...]
    fsync_s: tuple[float, ...]
    """Of some syncs of the log's disk."""
    pressure: dict[str, float]
    """Percent of the last ten seconds in which something waited, by resource; none where the kernel does not tell."""
    store_bytes: int
    max_store_bytes: int
    file_bytes: int
    """Of the store's file."""
    free_file_bytes: int
    """Of it, those that hold nothing."""
    no_room: Text
    """Why entries wait to be applied; "" where none do."""
    keys: tuple[KeyFile, ...]
    open_files: int
    max_open_files: int
    quarantined: int
    """Blobs that were found damaged and put aside."""


class Checked(_Message, frozen=True, tag=4):
    """What reading some anew came to. `cursor`: where to go on; None at the end."""

    examined: int
    size_bytes: int
    problems: _Problems = ()
    cursor: _Cursor | None = None


class Piece(_Message, frozen=True):
    """Rows up to a key, that one included."""

    last: bytes
    digest: bytes
    rows: int
    size_bytes: int


class Digested(_Message, frozen=True, tag=5):
    """`compacted`: the revision is gone here."""

    pieces: tuple[Piece, ...]
    cursor: _Cursor
    """Where to go on; b"" at the end."""
    compacted: bool = False


class Shown(_Message, frozen=True, tag=6):
    """What a member has at a key. `version`: 0 for nothing."""

    version: int = 0
    create_revision: int = 0
    mod_revision: int = 0
    lease: int = 0
    size_bytes: int = 0
    digest: Text = ""


class Needs(_Message, frozen=True, tag=8):
    revision: int | None


End: TypeAlias = Freed | Examined | Checked | Digested | Shown | Needs
