"""Rounds of signs of life: when a majority has answered one, the leader knows that it led when it sent that. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

ROUNDS: Final = 256
"""Of so many rounds on the way it is remembered when they were sent; further ones do not make a lease longer."""


class Rounds:
    def __init__(self) -> None:
        self.number = 0
        """The last round that was sent."""
        self.confirmed = 0
        """The last round that a majority has answered."""
        self.confirmed_s = float("-inf")
        """When it was sent."""
        self._sent: deque[tuple[int, float]] = deque()
        """The oldest rounds that no majority has answered, and when each was sent."""

    def begin(self, now_s: float) -> None:
        self.number += 1
        if len(self._sent) < ROUNDS:
            self._sent.append((self.number, now_s))

    def confirm(self, answered: Iterable[int]) -> None:
        """Take in which round each of the other voters has answered last."""
        highest = sorted(answered, reverse=True)
        # With this leader itself a majority: the n-th highest of the others.
        needed = (len(highest) + 1) // 2
        confirmed = highest[needed - 1] if needed else self.number
        self.confirmed = max(self.confirmed, confirmed)
        while self._sent and self._sent[0][0] <= confirmed:
            self.confirmed_s = self._sent.popleft()[1]

    def forget(self) -> None:
        """Nothing is known any more of when this leader led; rounds from now on tell."""
        self._sent.clear()
        self.confirmed_s = float("-inf")
