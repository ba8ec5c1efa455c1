"""How fast a sync may be: as much a second as it was told, on average, with a second's worth and a batch at once at
most. Pure."""

from __future__ import annotations

from typing import Final

from jobs.protocol.model import Throttle

BURST_S: Final = 1.0
"""What was not used for so long may be used at once."""


class Bucket:
    """What may be taken, which grows with time. What is taken beyond it is paid for by waiting."""

    def __init__(self, rate: int | None, now_s: float) -> None:
        self._rate = rate
        self._level = 0.0 if rate is None else rate * BURST_S
        self._at_s = now_s

    @property
    def is_set(self) -> bool:
        return self._rate is not None

    def take(self, now_s: float, amount: int) -> float:
        """Take so much, and return for how long to wait before it is used."""
        if self._rate is None:
            return 0.0
        grown = self._level + max(0.0, now_s - self._at_s) * self._rate
        self._level = min(grown, self._rate * BURST_S) - amount
        self._at_s = now_s
        return max(0.0, -self._level / self._rate)


class Limiter:
    """Both limits of a throttle."""

    def __init__(self, throttle: Throttle, now_s: float) -> None:
        self._bytes = Bucket(throttle.bytes_per_s, now_s)
        self._operations = Bucket(throttle.operations_per_s, now_s)

    @property
    def is_set(self) -> bool:
        """Whether there is a limit."""
        return self._bytes.is_set or self._operations.is_set

    def take(self, now_s: float, size_bytes: int, operations: int) -> float:
        """Return for how long to wait."""
        return max(self._bytes.take(now_s, size_bytes), self._operations.take(now_s, operations))
