"""How many things happened in the last minute: a cap on all of them together. Pure: time comes as an argument.

The time is one that only goes on, as it passes, whatever the wall clock shows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from jobs.schedules import MINUTE_MS


class Pace:
    """At most so many in any minute."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._taken: deque[int] = deque()

    def load(self, ages_ms: Iterable[int], now_ms: int) -> None:
        """Take note of what was before this start, by how long ago it was."""
        self._taken.extend(sorted(now_ms - age_ms for age_ms in ages_ms)[-self._per_minute :])

    def room(self, now_ms: int) -> int:
        """Return how many more there may be now."""
        while self._taken and self._taken[0] <= now_ms - MINUTE_MS:
            self._taken.popleft()
        return self._per_minute - len(self._taken)

    def wait_ms(self, now_ms: int) -> int:
        """Return how long there is to be no more."""
        return 0 if self.room(now_ms) > 0 else self._taken[0] + MINUTE_MS - now_ms

    def take(self, now_ms: int) -> None:
        """Count one."""
        self._taken.append(now_ms)

    def give_back(self, taken_ms: int) -> None:
        """One that was counted at that time has not been."""
        self._taken.remove(taken_ms)
