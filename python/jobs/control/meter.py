"""How many of something there were, and how many a second lately: pure, the time comes as an argument."""

from __future__ import annotations

from math import exp
from typing import Final

SPAN_S: Final = 10.0
"""What happened so long ago counts for about a third of what happens now."""
LEAST_S: Final = 1.0
"""A shorter time than this tells nothing of a rate."""


class Meter:
    """Counts events; the rate is a moving average whose weights decay with age, over the time since the beginning."""

    __slots__ = ("_at_s", "_begun_s", "_weighted", "total")

    def __init__(self, now_s: float) -> None:
        self.total = 0
        self._begun_s = self._at_s = now_s
        self._weighted = 0.0
        """Events, each by its age."""

    def count(self, now_s: float, events: int = 1) -> None:
        """Count so many events now."""
        self._weighted = self._weighted * self._decay(now_s) + events
        self._at_s = max(self._at_s, now_s)
        self.total += events

    def per_s(self, now_s: float) -> float:
        """Return how many there were a second."""
        elapsed_s = max(LEAST_S, now_s - self._begun_s)
        return self._weighted * self._decay(now_s) / (SPAN_S * (1 - exp(-elapsed_s / SPAN_S)))

    def _decay(self, now_s: float) -> float:
        return exp(min(0.0, self._at_s - now_s) / SPAN_S)
