"""What workers have and what jobs ask of one: fits, lacks, prefers. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from jobs.protocol.ids import Incarnation, WorkerId
from jobs.protocol.model import Requires
from jobs.records import Demand

_encode: Final = msgspec.msgpack.Encoder(order="deterministic").encode


class Amounts(Struct, frozen=True, kw_only=True):
    """What a worker has, or has free."""

    slots: int
    cpu_milli: int
    memory_bytes: int
    resources: Mapping[str, int] = msgspec.field(default_factory=dict)

    def exceeds(self, other: Amounts) -> bool:
        """Tell whether there is more of anything than in `other`."""
        return (
            self.slots > other.slots
            or self.cpu_milli > other.cpu_milli
            or self.memory_bytes > other.memory_bytes
            or any(count > other.resources.get(name, 0) for name, count in self.resources.items())
        )


class Candidate(Struct, frozen=True, kw_only=True):
    """A worker as the scheduler sees it."""

    worker: WorkerId
    incarnation: Incarnation
    type: str
    labels: Mapping[str, str]
    open: bool
    """It may be given jobs now: connected, neither drained nor under pressure."""
    total: Amounts
    free: Amounts


class Shape:
    """What jobs ask of a worker, apart from any limits of the cluster. Equal shapes have equal names."""

    __slots__ = ("name", "requires", "type")

    def __init__(self, demand: Demand) -> None:
        self.type = demand.type
        self.requires = demand.requires
        self.name = hashlib.blake2b(_encode((demand.type, demand.requires)), digest_size=16).digest()

    def suits(self, worker: Candidate) -> bool:
        """Tell whether the worker, once it had nothing else to do, could run such a job."""
        labels = worker.labels
        return (
            worker.type == self.type
            and fits(self.requires, worker.total)
            and all(labels.get(name) == value for name, value in self.requires.labels.items())
        )

    def preferences(self, worker: Candidate) -> int:
        """Return how many of the preferred labels the worker has."""
        return sum(worker.labels.get(name) == value for name, value in self.requires.prefer.items())


def fits(requires: Requires, amounts: Amounts | Room) -> bool:
    """Tell whether there is enough of everything for one more job."""
    resources = amounts.resources
    return (
        amounts.slots > 0
        and amounts.cpu_milli >= requires.cpu_milli
        and amounts.memory_bytes >= requires.memory_bytes
        and (not requires.resources or all(resources.get(name, 0) >= n for name, n in requires.resources.items()))
    )


class Room:
    """What is left of an open worker while a plan is made."""

    __slots__ = ("cpu_milli", "memory_bytes", "resources", "slots", "worker")

    def __init__(self, worker: Candidate) -> None:
        free = worker.free
        self.worker = worker
        self.slots = free.slots
        self.cpu_milli = free.cpu_milli
        self.memory_bytes = free.memory_bytes
        self.resources = dict(free.resources)

    def take(self, requires: Requires) -> None:
        self.slots -= 1
        self.cpu_milli -= requires.cpu_milli
        self.memory_bytes -= requires.memory_bytes
        for name, count in requires.resources.items():
            self.resources[name] -= count

    def left(self) -> Amounts:
        return Amounts(
            slots=self.slots, cpu_milli=self.cpu_milli, memory_bytes=self.memory_bytes, resources=self.resources
        )

    def lacks(self, requires: Requires) -> float:
        """Return how much is missing for the job, each kind as a share of what the worker has, summed up."""
        total = self.worker.total
        shares = [
            (1, self.slots, total.slots),
            (requires.cpu_milli, self.cpu_milli, total.cpu_milli),
            (requires.memory_bytes, self.memory_bytes, total.memory_bytes),
            *((n, self.resources.get(name, 0), total.resources.get(name, 0)) for name, n in requires.resources.items()),
        ]
        return sum(max(0, asked - free) / max(1, of) for asked, free, of in shares)


def best_room(shape: Shape, rooms: Iterable[Room]) -> Room | None:
    """Return the room for a job: of those that take it, the one that meets most preferences, then the emptiest."""
    requires = shape.requires
    labels = requires.labels.items()
    found: Room | None = None
    found_rank: tuple[int, int] = (0, 0)
    for room in rooms:
        worker = room.worker
        if (
            worker.type == shape.type
            and fits(requires, room)
            and (not labels or all(worker.labels.get(name) == value for name, value in labels))
        ):
            rank = (shape.preferences(worker) if requires.prefer else 0, room.slots)
            if found is None or rank > found_rank or (rank == found_rank and worker.worker < found.worker.worker):
                found, found_rank = room, rank
    return found


def least_lacking(shape: Shape, rooms: Collection[Room]) -> Room | None:
    """Return the room that will soonest take a job: the one that lacks least of those that could ever take it."""
    able = [room for room in rooms if shape.suits(room.worker)]
    return min(able, key=lambda room: (room.lacks(shape.requires), room.worker.worker), default=None)
