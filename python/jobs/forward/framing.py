"""Envelopes on a stream."""

from __future__ import annotations

from jobs.forward.envelope import EnvelopeError
from jobs.net import Stream


async def read_framed(stream: Stream, max_bytes: int) -> bytes:
    """Return the next envelope on a stream. Raises EOFError, StreamBroken, EnvelopeError."""
    size = int.from_bytes(await stream.read_exactly(4), "big")
    if size > max_bytes:
        raise EnvelopeError(f"an envelope of {size} bytes; at most {max_bytes} are taken")
    return await stream.read_exactly(size)
