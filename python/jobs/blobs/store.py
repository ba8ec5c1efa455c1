"""The blobs of a node on its event loop: a layer over `jobs._native.Blobs`, which does the work in threads of its own.

What waits for the disk runs in a few threads of this module; fetches are told of through a descriptor. A call that is
cancelled leaves nothing half-done: an addition is dropped, and what a fetch has brought stays for the next one.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from msgspec import Struct

from jobs._native import BlobReader, Blobs, Endpoint, NativeError

if TYPE_CHECKING:
    from jobs._native import BlobEvent, BlobWriter  # the event is an alias of the stub alone

logger = logging.getLogger(__name__)

T = TypeVar("T")
THREADS: Final = 8
PIECE_BYTES: Final = 1 << 20
"""Read and written at once."""
MAX_FETCHES: Final = 64
"""Fetches under way at once; others wait for their turn."""
Outcome = Literal["deleted", "missing", "held", "recent"]
Verdict = Literal["sound", "mended", "damaged", "missing"]


class Added(Struct, frozen=True, kw_only=True):
    """A blob that was added: it is on the disk."""

    hash: str
    size_bytes: int
    existed: bool
    """It was here before."""


class Stat(Struct, frozen=True, kw_only=True):
    """A blob that is here."""

    hash: str
    size_bytes: int
    added_ms: int
    """When it last came."""


class Progress(Struct, frozen=True, kw_only=True):
    """How far a fetch is; of blobs whose sizes are not known yet, nothing is counted."""

    done_bytes: int
    total_bytes: int
    done_blobs: int
    total_blobs: int


class Tried(Struct, frozen=True, kw_only=True):
    """What came of a provider."""

    peer: str
    size_bytes: int
    """Verified bytes that came from it."""
    reason: str
    """Why it was left behind; "" when it was not."""


class Fetched(Struct, frozen=True, kw_only=True):
    """A blob that is here now, and its children if they were asked for."""

    size_bytes: int
    blobs: int
    providers: tuple[Tried, ...]


class FetchFailed(Exception):
    """A blob was not fetched; what has come of it stays for the next try, unless the disk is full.

    `kind`: unavailable (`providers` says why from none of them), disk_full, limit (it is larger than is wanted),
    invalid (it is no sequence of hashes), corrupt, io, closed (this node stops).
    """

    def __init__(self, kind: str, detail: str, providers: tuple[Tried, ...] = ()) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.providers = providers


OnProgress = Callable[[Progress], None]
OnBytes = Callable[[int], None]


class BlobStore:
    """An open store."""

    def __init__(self, native: Blobs) -> None:
        self._native = native
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="blobs")
        self._loop = asyncio.get_running_loop()
        self._descriptor: int | None = self._native.fileno()
        self._fetches: dict[int, tuple[asyncio.Future[Fetched], OnProgress | None]] = {}
        self._turns = asyncio.Semaphore(MAX_FETCHES)
        self._watches: dict[object, set[str]] = {}
        self._loop.add_reader(self._descriptor, self._on_readable)

    @classmethod
    async def open(cls, directory: Path, *, min_free_bytes: int | None = None) -> BlobStore:
        """Open the store in this folder, made when it is absent. Raises NativeError when it cannot be."""
        # In a thread: it looks at every blob.
        return cls(await asyncio.to_thread(Blobs, str(directory), min_free_bytes=min_free_bytes))

    def join(self, endpoint: Endpoint) -> None:
        """Serve the members that the endpoint knows, and fetch from them. Raises NativeError."""
        self._native.join(endpoint)

    async def close(self) -> None:
        """Close the store; what waits for it fails. Again: nothing."""
        if self._descriptor is None:
            return
        self._loop.remove_reader(self._descriptor)
        self._descriptor = None
        for future, _ in self._fetches.values():
            if not future.done():
                future.set_exception(FetchFailed("closed", "this node stops"))
        self._fetches.clear()
        await asyncio.to_thread(self._native.close)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- additions ----------------------------------------------------------------------------------------------------

    async def add(self, pieces: AsyncIterable[bytes], on_bytes: OnBytes | None = None) -> Added:
        """Add what comes, piece by piece; when this returns it is on the disk.

        Raises DiskFullError, NativeError, and what the pieces raise; then nothing of it is kept.
        """
        writer = await self._call(self._native.add)
        try:
            size_bytes = 0
            async for piece in pieces:
                await self._call(writer.write, piece)
                size_bytes += len(piece)
                if on_bytes is not None:
                    on_bytes(size_bytes)
            return await self._finish(writer)
        except Exception:
            # Before it is told: who hears that the disk is full finds what this had taken free again.
            await self._call(writer.abandon)
            raise
        finally:
            # In a thread, since one that was given up in the middle of a write waits for its end.
            self._release(writer.abandon)

    async def add_file(self, descriptor: int, on_bytes: OnBytes | None = None) -> Added:
        """Add what a descriptor gives from where it stands; raises as `add`, and OSError. It stays open."""
        return await self.add(self._pieces_of(descriptor), on_bytes)

    async def _pieces_of(self, descriptor: int) -> AsyncIterator[bytes]:
        while piece := await self._call(os.read, descriptor, PIECE_BYTES):
            yield piece

    async def _finish(self, writer: BlobWriter) -> Added:
        blob, size_bytes, existed = await self._call(writer.finish)
        self._use(blob)
        return Added(hash=blob, size_bytes=size_bytes, existed=existed)

    # --- reads --------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def reading(self, blob: str) -> AsyncIterator[Reading]:
        """Hold a blob open, and keep it from being deleted. Raises NotFoundError, CorruptError and NativeError."""
        self._use(blob)
        reader = await self._call(self._native.open, blob)
        try:
            yield Reading(reader, self._call)
        finally:
            self._use(blob)
            await self._let_go(reader)

    async def export(self, blob: str, target: Path, on_bytes: OnBytes | None = None) -> int:
        """Write a blob to a file, which has its name only once it is whole and on the disk; return its bytes.

        Raises as `reading`, and OSError.
        """
        draft = target.with_name(f".{target.name}.{blob[:16]}.{os.getpid()}")
        async with self.reading(blob) as reading:
            descriptor = await self._call(os.open, draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                written = 0
                async for piece in reading.pieces():
                    await self._call(_write_all, descriptor, piece)
                    written += len(piece)
                    if on_bytes is not None:
                        on_bytes(written)
                await self._call(os.fsync, descriptor)
                await self._call(os.rename, draft, target)
                return written
            except BaseException:
                self._release(lambda: draft.unlink(missing_ok=True))
                raise
            finally:
                self._release(lambda: os.close(descriptor))

    async def stat(self, blob: str) -> Stat | None:
        found = await self._call(self._native.stat, blob)
        return None if found is None else Stat(hash=blob, size_bytes=found[0], added_ms=found[1])

    async def page(self, after: str | None = None, max_count: int = 1_000) -> list[Stat]:
        """Return blobs after this one in the order of their hashes."""
        found = await self._call(lambda: self._native.page(after, max_count=max_count))
        return [Stat(hash=blob, size_bytes=size_bytes, added_ms=added_ms) for blob, size_bytes, added_ms in found]

    async def usage(self) -> dict[str, int]:
        """What is used and free: jobs._native.Blobs.usage."""
        return await self._call(self._native.usage)

    def counted(self) -> dict[str, int]:
        """Return the same at once, which takes a look at two small folders; nothing once the store is closed."""
        return {} if self._descriptor is None else self._native.usage()

    # --- upkeep -------------------------------------------------------------------------------------------------------

    @contextmanager
    def uses(self) -> Iterator[set[str]]:
        """Yield a set to which every blob comes that is added, fetched or read from now on, or ceases to be: what was
        found out of one before that may not hold any more."""
        watch, used = object(), set[str]()
        self._watches[watch] = used
        try:
            yield used
        finally:
            del self._watches[watch]

    def _use(self, blob: str) -> None:
        for used in self._watches.values():
            used.add(blob)

    async def delete(self, blob: str, min_age_ms: int = 0) -> tuple[Outcome, int]:
        """Delete a blob, unless it is being read or fetched (held) or came within this time (recent); bytes freed."""
        return await self._call(lambda: self._native.delete(blob, min_age_ms=min_age_ms))

    async def verify(self, blob: str) -> Verdict:
        """Hash a blob anew. One that is damaged is put aside, and is not here any more: a fetch mends it."""
        return await self._call(self._native.verify, blob)

    async def discard_partials(self, min_age_ms: int) -> int:
        """Remove what fetches have left unfinished, to which nothing has come within this time; bytes freed."""
        return await self._call(lambda: self._native.discard_partials(min_age_ms=min_age_ms))

    # --- fetches ------------------------------------------------------------------------------------------------------

    async def fetch(
        self,
        blob: str,
        providers: Sequence[str],
        *,
        children: bool = False,
        max_bytes: int = 1 << 40,
        stall_s: float = 10.0,
        min_bytes_per_s: int = 64 << 10,
        on_progress: OnProgress | None = None,
    ) -> Fetched:
        """Have a blob here, from whichever of these members gives it: endpoint ids, the best first.

        Raises FetchFailed, and NativeError for what is no hash.
        """
        async with self._turns:
            if self._descriptor is None:
                raise FetchFailed("closed", "this node stops")
            number = self._native.fetch(
                blob,
                list(providers),
                children=children,
                max_bytes=max_bytes,
                stall_ms=int(stall_s * 1_000),
                min_bytes_per_s=min_bytes_per_s,
            )
            future: asyncio.Future[Fetched] = self._loop.create_future()
            self._fetches[number] = future, on_progress
            self._use(blob)
            try:
                return await future
            finally:
                self._use(blob)
                # Not told yet: the caller gave up.
                if self._fetches.pop(number, None) is not None:
                    self._native.cancel(number)

    def _on_readable(self) -> None:
        for event in self._native.receive():
            try:
                self._on_event(event)
            except Exception:
                logger.exception("an event of the blobs was not handled: %s", event[1])

    def _on_event(self, event: BlobEvent) -> None:
        number, what, done_bytes, total_bytes, done_blobs, total_blobs, text, providers = event
        if what == "progress":
            on_progress = self._fetches[number][1] if number in self._fetches else None
            if on_progress is not None:
                now = Progress(
                    done_bytes=done_bytes, total_bytes=total_bytes, done_blobs=done_blobs, total_blobs=total_blobs
                )
                on_progress(now)
            return
        fetch = self._fetches.pop(number, None)
        if fetch is None or fetch[0].done():
            return
        tried = tuple(Tried(peer=peer, size_bytes=size_bytes, reason=reason) for peer, size_bytes, reason in providers)
        if what == "done":
            fetch[0].set_result(Fetched(size_bytes=done_bytes, blobs=done_blobs, providers=tried))
        else:
            fetch[0].set_exception(FetchFailed(what, text, tried))

    def _release(self, work: Callable[[], None]) -> None:
        """Have something put away, after what is still done with it."""
        try:
            self._pool.submit(work)
        except RuntimeError:
            work()  # the threads have ended

    async def _let_go(self, reader: BlobReader) -> None:
        """Return when it is no longer held: what follows may be its deletion."""
        if self._descriptor is None:
            self._release(reader.close)
        else:
            await asyncio.shield(self._call(reader.close))

    async def _call(self, work: Callable[..., T], *arguments: object) -> T:
        if self._descriptor is None:
            raise NativeError("blobs: this node stops")
        return await self._loop.run_in_executor(self._pool, work, *arguments)


class Reading:
    """A blob that is held open."""

    def __init__(self, reader: BlobReader, call: Callable[..., Awaitable[bytes]]) -> None:
        self.size_bytes = reader.size
        self._reader = reader
        self._call = call

    async def read(self, offset: int, max_bytes: int = PIECE_BYTES) -> bytes:
        """Return verified bytes from this place on; b"" at the end. Raises CorruptError when they are damaged."""
        return await self._call(self._reader.read, offset, max_bytes)

    async def pieces(self, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Return the bytes from `start` to `end`, piece by piece."""
        end = self.size_bytes if end is None else min(end, self.size_bytes)
        while start < end:
            piece = await self.read(start, min(PIECE_BYTES, end - start))
            start += len(piece)
            yield piece


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
