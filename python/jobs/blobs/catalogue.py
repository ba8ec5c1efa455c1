"""What nodes say to the leader of blobs, and it to them: the catalogue stands in the key-value store, and the leader
alone changes it. Who holds a blob is told by the holder itself.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from jobs.protocol.model import BlobKind
from jobs.service import Caller


class NewBlob(Struct, frozen=True, kw_only=True, array_like=True):
    """A blob that a node has on its disk, and that is to be somebody's."""

    hash: str
    size_bytes: int
    kind: BlobKind = "raw"
    children: tuple[str, ...] = ()
    """Of a collection, every blob of its sequence, the one with the names among them: they have to be there."""
    replicas: int | None = None
    """Nodes that are to have it; None: as configured."""
    tag: str | None = None


class Entry(Struct, frozen=True, kw_only=True, array_like=True):
    """What the catalogue has of a blob."""

    hash: str
    size_bytes: int
    kind: BlobKind
    replicas: int
    holders: tuple[str, ...]
    """Ids of members."""
    created_ms: int
    touched_ms: int


class Catalogue(Protocol):
    """The leader's side. Errors are those of `jobs.errors`; whatever it answers is durable. All of it may be asked
    again with the same effect."""

    async def register(self, caller: Caller, blob: NewBlob, holder: str) -> tuple[Entry, bool]:
        """Make a blob that `holder` has known, and the caller's; True when it is new to them. Raises BlobQuotaExceeded,
        NotFound for a child that is not the caller's, StorageFull, and what setting a tag raises."""

    async def claim(self, caller: Caller, ticket: str) -> Entry:
        """Make the blob of a ticket the caller's, with those of its children that are theirs who made the ticket.
        Raises InvalidRequest for what is no ticket, NotFound for one that is not good (any more), BlobQuotaExceeded."""

    async def readable(self, caller: Caller, blob: str) -> Entry:
        """Return a blob that the caller may read. Raises NotFound, also for one that is somebody else's.

        Whoever may read a collection may not for that reason read what it consists of: each is asked for by itself.
        """

    async def held(self, member: str, here: tuple[str, ...], gone: tuple[str, ...]) -> None:
        """A member has these blobs, and no longer has those; what is not known is passed over. Of both together at most
        10,000. Raises Forbidden for one that is no member (any more)."""

    async def wanted(self, member: str, blobs: tuple[str, ...]) -> tuple[bool, ...]:
        """Tell of each whether this member is to keep it: it is known, and the member among its holders, or it lacks
        nodes. At most 10,000 at once."""

    async def replicate(self, caller: Caller, blob: str, replicas: int) -> Entry:
        """Set how many nodes are to have a blob of the caller's; the children of a collection get at least as many.
        Raises NotFound, and Forbidden for fewer than now where others own it as well."""

    async def lacking(self, after: str, limit: int) -> tuple[Entry, ...]:
        """Return blobs that fewer nodes have than are to, and than there are, in the order of their hashes. They stand
        at `keys.BLOBS_LACKING`, which can be watched: it changes with holders, with numbers, and with the members."""

    async def entries(self, after: str, limit: int, holder: str = "") -> tuple[Entry, ...]:
        """Return blobs after this one in the order of their hashes, all or those that a member holds."""

    async def children(self, blob: str) -> tuple[str, ...]:
        """Return what a collection consists of, by hash; nothing for other blobs."""
