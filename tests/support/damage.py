"""Snapshot files that are not what was written."""

from __future__ import annotations

from random import Random


def damages(good: bytes, chance: Random) -> list[bytes]:
    """Return a snapshot cut off where its parts meet, with something after its end, and with one bit flipped."""
    cuts = [0, 1, 27, 28, 35, 36, len(good) - 1, len(good) - 32, len(good) - 33, len(good) - 48]
    found = [good[:cut] for cut in cuts] + [good + b"\x00"]
    for _ in range(25):
        data = bytearray(good)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        found.append(bytes(data))
    return found
