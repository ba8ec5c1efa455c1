"""Sets of task indices as bits of an integer: as text, in chunks for the store, the next few of them. Pure.

Bit i stands for index i. A set over a million indices is 128 KiB at most, whatever is in it, and the union, the
difference and the size of sets are one operation each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Final, TypeAlias

from jobs.errors import InvalidRequest
from jobs.protocol.ids import MAX_TASKS

Indices: TypeAlias = int

CHUNK_BITS: Final = 1 << 15
"""Indices that one value of the store tells of."""
_CHUNK_BYTES: Final = CHUNK_BITS // 8
_CHUNK_MASK: Final = (1 << CHUNK_BITS) - 1
MORE: Final = ",…"
"""At the end of a text that leaves some out."""
_EXPECTED: Final = f"indices such as 5,10-20, each below {MAX_TASKS}"


def between(start: int, stop: int) -> Indices:
    """Return the set of the indices from `start` on that are below `stop`."""
    return (1 << max(stop, start)) - (1 << start)


def of(numbers: Iterable[int]) -> Indices:
    """Return the set of these numbers. Raises InvalidRequest for one that no index can be."""
    bits = bytearray(MAX_TASKS // 8)
    for number in numbers:
        if not 0 <= number < MAX_TASKS:
            raise InvalidRequest(f"{number} is no index", field="$.indices", expected=_EXPECTED)
        bits[number >> 3] |= 1 << (number & 7)
    return int.from_bytes(bits, "little")


def parse(text: str) -> Indices:
    """Return the set that `5,10-20` describes. Raises InvalidRequest."""
    runs: list[tuple[int, int]] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (_is_index(first) and (_is_index(last) or not dash)):
            raise InvalidRequest(f"{part!r:.80} is no index", field="$.indices", expected=_EXPECTED)
        if dash and int(last) < int(first):
            raise InvalidRequest(f"{part} runs backwards", field="$.indices", expected=f"{last}-{first}")
        runs.append((int(first), int(last if dash else first) + 1))
    if len(runs) == 1:
        return between(*runs[0])
    return of(index for start, stop in _merged(runs) for index in range(start, stop))


def _merged(runs: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the same runs in order, without what another one has already."""
    done = 0
    for start, stop in sorted(runs):
        if stop > done:
            yield max(start, done), stop
            done = stop


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 7 and int(text) < MAX_TASKS


def text(stretches: Iterable[tuple[int, int]], limit: int = 1 << 62) -> str:
    """Return what `runs` or `spans` yield as text, `5,10-20`; of more than `limit` the first, and `MORE`."""
    shown = list(islice(stretches, limit + 1))
    parts = [f"{start}" if stop == start + 1 else f"{start}-{stop - 1}" for start, stop in shown[:limit]]
    return ",".join(parts) + (MORE if len(shown) > limit else "")


def spans(indices: Indices) -> Iterator[tuple[int, int]]:
    """Yield the same as `runs` of a set, each at the cost of its size: for the first few."""
    start = 0
    while indices:
        gap = (indices & -indices).bit_length() - 1
        indices >>= gap
        length = (~indices & indices + 1).bit_length() - 1
        indices >>= length
        yield start + gap, start + gap + length
        start += gap + length


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Yield the first, and the one after the last, of each stretch without a gap of numbers that ascend."""
    start = stop = -1
    for number in numbers:
        if number != stop:
            if stop >= 0:
                yield start, stop
            start = number
        stop = number + 1
    if stop >= 0:
        yield start, stop


def each(indices: Indices, start: int = 0) -> Iterator[int]:
    """Yield the indices from `start` on, in order."""
    bits = indices >> start
    data = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
    at = 0
    while at < len(data):
        byte = data[at]
        if not byte:
            window = data[at : at + _CHUNK_BYTES]
            at += len(window) - len(window.lstrip(b"\0"))
            continue
        base = start + 8 * at
        while byte:
            low = byte & -byte
            yield base + low.bit_length() - 1
            byte ^= low
        at += 1


def chunks(indices: Indices) -> dict[int, bytes]:
    """Return the set as values of the store, by the number of their chunk; chunks without an index are left out."""
    found: dict[int, bytes] = {}
    number = 0
    while indices:
        low = indices & _CHUNK_MASK
        if low:
            found[number] = low.to_bytes(_CHUNK_BYTES, "little").rstrip(b"\0")
        indices >>= CHUNK_BITS
        number += 1
    return found


def joined(found: Mapping[int, bytes]) -> Indices:
    """Return the set that `chunks` made these of."""
    indices = 0
    for number, data in found.items():
        indices |= int.from_bytes(data, "little") << (number * CHUNK_BITS)
    return indices


def chunk_of(index: int) -> int:
    """Return the number of the chunk that tells of an index."""
    return index // CHUNK_BITS


def chunk_has(chunk: bytes, index: int) -> bool:
    """Tell whether an index is in the chunk that tells of it."""
    at, bit = divmod(index % CHUNK_BITS, 8)
    return at < len(chunk) and bool(chunk[at] >> bit & 1)
