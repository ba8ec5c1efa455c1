"""The blobs of a node for those who ask it: what comes is kept and made known, what is read is fetched where need be.

The node's own store has the bytes, the catalogue says whose they are, and a replicator reaches the other nodes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Protocol

from msgspec import Struct, structs

from jobs._native import Blake3, CorruptError, DiskFullError, NotFoundError
from jobs.blobs import collection
from jobs.blobs.catalogue import Catalogue, Entry, NewBlob
from jobs.blobs.collection import Collection, CollectionError
from jobs.blobs.store import Added, BlobStore, Reading
from jobs.blobs.tending import Tending
from jobs.errors import (
    BlobDamaged,
    BlobUnavailable,
    InvalidRequest,
    JobsError,
    NotFound,
    PayloadTooLarge,
    StorageFull,
    Unavailable,
)
from jobs.protocol.model import BlobAdded, BlobKind
from jobs.service import Caller

logger = logging.getLogger(__name__)


class Replicator(Protocol):
    """The other nodes, as a host needs them."""

    async def spread(self, entry: Entry) -> Entry:
        """Have other nodes keep a blob that is here, with its children, until as many have it as are to, or all that
        can be reached; return its entry as it is then. Nothing that fails keeps it from being the caller's."""

    async def bring(self, entry: Entry) -> None:
        """Have here what other nodes hold, with its children. Raises BlobUnavailable, BlobDamaged, StorageFull."""

    def name_of(self, member: str) -> str:
        """Return the name of a member by its id."""


class Wanted(Struct, frozen=True, kw_only=True):
    """What is to become of a blob that is added."""

    tag: str | None = None
    replicas: int | None = None
    expected: str | None = None
    """The hash that it is to have."""


READ_BYTES: Final = 256 << 10
"""At once: so much of each blob that is read is in memory, and a client has to take so much in time."""
LOOKED_BYTES: Final = 16 << 20
"""From this size on it is worth to know before whether there is room."""
MAX_KNOWN: Final = 4
"""Collections that are kept in memory."""
PLAINLY: Final = Wanted()


class Found:
    """A blob that is held open for a caller who may read it."""

    def __init__(
        self,
        blob: str,
        kind: BlobKind,
        reading: Reading,
        anew: Callable[[], Awaitable[Reading]],
    ) -> None:
        self.hash = blob
        self.kind = kind
        self.size_bytes = reading.size_bytes
        self._reading = reading
        self._anew = anew
        """Opens the copy that another node gives in place of this one. Raises BlobDamaged."""

    async def pieces(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Return the bytes from `start` to `end`, verified, piece by piece. What is damaged comes from another node.

        Raises BlobDamaged where none has it, and what keeps it from coming here."""
        end = self.size_bytes if end is None else min(end, self.size_bytes)
        while start < end:
            piece = await self._piece(start, min(READ_BYTES, end - start))
            start += len(piece)
            yield piece

    async def _piece(self, start: int, size_bytes: int) -> bytes:
        try:
            return await self._reading.read(start, size_bytes)
        except CorruptError as error:
            logger.warning("blob %s is damaged here: %s", self.hash, error)
        self._reading = await self._anew()
        try:
            return await self._reading.read(start, size_bytes)
        except CorruptError as error:
            raise BlobDamaged(
                f"the blob {self.hash} is damaged on this node again: {error}",
                expected="a disk that keeps what it is given",
            ) from error


class BlobHost:
    """Errors are those of `jobs.errors`; whatever is added is durable, and known to the cluster."""

    def __init__(
        self,
        store: BlobStore,
        catalogue: Catalogue,
        replicator: Replicator,
        tending: Tending,
        member: str,
        max_blob_bytes: int,
    ) -> None:
        self.store = store
        self.catalogue = catalogue
        self.replicator = replicator
        self._tending = tending
        self._member = member
        self._max_blob_bytes = max_blob_bytes
        self._collections: dict[str, Collection] = {}
        """Read lately: whoever fetches the files of one asks for it again with each."""

    # --- additions ----------------------------------------------------------------------------------------------------

    async def check_size(self, size_bytes: int) -> None:
        """Raise PayloadTooLarge or StorageFull for what need not be begun."""
        if size_bytes > self._max_blob_bytes:
            raise self._too_large(size_bytes)
        if size_bytes < LOOKED_BYTES:
            return  # the store looks itself as it begins
        free_bytes = (await self.store.usage())["free_bytes"]
        if size_bytes > free_bytes:
            raise _full(f"{size_bytes} bytes are to come, and blobs may use {free_bytes} more")

    async def add(self, caller: Caller, pieces: AsyncIterator[bytes], wanted: Wanted = PLAINLY) -> BlobAdded:
        """Add what comes; it is the caller's when this returns, and on as many nodes as it is to be.

        Raises what the pieces raise, PayloadTooLarge, InvalidRequest for another hash than the expected one,
        StorageFull, and what the catalogue raises; then nothing of it is kept.
        """
        added = await self._store(self._checked(pieces, wanted.expected))
        new = NewBlob(hash=added.hash, size_bytes=added.size_bytes, replicas=wanted.replicas, tag=wanted.tag)
        return await self._register(caller, new, added)

    async def take(self, caller: Caller, new: NewBlob, pieces: AsyncIterator[bytes]) -> BlobAdded:
        """Add a blob that is known by its hash, a collection too, whose children are the caller's. Raises as `add`."""
        added = await self._store(self._checked(pieces, new.hash))
        return await self._register(caller, new, added)

    async def add_collection(
        self, caller: Caller, files: Mapping[str, str], *, tag: str | None = None, replicas: int | None = None
    ) -> BlobAdded:
        """Add a collection of blobs that are the caller's. Raises as `add`, and NotFound for a file that is not."""
        try:
            names = collection.encode_names(files)
        except CollectionError as error:
            raise InvalidRequest(
                str(error), field="$.files", expected="relative paths of files, none of them twice"
            ) from error
        named = await self._store(_once(names))
        await self._register(caller, NewBlob(hash=named.hash, size_bytes=len(names), replicas=replicas), named)
        made = Collection(named.hash, dict(files))
        added = await self._store(_once(collection.encode_sequence(named.hash, files)))
        new = NewBlob(
            hash=added.hash,
            size_bytes=added.size_bytes,
            kind="collection",
            children=made.children,
            replicas=replicas,
            tag=tag,
        )
        return await self._register(caller, new, added)

    async def _store(self, pieces: AsyncIterator[bytes]) -> Added:
        try:
            return await self.store.add(pieces)
        except DiskFullError as error:
            raise _full(str(error)) from error

    async def _checked(self, pieces: AsyncIterator[bytes], expected: str | None) -> AsyncIterator[bytes]:
        """Pass the pieces on. Raises before their end is told, and so before anything is kept."""
        size_bytes = 0
        digest = None if expected is None else Blake3()
        async for piece in pieces:
            size_bytes += len(piece)
            if size_bytes > self._max_blob_bytes:
                raise self._too_large(size_bytes)
            if digest is not None:
                await asyncio.to_thread(digest.update, piece)
            yield piece
        if digest is not None and digest.digest().hex() != expected:
            raise InvalidRequest(
                f"what came has the hash {digest.digest().hex()}", field="expected", expected=f"content of {expected}"
            )

    async def _register(self, caller: Caller, new: NewBlob, added: Added) -> BlobAdded:
        """Make what was stored the caller's, and have the other nodes keep it as well."""
        try:
            # Held until it is known: nothing else keeps it from being swept.
            async with self.store.reading(new.hash):
                entry, created = await self.catalogue.register(caller, new, self._member)
                entry = await self.replicator.spread(entry)
        except NotFoundError as error:
            raise Unavailable(f"the blob {new.hash} was deleted as it came", expected="it again") from error
        except Unavailable:
            raise  # it may be known: the sweep sees to it
        except JobsError:
            await self._discard(added)
            raise
        return BlobAdded(
            hash=entry.hash,
            size_bytes=entry.size_bytes,
            kind=entry.kind,
            created=created,
            nodes=[self.replicator.name_of(holder) for holder in entry.holders],
            tag=new.tag,
        )

    async def _discard(self, added: Added) -> None:
        """Delete what was refused, unless it was here before."""
        if added.existed:
            return
        try:
            await self._tending.discard(added.hash)
        except JobsError as error:
            logger.info("what was refused stays until the sweep: %s", error)

    def _too_large(self, size_bytes: int) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"the blob has {size_bytes} bytes or more", expected=f"at most {self._max_blob_bytes} bytes"
        )

    # --- reads --------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def reading(self, caller: Caller, blob: str, path: str | None = None) -> AsyncIterator[Found]:
        """Hold a blob, or a file of a collection, open for who may read it; it is brought here if it is not.

        Raises NotFound, also for what is somebody else's, BlobUnavailable, BlobDamaged and StorageFull.
        """
        entry = await self.catalogue.readable(caller, blob)
        if path is not None:
            files = (await self._collection(entry)).files
            if path not in files:
                raise NotFound(f"the collection {blob} has no file {path!r:.200}", field="path")
            blob = files[path]  # whoever may read a collection may read what it consists of
        async with self._open(blob, entry) as found:
            yield found

    async def files(self, caller: Caller, blob: str) -> Collection:
        """Return a collection's files. Raises as `reading`, and InvalidRequest for a blob that is no collection."""
        return await self._collection(await self.catalogue.readable(caller, blob))

    async def _collection(self, entry: Entry) -> Collection:
        if entry.kind != "collection":
            raise InvalidRequest(f"the blob {entry.hash} is no collection", field="id", expected="a collection's hash")
        known = self._collections.get(entry.hash)
        if known is None:
            known = await self._read_collection(entry)
            if len(self._collections) >= MAX_KNOWN:
                self._collections.pop(next(iter(self._collections)))
            self._collections[entry.hash] = known
        return known

    async def _read_collection(self, entry: Entry) -> Collection:
        try:
            sequence = await self._whole(entry.hash, entry, (collection.MAX_FILES + 1) * collection.HASH_BYTES)
            names_blob = collection.decode_sequence(sequence)[0]
            names = await self._whole(names_blob, entry, collection.MAX_NAMES_BYTES)
            return collection.decode(sequence, names)
        except CollectionError as error:
            raise InvalidRequest(
                f"the blob {entry.hash} is no collection of files: {error}", field="id", expected="one that can be read"
            ) from error

    async def _whole(self, blob: str, entry: Entry, max_bytes: int) -> bytes:
        async with self._open(blob, entry) as found:
            if found.size_bytes > max_bytes:
                raise CollectionError(f"a part of it has {found.size_bytes} bytes, at most {max_bytes}")
            return b"".join([piece async for piece in found.pieces()])

    @asynccontextmanager
    async def _open(self, blob: str, entry: Entry) -> AsyncIterator[Found]:
        """Hold a blob open that is the entry's or one of its children."""
        async with AsyncExitStack() as stack:

            async def brought(*, damaged: bool) -> Reading:
                await self._bring(blob, entry, damaged=damaged)
                try:
                    return await stack.enter_async_context(self.store.reading(blob))
                except (NotFoundError, CorruptError) as again:
                    raise BlobUnavailable(
                        f"the blob {blob} was brought here, and is gone again", expected="it once more"
                    ) from again

            async def anew() -> Reading:
                # Whatever the entry says of holders, which it may have become one of since: it is here no more.
                await self.catalogue.held(self._member, (), (blob,))
                return await brought(damaged=True)

            try:
                reading = await stack.enter_async_context(self.store.reading(blob))
            except (NotFoundError, CorruptError) as error:
                reading = await brought(damaged=isinstance(error, CorruptError))
            yield Found(blob, entry.kind if blob == entry.hash else "raw", reading, anew)

    async def _bring(self, blob: str, entry: Entry, *, damaged: bool) -> None:
        """Have a blob here that is not, or not any more, and let the catalogue know which."""
        is_holder = self._member in entry.holders
        if is_holder:
            await self.catalogue.held(self._member, (), (blob,))
        try:
            # This one alone: a collection may list far more than anybody is about to read here.
            await self.replicator.bring(structs.replace(entry, hash=blob, kind="raw"))
        except BlobUnavailable as error:
            if damaged:
                raise BlobDamaged(
                    f"the blob {blob} is damaged on this node: {error.detail}",
                    expected="a node with a good copy to run, or the content to be added again",
                ) from error
            raise
        if is_holder or (blob == entry.hash and len(entry.holders) < entry.replicas):
            # What was told to be gone when it was met damaged is here again, and more than a copy for this read.
            await self.catalogue.held(self._member, (blob,), ())


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _full(detail: str) -> StorageFull:
    return StorageFull(
        f"the node's disk has no room: {detail}", expected="a smaller blob, or more room (blobs.min_free_bytes)"
    )
