"""Reads what jobs wrote out of the store, a bounded lot at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from jobs import keys, records
from jobs.protocol.ids import Attempt, JobId
from jobs.protocol.model import Stream
from jobs.records import LogChunk
from jobs.service import LogPiece
from jobs.store import Store, prefix_end

INLINE_BYTES: Final = 64 << 10
"""Output of one stream that a result carries."""
LOG_CHUNKS: Final = 16
LOT_BYTES: Final = 4 << 20
BEGINNING_BYTES: Final = 128 << 10
"""What is read at a time where only the beginning is wanted."""
SEGMENT_BITS: Final = 20
"""A piece's number is its chunk's number and, in this many bits, its place in the chunk."""
_STREAMS: Final = {1: Stream.STDOUT, 2: Stream.STDERR}


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
