"""Which waiting job goes to which worker: pure. The driver feeds events in and carries the plan out.

Jobs that ask the same of a worker stand in one lane of their queue. `Backlog` holds the head of each lane in memory, in
the order of the store's keys, and knows whether the store has more behind it; so what a job costs to hold and to
schedule does not grow with the queue, and jobs that nobody can take now are in nobody's way. `plan` takes the heads of
all lanes in order of priority and age and gives each job the least loaded worker that can take it; a lane whose head
fits nowhere is left alone for the rest of the plan.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from jobs import keys
from jobs.protocol.ids import Incarnation, JobId, WorkerId
from jobs.records import Demand

WINDOW: Final = 4_096
"""Jobs of one lane that are held in memory at most."""
LOW_WATER: Final = 512
"""Below this many a lane is filled up again from the store."""


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


class Lane:
    """The first jobs of a lane: sorted keys, and whether the store holds more after the last of them."""

    __slots__ = ("complete", "demand", "horizon", "keys")

    def __init__(self, demand: Demand) -> None:
        self.demand = demand
        self.keys: list[bytes] = []
        self.complete = True
        self.horizon = b""
        """When not complete: keys up to and with this one are all in `keys`; later ones are in the store only."""

    def add(self, key: bytes) -> None:
        if not self.keys or key > self.keys[-1]:
            self.keys.append(key)
        else:
            at = bisect_left(self.keys, key)
            if self.keys[at] != key:
                self.keys.insert(at, key)

    def discard(self, key: bytes) -> None:
        at = bisect_left(self.keys, key)
        if at < len(self.keys) and self.keys[at] == key:
            del self.keys[at]


class Backlog:
    """The jobs that wait for a worker, bounded in memory."""

    def __init__(self) -> None:
        self._lanes: dict[bytes, Lane] = {}

    def __len__(self) -> int:
        return sum(len(lane.keys) for lane in self._lanes.values())

    @property
    def lanes(self) -> Collection[Lane]:
        return self._lanes.values()

    def add(self, key: bytes, demand: Demand) -> None:
        """Take in a job that has just begun to wait."""
        prefix = keys.lane_of(key)
        lane = self._lanes.get(prefix)
        if lane is None:
            lane = self._lanes[prefix] = Lane(demand)
        if not lane.complete and key > lane.horizon:
            return
        lane.add(key)
        if len(lane.keys) > WINDOW:
            del lane.keys[WINDOW // 2 :]
            lane.complete = False
            lane.horizon = lane.keys[-1]

    def remove(self, key: bytes) -> None:
        """Forget a job that waits no longer; one that is not held is ignored."""
        prefix = keys.lane_of(key)
        lane = self._lanes.get(prefix)
        if lane is not None:
            lane.discard(key)
            if not lane.keys and lane.complete:
                del self._lanes[prefix]

    def wants_more(self) -> list[tuple[bytes, bytes]]:
        """Return (lane, key after which to read) of the lanes that have run low while the store has more."""
        return [
            (prefix, lane.horizon)
            for prefix, lane in self._lanes.items()
            if not lane.complete and len(lane.keys) < LOW_WATER
        ]

    def fill(self, prefix: bytes, rows: Sequence[tuple[bytes, Demand]], more: bool) -> None:
        """Take in the next jobs of a lane in key order, as read from the store; `more` if there are still others."""
        lane = self._lanes.get(prefix)
        if lane is None:
            if not rows:
                return
            lane = self._lanes[prefix] = Lane(rows[0][1])
        for key, _ in rows:
            lane.add(key)
        lane.complete = not more
        lane.horizon = (rows[-1][0] if rows else lane.horizon) if more else b""
        if not lane.keys and lane.complete:
            del self._lanes[prefix]


def plan(lanes: Iterable[Lane], workers: Iterable[Candidate], limit: int) -> list[Assignment]:
    """Return at most `limit` assignments for the jobs that wait in `lanes`, in order of preference.

    Within one plan room only shrinks, so a demand that fits nowhere once fits nowhere for the rest of it.
    """
    rooms = [_Room(worker) for worker in workers if worker.free_slots > 0]
    heads = [(keys.queue_order(lane.keys[0]), number, lane, 0) for number, lane in enumerate(lanes) if lane.keys]
    heapq.heapify(heads)
    assignments: list[Assignment] = []
    while heads and rooms and len(assignments) < limit:
        _, number, lane, position = heads[0]
        best = max((room for room in rooms if room.takes(lane.demand)), key=lambda room: room.slots, default=None)
        if best is None:
            heapq.heappop(heads)
            continue
        key = lane.keys[position]
        assignments.append(Assignment(key, keys.job_of(key), best.worker, best.incarnation))
        best.take(lane.demand)
        if best.slots == 0:
            rooms.remove(best)
        if position + 1 < len(lane.keys):
            heapq.heapreplace(heads, (keys.queue_order(lane.keys[position + 1]), number, lane, position + 1))
        else:
            heapq.heappop(heads)
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
