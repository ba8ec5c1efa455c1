"""In which order the pieces of an attempt's output came, once each stream has become a blob: pure.

One entry of fixed size a piece, by their numbers: any piece is found by bisection, and the last ones without the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from jobs.errors import InternalError

_ENTRY: Final = struct.Struct(">QBIQ")
ENTRY_BYTES: Final = _ENTRY.size


class Place(Struct, frozen=True):
    """Where a piece is: number, stream (1 stdout | 2 stderr), bytes, and from where on in its stream."""

    seq: int
    stream: int
    size_bytes: int
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.size_bytes


def encode(places: Iterable[Place]) -> bytes:
    return b"".join(_ENTRY.pack(place.seq, place.stream, place.size_bytes, place.offset) for place in places)


def decode(data: bytes) -> Iterator[Place]:
    """Yield the places. Raises InternalError for what is no whole number of entries, or names another stream."""
    if len(data) % ENTRY_BYTES:
        raise InternalError(f"the order of an output has {len(data)} bytes, which is no multiple of {ENTRY_BYTES}")
    for seq, stream, size_bytes, offset in _ENTRY.iter_unpack(data):
        if stream not in (1, 2):
            raise InternalError(f"the order of an output names stream {stream}")
        yield Place(seq, stream, size_bytes, offset)


class Heads:
    """What of an output's chunks stays where it is, so that the beginning of each stream is read with the rest of a
    job: the segments that have some of it."""

    def __init__(self, limits: tuple[int, int]) -> None:
        """`limits`: bytes of stdout and of stderr that count as the beginning."""
        self._limits = limits
        self.bytes = [0, 0]
        """What has come of either stream."""

    def take(self, segments: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Take note of the next chunk; return what stays of it."""
        staying = []
        for stream, data in segments:
            if data and self.bytes[stream - 1] < self._limits[stream - 1]:
                staying.append((stream, data))
            self.bytes[stream - 1] += len(data)
        return staying
