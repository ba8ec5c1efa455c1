"""One of the two sides of a sync: a cluster, this one or one that is reached over a link."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from jobs.replication import messages as m


class Side(Protocol):
    """What a sync asks of a cluster. Keys are relative to the prefix that is named with them.

    Reads are linearizable: they see whatever was acknowledged before they were asked. Errors are those of
    `jobs.errors`: LinkUnavailable and Unavailable where the same may go well later, Forbidden for what a link's scopes
    do not allow, by name.
    """

    @property
    def title(self) -> str:
        """What to call it in what is told to people."""

    async def about(self) -> m.About: ...

    # --- keys ---------------------------------------------------------------------------------------------------------

    async def digests(
        self, prefix: bytes, ranges: tuple[m.Range, ...], *, revision: int, rows: int, limit: int = m.MAX_PIECES
    ) -> m.Digests:
        """Digests of pieces of about `rows` rows, a power of two, at a revision; 0: the newest. Pieces end after the
        same keys on each side that has them. Raises Compacted."""

    async def rows(
        self, prefix: bytes, span: m.Range, *, revision: int, limit: int = m.MAX_ROWS, values: bool = True
    ) -> m.Rows:
        """Rows of a range. Without `values` they are empty. Raises Compacted."""

    async def pick(self, prefix: bytes, names: tuple[bytes, ...], *, revision: int) -> m.Rows:
        """Rows of these keys, in their order, without those that are not there. `next`: the first key of the order that
        was not looked at. Raises Compacted."""

    async def changes(
        self, prefix: bytes, after_revision: int, *, limit: int = m.MAX_EVENTS, wait_s: float = 0.0
    ) -> m.Changes:
        """Changes after a revision, each with the base that it had. Where there are none it waits for so long for the
        next one. Raises Compacted."""

    # --- the target's part --------------------------------------------------------------------------------------------

    async def cursor(self, origin: str, name: str) -> m.Positioned | None: ...

    async def upstream(self, place: str) -> frozenset[str]:
        """Origins (see `origins`) from which syncs bring here what overlaps a place: a prefix of keys, or "tags:" and
        one of tags."""

    async def apply(self, batch: m.Batch) -> m.Applied:
        """Raises RevisionConflict where the cursor is not as expected, ReplicationConflict with the policy `fail`,
        StorageFull."""

    # --- tags and blobs -----------------------------------------------------------------------------------------------

    async def tags(self, prefix: str, after: str, *, limit: int = m.MAX_TAGS) -> m.Tags:
        """Tags that begin with `prefix`, after this name."""

    async def tagged(self, prefix: str, names: tuple[str, ...], revision: int) -> tuple[str | None, ...]:
        """What each named at a revision; None where there was no such tag. Raises Compacted."""

    async def tags_changed(self, prefix: str, after_revision: int, *, wait_s: float) -> int:
        """Wait for so long for a change of a tag; return the newest revision, or `after_revision` where none came."""

    async def apply_tags(self, batch: m.TagBatch) -> m.Applied:
        """As `apply`. Raises NotFound for a blob that is not there."""

    async def blob(self, tags: str, blob: str) -> m.Blob:
        """A blob that a tag of this prefix names, or that a collection of those has. Raises NotFound."""

    def read_blob(self, tags: str, blob: str, start: int = 0) -> AsyncIterator[bytes]:
        """The content from a byte on. Raises as `blob`, and BlobUnavailable, BlobDamaged."""

    async def lacking(self, tags: str, blobs: tuple[str, ...]) -> tuple[str, ...]:
        """Return those that are not there."""

    async def add_blob(self, tags: str, blob: m.Blob, pieces: AsyncIterator[bytes]) -> None:
        """Take a blob in, whose children are there. Raises BlobDamaged for other content, StorageFull."""
