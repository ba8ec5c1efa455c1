"""Which waiting job goes to which worker: pure. The driver feeds events in and carries the plan out.

`Backlog` holds the head of each queue in memory, in the order of the store's queue keys, and knows whether the store
has more behind it; what a job costs to hold and to schedule therefore does not grow with the queue. `plan` walks the
heads of all queues in order of priority and age and gives every job the least loaded worker that can take it; a job
that fits nowhere does not stop those behind it.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from msgspec import Struct

from jobs import keys
from jobs.protocol.ids import Incarnation, JobId, WorkerId
from jobs.records import Demand

WINDOW: Final = 4_096
"""Jobs of one queue that are held in memory at most."""
LOW_WATER: Final = 512
"""Below this many a queue is filled up again from the store."""


class Candidate(Struct, frozen=True):
    """A worker as the scheduler sees it: what it is and what is free on it."""

    worker: WorkerId
    incarnation: Incarnation
    type: str
    labels: Mapping[str, str]
    free_slots: int
    free_cpu_milli: int
    free_memory_bytes: int


class Assignment(Struct, frozen=True):
    queue_key: bytes
    job: JobId
    worker: WorkerId
    incarnation: Incarnation


class _Window:
    """The first jobs of one queue: sorted keys, and whether the store holds more after the last of them."""

    __slots__ = ("complete", "horizon", "keys")

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.complete = True
        self.horizon = b""
        """When not complete: keys up to and with this one are all in `keys`; later ones are in the store only."""


class Backlog:
    """The jobs that wait for a worker, bounded in memory."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        self._demands: dict[bytes, Demand] = {}

    def __len__(self) -> int:
        return len(self._demands)

    def add(self, queue: str, key: bytes, demand: Demand) -> None:
        """Take in a job that has just begun to wait."""
        window = self._windows.setdefault(queue, _Window())
        if key in self._demands or (not window.complete and key > window.horizon):
            return
        self._insert(window, key, demand)
        if len(window.keys) > WINDOW:
            self._shrink(window)

    def remove(self, queue: str, key: bytes) -> None:
        """Forget a job that waits no longer; one that is not held is ignored."""
        if self._demands.pop(key, None) is None:
            return
        window = self._windows[queue]
        del window.keys[bisect_left(window.keys, key)]

    def wants_more(self) -> list[tuple[str, bytes]]:
        """Return (queue, key after which to read) of the queues that have run low while the store has more."""
        return [
            (queue, window.horizon)
            for queue, window in self._windows.items()
            if not window.complete and len(window.keys) < LOW_WATER
        ]

    def fill(self, queue: str, rows: Iterable[tuple[bytes, Demand]], more: bool) -> None:
        """Take in the next jobs of a queue in key order, as read from the store; `more` if there are still others."""
        window = self._windows.setdefault(queue, _Window())
        last = window.horizon
        for key, demand in rows:
            last = key
            if key not in self._demands:
                self._insert(window, key, demand)
        window.complete = not more
        window.horizon = last if more else b""

    def in_order(self) -> Iterator[tuple[bytes, Demand]]:
        """Yield the jobs held, across queues by priority, then age."""
        heads = [window.keys for window in self._windows.values() if window.keys]
        merged = heads[0] if len(heads) == 1 else heapq.merge(*heads, key=keys.queue_order)
        for key in merged:
            yield key, self._demands[key]

    def _insert(self, window: _Window, key: bytes, demand: Demand) -> None:
        if not window.keys or key > window.keys[-1]:
            window.keys.append(key)
        else:
            insort(window.keys, key)
        self._demands[key] = demand

    def _shrink(self, window: _Window) -> None:
        kept = WINDOW // 2
        for key in window.keys[kept:]:
            del self._demands[key]
        del window.keys[kept:]
        window.complete = False
        window.horizon = window.keys[-1]


def plan(waiting: Iterable[tuple[bytes, Demand]], workers: Iterable[Candidate], limit: int) -> list[Assignment]:
    """Return at most `limit` assignments for jobs `waiting` in order of preference.

    A demand that fitted nowhere is not tried again for the next job that asks the same: within one plan room only
    shrinks.
    """
    room = {worker.worker: _Room(worker) for worker in workers if worker.free_slots > 0}
    slots_by_type: dict[str, int] = {}
    for free in room.values():
        slots_by_type[free.type] = slots_by_type.get(free.type, 0) + free.slots
    assignments: list[Assignment] = []
    hopeless: set[tuple[str, int, int, frozenset[tuple[str, str]]]] = set()
    if not slots_by_type:
        return assignments
    for key, demand in waiting:
        if slots_by_type.get(demand.type, 0) <= 0:
            continue
        requires = demand.requires
        shape = (demand.type, requires.cpu_milli, requires.memory_bytes, frozenset(requires.labels.items()))
        if shape in hopeless:
            continue
        best = max((free for free in room.values() if free.takes(demand)), key=lambda free: free.slots, default=None)
        if best is None:
            hopeless.add(shape)
            continue
        best.take(demand)
        slots_by_type[demand.type] -= 1
        assignments.append(Assignment(key, keys.job_of(key), best.worker, best.incarnation))
        if len(assignments) >= limit or not any(slots_by_type.values()):
            break
    return assignments


class _Room:
    """What is left of a worker while a plan is made."""

    __slots__ = ("cpu_milli", "incarnation", "labels", "memory_bytes", "slots", "type", "worker")

    def __init__(self, worker: Candidate) -> None:
        self.worker = worker.worker
        self.incarnation = worker.incarnation
        self.type = worker.type
        self.labels = worker.labels
        self.slots = worker.free_slots
        self.cpu_milli = worker.free_cpu_milli
        self.memory_bytes = worker.free_memory_bytes

    def takes(self, demand: Demand) -> bool:
        requires = demand.requires
        return (
            self.slots > 0
            and self.type == demand.type
            and self.cpu_milli >= requires.cpu_milli
            and self.memory_bytes >= requires.memory_bytes
            and all(self.labels.get(name) == value for name, value in requires.labels.items())
        )

    def take(self, demand: Demand) -> None:
        self.slots -= 1
        self.cpu_milli -= demand.requires.cpu_milli
        self.memory_bytes -= demand.requires.memory_bytes
