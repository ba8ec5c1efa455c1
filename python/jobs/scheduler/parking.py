"""Shapes of jobs that no worker has room for at present, and the workers that are reserved for them. Pure.

A shape that fits nowhere is parked with all groups of jobs that have it, and is looked at again only when a worker that
it suits has more room than before, or comes new. A shape that suits no worker at all is not looked at until one comes.

Small jobs could take every bit of room before it is enough for a large one. So a parked shape of which a job has been
ready, and none been started, for `RESERVE_AFTER_MS` is given a worker of its own, the oldest first: one that it suits,
that is nobody else's yet, and that lacks least. That worker takes nothing else until a job of the shape has started.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from jobs.protocol.ids import WorkerId
from jobs.records import Demand
from jobs.scheduler.ranking import Ranking
from jobs.scheduler.rooms import Amounts, Candidate, Room, Shape, fits, least_lacking

RESERVE_AFTER_MS: Final = 5_000


class GroupKey(NamedTuple):
    queue: str
    owner: int
    shape: bytes


class Group:
    """The lanes of one queue and owner whose jobs ask the same of a worker."""

    __slots__ = ("key", "lanes", "parked", "shape", "size")

    def __init__(self, key: GroupKey, shape: ShapeState) -> None:
        self.key = key
        self.shape = shape
        self.lanes: Ranking[bytes] = Ranking()
        """Lanes that may run, by their first job."""
        self.size = 0
        """Lanes, whether they may run or not."""
        self.parked = False


class ShapeState:
    """A shape that jobs of some groups have."""

    __slots__ = ("due_ms", "groups", "parked", "served_ms", "shape", "waiting")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.groups: dict[GroupKey, Group] = {}
        self.waiting: dict[GroupKey, Group] = {}
        """The groups that wait for room."""
        self.parked = False
        self.served_ms = 0
        """When a job of the shape was last started."""
        self.due_ms: int | None = None
        """When to think of a reservation, if that is in the agenda."""


class _Seen(NamedTuple):
    worker: Candidate
    left: Amounts


class Parking:
    """The shapes, and what is known of the workers from the plan before."""

    def __init__(self) -> None:
        self._shapes: dict[bytes, ShapeState] = {}
        self._parked: dict[bytes, ShapeState] = {}
        self._seen: dict[WorkerId, _Seen] = {}
        self._suited: dict[WorkerId, set[bytes]] = {}
        """Parked shapes by the workers that could run them if they had nothing else to do."""
        self._agenda: list[tuple[int, bytes]] = []
        self._wanting: dict[bytes, ShapeState] = {}
        self._reserved: dict[WorkerId, ShapeState] = {}
        self._freed: set[WorkerId] = set()
        """Workers that were reserved until lately: their room is news."""

    @property
    def reserved(self) -> Mapping[WorkerId, ShapeState]:
        return self._reserved

    def is_reserved(self, shape: Shape) -> WorkerId | None:
        """Return the worker that is kept for a shape."""
        return next((worker for worker, state in self._reserved.items() if state.shape.name == shape.name), None)

    # --- shapes ---------------------------------------------------------------------------------------------------

    def join(self, queue: str, owner: int, demand: Demand) -> Group:
        """Return the group of jobs that ask this; a new one where there is none."""
        shape = Shape(demand)
        state = self._shapes.get(shape.name)
        if state is None:
            state = self._shapes[shape.name] = ShapeState(shape)
        key = GroupKey(queue, owner, shape.name)
        group = state.groups.get(key)
        if group is None:
            group = state.groups[key] = Group(key, state)
        return group

    def leave(self, group: Group) -> None:
        """Forget a group that has nothing left."""
        state = group.shape
        del state.groups[group.key]
        state.waiting.pop(group.key, None)
        if not state.groups:
            self._unpark(state)
            for worker in [worker for worker, other in self._reserved.items() if other is state]:
                self.free(worker)
            self._wanting.pop(state.shape.name, None)
            del self._shapes[state.shape.name]

    def keep(self, group: Group) -> bool:
        """Keep a group out of the order while its shape is parked; tell whether it is."""
        if group.shape.parked:
            group.parked = True
            group.shape.waiting[group.key] = group
        return group.shape.parked

    def park(self, group: Group, due_ms: int) -> None:
        """The group's shape fits nowhere; think of a reservation at `due_ms`."""
        state = group.shape
        if not state.parked:
            state.parked = True
            self._parked[state.shape.name] = state
            for worker_id, seen in self._seen.items():
                if state.shape.suits(seen.worker):
                    self._suited[worker_id].add(state.shape.name)
            self._schedule(state, due_ms)
        self.keep(group)

    def _unpark(self, state: ShapeState) -> list[Group]:
        if not state.parked:
            return []
        state.parked = False
        del self._parked[state.shape.name]
        for suited in self._suited.values():
            suited.discard(state.shape.name)
        woken = list(state.waiting.values())
        state.waiting.clear()
        for group in woken:
            group.parked = False
        return woken

    # --- workers --------------------------------------------------------------------------------------------------

    def observe(self, workers: Iterable[Candidate]) -> None:
        """Learn which workers there are; what of them has grown is asked for later."""
        present: set[WorkerId] = set()
        for worker in workers:
            present.add(worker.worker)
            seen = self._seen.get(worker.worker)
            if seen is None or _differs(seen.worker, worker):
                self._suited[worker.worker] = {
                    name for name, state in self._parked.items() if state.shape.suits(worker)
                }
                self._freed.add(worker.worker)
                reserved = self._reserved.get(worker.worker)
                if reserved is not None and not reserved.shape.suits(worker):
                    self.free(worker.worker)
                self._seen[worker.worker] = _Seen(worker, worker.free)
            elif worker.open and not seen.worker.open:
                self._freed.add(worker.worker)
        for gone in [worker_id for worker_id in self._seen if worker_id not in present]:
            del self._seen[gone], self._suited[gone]
            self.free(gone)
            self._freed.discard(gone)

    def remember(self, workers: Iterable[Candidate], rooms: Mapping[WorkerId, Room]) -> None:
        """Note what is left of each worker at the end of a plan."""
        for worker in workers:
            room = rooms.get(worker.worker)
            self._seen[worker.worker] = _Seen(worker, worker.free if room is None else room.left())

    def wake(self, rooms: Mapping[WorkerId, Room]) -> list[Group]:
        """Return the groups that fit a room that has grown since the last plan."""
        woken: list[Group] = []
        for worker_id, room in rooms.items():
            grown = worker_id in self._freed or room.left().exceeds(self._seen[worker_id].left)
            if not grown or not self._suited[worker_id]:
                continue
            owner = self._reserved.get(worker_id)
            names = sorted(self._suited[worker_id]) if owner is None else [owner.shape.name]
            for name in names:
                state = self._parked.get(name)
                if state is not None and fits(state.shape.requires, room):
                    woken += self._unpark(state)
        self._freed.clear()
        return woken

    # --- reservations ---------------------------------------------------------------------------------------------

    def next_due_ms(self) -> int | None:
        """Return when to think of the next reservation."""
        return self._agenda[0][0] if self._agenda else None

    def _schedule(self, state: ShapeState, due_ms: int) -> None:
        if state.due_ms is None and state.shape.name not in self._wanting:
            state.due_ms = due_ms
            heapq.heappush(self._agenda, (due_ms, state.shape.name))

    def reserve(
        self, rooms: Mapping[WorkerId, Room], since_ms: Callable[[ShapeState], int | None], now_ms: int
    ) -> None:
        """Give workers to the shapes that have waited long enough, and take them from those that need none.

        `since_ms` returns since when a shape waits, or None when it would not be started even if there were room.
        """
        for worker_id, state in list(self._reserved.items()):
            since = since_ms(state)
            if worker_id not in rooms or since is None or since + RESERVE_AFTER_MS > now_ms:
                self.free(worker_id)
        while self._agenda and self._agenda[0][0] <= now_ms:
            state_due = self._shapes.get(heapq.heappop(self._agenda)[1])
            if state_due is not None:
                state_due.due_ms = None
            if state_due is not None and state_due not in self._reserved.values():
                self._wanting[state_due.shape.name] = state_due
        free = {worker_id: room for worker_id, room in rooms.items() if worker_id not in self._reserved}
        if not free or not self._wanting:
            return
        for since, name in sorted(self._claims(since_ms)):
            state = self._wanting[name]
            if since + RESERVE_AFTER_MS > now_ms:
                del self._wanting[name]
                self._schedule(state, since + RESERVE_AFTER_MS)
            elif (room := least_lacking(state.shape, free.values())) is not None:
                del self._wanting[name]
                self._reserved[room.worker.worker] = state
                del free[room.worker.worker]

    def _claims(self, since_ms: Callable[[ShapeState], int | None]) -> list[tuple[int, bytes]]:
        """Return since when those wait that want a reservation and could use one."""
        claims: list[tuple[int, bytes]] = []
        for name, state in list(self._wanting.items()):
            if not state.parked:
                del self._wanting[name]
            elif (since := since_ms(state)) is not None:
                claims.append((since, name))
        return claims

    def free(self, worker: WorkerId) -> None:
        """The worker is nobody's any more; its shape may want another."""
        state = self._reserved.pop(worker, None)
        if state is not None:
            self._freed.add(worker)
            self._wanting[state.shape.name] = state


def _differs(before: Candidate, now: Candidate) -> bool:
    return (
        before.incarnation != now.incarnation
        or before.type != now.type
        or before.labels != now.labels
        or before.total != now.total
    )
