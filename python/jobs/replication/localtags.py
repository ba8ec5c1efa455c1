"""Tags and blobs of this cluster as a side of a sync: the catalogue from this node's own store, content by its host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from jobs import keys, records
from jobs._native import CompactedError
from jobs.blobs import collection
from jobs.blobs.catalogue import NewBlob
from jobs.blobs.collection import CollectionError
from jobs.blobs.host import BlobHost
from jobs.clock import wall_ms
from jobs.control.blobs.lookup import read_entry
from jobs.control.blobs.references import not_there
from jobs.errors import BlobDamaged, Compacted
from jobs.records import BlobTagRecord
from jobs.replication import messages as m
from jobs.replication.localkeys import Leader, OwnStore, ReadsStore
from jobs.service import Caller
from jobs.store import Store, prefix_end

SYNC: Final = Caller(uid=0, gid=0, admin=True)
"""Whose the blobs are that come from elsewhere."""
MAX_PARENTS: Final = 1_000
"""Collections with a blob that are looked through for a tag."""
CHILDREN_PAGE: Final = 1_000
EVENTS_PAGE: Final = 1_000


class LocalTags(ReadsStore):
    """Implements the part of `Side` that is about tags and blobs."""

    def __init__(self, store: Store, own: OwnStore, leader: Leader, host: BlobHost) -> None:
        super().__init__(store, own, leader)
        self._host = host

    async def tags(self, prefix: str, after: str, *, limit: int = m.MAX_TAGS) -> m.Tags:
        await self._catch_up()
        under, limit = keys.blob_tag(prefix), min(limit, m.MAX_TAGS)
        start = max(under, keys.blob_tag(after) + b"\x00") if after else under
        rows, more = self._store.range(start, prefix_end(under), limit=limit)
        found = tuple(self._tag(key, value, modified) for key, value, _, _, modified, _ in rows)
        return m.Tags(found, self._store.revision, found[-1].name if more else None)

    def _tag(self, key: bytes, value: bytes, modified: int) -> m.Tag:
        blob = records.decode(BlobTagRecord, value).hash
        return m.Tag(key[len(keys.BLOB_TAGS) :].decode(), blob, modified, self._times.of(modified, wall_ms()))

    async def tagged(self, prefix: str, names: tuple[str, ...], revision: int) -> tuple[str | None, ...]:
        await self._catch_up(revision)
        try:
            rows = [
                self._store.get(keys.blob_tag(name), revision) if name.startswith(prefix) else None for name in names
            ]
        except CompactedError as error:
            raise Compacted(str(error), expected="a newer revision") from error
        return tuple(None if row is None else records.decode(BlobTagRecord, row[1]).hash for row in rows)

    async def tags_changed(self, prefix: str, after_revision: int, *, wait_s: float) -> int:
        await self._catch_up()
        under = keys.blob_tag(prefix)
        with self._own.waiter(under) as waiter:
            if self._have_changed(under, after_revision):
                return self._store.revision
            await waiter.wait(min(wait_s, m.MAX_WAIT_S))
            return self._store.revision if self._have_changed(under, after_revision) else after_revision

    def _have_changed(self, under: bytes, after_revision: int) -> bool:
        """What history does not tell may have changed."""
        seen = after_revision
        try:
            while seen < self._store.revision:
                events, seen = self._store.events(seen, [under], limit=EVENTS_PAGE)
                if events:
                    return True
        except CompactedError:
            return True
        return False

    async def apply_tags(self, batch: m.TagBatch) -> m.Applied:
        return await self._leader.apply_tags(batch)

    # --- blobs --------------------------------------------------------------------------------------------------------

    async def blob(self, tags: str, blob: str) -> m.Blob:
        await self._catch_up()
        record = read_entry(self._store, blob)
        if record is None or not self._is_named(tags, blob):
            raise not_there(blob)
        return m.Blob(blob, record.size_bytes, record.kind, self._children(blob) if record.kind == "collection" else ())

    def _children(self, blob: str) -> tuple[str, ...]:
        start, under, more = keys.blob_children_prefix(blob), keys.blob_children_prefix(blob), True
        found: list[str] = []
        while more:
            rows, more = self._store.range(start, prefix_end(under), limit=CHILDREN_PAGE, keys_only=True)
            found += [keys.blob_of(row[0]) for row in rows]
            start = rows[-1][0] + b"\x00" if rows else start
        return tuple(found)

    def _is_named(self, tags: str, blob: str) -> bool:
        """Whether a tag that begins so names a blob, or a collection that has it, or one that has that."""
        found, left = {blob}, [blob]
        while left and len(found) <= MAX_PARENTS:
            one = left.pop()
            named = keys.blob_reference(one, "tag", tags)
            if self._store.range(named, prefix_end(named), limit=1, keys_only=True)[0]:
                return True
            under = keys.blob_reference(one, "collection", "")
            rows, _ = self._store.range(under, prefix_end(under), limit=MAX_PARENTS, keys_only=True)
            parents = {keys.reference_of(row[0])[1] for row in rows} - found
            found |= parents
            left += parents
        return False

    async def read_blob(self, tags: str, blob: str, start: int = 0) -> AsyncIterator[bytes]:
        await self.blob(tags, blob)
        async with self._host.reading(SYNC, blob) as found:
            async for piece in found.pieces(start):
                yield piece

    async def lacking(self, tags: str, blobs: tuple[str, ...]) -> tuple[str, ...]:
        await self._catch_up()
        return tuple(blob for blob in blobs if read_entry(self._store, blob) is None)

    async def add_blob(self, tags: str, blob: m.Blob, pieces: AsyncIterator[bytes]) -> None:
        if blob.kind == "collection":
            pieces = _checked(blob, pieces)
        await self._host.take(
            SYNC,
            NewBlob(hash=blob.hash, size_bytes=blob.size_bytes, kind=blob.kind, children=blob.children),
            _sized(blob, pieces),
        )


async def _checked(blob: m.Blob, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass on a collection's sequence. Raises BlobDamaged where it has other blobs than was said."""
    sequence = bytearray()
    async for piece in pieces:
        sequence += piece
        if len(sequence) > (collection.MAX_FILES + 1) * collection.HASH_BYTES:
            break
        await asyncio.sleep(0)
    try:
        children = collection.decode_sequence(bytes(sequence))
    except CollectionError as error:
        raise BlobDamaged(f"the blob {blob.hash} is no collection: {error}", expected="one that can be read") from error
    if set(children) != set(blob.children):
        raise BlobDamaged(f"the collection {blob.hash} has other blobs than was said", expected="those that it has")
    yield bytes(sequence)


async def _sized(blob: m.Blob, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass on what has the size that was said. Raises BlobDamaged."""
    size_bytes = 0
    async for piece in pieces:
        size_bytes += len(piece)
        if size_bytes > blob.size_bytes:
            break
        yield piece
    if size_bytes != blob.size_bytes:
        raise BlobDamaged(
            f"the blob {blob.hash} has {'more' if size_bytes > blob.size_bytes else 'fewer'} bytes than the"
            f" {blob.size_bytes} that were said",
            expected="all of it",
        )
