"""Content of blobs on a stream between two clusters: pieces, then how it ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from jobs.forward.speech import MessageError
from jobs.net import Stream
from jobs.replication import frames as f


async def read_opening(stream: Stream) -> f.AnyOpening:
    """Raises MessageError, EOFError, StreamBroken; as below."""
    return f.openings.decode(await _read_frame(stream))


async def read_told(stream: Stream) -> f.Told:
    return f.told.decode(await _read_frame(stream))


async def _read_frame(stream: Stream) -> bytes:
    size = int.from_bytes(await stream.read_exactly(4), "big")
    if size > f.MAX_FRAME_BYTES:
        raise MessageError(f"a message of {size} bytes; at most {f.MAX_FRAME_BYTES} are taken")
    return await stream.read_exactly(size)


async def write_told(stream: Stream, said: f.Told) -> None:
    """Raises StreamBroken."""
    await stream.write(f.told.framed(said))


async def write_pieces(stream: Stream, pieces: AsyncIterator[bytes]) -> None:
    """Write content and its end. Raises StreamBroken, and what reading the content raises."""
    async with closing(pieces):
        async for part in pieces:
            for start in range(0, len(part), f.MAX_PIECE_BYTES):
                await write_told(stream, f.Piece(part[start : start + f.MAX_PIECE_BYTES]))
        await write_told(stream, f.End())


@asynccontextmanager
async def closing(pieces: AsyncIterator[bytes]) -> AsyncGenerator[None]:
    """Have content closed in the end: a generator holds it open until then."""
    try:
        yield
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()
