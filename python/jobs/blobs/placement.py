"""Which members are to have a blob, and how long to wait after a failure. Pure: chance comes as an argument."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from hashlib import blake2b
from typing import Final

STEP: Final = 1.1
"""Members whose free space differs by less than about this factor are taken as equals."""
FIRST_BACKOFF_S: Final = 1.0
MAX_BACKOFF_S: Final = 300.0


def choose(free_bytes: Mapping[str, int], blob: str, size_bytes: int, without: Collection[str]) -> list[str]:
    """Return the members that have room for a blob, the one with the most of it first.

    Among equals the order is another for each blob, and the same for each who asks: so blobs are spread, and two that
    look for a place for the same one find the same.
    """
    fits = [member for member, free in free_bytes.items() if member not in without and free >= size_bytes]
    return sorted(fits, key=lambda member: (-_rough(free_bytes[member]), _weight(blob, member)))


def order_providers(members: Iterable[str], reached: Collection[str], blob: str, seeker: str) -> tuple[str, ...]:
    """Return members to fetch a blob from: those that are reached first, and each seeker has another order."""
    return tuple(sorted(members, key=lambda member: (member not in reached, _weight(blob + seeker, member))))


def backoff_s(failures: int, chance: float) -> float:
    """Return the wait after so many failures in a row; `chance` in [0, 1) chooses within its second half."""
    delay_s: float = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(max(failures, 1) - 1, 16))
    return delay_s * (0.5 + 0.5 * chance)


def _rough(free_bytes: int) -> int:
    return int(math.log(max(free_bytes, 1), STEP))


def _weight(blob: str, member: str) -> bytes:
    return blake2b(f"{blob}/{member}".encode(), digest_size=8).digest()
