"""Frames in a stream of bytes: four bytes of length, big-endian, then a message."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

T = TypeVar("T")


def take_frames(
    buffer: bytearray, max_bytes: int, decode: Callable[[memoryview], T], failure: Callable[[str], Exception]
) -> list[T]:
    """Take the whole frames out of `buffer`. Raises `failure` for one that is too large or cannot be read."""
    frames: list[T] = []
    start = 0
    with memoryview(buffer) as view:
        while len(view) - start >= 4:
            size = int.from_bytes(view[start : start + 4], "big")
            if size > max_bytes:
                raise failure(f"a frame of {size} bytes; the limit is {max_bytes}")
            if len(view) - start - 4 < size:
                break
            try:
                frames.append(decode(view[start + 4 : start + 4 + size]))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise failure(f"a frame cannot be read: {error}") from error
            start += 4 + size
    del buffer[:start]
    return frames
