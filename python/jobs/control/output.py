"""Reads what jobs wrote, a bounded lot at a time: out of the store, or out of the blobs that it has become."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Final, Protocol

from msgspec.structs import replace

from jobs import keys, logorder, records
from jobs.jobs import INLINE_BYTES
from jobs.logorder import ENTRY_BYTES, Place
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import Execution, Stream
from jobs.records import LogChunk, MovedOutput, ResultRecord
from jobs.service import LogPiece
from jobs.store import Store, prefix_end

KEPT_BYTES: Final = (1 << 20, INLINE_BYTES)
"""The beginnings of stdout and stderr that are in the store, whatever has become of the rest."""
LOG_CHUNKS: Final = 16
LOT_BYTES: Final = 4 << 20
BEGINNING_BYTES: Final = 128 << 10
"""What is read at a time where only the beginning is wanted."""
SEGMENT_BITS: Final = 20
"""A piece's number is its chunk's number and, in this many bits, its place in the chunk."""
PLACES: Final = 4_096
"""Of pieces that are looked up at once."""
MAX_HINTS: Final = 256
_STREAMS: Final = {1: Stream.STDOUT, 2: Stream.STDERR}


class OutputBlobs(Protocol):
    """Keeps what has been moved out of the store. Raises the errors of `jobs.errors`."""

    async def add(self, owner: int, pieces: AsyncIterator[bytes]) -> str:
        """Return the hash of a blob that is durable, and its owner's; nothing refers to it yet."""

    async def read(self, blob: str, offset: int, size_bytes: int) -> bytes:
        """Return so many bytes from there on, fewer at the end."""


class Outputs:
    """Reads the output of attempts wherever it is; what is moved meanwhile is read on from where it then is."""

    def __init__(self, store: Store, blobs: OutputBlobs) -> None:
        self._store = store
        self._blobs = blobs
        self._hints: dict[str, tuple[int, int]] = {}
        """Of orders that are being read: the number of the last piece, and how many pieces there are up to it."""

    async def after(self, job: JobId, attempt: Attempt, streams: Sequence[Stream], after_seq: int) -> list[LogPiece]:
        """Return the next pieces after a number, a bounded lot; empty at the end of what there is."""
        pieces = pieces_after(self._store, job, attempt, streams, after_seq)
        # Looked at after the rows: as long as it is not there, none of them has been deleted.
        moved = self._moved(job, attempt)
        return pieces if moved is None else await self._moved_after(attempt, moved, streams, after_seq)

    async def back(self, job: JobId, attempt: Attempt, streams: Sequence[Stream]) -> AsyncGenerator[list[LogPiece]]:
        """Yield all pieces from the last one back, in bounded lots."""
        prefix = keys.log_prefix(job, attempt)
        end, before, more = prefix_end(prefix), 1 << 63, True
        while more:
            rows, more = self._store.range(prefix, end, limit=LOG_CHUNKS, reverse=True)
            moved = self._moved(job, attempt)
            if moved is not None:
                async for lot in self._moved_back(attempt, moved, streams, before):
                    yield lot
                return
            for key, value, *_ in rows:
                end, before = key, keys.log_seq_of(key) << SEGMENT_BITS
                yield pieces_of(attempt, key, value, streams)[::-1]
            await asyncio.sleep(0)

    def _moved(self, job: JobId, attempt: Attempt) -> MovedOutput | None:
        found = self._store.get(keys.result(job, attempt))
        return None if found is None else records.decode(ResultRecord, found[1]).moved

    # --- in blobs ---------------------------------------------------------------------------------------------------

    async def _moved_after(
        self, attempt: Attempt, moved: MovedOutput, streams: Sequence[Stream], after_seq: int
    ) -> list[LogPiece]:
        seq, index = self._hints.pop(moved.order, (-1, 0))
        if seq != after_seq:
            index = await self._count_below(moved, after_seq + 1)
        while index < moved.pieces:
            places = await self._places(moved, index, min(index + PLACES, moved.pieces))
            lot = _lot(places)
            index += len(lot)
            pieces = await self._read(attempt, moved, lot, streams)
            if pieces:
                if pieces[-1].seq == lot[-1].seq:
                    if len(self._hints) >= MAX_HINTS:
                        self._hints.clear()
                    self._hints[moved.order] = lot[-1].seq, index
                return pieces
        return []

    async def _moved_back(
        self, attempt: Attempt, moved: MovedOutput, streams: Sequence[Stream], before_seq: int
    ) -> AsyncGenerator[list[LogPiece]]:
        end = moved.pieces if before_seq == 1 << 63 else await self._count_below(moved, before_seq)
        while end > 0:
            lot = _lot((await self._places(moved, max(0, end - PLACES), end))[::-1])[::-1]
            end -= len(lot)
            yield (await self._read(attempt, moved, lot, streams))[::-1]

    async def _count_below(self, moved: MovedOutput, seq: int) -> int:
        """Return how many pieces have smaller numbers than this."""
        low, high = 0, moved.pieces
        while low < high:
            middle = (low + high) // 2
            (place,) = await self._places(moved, middle, middle + 1)
            low, high = (middle + 1, high) if place.seq < seq else (low, middle)
        return low

    async def _places(self, moved: MovedOutput, start: int, end: int) -> list[Place]:
        size_bytes = (end - start) * ENTRY_BYTES
        return list(logorder.decode(await self._blobs.read(moved.order, start * ENTRY_BYTES, size_bytes)))

    async def _read(
        self, attempt: Attempt, moved: MovedOutput, lot: Sequence[Place], streams: Sequence[Stream]
    ) -> list[LogPiece]:
        """Return those pieces of a lot that are of these streams; what is in a row of one stream is read at once."""
        data: dict[int, tuple[int, bytes]] = {}
        for number, blob in enumerate(moved.streams, 1):
            places = [place for place in lot if place.stream == number]
            if blob is not None and places and _STREAMS[number] in streams:
                start = places[0].offset
                data[number] = start, await self._blobs.read(blob, start, places[-1].end - start)
        return [
            LogPiece(
                attempt=attempt,
                seq=place.seq,
                stream=_STREAMS[place.stream],
                data=data[place.stream][1][place.offset - data[place.stream][0] : place.end - data[place.stream][0]],
            )
            for place in lot
            if place.stream in data
        ]


def _lot(places: list[Place]) -> list[Place]:
    """Return the first of these places, as many as may be read at once."""
    size_bytes = 0
    for index, place in enumerate(places):
        size_bytes += place.size_bytes
        if size_bytes > LOT_BYTES and index > 0:
            return places[:index]
    return places


def pieces_after(
    store: Store,
    job: JobId,
    attempt: Attempt,
    streams: Sequence[Stream],
    after_seq: int,
    max_bytes: int = LOT_BYTES,
) -> list[LogPiece]:
    """Return the next pieces after a number, a bounded lot; empty at the end of what there is.

    Chunks without anything for these streams are passed over.
    """
    prefix = keys.log_prefix(job, attempt)
    chunk = max(after_seq, 0) >> SEGMENT_BITS
    start, more = keys.log(job, attempt, chunk), True
    while more:
        rows, more = store.range(start, prefix_end(prefix), limit=LOG_CHUNKS, max_bytes=max_bytes)
        pieces = [
            piece
            for key, value, *_ in rows
            for piece in pieces_of(attempt, key, value, streams)
            if piece.seq > after_seq
        ]
        if pieces:
            return pieces
        if rows:
            start = rows[-1][0] + b"\x00"
    return []


def pieces_of(attempt: Attempt, key: bytes, value: bytes, streams: Sequence[Stream]) -> list[LogPiece]:
    """Return the pieces of one chunk."""
    first = keys.log_seq_of(key) << SEGMENT_BITS
    return [
        LogPiece(attempt=attempt, seq=first | index, stream=_STREAMS[number], data=data)
        for index, (number, data) in enumerate(records.decode(LogChunk, value).segments)
        if _STREAMS[number] in streams
    ]


def beginnings(
    store: Store, job: JobId, attempt: Attempt, limits: Mapping[Stream, int], read_bytes: int | None = None
) -> dict[Stream, bytes]:
    """Return the beginning of each stream, of at most so many bytes; of the log at most about `read_bytes` are read."""
    found = {stream: bytearray() for stream in limits}
    after_seq, read = -1, 0
    while any(len(found[stream]) < limit for stream, limit in limits.items()):
        pieces = pieces_after(store, job, attempt, tuple(limits), after_seq, BEGINNING_BYTES)
        if not pieces or (read_bytes is not None and read >= read_bytes):
            break
        for piece in pieces:
            room = limits[piece.stream] - len(found[piece.stream])
            found[piece.stream] += piece.data[: max(0, room)]
            read += len(piece.data)
        after_seq = pieces[-1].seq
    return {stream: bytes(data) for stream, data in found.items()}


def without_blobs(execution: Execution | None) -> Execution | None:
    """Return an execution that names no blobs: what was written is no longer kept."""
    if execution is None or (execution.stdout.blob is None and execution.stderr.blob is None):
        return execution
    return replace(execution, stdout=replace(execution.stdout, blob=None), stderr=replace(execution.stderr, blob=None))
