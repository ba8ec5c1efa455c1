"""Orders that change all the time: the first of many items by rank, and fair shares between them. Pure."""

from __future__ import annotations

import heapq
from typing import Any, Final, Generic, TypeVar

K = TypeVar("K", str, bytes, int)

_SLACK: Final = 64
"""Dead entries that are kept beside the live ones before they are cleared out."""


class Ranking(Generic[K]):
    """Items by rank, the lowest first; equal ranks by item. Every change costs O(log n), amortised.

    A heap whose entries die when their item's rank changes; dead ones are passed over when they come up.
    """

    __slots__ = ("_heap", "_ranks")

    def __init__(self) -> None:
        self._ranks: dict[K, Any] = {}
        self._heap: list[tuple[Any, K]] = []

    def __contains__(self, item: K) -> bool:
        return item in self._ranks

    def __len__(self) -> int:
        return len(self._ranks)

    def set(self, item: K, rank: Any) -> None:
        """Put an item in, or move it."""
        if self._ranks.get(item) == rank:
            return
        self._ranks[item] = rank
        heapq.heappush(self._heap, (rank, item))
        if len(self._heap) > 2 * len(self._ranks) + _SLACK:
            self._heap = [(rank, item) for item, rank in self._ranks.items()]
            heapq.heapify(self._heap)

    def discard(self, item: K) -> None:
        self._ranks.pop(item, None)

    def rank(self, item: K) -> Any:
        return self._ranks[item]

    def first(self) -> K | None:
        """Return the item with the lowest rank."""
        heap = self._heap
        while heap:
            rank, item = heap[0]
            if self._ranks.get(item) == rank:
                return item
            heapq.heappop(heap)
        return None


class FairShare(Generic[K]):
    """Who is next among those that share something by weight.

    The one that has least running for its weight; among equals the one that was served least for its weight (stride
    scheduling, Waldspurger and Weihl 1995), so that a single slot goes round. One that comes back after it had
    nothing to start is owed nothing for that time.
    """

    __slots__ = ("_clock", "_passes", "_ranking")

    def __init__(self) -> None:
        self._ranking: Ranking[K] = Ranking()
        self._passes: dict[K, float] = {}
        self._clock = 0.0

    def admit(self, item: K, running: int, weight: float) -> None:
        """Let an item take part."""
        if item not in self._ranking:
            self._passes[item] = max(self._passes.get(item, 0.0), self._clock)
        self._ranking.set(item, (running / weight, self._passes[item]))

    def update(self, item: K, running: int, weight: float) -> None:
        """Take note of what an item now has running, if it takes part."""
        if item in self._ranking:
            self.admit(item, running, weight)

    def serve(self, item: K, weight: float) -> None:
        """Count a start; `update` follows."""
        served = max(self._passes.get(item, 0.0), self._clock if item not in self._ranking else 0.0)
        self._clock = max(self._clock, served)
        self._passes[item] = served + 1.0 / weight
        if len(self._passes) > 2 * len(self._ranking) + _SLACK:
            # A pass that is not ahead of the clock is what the item would be given anew.
            self._passes = {
                item: passed for item, passed in self._passes.items() if passed > self._clock or item in self._ranking
            }

    def remove(self, item: K) -> None:
        """Leave an item out until it is admitted again."""
        self._ranking.discard(item)

    def first(self) -> K | None:
        return self._ranking.first()
