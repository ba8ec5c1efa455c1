"""What nodes say to each other of blobs: questions to the leader, and orders to members. Pure.

`forward.questions` and `forward.orders` say how they go from one to the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Final, TypeAlias, TypeVar

from msgspec import Meta, Struct

from jobs.blobs.catalogue import NewBlob
from jobs.forward.speech import Member, Text
from jobs.protocol.model import BlobCollect, BlobTagSet
from jobs.protocol.model.blobs import HASH_PATTERN
from jobs.service import Caller

MAX_LOT: Final = 64
"""Blobs of one order: each is held open until the leader knows of it."""
MAX_TOLD: Final = 1_000
"""Blobs of one question."""

_Hash: TypeAlias = Annotated[str, Meta(pattern=HASH_PATTERN)]
_After: TypeAlias = Annotated[str, Meta(max_length=64)]
"""A hash, or "" for the beginning."""
_Count: TypeAlias = Annotated[int, Meta(ge=0)]
_Told: TypeAlias = Annotated[tuple[_Hash, ...], Meta(max_length=MAX_TOLD)]

T = TypeVar("T")


class _Message(Struct, frozen=True, array_like=True):
    pass


# --- questions to the leader, by the methods of `catalogue.Catalogue` and `service.BlobService` ----------------------


class Register(_Message, frozen=True, tag=1):
    caller: Caller
    blob: NewBlob


class Claim(_Message, frozen=True, tag=2):
    caller: Caller
    ticket: Text


class Readable(_Message, frozen=True, tag=3):
    caller: Caller
    blob: _Hash


class Held(_Message, frozen=True, tag=4):
    here: _Told
    gone: _Told


class Wanted(_Message, frozen=True, tag=5):
    blobs: _Told


class Replicate(_Message, frozen=True, tag=6):
    caller: Caller
    blob: _Hash
    replicas: _Count


class Lacking(_Message, frozen=True, tag=7):
    after: _After
    limit: _Count


class Entries(_Message, frozen=True, tag=8):
    after: _After
    limit: _Count
    holder: Member


class Children(_Message, frozen=True, tag=9):
    blob: _Hash


class SetTag(_Message, frozen=True, tag=10):
    caller: Caller
    name: Text
    wanted: BlobTagSet


class Collect(_Message, frozen=True, tag=11):
    caller: Caller
    wanted: BlobCollect


class Reached(_Message, frozen=True, tag=12):
    """Which revision the store has, as the leader knows it."""

    caller: Caller


Question: TypeAlias = (
    Register | Claim | Readable | Held | Wanted | Replicate | Lacking | Entries | Children | SetTag | Collect | Reached
)


# --- orders to a member -----------------------------------------------------------------------------------------------


class Sought(_Message, frozen=True):
    """A blob, and the members to have it from, the best first."""

    hash: _Hash
    providers: Annotated[tuple[Member, ...], Meta(max_length=64)] = ()


_Lot: TypeAlias = Annotated[tuple[Sought, ...], Meta(max_length=MAX_LOT)]


class Fetch(_Message, frozen=True, tag=1):
    """Have these."""

    blobs: _Lot
    keep: bool = True
    """They are to stay, and the leader is told that they are there."""


class Survey(_Message, frozen=True, tag=2):
    """Say what room there is."""


class Verify(_Message, frozen=True, tag=3):
    """Hash these anew, or a page of those that the member is to have; mend what is damaged."""

    blobs: _Lot = ()
    after: _After = ""
    limit: Annotated[int, Meta(ge=1, le=MAX_LOT)] = 64


class Sweep(_Message, frozen=True, tag=4):
    """Delete the blobs of a page that the member is not to have, and that came longer ago than this, and than is
    configured; a look (`dry_run`) may ask for less. None: as configured."""

    after: _After
    limit: Annotated[int, Meta(ge=1, le=MAX_TOLD)]
    grace_ms: _Count | None = None
    dry_run: bool = False


class Check(_Message, frozen=True, tag=5):
    """Look whether these are there, and tell the leader of those that are not."""

    blobs: _Told


Order: TypeAlias = Fetch | Survey | Verify | Sweep | Check


class Advance(_Message, frozen=True, tag=1):
    """How far it is; also sent when that is no further, so that silence means something."""

    done_bytes: int = 0
    total_bytes: int = 0


class Source(_Message, frozen=True):
    """What came of a provider."""

    member: Member
    size_bytes: int
    reason: Text = ""
    """Why it was left behind, for one of the blobs at least."""


class Failure(_Message, frozen=True):
    """A blob that could not be had. `kind`: as `store.FetchFailed` has it."""

    hash: _Hash
    kind: Text
    detail: Text


class Suspect(_Message, frozen=True):
    """A member that did not give a blob that it is said to have."""

    hash: _Hash
    member: Member


class Fetched(_Message, frozen=True, tag=2):
    """What came of an order to fetch: the leader knows of what is here."""

    size_bytes: int
    here: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    sources: tuple[Source, ...] = ()
    suspects: tuple[Suspect, ...] = ()


class Room(_Message, frozen=True, tag=3):
    """What a member has, and may still take."""

    free_bytes: int
    blobs: int
    size_bytes: int


class Damage(_Message, frozen=True):
    """A blob that is not as it should be. `outcome`: mended, or why not."""

    hash: _Hash
    found: Text
    outcome: Text
    mended: bool


class Verified(_Message, frozen=True, tag=4):
    """What came of a page; `after`: where the next one begins, None at the end."""

    blobs: int
    size_bytes: int
    damages: tuple[Damage, ...] = ()
    after: _After | None = None


class Removed(_Message, frozen=True):
    hash: _Hash
    size_bytes: int


class Swept(_Message, frozen=True, tag=5):
    """What came of a page. `spared`: by why, those that are not to be here and stay for now."""

    examined: int
    removed: tuple[Removed, ...] = ()
    spared: dict[str, int] = {}
    after: _After | None = None


class Checked(_Message, frozen=True, tag=6):
    gone: tuple[str, ...] = ()


End: TypeAlias = Fetched | Room | Verified | Swept | Checked


def lots(blobs: Sequence[T]) -> Iterator[tuple[T, ...]]:
    """Return blobs as many at a time as one order has."""
    return (tuple(blobs[start : start + MAX_LOT]) for start in range(0, len(blobs), MAX_LOT))
